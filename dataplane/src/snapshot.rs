//! What workers run on: an immutable, compiled form of the configuration, built by `control` and shared by pointer.
//!
//! A part that did not change between two snapshots keeps its `Arc`, so a worker finds out what changed by comparing
//! pointers, and state that belongs to a part (a cluster's limits, a host's counters) survives updates of its neighbours.

mod avoided;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use culvert_model::{
    AssignmentPolicy, BasicAuth, Cluster, Compressor, ConnectionLimit, ConnectionRateLimit, CsrfPolicy,
    DiscoveredFilter, Endpoint, ExtAuthz, FilterChain, FilterStateValue, GlobalRateLimit, GrpcStats,
    HeaderChanges, HeaderMatcher, Health, HttpConnectionManager, HttpFault, HttpRbac, JwtAuthentication,
    Listener, NetworkRbac, ProxyVersion, TcpProxy,
};
use culvert_proto::{
    balance::{ChildPriorities, HostSet, LocalZones, Rules, SubsetIndex},
    bucket::Bucket,
    chain::Chains,
    filter::{AccessControl, RateLimit},
    rbac::Engine,
    retry::Recent,
    route::{Scopes, Table},
};

use crate::{
    stat_set,
    tls::{ClientContext, Slot},
    upstream::Monitor,
};

pub use avoided::AvoidedSets;

/// One generation of the configuration. Maps that did not change are shared with the generation before.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Increases by one with every snapshot.
    pub generation: u64,
    /// By listener name.
    pub listeners: Arc<HashMap<Arc<str>, Arc<ListenerSpec>>>,
    /// Route tables of RDS sources, by route configuration name.
    pub routes: Arc<HashMap<Arc<str>, Arc<Table>>>,
    /// Scopes of connection managers with scoped routes, by [`RouteSpec::Scoped`].
    pub scopes: Arc<HashMap<Arc<str>, Arc<Scopes<RouteSpec>>>>,
    /// HTTP filters from ECDS, by where they come from and their name.
    pub extensions: Arc<HashMap<Arc<str>, Extension>>,
    /// By cluster name.
    pub clusters: Arc<HashMap<Arc<str>, Arc<ClusterSpec>>>,
    /// Clusters that were added, changed or removed since the generation before.
    pub changed_clusters: Vec<Arc<str>>,
    /// When what is new in it arrived in the process, if it came from a control plane or file.
    pub arrived: Option<Instant>,
    /// Runtime values by their keys.
    pub runtime: Arc<BTreeMap<String, String>>,
}

/// A listener and what its connections meet.
pub struct ListenerSpec {
    /// As configured.
    pub config: Arc<Listener>,
    /// Which chain a connection meets.
    pub select: Chains,
    /// `filter_chains`, in configuration order. A chain that stayed keeps its identity as long as the listener differs
    /// in its chains alone.
    pub chains: Vec<Arc<ChainSpec>>,
    /// `default_filter_chain`
    pub default_chain: Option<Arc<ChainSpec>>,
}

/// A filter chain.
pub struct ChainSpec {
    /// As configured.
    pub config: Arc<FilterChain>,
    /// Its filters before the last one.
    pub filters: Vec<FilterSpec>,
    /// Its last filter; without one its connections are closed.
    pub terminal: Option<TerminalSpec>,
    /// Whether its filters look at what listener filters find out about the first bytes.
    pub reads_opening: bool,
}

/// The terminal filter of a chain.
pub enum TerminalSpec {
    /// An HTTP connection manager.
    Http(Arc<HttpSpec>),
    /// A TCP proxy.
    Tcp(Arc<TcpProxy>),
    /// This is sent, and the connection closed.
    DirectResponse(Arc<[u8]>),
    /// What is received is sent back.
    Echo,
}

/// A network filter before the terminal one: its configuration, and what all workers share.
#[derive(Clone)]
pub enum FilterSpec {
    /// `connection_limit`
    ConnectionLimit(Arc<ConnectionLimitSpec>),
    /// `local_ratelimit`
    LocalRateLimit(Arc<RateLimitSpec>),
    /// `rbac`
    Rbac(Arc<RbacSpec>),
    /// `set_filter_state`
    SetFilterState(Arc<Vec<FilterStateValue>>),
    /// `sni_cluster`
    SniCluster,
}

