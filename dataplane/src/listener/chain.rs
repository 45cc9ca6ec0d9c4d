//! A filter chain as one worker runs it, and how its connections end when it is no longer configured.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use culvert_ring::{
    task::{self, TaskId},
    time,
};

use crate::{
    http::HttpManager,
    listener::Filter,
    snapshot::{ChainSpec, TerminalSpec},
    tcp::TcpManager,
    tls::ServerContext,
    worker::{DrainPolicy, Worker},
};

/// One version of a filter chain. It outlives versions of its listener in which it stayed the same.
pub struct ChainRuntime {
    /// As configured.
    pub spec: Arc<ChainSpec>,
    /// What its connections meet first.
    pub(super) filters: Vec<Filter>,
    /// What its connections meet at last; they are closed where there is nothing.
    pub terminal: Option<Terminal>,
    /// What QUIC makes of the TLS context that was in force last.
    pub(super) quic: RefCell<Option<QuicContext>>,
    draining: Cell<Option<Draining>>,
    /// Whether the end of the drain time is waited for.
    waiting: Cell<bool>,
    /// Tasks of the connections that are open.
    open: RefCell<HashMap<u64, Option<TaskId>>>,
    next: Cell<u64>,
}

type QuicContext = (Arc<ServerContext>, Arc<culvert_quic::ServerConfig>);

/// The terminal filter with this worker's state.
pub enum Terminal {
    /// An HTTP connection manager.
    Http(Rc<HttpManager>),
    /// A TCP proxy.
    Tcp(Rc<TcpManager>),
    /// This is sent, and the connection closed.
    DirectResponse(Arc<[u8]>),
    /// What is received is sent back.
    Echo,
}

#[derive(Clone, Copy)]
struct Draining {
    since: Instant,
    policy: DrainPolicy,
}

impl ChainRuntime {
    /// Makes the worker's state of `spec`.
    pub(super) fn new(spec: Arc<ChainSpec>, scope: &str, worker: &Worker) -> Self {
        let terminal = spec.terminal.as_ref().map(|terminal| match terminal {
            TerminalSpec::Http(http) => {
                Terminal::Http(Rc::new(HttpManager::new(http.clone(), scope, worker)))
            }
            TerminalSpec::DirectResponse(response) => Terminal::DirectResponse(response.clone()),
            TerminalSpec::Echo => Terminal::Echo,
            TerminalSpec::Tcp(tcp) => Terminal::Tcp(Rc::new(TcpManager::new(tcp.clone(), worker))),
        });
        let filters = spec.filters.iter().map(|filter| Filter::new(filter, worker)).collect();
        Self {
            spec,
            filters,
            terminal,
            quic: RefCell::default(),
            draining: Cell::new(None),
            waiting: Cell::new(false),
            open: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// From now on its connections are asked to end; those that are open after the drain time are cut.
    pub(super) fn drain(self: &Rc<Self>, policy: &DrainPolicy) {
        if self.draining.get().is_some() {
            return;
        }
        self.draining.set(Some(Draining { since: time::now(), policy: *policy }));
        // Without connections nothing has to wait, nor to keep the chain.
        if !self.open.borrow().is_empty() {
            self.cut_in_time();
        }
    }

    /// Cuts what is left of its connections at the end of the drain time.
    fn cut_in_time(self: &Rc<Self>) {
        let Some(Draining { since, policy }) = self.draining.get() else { return };
        if self.waiting.replace(true) {
            return;
        }
        let chain = self.clone();
        task::spawn(async move {
            time::sleep((since + policy.time).saturating_duration_since(time::now())).await;
            let left = std::mem::take(&mut *chain.open.borrow_mut());
            left.into_values().flatten().for_each(task::abort);
        });
    }

    /// Whether a connection that could end now should. While draining is gradual the answer is yes more and more often.
    pub fn should_end(&self, worker: &Worker) -> bool {
        let Some(Draining { since, policy }) = self.draining.get() else { return false };
        if !policy.gradual {
            return true;
        }
        let passed = (time::now() - since).as_secs_f64();
        worker.rng.borrow_mut().f64() * policy.time.as_secs_f64() < passed
    }

    /// Keeps account of a connection that is about to be served; [`Place::served_by`] says by which task.
    pub(super) fn enter(self: &Rc<Self>) -> Place {
        let key = self.next.get();
        self.next.set(key + 1);
        self.open.borrow_mut().insert(key, None);
        self.cut_in_time();
        Place { chain: self.clone(), key }
    }

    /// The task that serves the connection of that place.
    pub(super) fn served_by(&self, key: u64, task: TaskId) {
        if let Some(place) = self.open.borrow_mut().get_mut(&key) {
            *place = Some(task);
        }
    }
}

/// A connection among those of its chain, until it is dropped.
pub struct Place {
    pub(super) chain: Rc<ChainRuntime>,
    pub(super) key: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.chain.open.borrow_mut().remove(&self.key);
    }
}
