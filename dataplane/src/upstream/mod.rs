//! Upstream clusters as a worker sees them: hosts, balancing, connection pools, limits.

mod balancer;
mod connect;
mod former;
mod host;
mod latency;
mod limit;
mod original_dst;
mod outlier;
mod pool;
mod queue;
mod quic;
mod shared;

use std::{
    any::Any,
    cell::{OnceCell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use culvert_model::{self as model, Discovery, ProxyVersion, RoutePriority, SubsetMatch};
use culvert_proto::{
    balance::{SubsetChoice, ZoneChoice},
    detect,
};

pub(crate) use connect::{keepalive, socket_for};
pub use host::{ActiveRequest, Host, PoolKey};
pub use limit::{Credit, Limit};
pub use outlier::{LocalFailure, Monitor, Tripped};
pub use pool::{AcquireError, IdleSet, Lent, TcpConn, discard_outdated, discard_where, janitor};

use crate::{
    capture::{PodHandle, splice::WorkerSplice},
    listener::Downstream,
    observe::stats::{
        ClusterStats, CodeStats, Http2Stats, Http3Stats, Registry, StatSet, SubsetStats, ZoneStats,
    },
    snapshot::{Children, ClusterSpec, HostSpec, Limits},
    tls::TlsStats,
    upstream::{balancer::Balancer, former::Former, original_dst::Passing},
    worker::Local,
};

/// Where an upstream connection is made from.
#[derive(Clone, Default)]
pub struct Via {
    /// In this pod's network namespace; `None` is the one culvert runs in.
    pub pod: Option<Rc<Local<PodHandle>>>,
    /// From this address, so that the application sees its client (inbound capture).
    pub source: Option<IpAddr>,
    /// Whose circuit breakers count.
    pub priority: RoutePriority,
    /// To a server of this name, where a request says so.
    pub names: Option<Rc<ServerNames>>,
    /// For the client's connection with these ends, where servers are told of them.
    pub ends: Option<Rc<Ends>>,
}

/// The client of a connection, and where it went to.
pub type Ends = (SocketAddr, SocketAddr);

/// The ends of `downstream`, if any endpoint of a cluster is told of them.
pub fn ends_for(cluster: &model::Cluster, downstream: &Downstream) -> Option<Rc<Ends>> {
    let matches = &cluster.transport_socket_matches;
    let told =
        cluster.proxy_protocol.is_some() || matches.iter().any(|socket| socket.proxy_protocol.is_some());
    if !told {
        return None;
    }
    Some(Rc::new((downstream.remote.socket()?, downstream.local.socket()?)))
}

/// A version of the PROXY protocol.
pub(crate) fn version_of(version: ProxyVersion) -> detect::ProxyVersion {
    match version {
        ProxyVersion::V1 => detect::ProxyVersion::V1,
        ProxyVersion::V2 => detect::ProxyVersion::V2,
    }
}

/// What a request calls the server that a connection is made to (`upstream_http_protocol_options`).
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ServerNames {
    /// The SNI; `None` for the configured one.
    pub sni: Option<Box<str>>,
    /// What the certificate has to be for.
    pub san: Option<Box<str>>,
}

/// What a request, or a connection, brings to the choice of a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'c> {
    /// For policies that hash.
    pub hash: Option<u64>,
    /// The labels that the host has to have, in clusters with subsets.
    pub subset: Option<&'c SubsetMatch>,
    /// Priorities that are not chosen while there are others that can be used, in order.
    pub without: &'c [u32],
    /// How many hosts were chosen before and would not do.
    pub attempt: u32,
    /// Where the downstream connection was going, for clusters of type ORIGINAL_DST.
    pub destination: Option<SocketAddr>,
}

/// A cluster with this worker's hosts and counters.
pub struct Cluster {
    spec: RefCell<Arc<ClusterSpec>>,
    config: RefCell<Rc<Local<model::Cluster>>>,
    hosts: RefCell<Vec<Rc<Host>>>,
    balancer: RefCell<Balancer>,
    /// Hosts of a cluster of type ORIGINAL_DST.
    passing: RefCell<Passing>,
    worker: usize,
    /// Over all workers.
    limits: Arc<Limits>,
    high_limits: Arc<Limits>,
    /// This worker's counters.
    pub stats: Arc<ClusterStats>,
    /// `upstream_rq_<code>`
    codes: Arc<CodeStats>,
    /// The same by origin, external and internal; each registered with the first.
    origins: [OnceCell<Arc<CodeStats>>; 2],
    /// `retry.upstream_rq_<code>`: answers that were not the last ones; registered with the first.
    retry_codes: OnceCell<Arc<CodeStats>>,
    /// `canary.upstream_rq_<code>`: answers of hosts that are on trial; registered with the first.
    canary_codes: OnceCell<Arc<CodeStats>>,
    /// Of handshakes; registered with the first.
    tls_stats: OnceCell<Arc<TlsStats>>,
    http2_stats: OnceCell<Arc<Http2Stats>>,
    http3_stats: OnceCell<Arc<Http3Stats>>,
    zone_stats: OnceCell<Arc<ZoneStats>>,
    subset_stats: OnceCell<Arc<SubsetStats>>,
    /// What filters keep of it, by their names for that.
    kept: RefCell<HashMap<Box<str>, Rc<dyn Any>>>,
    registry: Registry,
    /// For connections to applications and proxies of this node.
    splice: Rc<WorkerSplice>,
}

impl Cluster {
    /// The worker's state of `spec`; its counters appear in `registry`.
    pub fn new(spec: Arc<ClusterSpec>, worker: usize, registry: &Registry, splice: Rc<WorkerSplice>) -> Self {
        let scope = format!("cluster.{}", spec.config.stat_name);
        let stats = Arc::new(ClusterStats::default());
        registry.register(scope.clone(), stats.clone());
        let codes = Arc::new(CodeStats::upstream());
        registry.register(scope, codes.clone());
        let new = |host: &Arc<HostSpec>| Rc::new(Host::new(host.clone(), worker));
        let hosts: Vec<_> = spec.hosts.iter().map(new).collect();
        hosts.iter().for_each(|host| host.follow(&spec.config.lb_policy));
        Self {
            balancer: RefCell::new(Balancer::new(&spec)),
            hosts: RefCell::new(hosts),
            passing: RefCell::default(),
            worker,
            limits: spec.limits.clone(),
            high_limits: spec.high_limits.clone(),
            stats,
            codes,
            retry_codes: OnceCell::new(),
            canary_codes: OnceCell::new(),
            origins: Default::default(),
            tls_stats: OnceCell::new(),
            http2_stats: OnceCell::new(),
            http3_stats: OnceCell::new(),
            zone_stats: OnceCell::new(),
            subset_stats: OnceCell::new(),
            kept: RefCell::default(),
            registry: registry.clone(),
            splice,
            config: RefCell::new(Rc::new(Local(spec.config.clone()))),
            spec: RefCell::new(spec),
        }
    }

    /// What filters that call it `name` keep of this cluster for as long as it is there.
    pub fn keep<T: Default + 'static>(&self, name: &str) -> Rc<T> {
        let known = self.kept.borrow().get(name).cloned();
        if let Some(Ok(known)) = known.map(Rc::downcast) {
            return known;
        }
        let made = Rc::new(T::default());
        self.kept.borrow_mut().insert(name.into(), made.clone());
        made
    }

    /// The counters of filters for this cluster, in scope `cluster.<name>.<scope>`. They go when it goes.
    pub fn counters<T: StatSet + Default + Send + Sync + 'static>(&self, scope: &str) -> Arc<T> {
        let kept = self.keep::<OnceCell<Arc<T>>>(scope);
        kept.get_or_init(|| self.register(scope)).clone()
    }

    /// New counters in scope `cluster.<name>.<scope>`.
    pub fn register<T: StatSet + Default + Send + Sync + 'static>(&self, scope: &str) -> Arc<T> {
        let stats = Arc::new(T::default());
        self.registry.register(format!("cluster.{}.{scope}", self.config().stat_name), stats.clone());
        stats
    }

    /// Counts a response, whoever gave it. `internal`: the request came from inside the mesh.
    pub fn count(&self, status: u16, internal: bool) {
        self.codes.record(status);
        let origin = self.origins[usize::from(internal)].get_or_init(|| {
            let codes = Arc::new(CodeStats::upstream_by_origin(internal));
            let scope = format!("cluster.{}", self.spec.borrow().config.stat_name);
            self.registry.register(scope, codes.clone());
            codes
        });
        origin.record(status);
    }

    /// Counts an answer of a host that is on trial, beside [`Self::count`].
    pub fn count_canary(&self, status: u16) {
        let codes = self.canary_codes.get_or_init(|| {
            let codes = Arc::new(CodeStats::upstream());
            self.registry.register(format!("cluster.{}.canary", self.config().stat_name), codes.clone());
            codes
        });
        codes.record(status);
    }

    /// Counts what a request that was cut costs: the connection, or the stream of a `multiplexed` one. `remote`: the
    /// upstream did it.
    pub fn count_cut(&self, multiplexed: bool, remote: bool) {
        let stats = &self.stats;
        if multiplexed {
            // A connection that others share is counted when it ends.
            return stats.upstream_rq_tx_reset.inc();
        }
        stats.upstream_cx_destroy_with_active_rq.inc();
        if remote {
            stats.upstream_cx_destroy_remote.inc();
            stats.upstream_cx_destroy_remote_with_active_rq.inc();
        } else {
            stats.upstream_cx_destroy_local.inc();
            stats.upstream_cx_destroy_local_with_active_rq.inc();
        }
    }

    /// Takes over a newer version. Hosts whose address stayed keep their connections; others close theirs when idle. With
    /// `close_connections_on_host_set_change` a change of the addresses closes all. Calls `left` with each host that has
    /// connections which are not used any more.
    pub fn update(&self, spec: &Arc<ClusterSpec>, mut left: impl FnMut(&Rc<Host>)) {
        if Arc::ptr_eq(&self.spec.borrow(), spec) {
            return;
        }
        self.passing.borrow().follow((spec.passing_tls.as_ref(), spec.passing_proxy), &mut left);
        if Arc::ptr_eq(&self.spec.borrow().hosts, &spec.hosts) {
            // Their health at most.
            self.hosts.borrow().iter().filter(|host| host.notice_failure()).for_each(&mut left);
        } else {
            self.update_hosts(spec, left);
        }
        self.set_spec(spec);
    }

    fn update_hosts(&self, spec: &ClusterSpec, mut left: impl FnMut(&Rc<Host>)) {
        let logical = matches!(&spec.config.discovery, Discovery::Dns { options, .. } if options.logical);
        let mut former = Former::new(self.hosts.take());
        let renewed = spec.config.close_on_host_set_change && !former.is_at(spec);
        let next = spec.hosts.iter().map(|host| {
            let known = if renewed {
                None
            } else if logical {
                former.any()
            } else {
                former.at(&host.endpoint.address)
            };
            let Some(known) = known else { return Rc::new(Host::new(host.clone(), self.worker)) };
            if known.update(host) {
                left(&known);
            }
            known
        });
        let hosts: Vec<_> = next.collect();
        for gone in former.rest() {
            gone.removed.set(true);
            left(&gone);
        }
        hosts.iter().for_each(|host| host.follow(&spec.config.lb_policy));
        *self.hosts.borrow_mut() = hosts;
    }

    /// Marks all hosts removed: the cluster is gone, its idle connections close.
    pub fn retire(&self) {
        for host in self.hosts.borrow().iter() {
            host.removed.set(true);
        }
        self.passing.borrow().retire();
    }

    /// Counts an answer in spite of which the request is tried again.
    pub fn count_retried(&self, status: u16) {
        let codes = self.retry_codes.get_or_init(|| {
            let codes = Arc::new(CodeStats::upstream());
            self.registry.register(format!("cluster.{}.retry", self.config().stat_name), codes.clone());
            codes
        });
        codes.record(status);
    }

    /// The circuit breakers of a priority, and what they count.
    pub(super) fn breakers(&self, priority: RoutePriority) -> (model::CircuitBreakers, &Arc<Limits>) {
        let config = &self.spec.borrow().config;
        match priority {
            RoutePriority::Default => (config.circuit_breakers, &self.limits),
            RoutePriority::High => (config.high_priority_breakers, &self.high_limits),
        }
    }

    /// Counts the beginning of a request where the retry budget asks for those of the last so long.
    pub fn begin_request(&self, priority: RoutePriority) {
        let (breakers, limits) = self.breakers(priority);
        if let Some(budget) = breakers.retry_budget.filter(|budget| !budget.interval.is_zero()) {
            limits.recent.record(budget.interval, culvert_ring::time::now());
        }
    }

    fn tls_stats(&self) -> &TlsStats {
        self.tls_stats.get_or_init(|| {
            let stats = Arc::new(TlsStats::of_client());
            self.registry.register(format!("cluster.{}", self.config().stat_name), stats.clone());
            stats
        })
    }

    fn http2_stats(&self) -> Arc<Http2Stats> {
        let made = self.http2_stats.get_or_init(|| {
            let stats = Arc::new(Http2Stats::default());
            self.registry.register(format!("cluster.{}.http2", self.config().stat_name), stats.clone());
            stats
        });
        made.clone()
    }

    fn http3_stats(&self) -> Arc<Http3Stats> {
        let made = self.http3_stats.get_or_init(|| {
            let stats = Arc::new(Http3Stats::default());
            self.registry.register(format!("cluster.{}.http3", self.config().stat_name), stats.clone());
            stats
        });
        made.clone()
    }

    fn subset_stats(&self) -> &SubsetStats {
        self.subset_stats.get_or_init(|| {
            let stats = Arc::new(SubsetStats::default());
            self.registry.register(format!("cluster.{}", self.config().stat_name), stats.clone());
            stats
        })
    }

    fn zone_stats(&self) -> &ZoneStats {
        self.zone_stats.get_or_init(|| {
            let stats = Arc::new(ZoneStats::default());
            self.registry.register(format!("cluster.{}", self.config().stat_name), stats.clone());
            stats
        })
    }

    /// The cluster as configured.
    pub fn config(&self) -> Rc<Local<model::Cluster>> {
        self.config.borrow().clone()
    }

    fn set_spec(&self, spec: &Arc<ClusterSpec>) {
        *self.balancer.borrow_mut() = Balancer::new(spec);
        *self.config.borrow_mut() = Rc::new(Local(spec.config.clone()));
        *self.spec.borrow_mut() = spec.clone();
    }

    /// Of an aggregate cluster: the name of the one that serves this request. `None` for other clusters, and when none
    /// of them can.
    pub fn child(&self, rng: &mut fastrand::Rng) -> Option<Arc<str>> {
        let spec = self.spec.borrow();
        let shares = &spec.children.shares;
        let end = shares.iter().map(|(_, percent)| *percent).sum::<u8>();
        if end == 0 {
            return None;
        }
        let mut drawn = rng.u8(..end);
        let chosen = shares.iter().find(|(_, percent)| match drawn.checked_sub(*percent) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        });
        chosen.map(|(name, _)| name.clone())
    }

    /// Of an aggregate cluster: what it stands for.
    pub fn children(&self) -> Option<Arc<Children>> {
        let children = &self.spec.borrow().children;
        (!children.shares.is_empty()).then(|| children.clone())
    }

    /// Whether this request is one of those that `drop_overloads` sheds.
    pub fn sheds(&self, rng: &mut fastrand::Rng) -> bool {
        let spec = self.spec.borrow();
        let shed = spec.policy.drops.iter().any(|drop| rng.u32(..1_000_000) < drop.per_million);
        if shed {
            self.stats.upstream_rq_drop_overload.inc();
        }
        shed
    }

    /// Whether `drop_overloads` sheds every request.
    pub fn sheds_all(&self) -> bool {
        self.spec.borrow().policy.drops.iter().any(|drop| drop.per_million >= 1_000_000)
    }

    /// Whether [`Cluster::pick`] has just found nothing but at the priorities that it was not to choose.
    pub fn is_exhausted(&self) -> bool {
        self.balancer.borrow_mut().last_choice().0.exhausted
    }

    /// Chooses a host for one request; `None` when there is none to choose.
    pub fn pick(&self, rng: &mut fastrand::Rng, choice: Choice<'_>) -> Option<Rc<Host>> {
        let spec = self.spec.borrow();
        if let Discovery::OriginalDst(settings) = &spec.config.discovery {
            let destination = choice.destination?;
            let socket = (spec.passing_tls.as_ref(), spec.passing_proxy);
            return Some(self.passing.borrow_mut().host(settings, destination, socket, self.worker));
        }
        let hosts = self.hosts.borrow();
        let mut balancer = self.balancer.borrow_mut();
        let total = u32::try_from(self.stats.upstream_rq_active.value()).unwrap_or(0);
        let index = balancer.pick(&spec, choice, &hosts, total, rng);
        let (how, subset) = balancer.last_choice();
        match subset {
            SubsetChoice::None => {}
            SubsetChoice::Selected => self.subset_stats().lb_subsets_selected.inc(),
            SubsetChoice::Fallback => self.subset_stats().lb_subsets_fallback.inc(),
            SubsetChoice::Panic => self.subset_stats().lb_subsets_fallback_panic.inc(),
        }
        // Without hosts Envoy takes it that none is healthy.
        if how.panics || hosts.is_empty() && spec.config.panic_percent > 0 {
            self.stats.lb_healthy_panic.inc();
        }
        match how.zone {
            ZoneChoice::None => {}
            ZoneChoice::Direct => self.zone_stats().lb_zone_routing_all_directly.inc(),
            ZoneChoice::Sampled => self.zone_stats().lb_zone_routing_sampled.inc(),
            ZoneChoice::Crossed => self.zone_stats().lb_zone_routing_cross_zone.inc(),
        }
        hosts.get(index?).cloned()
    }
}