/// A limit of connections.
pub struct ConnectionLimitSpec {
    /// As configured.
    pub config: Arc<ConnectionLimit>,
    /// Connections that are open under it.
    pub open: AtomicU64,
}

/// A limit of new connections.
pub struct RateLimitSpec {
    /// As configured.
    pub config: Arc<ConnectionRateLimit>,
    /// Its tokens, in nanoseconds after `since`.
    pub bucket: Bucket,
    /// When it was made.
    pub since: Instant,
}

/// Access control with compiled rules.
pub struct RbacSpec {
    /// As configured.
    pub config: Arc<NetworkRbac>,
    /// What is enforced.
    pub rules: Option<Engine>,
    /// What is only counted.
    pub shadow_rules: Option<Engine>,
}

/// A connection manager with compiled routes.
pub struct HttpSpec {
    /// As configured.
    pub config: Arc<HttpConnectionManager>,
    /// Its routes.
    pub routes: RouteSpec,
    /// Its filters before the router.
    pub filters: Vec<HttpFilterSpec>,
}

/// An HTTP filter before the router.
pub struct HttpFilterSpec {
    /// By which routes refer to it.
    pub name: String,
    /// Whether it is off where no route turns it on.
    pub disabled: bool,
    /// What it is: its configuration, and what all workers share.
    pub kind: HttpFilterKind,
}

/// What an HTTP filter is.
pub enum HttpFilterKind {
    /// `buffer`
    Buffer(u32),
    /// `compressor`
    Compressor(Arc<Compressor>),
    /// `basic_auth`
    BasicAuth(Arc<BasicAuth>),
    /// `cors`
    Cors,
    /// `csrf`
    Csrf(Arc<CsrfPolicy>),
    /// From ECDS.
    Discovered {
        /// Its place in [`Snapshot::extensions`].
        id: Arc<str>,
        /// What it is until then.
        default: Option<Arc<Self>>,
        /// As configured.
        config: Arc<DiscoveredFilter>,
    },
    /// `ext_authz`
    ExtAuthz(Arc<ExtAuthz>),
    /// `fault`
    Fault(Arc<FaultSpec>),
    /// `grpc_stats`
    GrpcStats(Arc<GrpcStats>),
    /// `grpc_web`
    GrpcWeb,
    /// `header_mutation`
    HeaderMutation {
        /// Its own changes.
        changes: Arc<HeaderChanges>,
        /// Whether changes of the most specific level of routes come last.
        most_specific_wins: bool,
    },
    /// `health_check`, without an upstream.
    HealthCheck(Arc<Vec<HeaderMatcher>>),
    /// `jwt_authn`
    Jwt(Arc<JwtAuthentication>),
    /// `local_ratelimit`
    LocalRateLimit(Arc<RateLimit>),
    /// `ratelimit`
    RateLimit(Arc<GlobalRateLimit>),
    /// `rbac`
    Rbac(Arc<HttpRbacSpec>),
    /// One that there is not; it refuses what would go through it.
    Unsupported,
}

/// What ECDS says of a filter that is asked for. It is not there as long as nothing was said, and once nobody asks.
#[derive(Clone)]
pub enum Extension {
    /// What came last.
    Came(Arc<DiscoveredSpec>),
    /// It came, and was removed.
    Gone,
}

/// A filter from ECDS.
pub struct DiscoveredSpec {
    /// Full name of the message in its `typed_config`.
    pub type_name: String,
    /// What it is.
    pub kind: HttpFilterKind,
}

/// Faults on purpose.
pub struct FaultSpec {
    /// As configured.
    pub config: Arc<HttpFault>,
    /// Requests that have one.
    pub active: AtomicU64,
}

/// Access control of requests.
pub struct HttpRbacSpec {
    /// As configured.
    pub config: Arc<HttpRbac>,
    /// Its rules, compiled.
    pub control: AccessControl,
}

