//! Building snapshots: from the resources in force to what workers run on.

mod aggregate;
mod hosts;
mod http_filter;
mod listener;
mod route;
mod socket;
mod zones;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use culvert_model::{
    CircuitBreakers, Cluster, Config, Discovery, LoadAssignment, Locality, ResourceKey, RouteSource,
    SourceSpecifier,
};
use culvert_proto::route::Scopes;
use culvert_xds::Changes;
use tokio::sync::mpsc::UnboundedSender;

use hosts::count_members;
pub(super) use hosts::is_checked;
use socket::Sockets;
pub(super) use socket::{proxy_for, tls_for};
use zones::Zones;

use crate::{
    control::sources::Breakers,
    observe::stats::{ClusterControlStats, ClusterManagerStats, Registry},
    snapshot::{AvoidedSets, ClusterSpec, HealthFlag, HostSpec, Limits, RouteSpec, Snapshot},
    tls::Contexts,
    upstream::Tripped,
};

/// Endpoints of DNS clusters, by cluster name.
pub(super) type Resolved = HashMap<Arc<str>, Arc<LoadAssignment>>;

/// Of so many clusters at a time tables are made before workers ask.
const PREPARED_MAX: usize = 64;

/// Builds each snapshot from the one before: what did not change is not looked at again and keeps its identity.
pub(super) struct Builder {
    workers: usize,
    registry: Registry,
    contexts: Arc<Contexts>,
    manager_stats: Arc<ClusterManagerStats>,
    tripped: UnboundedSender<Tripped>,
    last: Snapshot,
    clusters: HashMap<Arc<str>, Known>,
    /// Names of EDS clusters by their load assignment.
    users: HashMap<ResourceKey, Vec<Arc<str>>>,
    /// Names of aggregate clusters.
    aggregates: BTreeSet<Arc<str>>,
    /// Clusters that serve on as they were until the names of their new version are resolved.
    held: HashSet<Arc<str>>,
    /// Versions of clusters whose hosts are checked for the first time. Until then the version before serves on, if there
    /// is one.
    warming: HashMap<Arc<str>, Known>,
    /// How many those are.
    unchecked: Arc<AtomicU64>,
    /// Whether new versions of clusters have to warm. The start itself waits for what it begins with.
    warms: bool,
    zones: Zones,
}

/// A cluster of the snapshot before.
#[derive(Clone)]
struct Known {
    spec: Arc<ClusterSpec>,
    endpoints: Arc<LoadAssignment>,
    stats: Arc<ClusterControlStats>,
    /// Of priority DEFAULT, and of HIGH where it has limits.
    breakers: (Arc<Breakers>, Option<Arc<Breakers>>),
    sockets: Arc<Sockets>,
}

impl Builder {
    /// A builder for this many workers; membership counters of clusters appear in `registry`.
    /// Hosts that fail too often in a row are sent to `tripped`.
    pub(super) fn new(
        workers: usize,
        registry: Registry,
        contexts: Arc<Contexts>,
        tripped: UnboundedSender<Tripped>,
    ) -> Self {
        let manager_stats = Arc::new(ClusterManagerStats::default());
        registry.register("cluster_manager", manager_stats.clone());
        Self {
            workers,
            registry,
            contexts,
            manager_stats,
            tripped,
            last: Snapshot::default(),
            clusters: HashMap::new(),
            users: HashMap::new(),
            aggregates: BTreeSet::new(),
            held: HashSet::new(),
            warming: HashMap::new(),
            unchecked: Arc::default(),
            warms: false,
            zones: Zones::default(),
        }
    }

    /// Routes by zone, as far as clusters want it: from `locality`, where Culvert is one of the endpoints of `cluster`.
    pub(super) fn among(mut self, cluster: Option<Arc<str>>, locality: Locality) -> Self {
        self.zones = Zones::new(cluster, locality);
        self
    }

