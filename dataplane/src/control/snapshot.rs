//! Building snapshots: from the resources in force to what workers run on.

mod http_filter;
mod route;
mod socket;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Instant,
};

use culvert_model::{
    AssignmentPolicy, Cluster, Config, Discovery, Endpoint, FilterChain, Health, Listener, LoadAssignment,
    NetworkFilter, ResourceKey, RouteSource, SourceSpecifier, TerminalFilter,
};
use culvert_proto::{
    balance::child_shares,
    bucket::Bucket,
    chain::Chains,
    rbac::Engine,
    route::{Scopes, Table},
};
use culvert_xds::Changes;
use tokio::sync::mpsc::UnboundedSender;

pub(super) use socket::tls_for;
use socket::{Sockets, socket_match};

use crate::{
    control::sources::Breakers,
    observe::stats::{ClusterControlStats, ClusterManagerStats, Registry},
    snapshot::{
        ChainSpec, ClusterSpec, ConnectionLimitSpec, FilterSpec, HealthFlag, HealthWord, HostSpec, HostStats,
        HttpSpec, Limits, ListenerSpec, RateLimitSpec, RbacSpec, RouteSpec, Snapshot, TerminalSpec,
    },
    tls::{Contexts, Slot},
    upstream::{Monitor, Tripped},
};

/// Endpoints of DNS clusters, by cluster name.
pub(super) type Resolved = HashMap<Arc<str>, Arc<LoadAssignment>>;

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
}