/// Where a connection manager finds its route table.
#[derive(Clone)]
pub enum RouteSpec {
    /// Part of the connection manager.
    Inline(Arc<Table>),
    /// Looked up in [`Snapshot::routes`] for every request, so that an update reaches open connections.
    Rds(Arc<str>),
    /// Looked up in [`Snapshot::scopes`], which say which of the others it is.
    Scoped(Arc<str>),
}

/// A cluster with its current endpoints.
pub struct ClusterSpec {
    /// As configured.
    pub config: Arc<Cluster>,
    /// In configuration order. An endpoint that stayed keeps its counters.
    pub hosts: Arc<[Arc<HostSpec>]>,
    /// Of a cluster of type ORIGINAL_DST: [`HostSpec::tls`] of its endpoints.
    pub passing_tls: Option<Arc<Slot<ClientContext>>>,
    /// Of a cluster of type ORIGINAL_DST: [`HostSpec::proxy`] of its endpoints.
    pub passing_proxy: Option<ProxyVersion>,
    /// `ClusterLoadAssignment.policy`
    pub policy: AssignmentPolicy,
    /// Of an aggregate cluster: those it stands for.
    pub children: Arc<Children>,
    /// The zones of the cluster that Culvert is a part of, for zone-aware routing.
    pub local: Option<Arc<LocalZones>>,
    /// Shared by all workers and by later versions of the cluster.
    pub limits: Arc<Limits>,
    /// Those of priority HIGH.
    pub high_limits: Arc<Limits>,
    /// See [`ClusterSpec::arranged`].
    pub arranged: OnceLock<Arranged>,
    /// See [`ClusterSpec::arranged_without`].
    pub without: AvoidedSets,
}

/// What an aggregate cluster stands for.
#[derive(Default, PartialEq)]
pub struct Children {
    /// In order, with how many percent of the requests they get.
    pub shares: Vec<(Arc<str>, u8)>,
    /// Their priorities.
    pub priorities: ChildPriorities,
}

impl ClusterSpec {
    /// A version of the cluster that is as it is, and not arranged yet.
    pub fn version(&self) -> Self {
        Self {
            config: self.config.clone(),
            hosts: self.hosts.clone(),
            passing_tls: self.passing_tls.clone(),
            passing_proxy: self.passing_proxy,
            policy: self.policy.clone(),
            children: self.children.clone(),
            local: self.local.clone(),
            limits: self.limits.clone(),
            high_limits: self.high_limits.clone(),
            arranged: OnceLock::new(),
            without: AvoidedSets::default(),
        }
    }

    /// Has [`ClusterSpec::arranged`] made before a worker asks: where `before`, the version in use, was asked, and where
    /// choosing takes tables or subsets, unless it is one of `many`: thousands of tables, of which most are never used, would
    /// take seconds and gigabytes. What nobody uses yet costs nothing otherwise.
    pub fn prepare(&self, before: Option<&Self>, many: bool) {
        let is_asked = before.is_some_and(|before| before.arranged.get().is_some());
        if is_asked || !many && (self.config.lb_policy.hashes() || self.config.subsets.is_some()) {
            self.arranged();
        }
    }

    /// The hosts as the cluster's policy chooses among them. Made for the first who asks, shared by all.
    pub fn arranged(&self) -> &Arranged {
        self.arranged.get_or_init(|| self.arrange(&[]))
    }

    /// As [`ClusterSpec::arranged`], without hosts of these priorities as long as there are others that can be used.
    pub fn arranged_without(&self, priorities: &[u32]) -> Arranged {
        self.without.get(priorities, || self.arrange(priorities))
    }

    fn arrange(&self, without: &[u32]) -> Arranged {
        let now: Vec<Cow<'_, Endpoint>> = self.hosts.iter().map(|host| host.now()).collect();
        let endpoints: Vec<&Endpoint> = now.iter().map(AsRef::as_ref).collect();
        let config = &self.config;
        let rules = Rules {
            policy: &config.lb_policy,
            assignment: &self.policy,
            panic_percent: config.panic_percent,
            localities: config.localities,
            local: self.local.as_deref(),
            without,
        };
        match &config.subsets {
            Some(subsets) => Arranged::Subsets(Arc::new(SubsetIndex::new(&endpoints, &rules, subsets))),
            None => Arranged::Whole(Arc::new(HostSet::new(&endpoints, &rules))),
        }
    }
}