    /// The next snapshot: the one before with what is different in `config`.
    pub(super) fn build(
        &mut self,
        config: &Config,
        changed: &Changes,
        resolved: &Resolved,
        arrived: Option<Instant>,
    ) -> Arc<Snapshot> {
        self.last.runtime = config.runtime.clone();
        self.update_listeners(config, &changed.listeners);
        self.update_routes(config, changed);
        if !(changed.listeners.is_empty() && changed.scopes.is_empty() && changed.virtual_hosts.is_empty()) {
            self.update_scopes(config);
        }
        let forgotten =
            !changed.listeners.is_empty() && self.last.extensions.values().any(http_filter::is_gone);
        if !changed.extensions.is_empty() || forgotten {
            let extensions = http_filter::extensions(config, &changed.extensions, &self.last.extensions);
            self.last.extensions = Arc::new(extensions);
        }
        let due: Vec<_> =
            changed.clusters.iter().filter(|name| !self.held.contains(name.as_str())).cloned().collect();
        let mut clusters = self.update_clusters(config, &due, resolved);
        let users = changed.assignments.iter().filter_map(|key| self.users.get(&**key));
        let mut affected: Vec<_> =
            users.flatten().filter(|name| !self.held.contains(*name)).cloned().collect();
        let there: HashSet<_> = clusters.iter().cloned().collect();
        affected.retain(|name| !there.contains(name));
        self.update_endpoints(config, &affected, resolved);
        clusters.extend(affected);
        self.finish(clusters, arrived)
    }

