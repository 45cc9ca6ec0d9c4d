//! Upstream clusters as a worker sees them: hosts, balancing, connection pools, limits.

mod host;
mod limit;
mod pool;

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use culvert_model as model;

pub use host::{ActiveRequest, Host, PoolKey};
pub use limit::{Credit, Limit};
pub use pool::{AcquireError, IdleSet, Lent, TunnelConn, discard_where, janitor};

use crate::{
    capture::PodHandle,
    observe::stats::{ClusterStats, CodeStats, Registry},
    snapshot::{ClusterSpec, Limits},
    tls::{ClientContext, Slot, TlsStats},
    upstream::balancer::Balancer,
};

mod balancer;

/// Where an upstream connection is made from.
#[derive(Clone, Default)]
pub struct Via {
    /// In this pod's network namespace; `None` is the one culvert runs in.
    pub pod: Option<Arc<PodHandle>>,
    /// From this address, so that the application sees its client (inbound capture).
    pub source: Option<IpAddr>,
}

impl Via {
    /// What connections made this way are pooled under.
    pub fn key(&self) -> PoolKey {
        PoolKey { pod: self.pod.as_ref().map_or(0, |pod| pod.id), source: self.source }
    }
}

/// A cluster with this worker's hosts and counters.
pub struct Cluster {
    spec: RefCell<Arc<ClusterSpec>>,
    hosts: RefCell<Vec<Rc<Host>>>,
    balancer: RefCell<Balancer>,
    worker: usize,
    /// Whether it was said that requests cannot be forwarded to it.
    refused: Cell<bool>,
    /// Over all workers.
    pub limits: Arc<Limits>,
    /// This worker's counters.
    pub stats: Arc<ClusterStats>,
    /// `upstream_rq_<code>`
    pub codes: Arc<CodeStats>,
    /// Of handshakes; registered with the first.
    tls_stats: OnceCell<Arc<TlsStats>>,
    registry: Registry,
}

impl Cluster {
    /// The worker's state of `spec`; its counters appear in `registry`.
    pub fn new(spec: Arc<ClusterSpec>, worker: usize, registry: &Registry) -> Self {
        let scope = format!("cluster.{}", spec.config.stat_name);
        let stats = Arc::new(ClusterStats::default());
        registry.register(scope.clone(), stats.clone());
        let codes = Arc::new(CodeStats::upstream());
        registry.register(scope, codes.clone());
        let hosts: Vec<_> = spec.hosts.iter().map(|host| Rc::new(Host::new(host.clone(), worker))).collect();
        Self {
            balancer: RefCell::new(Balancer::new(&spec)),
            hosts: RefCell::new(hosts),
            worker,
            refused: Cell::new(false),
            limits: spec.limits.clone(),
            stats,
            codes,
            tls_stats: OnceCell::new(),
            registry: registry.clone(),
            spec: RefCell::new(spec),
        }
    }

    /// Takes over a newer version. Hosts whose address stayed keep their connections; others close theirs when idle.
    pub fn update(&self, spec: &Arc<ClusterSpec>) {
        if Arc::ptr_eq(&self.spec.borrow(), spec) {
            return;
        }
        let mut old = self.hosts.take();
        let mut hosts = Vec::with_capacity(spec.hosts.len());
        for host in spec.hosts.iter() {
            let same = |known: &Rc<Host>| known.spec().endpoint.address == host.endpoint.address;
            match old.iter().position(same) {
                Some(at) => {
                    let known = old.swap_remove(at);
                    known.update(host.clone());
                    hosts.push(known);
                }
                None => hosts.push(Rc::new(Host::new(host.clone(), self.worker))),
            }
        }
        for gone in old {
            gone.removed.set(true);
        }
        *self.balancer.borrow_mut() = Balancer::new(spec);
        *self.hosts.borrow_mut() = hosts;
        *self.spec.borrow_mut() = spec.clone();
    }

    /// Marks all hosts removed: the cluster is gone, its idle connections close.
    pub fn retire(&self) {
        for host in self.hosts.borrow().iter() {
            host.removed.set(true);
        }
    }

    /// Where what its connections are encrypted with is found; `None` leaves them in the clear.
    fn tls(&self) -> Option<Arc<Slot<ClientContext>>> {
        self.spec.borrow().tls.clone()
    }

    fn tls_stats(&self) -> &TlsStats {
        self.tls_stats.get_or_init(|| {
            let stats = Arc::new(TlsStats::of_client());
            self.registry.register(format!("cluster.{}", self.config().stat_name), stats.clone());
            stats
        })
    }

    /// The cluster as configured.
    pub fn config(&self) -> Arc<model::Cluster> {
        self.spec.borrow().config.clone()
    }

    /// Counts a request that would need HTTP/2; the first one is logged.
    fn refuse_http2(&self) {
        self.stats.upstream_cx_protocol_error.inc();
        if !self.refused.replace(true) {
            let name = &self.spec.borrow().config.name;
            log::error!(target: "upstream", "cluster {name}: requests are not forwarded over HTTP/2: answered with 503");
        }
    }

    /// Chooses a host for one request; `None` when there is none to choose.
    pub fn pick(&self, rng: &mut fastrand::Rng) -> Option<Rc<Host>> {
        let hosts = self.hosts.borrow();
        let index = self.balancer.borrow_mut().pick(&hosts, rng)?;
        hosts.get(index).cloned()
    }
}