/// Hosts as they are chosen from.
#[derive(Clone)]
pub enum Arranged {
    /// By the labels that are asked for.
    Subsets(Arc<SubsetIndex>),
    /// All of them.
    Whole(Arc<HostSet>),
}

/// An endpoint.
pub struct HostSpec {
    /// As configured or resolved.
    pub endpoint: Arc<Endpoint>,
    /// Its own limits, of clusters with `per_host_thresholds`; shared with later versions of the same address.
    pub limits: Option<Arc<Limits>>,
    /// Where what its connections are encrypted with is found; `None` leaves them in the clear.
    pub tls: Option<Arc<Slot<ClientContext>>>,
    /// The header that its connections begin with.
    pub proxy: Option<ProxyVersion>,
    /// What was found out about it and counted; shared with later versions of the same address.
    pub state: Arc<HostState>,
    /// What is known of its requests, in clusters with outlier detection; shared with later versions of the same address.
    pub outlier: Option<Arc<Monitor>>,
}

impl HostSpec {
    /// Its health by discovery and by what was found out about it.
    pub fn current_health(&self) -> Health {
        self.state.with(self.endpoint.health)
    }

    /// The endpoint with its present health.
    pub fn now(&self) -> Cow<'_, Endpoint> {
        let health = self.current_health();
        if health == self.endpoint.health {
            Cow::Borrowed(&self.endpoint)
        } else {
            Cow::Owned(Endpoint { health, ..(*self.endpoint).clone() })
        }
    }

    /// Whether connections to `self` may go on being used for `other`, a version of the same address.
    pub fn is_reached_like(&self, other: &Self) -> bool {
        Slot::is_same(self.tls.as_ref(), other.tls.as_ref())
            && self.proxy == other.proxy
            && (self.tls.is_none() || self.endpoint.hostname == other.endpoint.hostname)
    }
}

/// What Culvert itself found out about a host: its health, by Envoy's health flags, and what was counted. The flags are
/// written by the control thread, which publishes a snapshot after changes that concern the choice of hosts.
pub struct HostState {
    flags: AtomicU32,
    /// When it was made, or passed its checks again; in milliseconds after [`START`].
    healthy_since: AtomicU64,
    /// One set per worker.
    pub counters: HostCounters,
}

/// Some time before there is any host.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.flags.load(Ordering::Relaxed);
        f.debug_struct("HostState").field("flags", &format_args!("{flags:#x}")).finish_non_exhaustive()
    }
}