    /// Before [`Builder::build`] with these changes: those of `unresolved` that serve already go on as they are until
    /// [`Builder::resolve`] is told of them, as in Envoy, where a new version of a cluster warms first.
    pub(super) fn hold<'n>(&mut self, changed: &[String], unresolved: impl Iterator<Item = &'n Arc<str>>) {
        for name in changed {
            self.held.remove(name.as_str());
        }
        self.held.extend(unresolved.filter(|name| self.clusters.contains_key(*name)).cloned());
    }

    /// Whether a cluster goes on as it was, for now.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.held.contains(name)
    }

    /// From now on new versions of clusters take the place of those before once each of their hosts was checked.
    pub(super) fn warm_from_now_on(&mut self) {
        self.warms = true;
    }

    /// How many clusters are warming, as it changes.
    pub(super) fn unchecked(&self) -> Arc<AtomicU64> {
        self.unchecked.clone()
    }

    /// Versions of clusters that wait for the first checks of their hosts.
    pub(super) fn warming(&self) -> impl Iterator<Item = &Arc<ClusterSpec>> {
        self.warming.values().map(|known| &known.spec)
    }

    /// The next snapshot after all hosts of warming clusters were checked, if there are any such.
    pub(super) fn warmed(&mut self) -> Option<Arc<Snapshot>> {
        let warm: Vec<_> = self.warming.extract_if(|_, known| !is_unchecked(&known.spec)).collect();
        if warm.is_empty() {
            return None;
        }
        let names = warm.iter().map(|(name, _)| name.clone()).collect();
        for (name, known) in warm {
            self.install(name, known, true);
        }
        Some(self.finish(names, None))
    }

    /// The next snapshot after names of the clusters `affected` were resolved.
    pub(super) fn resolve(
        &mut self,
        config: &Config,
        affected: Vec<Arc<str>>,
        resolved: &Resolved,
    ) -> Arc<Snapshot> {
        let (held, others): (Vec<_>, Vec<_>) = affected.into_iter().partition(|name| self.held.remove(name));
        let held: Vec<_> = held.iter().map(ToString::to_string).collect();
        let mut changed = self.update_clusters(config, &held, resolved);
        self.update_endpoints(config, &others, resolved);
        changed.extend(others);
        self.finish(changed, None)
    }

    /// The next snapshot after the health of hosts of these clusters changed. Hosts that only stayed because they passed
    /// their checks go when they do not any more.
    pub(super) fn refresh(&mut self, names: Vec<Arc<str>>) -> Arc<Snapshot> {
        let names: Vec<_> = names.into_iter().filter(|name| self.clusters.contains_key(name)).collect();
        for name in &names {
            let Some(known) = self.clusters.get_mut(name) else { continue };
            let spec = &known.spec;
            let leaves = |host: &HostSpec| {
                host.state.has(HealthFlag::PendingRemoval) && host.state.has(HealthFlag::FailedActive)
            };
            let mut hosts = spec.hosts.clone();
            if hosts.iter().any(|host| leaves(host)) {
                hosts = hosts.iter().filter(|host| !leaves(host)).cloned().collect();
                known.stats.membership_change.inc();
            }
            count_members(&known.stats, &hosts);
            known.spec = Arc::new(ClusterSpec { hosts, ..spec.version() });
        }
        self.finish(names, None)
    }

    fn finish(&mut self, mut changed_clusters: Vec<Arc<str>>, arrived: Option<Instant>) -> Arc<Snapshot> {
        self.unchecked.store(self.warming.len() as u64, Ordering::Relaxed);
        if !changed_clusters.is_empty() {
            self.update_zones(&mut changed_clusters);
            self.update_aggregates(&mut changed_clusters);
        }
        if !changed_clusters.is_empty() {
            let specs = Arc::make_mut(&mut self.last.clusters);
            let many = changed_clusters.len() > PREPARED_MAX;
            for name in &changed_clusters {
                match self.clusters.get(name) {
                    Some(known) => {
                        known.spec.prepare(specs.get(name).map(AsRef::as_ref), many);
                        specs.insert(name.clone(), known.spec.clone())
                    }
                    None => specs.remove(name),
                };
            }
            self.manager_stats.active_clusters.set(self.clusters.len() as u64);
        }
        self.last.generation += 1;
        Arc::new(Snapshot { changed_clusters, arrived, ..self.last.clone() })
    }

    fn update_listeners(&mut self, config: &Config, changed: &[String]) {
        if changed.is_empty() {
            return;
        }
        let by_name: HashMap<&str, _> = config.listeners.iter().map(|l| (l.name.as_str(), l)).collect();
        let specs = Arc::make_mut(&mut self.last.listeners);
        for name in changed {
            match by_name.get(name.as_str()) {
                Some(listener) => {
                    let before = specs.get(name.as_str()).map(AsRef::as_ref);
                    let spec = listener::compile(listener, before);
                    specs.insert(name.as_str().into(), Arc::new(spec))
                }
                None => specs.remove(name.as_str()),
            };
        }
    }

    fn update_routes(&mut self, config: &Config, changed: &Changes) {
        let mut keys: BTreeSet<_> = changed.routes.iter().cloned().collect();
        if !changed.virtual_hosts.is_empty() {
            let with_hosts = config
                .routes
                .iter()
                .filter(|(_, routes)| changed.virtual_hosts.iter().any(|key| route::is_host_of(key, routes)));
            keys.extend(with_hosts.map(|(key, _)| key.clone()));
        }
        if keys.is_empty() {
            return;
        }
        let tables = Arc::make_mut(&mut self.last.routes);
        for key in keys {
            match config.routes.get(&key) {
                Some(routes) => tables.insert(route_id(&key), route::compile(config, routes)),
                None => tables.remove(&route_id(&key)),
            };
        }
    }

    /// Compiles the scopes of all connection managers that have any.
    fn update_scopes(&mut self, config: &Config) {
        let scoped =
            config.listeners.iter().flat_map(|listener| route::managers(listener)).filter_map(|http| {
                let RouteSource::Scoped(scoped) = &http.routes else { return None };
                Some((route::scopes_id(scoped), Arc::new(route::scopes(config, scoped))))
            });
        let scopes: HashMap<Arc<str>, Arc<Scopes<RouteSpec>>> = scoped.collect();
        if !(scopes.is_empty() && self.last.scopes.is_empty()) {
            self.last.scopes = Arc::new(scopes);
        }
    }

    /// Takes over clusters that were added, changed or removed. Returns their names.
    fn update_clusters(&mut self, config: &Config, changed: &[String], resolved: &Resolved) -> Vec<Arc<str>> {
        if changed.is_empty() {
            return Vec::new();
        }
        let by_name: HashMap<&str, _> =
            config.clusters.iter().map(|cluster| (&*cluster.name, cluster)).collect();
        let stats = self.manager_stats.clone();
        let mut names = Vec::with_capacity(changed.len());
        for name in changed {
            let warming = self.warming.remove(name.as_str());
            let latest = warming.or_else(|| self.clusters.get(name.as_str()).cloned());
            if let Some(key) = latest.as_ref().and_then(|known| assignment_key(&known.spec.config)) {
                let users = self.users.entry(key.clone()).or_default();
                users.retain(|user| **user != **name);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
            match (by_name.get(name.as_str()), &latest) {
                (Some(_), None) => stats.cluster_added.inc(),
                (Some(_), Some(_)) => stats.cluster_modified.inc(),
                (None, Some(_)) => stats.cluster_removed.inc(),
                (None, None) => {}
            }
            self.aggregates.remove(name.as_str());
            let Some(cluster) = by_name.get(name.as_str()) else {
                self.clusters.remove(name.as_str());
                names.push(name.as_str().into());
                continue;
            };
            if let Some(key) = assignment_key(cluster) {
                self.users.entry(key).or_default().push(cluster.name.clone());
            }
            if matches!(cluster.discovery, Discovery::Aggregate(_)) {
                self.aggregates.insert(cluster.name.clone());
            }
            let endpoints = endpoints(config, cluster, resolved);
            let next = self.next_cluster(cluster, &endpoints, latest);
            if self.warms && is_unchecked(&next.spec) {
                self.warming.insert(cluster.name.clone(), next);
            } else {
                self.install(cluster.name.clone(), next, true);
                names.push(cluster.name.clone());
            }
        }
        stats.cluster_updated.inc();
        names
    }

    /// Gives clusters the endpoints they have now.
    fn update_endpoints(&mut self, config: &Config, names: &[Arc<str>], resolved: &Resolved) {
        for name in names {
            let next = |known: &Known| {
                let cluster = known.spec.config.clone();
                let endpoints = endpoints(config, &cluster, resolved);
                self.next_cluster(&cluster, &endpoints, Some(known.clone()))
            };
            let warming = self.warming.get(name).map(next);
            let serving = self.clusters.get(name).map(|known| (next(known), known.spec.clone()));
            if let Some(warming) = warming {
                self.warming.insert(name.clone(), warming);
            }
            if let Some((serving, before)) = serving {
                let is_new = !Arc::ptr_eq(&serving.spec, &before);
                self.install(name.clone(), serving, is_new);
            }
        }
    }

    /// Takes a version of a cluster into service.
    fn install(&mut self, name: Arc<str>, known: Known, is_new: bool) {
        if is_new {
            count_members(&known.stats, &known.spec.hosts);
            known.stats.membership_change.inc();
        }
        self.clusters.insert(name, known);
    }

    fn next_cluster(
        &self,
        config: &Arc<Cluster>,
        endpoints: &Arc<LoadAssignment>,
        known: Option<Known>,
    ) -> Known {
        if let Some(known) = &known
            && Arc::ptr_eq(&known.spec.config, config)
            && Arc::ptr_eq(&known.endpoints, endpoints)
        {
            return known.clone();
        }
        let sockets = match &known {
            Some(known) if Arc::ptr_eq(&known.spec.config, config) => known.sockets.clone(),
            _ => Arc::new(Sockets::new(config, &self.contexts, &self.registry)),
        };
        let hosts = self.next_hosts(config, endpoints, &sockets, known.as_ref());
        let (limits, high_limits) = match &known {
            Some(known) => (known.spec.limits.clone(), known.spec.high_limits.clone()),
            None => (Arc::<Limits>::default(), Arc::<Limits>::default()),
        };
        let breakers = match &known {
            Some(known) if Arc::ptr_eq(&known.spec.config, config) => known.breakers.clone(),
            _ => self.breakers(config, &limits, &high_limits),
        };
        let stats = known.map_or_else(|| self.control_stats(config), |known| known.stats);
        let passing = matches!(config.discovery, Discovery::OriginalDst(_));
        let passing = passing.then(|| sockets.get(bare_match(config)));
        let spec = Arc::new(ClusterSpec {
            config: config.clone(),
            hosts,
            passing_tls: passing.and_then(|socket| socket.tls.clone()),
            passing_proxy: passing.and_then(|socket| socket.proxy),
            policy: endpoints.policy.clone(),
            children: Arc::default(),
            local: self.zones.local(),
            limits,
            high_limits,
            arranged: OnceLock::new(),
            without: AvoidedSets::default(),
        });
        Known { spec, endpoints: endpoints.clone(), stats, breakers, sockets }
    }

    /// What shows how far the limits of both priorities are used up.
    fn breakers(
        &self,
        config: &Cluster,
        limits: &Arc<Limits>,
        high_limits: &Arc<Limits>,
    ) -> (Arc<Breakers>, Option<Arc<Breakers>>) {
        let breakers = Arc::new(Breakers { limits: limits.clone(), max: config.circuit_breakers });
        let scope = format!("cluster.{}.circuit_breakers", config.stat_name);
        self.registry.register(format!("{scope}.default"), breakers.clone());
        // Where nobody set them they are of no interest.
        let set = config.high_priority_breakers != CircuitBreakers::default();
        let high_breakers = set
            .then(|| Arc::new(Breakers { limits: high_limits.clone(), max: config.high_priority_breakers }));
        if let Some(breakers) = &high_breakers {
            self.registry.register(format!("{scope}.high"), breakers.clone());
        }
        (breakers, high_breakers)
    }

    fn control_stats(&self, config: &Cluster) -> Arc<ClusterControlStats> {
        let stats = Arc::new(ClusterControlStats::default());
        self.registry.register(format!("cluster.{}", config.stat_name), stats.clone());
        stats
    }
}

