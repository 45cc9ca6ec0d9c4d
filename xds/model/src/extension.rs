//! Culvert's own settings (`culvert.v1`, published in `xds/proto`).

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use crate::{
    Address, ApiSource, Cluster, ConfigSource, Listener, LoadAssignment, RouteConfiguration, Secret,
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

/// The resources in force: static ones and those that came from files, merged. Immutable; a change makes a new one
/// that shares what did not change.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// By name, in configuration order: static ones first.
    pub listeners: Vec<Arc<Listener>>,
    /// By name, in configuration order: static ones first.
    pub clusters: Vec<Arc<Cluster>>,
    /// Route configurations from RDS sources by name. A connection manager whose name is missing here answers 404.
    pub routes: BTreeMap<String, Arc<RouteConfiguration>>,
    /// Load assignments of EDS clusters by *service name*.
    pub assignments: BTreeMap<String, Arc<LoadAssignment>>,
    /// Secrets by name: static ones, and those from SDS.
    pub secrets: BTreeMap<String, Arc<Secret>>,
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
    /// `culvert.v1.Capture`
    pub capture: CaptureSettings,
    /// `overload.global_downstream_max_connections` of the static runtime layer, if set.
    pub max_downstream_connections: Option<u64>,
}