fn now_ms() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One bit of a [`HostState`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum HealthFlag {
    /// Its active health check fails.
    FailedActive = 1,
    /// Its active health check says that it is degraded.
    DegradedActive = 1 << 1,
    /// It was ejected as an outlier.
    FailedOutlier = 1 << 2,
    /// Discovery does not know it any more; it stays until it fails a check.
    PendingRemoval = 1 << 3,
    /// It waits for its first check, and new hosts are to be ignored until then.
    PendingActive = 1 << 4,
    /// Its answer to a check asked to be left out.
    Excluded = 1 << 5,
    /// The last check that failed got no answer in time.
    ActiveTimeout = 1 << 6,
    /// It is to be checked, and was not yet.
    Unchecked = 1 << 7,
}

impl HostState {
    /// Of a new host, counted by so many workers.
    pub fn new(workers: usize) -> Self {
        let counters = HostCounters::new(workers);
        Self { flags: AtomicU32::new(0), healthy_since: AtomicU64::new(now_ms()), counters }
    }

    /// Whether `flag` is set.
    pub fn has(&self, flag: HealthFlag) -> bool {
        self.flags.load(Ordering::Relaxed) & flag as u32 != 0
    }

    /// Sets or clears `flag`. Whether that changed anything.
    pub fn set(&self, flag: HealthFlag, on: bool) -> bool {
        let bit = flag as u32;
        let before = if on {
            self.flags.fetch_or(bit, Ordering::Relaxed)
        } else {
            self.flags.fetch_and(!bit, Ordering::Relaxed)
        };
        let changed = (before & bit != 0) != on;
        if changed && !on && flag == HealthFlag::FailedActive {
            self.healthy_since.store(now_ms(), Ordering::Relaxed);
        }
        changed
    }

    /// For how long the host has been there, or has passed its checks.
    pub fn age(&self, now: Instant) -> Duration {
        let since = *START + Duration::from_millis(self.healthy_since.load(Ordering::Relaxed));
        now.saturating_duration_since(since)
    }

    /// Whether it fails its checks or is ejected: connections to it are given up.
    pub fn is_failed(&self) -> bool {
        self.has(HealthFlag::FailedActive) || self.has(HealthFlag::FailedOutlier)
    }

    /// The health of a host of which discovery says `told`.
    pub fn with(&self, told: Health) -> Health {
        if self.has(HealthFlag::PendingActive) || self.has(HealthFlag::Excluded) {
            Health::Excluded
        } else if self.is_failed() {
            Health::Unhealthy
        } else if told == Health::Healthy && self.has(HealthFlag::DegradedActive) {
            Health::Degraded
        } else {
            told
        }
    }
}

stat_set! {
    /// One worker's share of a host's counters, as `/clusters` shows them.
    pub struct HostStats {
        gauge cx_active,
        counter cx_connect_fail,
        counter cx_total,
        gauge rq_active,
        counter rq_error,
        counter rq_success,
        counter rq_timeout,
        counter rq_total,
    }
}

/// The counters of a host, one set per worker. Made with the first request: most hosts of a large mesh never have one on
/// this node.
pub struct HostCounters {
    workers: usize,
    made: OnceLock<Box<[HostStats]>>,
}

impl HostCounters {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers, made: OnceLock::new() }
    }

    /// Those of one worker.
    pub fn of(&self, worker: usize) -> &HostStats {
        &self.made()[worker]
    }

    /// Those of the control thread, which counts connections that workers know nothing of.
    pub fn of_control(&self) -> &HostStats {
        &self.made()[self.workers]
    }

    fn made(&self) -> &[HostStats] {
        self.made.get_or_init(|| (0..=self.workers).map(|_| HostStats::default()).collect())
    }

    /// Those that anything was counted in.
    pub fn iter(&self) -> impl Iterator<Item = &HostStats> {
        self.made.get().into_iter().flatten()
    }
}

/// Requests of a cluster that began not long ago. Made when a retry budget first asks for it.
#[derive(Debug, Default)]
pub struct RecentRequests(OnceLock<Box<(Recent, Instant)>>);

impl RecentRequests {
    /// Counts a request that begins `now`, among those of the last `interval`.
    pub fn record(&self, interval: Duration, now: Instant) {
        let (recent, since) = self.counted(interval, now);
        recent.record(nanos(now.saturating_duration_since(*since)));
    }

    /// How many began in the last `interval`. An interval that was changed counts from the next start on.
    pub fn count(&self, interval: Duration, now: Instant) -> u32 {
        let (recent, since) = self.counted(interval, now);
        recent.count(nanos(now.saturating_duration_since(*since)))
    }

    fn counted(&self, interval: Duration, now: Instant) -> &(Recent, Instant) {
        self.0.get_or_init(|| Box::new((Recent::new(nanos(interval)), now)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the circuit breakers of a cluster count, over all workers: exact, because every change is one atomic operation
/// on a shared word.
#[derive(Debug, Default)]
pub struct Limits {
    /// Open upstream connections.
    pub connections: AtomicU32,
    /// Requests that wait for a connection.
    pub pending: AtomicU32,
    /// Requests that have a connection.
    pub requests: AtomicU32,
    /// Requests that are tried again.
    pub retries: AtomicU32,
    /// Requests that began not long ago, where a retry budget asks.
    pub recent: RecentRequests,
}