/// A cluster of the snapshot before.
struct Known {
    spec: Arc<ClusterSpec>,
    endpoints: Arc<LoadAssignment>,
    stats: Arc<ClusterControlStats>,
    breakers: Arc<Breakers>,
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
        }
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
        let mut clusters = self.update_clusters(config, &changed.clusters, resolved);
        let users = changed.assignments.iter().filter_map(|key| self.users.get(&**key));
        let mut affected: Vec<_> = users.flatten().cloned().collect();
        affected.retain(|name| !clusters.contains(name));
        self.update_endpoints(config, &affected, resolved);
        clusters.extend(affected);
        self.finish(clusters, arrived)
    }

    /// The next snapshot after a name of `cluster` was resolved.
    pub(super) fn resolve(
        &mut self,
        config: &Config,
        cluster: &Arc<str>,
        resolved: &Resolved,
    ) -> Arc<Snapshot> {
        let affected = vec![cluster.clone()];
        self.update_endpoints(config, &affected, resolved);
        self.finish(affected, None)
    }

    /// The next snapshot after the health of hosts of these clusters changed. Hosts that only stayed because they passed
    /// their checks go when they do not any more.
    pub(super) fn refresh(&mut self, names: Vec<Arc<str>>) -> Arc<Snapshot> {
        for name in &names {
            let Some(known) = self.clusters.get_mut(name) else { continue };
            let spec = &known.spec;
            let leaves = |host: &HostSpec| {
                host.health.has(HealthFlag::PendingRemoval) && host.health.has(HealthFlag::FailedActive)
            };
            let mut hosts = spec.hosts.clone();
            if hosts.iter().any(|host| leaves(host)) {
                hosts = hosts.iter().filter(|host| !leaves(host)).cloned().collect();
                known.stats.membership_change.inc();
            }
            count_members(&known.stats, &hosts);
            known.spec = Arc::new(ClusterSpec {
                config: spec.config.clone(),
                hosts,
                passing_tls: spec.passing_tls.clone(),
                policy: spec.policy.clone(),
                children: spec.children.clone(),
                limits: spec.limits.clone(),
                arranged: OnceLock::new(),
            });
        }
        self.finish(names, None)
    }

    fn finish(&mut self, mut changed_clusters: Vec<Arc<str>>, arrived: Option<Instant>) -> Arc<Snapshot> {
        if !changed_clusters.is_empty() {
            self.update_aggregates(&mut changed_clusters);
        }
        if !changed_clusters.is_empty() {
            let specs = Arc::make_mut(&mut self.last.clusters);
            for name in &changed_clusters {
                match self.clusters.get(name) {
                    Some(known) => specs.insert(name.clone(), known.spec.clone()),
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
                    let spec = compile_listener(listener, before);
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
            let known = self.clusters.remove(name.as_str());
            if let Some(key) = known.as_ref().and_then(|known| assignment_key(&known.spec.config)) {
                let users = self.users.entry(key.clone()).or_default();
                users.retain(|user| **user != **name);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
            match (by_name.get(name.as_str()), &known) {
                (Some(_), None) => stats.cluster_added.inc(),
                (Some(_), Some(_)) => stats.cluster_modified.inc(),
                (None, Some(_)) => stats.cluster_removed.inc(),
                (None, None) => {}
            }
            self.aggregates.remove(name.as_str());
            let Some(cluster) = by_name.get(name.as_str()) else {
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
            let next = self.next_cluster(cluster, &endpoints, known);
            self.clusters.insert(cluster.name.clone(), next);
            names.push(cluster.name.clone());
        }
        stats.cluster_updated.inc();
        names
    }

    /// Gives clusters the endpoints they have now.
    fn update_endpoints(&mut self, config: &Config, names: &[Arc<str>], resolved: &Resolved) {
        for name in names {
            let Some(known) = self.clusters.remove(name) else { continue };
            let cluster = known.spec.config.clone();
            let endpoints = endpoints(config, &cluster, resolved);
            let next = self.next_cluster(&cluster, &endpoints, Some(known));
            self.clusters.insert(name.clone(), next);
        }
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
            return Known {
                spec: known.spec.clone(),
                endpoints: known.endpoints.clone(),
                stats: known.stats.clone(),
                breakers: known.breakers.clone(),
                sockets: known.sockets.clone(),
            };
        }
        let sockets = match &known {
            Some(known) if Arc::ptr_eq(&known.spec.config, config) => known.sockets.clone(),
            _ => Arc::new(Sockets::new(config, &self.contexts, &self.registry)),
        };
        let hosts = self.next_hosts(config, endpoints, &sockets, known.as_ref());
        let limits =
            known.as_ref().map_or_else(|| Arc::new(Limits::default()), |known| known.spec.limits.clone());
        let breakers = Arc::new(Breakers { limits: limits.clone(), max: config.circuit_breakers });
        let scope = format!("cluster.{}.circuit_breakers.default", config.stat_name);
        self.registry.register(scope, breakers.clone());
        let stats = known.map_or_else(|| self.control_stats(config), |known| known.stats);
        count_members(&stats, &hosts);
        stats.membership_change.inc();
        let spec = Arc::new(ClusterSpec {
            config: config.clone(),
            hosts,
            passing_tls: match &config.discovery {
                Discovery::OriginalDst(_) => sockets.get(bare_match(config)).clone(),
                _ => None,
            },
            policy: endpoints.policy.clone(),
            children: Vec::new(),
            limits,
            arranged: OnceLock::new(),
        });
        Known { spec, endpoints: endpoints.clone(), stats, breakers, sockets }
    }

    fn next_hosts(
        &self,
        config: &Cluster,
        endpoints: &LoadAssignment,
        sockets: &Sockets,
        known: Option<&Known>,
    ) -> Arc<[Arc<HostSpec>]> {
        let before: &[Arc<HostSpec>] = known.map_or(&[], |known| &known.spec.hosts);
        if is_logical(config) {
            let same = before.first().cloned();
            return endpoints
                .endpoints
                .iter()
                .take(1)
                .map(|e| self.next_host(config, e, sockets, same.clone()))
                .collect();
        }
        let mut by_address: HashMap<_, _> =
            before.iter().map(|host| (host.endpoint.address.clone(), host.clone())).collect();
        let next = |endpoint: &Endpoint| {
            self.next_host(config, endpoint, sockets, by_address.remove(&endpoint.address))
        };
        let mut hosts: Vec<_> = endpoints.endpoints.iter().map(next).collect();
        for gone in before.iter().filter(|host| by_address.contains_key(&host.endpoint.address)) {
            if outlives_removal(config, gone) {
                gone.health.set(HealthFlag::PendingRemoval, true);
                hosts.push(gone.clone());
            }
        }
        hosts.into()
    }

    fn next_host(
        &self,
        config: &Cluster,
        endpoint: &Endpoint,
        sockets: &Sockets,
        known: Option<Arc<HostSpec>>,
    ) -> Arc<HostSpec> {
        let chosen = socket_match(config, endpoint);
        let tls = sockets.get(chosen);
        let limited = config.max_connections_per_host.is_some();
        let checked = is_checked(config, endpoint);
        let health = match &known {
            // Goes on as it is: its first check will tell.
            Some(known) => known.health.clone(),
            None => {
                let word = HealthWord::default();
                word.set(HealthFlag::FailedActive, checked);
                word.set(HealthFlag::PendingActive, checked && config.ignore_new_until_checked);
                Arc::new(word)
            }
        };
        let outlier = config.outlier_detection.as_ref().map(|watched| {
            match known.as_ref().and_then(|known| known.outlier.as_ref()) {
                Some(monitor) if *monitor.config == **watched => monitor.clone(),
                _ => {
                    let (name, tripped) = (config.name.clone(), self.tripped.clone());
                    Arc::new(Monitor::new(watched.clone(), name, self.workers, tripped))
                }
            }
        });
        let known_outlier = known.as_ref().and_then(|known| known.outlier.as_ref());
        let same_outlier = outlier.as_ref().map(Arc::as_ptr) == known_outlier.map(Arc::as_ptr);
        if !same_outlier {
            // Nobody would take it back.
            health.set(HealthFlag::FailedOutlier, false);
        }
        health.set(HealthFlag::PendingRemoval, false);
        if !checked {
            for flag in [
                HealthFlag::FailedActive,
                HealthFlag::DegradedActive,
                HealthFlag::PendingActive,
                HealthFlag::Excluded,
                HealthFlag::ActiveTimeout,
            ] {
                health.set(flag, false);
            }
        }
        if let Some(known) = &known
            && known.endpoint == *endpoint
            && Slot::is_same(known.tls.as_ref(), tls.as_ref())
            && known.limits.is_some() == limited
            && same_outlier
        {
            return known.clone();
        }
        sockets.count(chosen);
        let stats = match &known {
            Some(known) => known.stats.clone(),
            None => (0..self.workers).map(|_| HostStats::default()).collect(),
        };
        let limits = known.and_then(|known| known.limits.clone()).unwrap_or_default();
        let limits = limited.then_some(limits);
        Arc::new(HostSpec { endpoint: endpoint.clone(), stats, limits, tls: tls.clone(), health, outlier })
    }

    /// Decides which share of an aggregate cluster's requests goes to which of the clusters it stands for.
    fn update_aggregates(&mut self, changed: &mut Vec<Arc<str>>) {
        let aggregates: Vec<Arc<str>> = self.aggregates.iter().cloned().collect();
        for name in aggregates {
            let mut leaves = Vec::new();
            self.leaves(&name, &mut Vec::new(), &mut leaves);
            let present = leaves.iter().map(|leaf| {
                let spec = &self.clusters[leaf].spec;
                let endpoints = spec.hosts.iter().map(|host| host.now().into_owned()).collect();
                (LoadAssignment { endpoints, policy: spec.policy.clone() }, spec.config.panic_percent)
            });
            let present: Vec<_> = present.collect();
            let assignments: Vec<_> =
                present.iter().map(|(assignment, panic)| (assignment, *panic)).collect();
            let shares = child_shares(&assignments);
            let children: Vec<_> =
                leaves.into_iter().zip(shares).filter(|(_, percent)| *percent > 0).collect();
            let Some(known) = self.clusters.get_mut(&name) else { continue };
            if known.spec.children == children {
                continue;
            }
            known.spec = Arc::new(ClusterSpec {
                config: known.spec.config.clone(),
                hosts: known.spec.hosts.clone(),
                policy: AssignmentPolicy::default(),
                children,
                passing_tls: None,
                limits: known.spec.limits.clone(),
                arranged: OnceLock::new(),
            });
            if !changed.contains(&name) {
                changed.push(name);
            }
        }
    }

    /// The clusters with endpoints that `name` stands for, in order. Unknown ones are left out, and so is one that
    /// stands for itself.
    fn leaves(&self, name: &Arc<str>, above: &mut Vec<Arc<str>>, leaves: &mut Vec<Arc<str>>) {
        let Some(known) = self.clusters.get(name) else { return };
        let Discovery::Aggregate(children) = &known.spec.config.discovery else {
            if !leaves.contains(name) && !matches!(known.spec.config.discovery, Discovery::OriginalDst(_)) {
                leaves.push(name.clone());
            }
            return;
        };
        if above.contains(name) {
            log::warn!(target: "config", "aggregate cluster {name} stands for itself");
            return;
        }
        above.push(name.clone());
        for child in children {
            self.leaves(child, above, leaves);
        }
        above.pop();
    }

    fn control_stats(&self, config: &Cluster) -> Arc<ClusterControlStats> {
        let stats = Arc::new(ClusterControlStats::default());
        self.registry.register(format!("cluster.{}", config.stat_name), stats.clone());
        stats
    }
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

/// Whether all addresses of the cluster are one endpoint, whichever of them is used.
fn is_logical(config: &Cluster) -> bool {
    matches!(&config.discovery, Discovery::Dns { options, .. } if options.logical)
}

/// The match for endpoints that no configuration describes.
fn bare_match(config: &Cluster) -> Option<usize> {
    config.transport_socket_matches.iter().position(|socket| socket.criteria.is_empty())
}

fn count_members(stats: &ClusterControlStats, hosts: &[Arc<HostSpec>]) {
    let mut counts = [0; 4];
    for host in hosts {
        counts[host.current_health() as usize] += 1;
    }
    stats.membership_total.set(hosts.len() as u64);
    stats.membership_healthy.set(counts[Health::Healthy as usize]);
    stats.membership_degraded.set(counts[Health::Degraded as usize]);
    stats.membership_excluded.set(counts[Health::Excluded as usize]);
}

/// Whether the cluster's health check applies to the endpoint.
pub(super) fn is_checked(config: &Cluster, endpoint: &Endpoint) -> bool {
    config.health_check.is_some() && !endpoint.check.as_ref().is_some_and(|check| check.disabled)
}

/// Whether a host that discovery does not know any more stays, for it passes its checks.
fn outlives_removal(config: &Cluster, host: &HostSpec) -> bool {
    let discovered = match &config.discovery {
        Discovery::Eds { .. } => true,
        Discovery::Dns { options, .. } => !options.logical,
        Discovery::Static(_) | Discovery::Aggregate(_) | Discovery::OriginalDst(_) => false,
    };
    discovered
        && !config.ignore_health_on_removal
        && is_checked(config, &host.endpoint)
        && host.endpoint.health != Health::Unhealthy
        && !host.health.has(HealthFlag::FailedActive)
}

/// What workers call a route configuration: two sources may have different ones of one name.
fn route_id(key: &ResourceKey) -> Arc<str> {
    match &key.source {
        None | Some(SourceSpecifier::Ads) => key.name.as_str().into(),
        Some(source) => format!("{}\0{source:?}", key.name).into(),
    }
}

/// Chains that mean the same as before are taken from the version before, if that differs in its chains alone.
fn compile_listener(listener: &Arc<Listener>, before: Option<&ListenerSpec>) -> ListenerSpec {
    let before = before.filter(|before| before.config.fingerprint == listener.fingerprint);
    let mut known: HashMap<u64, &Arc<ChainSpec>> = before
        .into_iter()
        .flat_map(|before| before.chains.iter().chain(&before.default_chain))
        .map(|chain| (chain.config.fingerprint, chain))
        .collect();
    let mut compile = |chain: &Arc<FilterChain>| match known.remove(&chain.fingerprint) {
        Some(known) => known.clone(),
        None => Arc::new(compile_chain(chain)),
    };
    ListenerSpec {
        config: listener.clone(),
        select: Chains::compile(listener),
        chains: listener.filter_chains.iter().map(&mut compile).collect(),
        default_chain: listener.default_filter_chain.as_ref().map(&mut compile),
    }
}

fn compile_chain(chain: &Arc<FilterChain>) -> ChainSpec {
    let terminal = chain.terminal.as_ref().map(|terminal| match terminal {
        TerminalFilter::Http(http) => {
            let routes = match &http.routes {
                RouteSource::Inline(config) => RouteSpec::Inline(Arc::new(Table::compile(config))),
                RouteSource::Rds { source, name } => {
                    RouteSpec::Rds(route_id(&ResourceKey::new(source, name)))
                }
                RouteSource::Scoped(scoped) => RouteSpec::Scoped(route::scopes_id(scoped)),
            };
            TerminalSpec::Http(Arc::new(HttpSpec {
                filters: http_filter::compile(&http.filters),
                config: http.clone(),
                routes,
            }))
        }
        TerminalFilter::DirectResponse(response) => TerminalSpec::DirectResponse(response.clone()),
        TerminalFilter::Echo => TerminalSpec::Echo,
        TerminalFilter::Tcp(tcp) => TerminalSpec::Tcp(tcp.clone()),
    });
    ChainSpec {
        config: chain.clone(),
        filters: chain.filters.iter().map(compile_filter).collect(),
        terminal,
        reads_opening: chain.filters.iter().any(NetworkFilter::reads_opening),
    }
}

fn compile_filter(filter: &NetworkFilter) -> FilterSpec {
    match filter {
        NetworkFilter::ConnectionLimit(config) => {
            FilterSpec::ConnectionLimit(Arc::new(ConnectionLimitSpec {
                config: config.clone(),
                open: AtomicU64::new(0),
            }))
        }
        NetworkFilter::LocalRateLimit(config) => {
            let interval = u64::try_from(config.fill_interval.as_nanos()).unwrap_or(u64::MAX);
            let bucket = Bucket::new(config.max_tokens, config.tokens_per_fill, interval, 0);
            let since = Instant::now();
            FilterSpec::LocalRateLimit(Arc::new(RateLimitSpec { config: config.clone(), bucket, since }))
        }
        NetworkFilter::Rbac(config) => FilterSpec::Rbac(Arc::new(RbacSpec {
            rules: config.rules.as_ref().map(Engine::compile),
            shadow_rules: config.shadow_rules.as_ref().map(Engine::compile),
            config: config.clone(),
        })),
        NetworkFilter::SetFilterState(values) => FilterSpec::SetFilterState(values.clone()),
        NetworkFilter::SniCluster => FilterSpec::SniCluster,
    }
}
