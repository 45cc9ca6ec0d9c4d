//! A configured listener as one worker runs it.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use culvert_ring::time;

use crate::{
    http::HttpManager,
    observe::{
        names::listener_scope,
        stats::{ListenerStats, ListenerWorkerStats},
    },
    snapshot::{ChainSpec, ListenerSpec},
    tcp::TcpManager,
    tls::TlsStats,
    worker::Worker,
};

/// One version of a listener. Connections keep the version they were accepted under.
pub struct ListenerRuntime {
    /// As configured.
    pub spec: Arc<ListenerSpec>,
    /// This worker's counters, shared by all versions.
    pub stats: Arc<ListenerStats>,
    /// The same connections, counted by worker.
    pub worker_stats: Arc<ListenerWorkerStats>,
    /// What its connections meet.
    pub chain: Chain,
    tls_stats: OnceCell<Arc<TlsStats>>,
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
        let (stats, worker_stats) = earlier.map_or_else(
            || {
                let scope = stat_scope(&spec);
                let stats = Arc::new(ListenerStats::default());
                let worker_stats = Arc::new(ListenerWorkerStats::default());
                registry.register(format!("{scope}.worker_{}", worker.index), worker_stats.clone());
                registry.register(scope, stats.clone());
                (stats, worker_stats)
            },
            |earlier| (earlier.stats.clone(), earlier.worker_stats.clone()),
        );
        let tls_stats = earlier.map(|earlier| earlier.tls_stats.clone()).unwrap_or_default();
        let chain = match &spec.chain {
            ChainSpec::Http(http) => Chain::Http(Rc::new(HttpManager::new(http.clone(), worker))),
            ChainSpec::Tcp(tcp) => Chain::Tcp(Rc::new(TcpManager::new(tcp.clone(), worker))),
        };
        Self { spec, stats, worker_stats, chain, tls_stats, draining: Cell::new(false) }
    }

    /// Counters of its handshakes, which are there once there has been one.
    pub fn tls_stats(&self, worker: &Worker) -> &TlsStats {
        self.tls_stats.get_or_init(|| {
            let stats = Arc::new(TlsStats::of_server());
            worker.process.registry.register(stat_scope(&self.spec), stats.clone());
            stats
        })
    }

    /// From now on its connections close after their current request.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Counts a connection in; it is counted out when the guard is dropped.
    pub fn open(self: &Rc<Self>) -> OpenConnection {
        self.stats.downstream_cx_active.inc();
        self.worker_stats.downstream_cx_total.inc();
        self.worker_stats.downstream_cx_active.inc();
        OpenConnection { listener: self.clone(), since: time::now() }
    }

    /// Whether [`ListenerRuntime::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// An open connection of a listener.
pub struct OpenConnection {
    listener: Rc<ListenerRuntime>,
    since: Instant,
}

impl OpenConnection {
    /// Milliseconds since it was accepted.
    pub fn age_ms(&self) -> u64 {
        u64::try_from((time::now() - self.since).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let stats = &self.listener.stats;
        stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        stats.downstream_cx_length_ms.record(self.age_ms());
        self.listener.worker_stats.downstream_cx_active.dec();
    }
}

/// `listener.<stat_prefix or address>`, as Envoy names it: every `:` of the address becomes `_`.
fn stat_scope(spec: &ListenerSpec) -> String {
    if !spec.config.stat_prefix.is_empty() {
        return format!("listener.{}", spec.config.stat_prefix);
    }
    listener_scope(&spec.config.address)
}
