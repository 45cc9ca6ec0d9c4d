//! Culvert's own settings (`culvert.v1`, published in `xds/proto`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    Address, ApiSource, Cluster, ConfigSource, DnsResolver, Listener, LoadAssignment, ResourceKey,
    RouteConfiguration, RuntimeLayer, ScopedRoute, Secret, TypedExtension, VirtualHost,
};

/// `culvert.v1.Capture` under `bootstrap_extensions`: what capture leaves alone, for every pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CaptureSettings {
    /// Destinations outbound capture does not touch. Loopback never is.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Destination ports outbound capture does not touch.
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports inbound capture does not touch.
    pub exclude_inbound_ports: Vec<u16>,
}

/// Resources that others name, by where they come from and their name. A copy shares them all.
pub type Discovered<T> = Arc<HashMap<Arc<ResourceKey>, Arc<T>>>;

/// The resources in force: static ones and those that were discovered, merged. Immutable; a change makes a new one
/// that shares what did not change, down to whole collections.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// By name, in configuration order: static ones first.
    pub listeners: Arc<Vec<Arc<Listener>>>,
    /// By name, in configuration order: static ones first.
    pub clusters: Arc<Vec<Arc<Cluster>>>,
    /// Route configurations from RDS sources. A connection manager whose routes are missing here answers 404.
    pub routes: Discovered<RouteConfiguration>,
    /// Scoped route configurations: by the source of `scoped_rds` and their name.
    pub scopes: Discovered<ScopedRoute>,
    /// Virtual hosts from VHDS: the name begins with that of their route configuration and a slash.
    pub virtual_hosts: Discovered<VirtualHost>,
    /// Load assignments of EDS clusters by *service name*.
    pub assignments: Discovered<LoadAssignment>,
    /// Secrets: static ones, which have no source, and those from SDS.
    pub secrets: Discovered<Secret>,
    /// Extension configurations from ECDS. One that is missing here has not come, or was removed.
    pub extensions: Discovered<TypedExtension>,
    /// Runtime values, all layers merged, for `/runtime` and runtime keys.
    pub runtime: Arc<BTreeMap<String, String>>,
}

/// What a bootstrap says besides its resources (`config.bootstrap.v3.Bootstrap`).
#[derive(Clone, Debug, Default)]
pub struct Bootstrap {
    /// `node.id` and `node.cluster`, after `--service-node` and `--service-cluster`.
    pub node_id: String,
    /// See [`Bootstrap::node_id`].
    pub node_cluster: String,
    /// `admin.address`; no admin server without.
    pub admin: Option<Address>,
    /// `static_resources`
    pub config: Config,
    /// `dynamic_resources.ads_config`
    pub ads: Option<Arc<ApiSource>>,
    /// `dynamic_resources.lds_config`
    pub lds: Option<ConfigSource>,
    /// `dynamic_resources.cds_config`
    pub cds: Option<ConfigSource>,
    /// `layered_runtime.layers`: later ones win.
    pub runtime: Vec<RuntimeLayer>,
    /// `culvert.v1.Capture`
    pub capture: CaptureSettings,
    /// `overload.global_downstream_max_connections` of the static runtime layer, if set.
    pub max_downstream_connections: Option<u64>,
    /// `stats_config`, `stats_flush_interval`
    pub stats: crate::StatsSettings,
    /// `typed_dns_resolver_config`: for clusters without one of their own.
    pub resolver: Arc<DnsResolver>,
    /// `node.locality`
    pub locality: crate::Locality,
    /// `cluster_manager.local_cluster_name`: the cluster whose endpoints are this and others like it.
    pub local_cluster: Option<Arc<str>>,
}
