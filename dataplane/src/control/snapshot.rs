//! Building snapshots: from the resources in force to what workers run on.

use std::{collections::HashMap, sync::Arc};

use culvert_model::{
    Cluster, Config, Discovered, Discovery, Endpoint, Health, Listener, LoadAssignment, ResourceKey,
    RouteConfiguration, RouteSource, SourceSpecifier, TerminalFilter,
};
use culvert_proto::route::Table;

use crate::{
    control::sources::Breakers,
    observe::stats::{ClusterControlStats, ClusterManagerStats, Registry},
    snapshot::{
        ChainSpec, ClusterSpec, HostSpec, HostStats, HttpSpec, Limits, ListenerSpec, RouteSpec, Snapshot,
    },
};

/// Endpoints of DNS clusters, by cluster name.
pub(super) type Resolved = HashMap<Arc<str>, Arc<LoadAssignment>>;

/// Builds each snapshot from the one before, so that what did not change is not compiled again and keeps its identity.
pub(super) struct Builder {
    workers: usize,
    generation: u64,
    registry: Registry,
    manager_stats: Arc<ClusterManagerStats>,
    listeners: HashMap<Arc<str>, (Arc<Listener>, Arc<ListenerSpec>)>,
    routes: HashMap<Arc<str>, (Arc<RouteConfiguration>, Arc<Table>)>,
    clusters: HashMap<Arc<str>, Known>,
}

/// A cluster of the snapshot before.
struct Known {
    spec: Arc<ClusterSpec>,
    endpoints: Arc<LoadAssignment>,
    stats: Arc<ClusterControlStats>,
    breakers: Arc<Breakers>,
}

impl Builder {
    /// A builder for this many workers; membership counters of clusters appear in `registry`.
    pub(super) fn new(workers: usize, registry: Registry) -> Self {
        let manager_stats = Arc::new(ClusterManagerStats::default());
        registry.register("cluster_manager", manager_stats.clone());
        Self {
            workers,
            generation: 0,
            registry,
            manager_stats,
            listeners: HashMap::new(),
            routes: HashMap::new(),
            clusters: HashMap::new(),
        }
    }

    /// The next snapshot.
    pub(super) fn build(&mut self, config: &Config, resolved: &Resolved) -> Arc<Snapshot> {
        self.generation += 1;
        self.update_listeners(&config.listeners);
        self.update_routes(&config.routes);
        self.update_clusters(config, resolved);
        Arc::new(Snapshot {
            generation: self.generation,
            listeners: self.listeners.iter().map(|(name, (_, spec))| (name.clone(), spec.clone())).collect(),
            routes: self.routes.iter().map(|(name, (_, table))| (name.clone(), table.clone())).collect(),
            clusters: self.clusters.iter().map(|(name, known)| (name.clone(), known.spec.clone())).collect(),
        })
    }

    fn update_listeners(&mut self, listeners: &[Arc<Listener>]) {
        let mut old = std::mem::take(&mut self.listeners);
        for listener in listeners {
            let name: Arc<str> = listener.name.as_str().into();
            let kept = old.remove(&name).filter(|(config, _)| Arc::ptr_eq(config, listener));
            let entry = kept.unwrap_or_else(|| (listener.clone(), Arc::new(compile_listener(listener))));
            self.listeners.insert(name, entry);
        }
    }

    fn update_routes(&mut self, routes: &Discovered<RouteConfiguration>) {
        let mut old = std::mem::take(&mut self.routes);
        for (key, config) in routes.iter() {
            let name = route_id(key);
            let kept = old.remove(&name).filter(|(known, _)| Arc::ptr_eq(known, config));
            let entry = kept.unwrap_or_else(|| (config.clone(), Arc::new(Table::compile(config))));
            self.routes.insert(name, entry);
        }
    }