/// Whether hosts of a cluster wait for their first check. In Envoy a cluster warms until there are none, also where
/// `wait_for_warm_on_init` is false.
fn is_unchecked(spec: &ClusterSpec) -> bool {
    spec.hosts.iter().any(|host| host.state.has(HealthFlag::Unchecked))
}

/// The load assignment of an EDS cluster.
fn assignment_key(cluster: &Cluster) -> Option<ResourceKey> {
    match &cluster.discovery {
        Discovery::Eds { service_name, source } => Some(ResourceKey::new(source, service_name)),
        _ => None,
    }
}

/// The endpoints that a cluster has now; none while nothing is known.
fn endpoints(config: &Config, cluster: &Cluster, resolved: &Resolved) -> Arc<LoadAssignment> {
    let endpoints = match &cluster.discovery {
        Discovery::Eds { .. } => assignment_key(cluster).and_then(|key| config.assignments.get(&key)),
        Discovery::Static(assignment) => Some(assignment),
        Discovery::Dns { .. } => resolved.get(&cluster.name),
        Discovery::Aggregate(_) | Discovery::OriginalDst(_) => None,
    };
    endpoints.cloned().unwrap_or_default()
}

/// The match for endpoints that no configuration describes.
fn bare_match(config: &Cluster) -> Option<usize> {
    config.transport_socket_matches.iter().position(|socket| socket.criteria.is_empty())
}

/// What workers call a route configuration: two sources may have different ones of one name.
fn route_id(key: &ResourceKey) -> Arc<str> {
    match &key.source {
        None | Some(SourceSpecifier::Ads) => key.name.as_str().into(),
        Some(source) => format!("{}\0{source:?}", key.name).into(),
    }
}
