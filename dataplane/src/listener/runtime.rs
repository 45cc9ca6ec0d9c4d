//! A configured listener as one worker runs it.

use std::{cell::Cell, rc::Rc, sync::Arc};

use crate::{
    http::HttpManager,
    observe::stats::ListenerStats,
    snapshot::{ChainSpec, ListenerSpec},
    tcp::TcpManager,
    worker::Worker,
};

/// One version of a listener. Connections keep the version they were accepted under.
pub struct ListenerRuntime {
    /// As configured.
    pub spec: Arc<ListenerSpec>,
    /// This worker's counters, shared by all versions.
    pub stats: Arc<ListenerStats>,
    /// What its connections meet.
    pub chain: Chain,
    draining: Cell<bool>,
}

/// The terminal filter with this worker's state.
pub enum Chain {
    /// An HTTP connection manager.
    Http(Rc<HttpManager>),
    /// A TCP proxy.
    Tcp(Rc<TcpManager>),
}

impl ListenerRuntime {
    /// Makes the worker's state of `spec`, taking the counters over from an earlier version.
    pub fn new(spec: Arc<ListenerSpec>, earlier: Option<&Rc<Self>>, worker: &Worker) -> Self {
        let registry = &worker.process.registry;
        let stats = earlier.map_or_else(
            || {
                let stats = Arc::new(ListenerStats::default());
                registry.register(stat_scope(&spec), stats.clone());
                stats
            },
            |earlier| earlier.stats.clone(),
        );
        let chain = match &spec.chain {
            ChainSpec::Http(http) => Chain::Http(Rc::new(HttpManager::new(http.clone(), worker))),
            ChainSpec::Tcp(tcp) => Chain::Tcp(Rc::new(TcpManager::new(tcp.clone(), worker))),
        };
        Self { spec, stats, chain, draining: Cell::new(false) }
    }

    /// From now on its connections close after their current request.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Whether [`ListenerRuntime::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// `listener.<stat_prefix or address>`, as Envoy names it: every `:` of the address becomes `_`.
fn stat_scope(spec: &ListenerSpec) -> String {
    if !spec.config.stat_prefix.is_empty() {
        return format!("listener.{}", spec.config.stat_prefix);
    }
    format!("listener.{}", spec.config.address.to_string().replace(':', "_"))
}