    fn update_clusters(&mut self, config: &Config, resolved: &Resolved) {
        let mut old = std::mem::take(&mut self.clusters);
        let before = old.len() as u64;
        let none = Arc::new(LoadAssignment::default());
        for cluster in config.clusters.iter() {
            let endpoints = match &cluster.discovery {
                Discovery::Eds { service_name, source } => {
                    config.assignments.get(&ResourceKey::new(source, service_name))
                }
                Discovery::Static(assignment) => Some(assignment),
                Discovery::StrictDns { .. } => resolved.get(&cluster.name),
            };
            let endpoints = endpoints.unwrap_or(&none);
            let known = old.remove(&cluster.name);
            let next = self.next_cluster(cluster, endpoints, known);
            self.clusters.insert(cluster.name.clone(), next);
        }
        let stats = &self.manager_stats;
        stats.active_clusters.set(self.clusters.len() as u64);
        stats.cluster_removed.add(old.len() as u64);
        stats.cluster_added.add((self.clusters.len() + old.len()) as u64 - before);
        stats.cluster_updated.inc();
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
            };
        }
        let mut by_address: HashMap<_, _> = known
            .iter()
            .flat_map(|known| known.spec.hosts.iter())
            .map(|host| (host.endpoint.address.clone(), host.clone()))
            .collect();
        let hosts = endpoints
            .endpoints
            .iter()
            .map(|endpoint| self.next_host(endpoint, by_address.remove(&endpoint.address)))
            .collect();
        let limits =
            known.as_ref().map_or_else(|| Arc::new(Limits::default()), |known| known.spec.limits.clone());
        let breakers = Arc::new(Breakers { limits: limits.clone(), max: config.circuit_breakers });
        let scope = format!("cluster.{}.circuit_breakers.default", config.stat_name);
        self.registry.register(scope, breakers.clone());
        let stats = known.map_or_else(|| self.control_stats(config), |known| known.stats);
        count_members(&stats, endpoints);
        let spec = Arc::new(ClusterSpec { config: config.clone(), hosts, limits });
        Known { spec, endpoints: endpoints.clone(), stats, breakers }
    }

    fn next_host(&self, endpoint: &Endpoint, known: Option<Arc<HostSpec>>) -> Arc<HostSpec> {
        match known {
            Some(known) if known.endpoint == *endpoint => known,
            Some(known) => Arc::new(HostSpec { endpoint: endpoint.clone(), stats: known.stats.clone() }),
            None => {
                let stats = (0..self.workers).map(|_| HostStats::default()).collect();
                Arc::new(HostSpec { endpoint: endpoint.clone(), stats })
            }
        }
    }

    fn control_stats(&self, config: &Cluster) -> Arc<ClusterControlStats> {
        let stats = Arc::new(ClusterControlStats::default());
        self.registry.register(format!("cluster.{}", config.stat_name), stats.clone());
        stats
    }
}

fn count_members(stats: &ClusterControlStats, endpoints: &LoadAssignment) {
    let of = |health: Health| {
        endpoints.endpoints.iter().filter(|endpoint| endpoint.health == health).count() as u64
    };
    stats.membership_total.set(endpoints.endpoints.len() as u64);
    stats.membership_healthy.set(of(Health::Healthy));
    stats.membership_degraded.set(of(Health::Degraded));
    stats.membership_change.inc();
}

/// What workers call a route configuration: two sources may have different ones of one name.
fn route_id(key: &ResourceKey) -> Arc<str> {
    match &key.source {
        None | Some(SourceSpecifier::Ads) => key.name.as_str().into(),
        Some(source) => format!("{}\0{source:?}", key.name).into(),
    }
}

fn compile_listener(listener: &Arc<Listener>) -> ListenerSpec {
    let terminal = listener.filter_chains.first().and_then(|chain| chain.terminal.as_ref());
    let chain = match terminal.expect("a chain with a terminal filter") {
        TerminalFilter::Http(http) => {
            let routes = match &http.routes {
                RouteSource::Inline(config) => RouteSpec::Inline(Arc::new(Table::compile(config))),
                RouteSource::Rds { source, name } => {
                    RouteSpec::Rds(route_id(&ResourceKey::new(source, name)))
                }
                // Refused where the configuration is read.
                RouteSource::Scoped(_) => RouteSpec::Rds("".into()),
            };
            ChainSpec::Http(Arc::new(HttpSpec { config: http.clone(), routes }))
        }
        TerminalFilter::Tcp(tcp) => ChainSpec::Tcp(tcp.clone()),
    };
    ListenerSpec { config: listener.clone(), chain }
}
