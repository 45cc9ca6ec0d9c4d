//! A configured listener as one worker runs it.

use std::{
    cell::OnceCell,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use culvert_model::FilterChain;
use culvert_proto::chain::{Facts, Selection};
use culvert_ring::time;

use crate::{
    listener::ChainRuntime,
    observe::{
        access::Loggers,
        names::listener_scope,
        stats::{ListenerStats, ListenerWorkerStats},
    },
    snapshot::{ChainSpec, ListenerSpec},
    tls::TlsStats,
    worker::{DrainPolicy, Worker},
};

/// One version of a listener. Connections keep the version they were accepted under.
pub struct ListenerRuntime {
    /// As configured.
    pub spec: Arc<ListenerSpec>,
    /// This worker's counters, shared by all versions.
    pub stats: Arc<ListenerStats>,
    /// The same connections, counted by worker.
    pub worker_stats: Arc<ListenerWorkerStats>,
    /// `access_log`
    pub logs: Rc<Loggers>,
    worker: Weak<Worker>,
    chains: Vec<Rc<ChainRuntime>>,
    default_chain: Option<Rc<ChainRuntime>>,
    tls_stats: OnceCell<Arc<TlsStats>>,
}

impl ListenerRuntime {
    /// Makes the worker's state of `spec`, taking over from an earlier version the counters and the chains that stayed.
    pub fn new(spec: Arc<ListenerSpec>, earlier: Option<&Rc<Self>>, worker: &Worker) -> Self {
        let registry = &worker.process.registry;
        let scope = stat_scope(&spec);
        let same_scope = earlier.filter(|earlier| stat_scope(&earlier.spec) == scope);
        let (stats, worker_stats) = same_scope.map_or_else(
            || {
                let stats = Arc::new(ListenerStats::default());
                let worker_stats = Arc::new(ListenerWorkerStats::default());
                registry.register(format!("{scope}.worker_{}", worker.index), worker_stats.clone());
                registry.register(scope.clone(), stats.clone());
                (stats, worker_stats)
            },
            |earlier| (earlier.stats.clone(), earlier.worker_stats.clone()),
        );
        let tls_stats = same_scope.map(|earlier| earlier.tls_stats.clone()).unwrap_or_default();
        let chain = |spec: &Arc<ChainSpec>| {
            let known =
                earlier.and_then(|earlier| earlier.chains().find(|known| Arc::ptr_eq(&known.spec, spec)));
            known.map_or_else(|| Rc::new(ChainRuntime::new(spec.clone(), &scope, worker)), Rc::clone)
        };
        let chains = spec.chains.iter().map(chain).collect();
        let default_chain = spec.default_chain.as_ref().map(chain);
        let same_logs = earlier.filter(|earlier| earlier.spec.config.fingerprint == spec.config.fingerprint);
        let logs = match same_logs {
            Some(earlier) => earlier.logs.clone(),
            None => Rc::new(worker.loggers(&spec.config.access_log)),
        };
        let worker = worker.handle();
        Self { stats, worker_stats, logs, worker, chains, default_chain, tls_stats, spec }
    }

    /// The worker it belongs to, as long as that runs.
    pub fn worker(&self) -> Option<Rc<Worker>> {
        self.worker.upgrade()
    }

    /// Counters of its handshakes, which are there once there has been one.
    pub fn tls_stats(&self, worker: &Worker) -> &TlsStats {
        self.tls_stats.get_or_init(|| {
            let stats = Arc::new(TlsStats::of_server());
            worker.process.registry.register(stat_scope(&self.spec), stats.clone());
            stats
        })
    }

    /// The chain of a connection, as far as that is known.
    pub(super) fn select(&self, facts: &Facts<'_>) -> Selected<'_> {
        let config = &self.spec.config;
        let found = match self.spec.select.select(facts) {
            Selection::Chain(index) => self.chains.get(index).zip(config.filter_chains.get(index)),
            Selection::Default => self.default_chain.as_ref().zip(config.default_filter_chain.as_ref()),
            Selection::Nothing => None,
            Selection::Undecided => return Selected::Undecided,
        };
        found.map_or(Selected::Nothing, |(chain, config)| Selected::Chain(chain, config))
    }

    /// From now on its connections end.
    pub fn drain_all(&self, policy: &DrainPolicy) {
        self.chains().for_each(|chain| chain.drain(policy));
    }

    /// From now on connections of chains that `next` does not have end.
    pub fn drain_but(&self, next: &Self, policy: &DrainPolicy) {
        let gone = self.chains().filter(|chain| next.chains().all(|kept| !Rc::ptr_eq(kept, chain)));
        gone.for_each(|chain| chain.drain(policy));
    }

    /// Counts a connection in; it is counted out when the guard is dropped.
    pub fn open(self: &Rc<Self>) -> OpenConnection {
        self.stats.downstream_cx_active.inc();
        self.worker_stats.downstream_cx_total.inc();
        self.worker_stats.downstream_cx_active.inc();
        OpenConnection { listener: self.clone(), since: time::now() }
    }

    fn chains(&self) -> impl Iterator<Item = &Rc<ChainRuntime>> {
        self.chains.iter().chain(&self.default_chain)
    }
}

/// What [`ListenerRuntime::select`] found.
pub(super) enum Selected<'a> {
    /// The chain, and its configuration in this version of the listener, which is equal to the chain's own.
    Chain(&'a Rc<ChainRuntime>, &'a Arc<FilterChain>),
    Nothing,
    /// It depends on the first bytes.
    Undecided,
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
