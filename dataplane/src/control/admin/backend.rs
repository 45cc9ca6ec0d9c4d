//! What the admin server needs to know of the rest of the program.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::admin::info::Memory;
use crate::observe::stats::Registry;

/// The rest of the program as the admin server sees it. All calls come from the control thread and must not wait; what
/// takes time is started and reported elsewhere.
pub trait Backend {
    /// `/ready`, `/server_info`.
    fn state(&self) -> ServerState;

    /// `/server_info`.
    fn server_info(&self) -> ServerInfo;

    /// Where `/stats` and `/reset_counters` find the statistics.
    fn registry(&self) -> Registry;

    /// Called before statistics are read, to bring gauges up to date that nobody feeds in between (uptime, memory).
    fn refresh_stats(&self) {}

    /// `/clusters`, in the order they are to be shown.
    fn clusters(&self) -> Vec<ClusterView>;

    /// `/listeners`, in the order they are to be shown.
    fn listeners(&self) -> Vec<ListenerView>;

    /// The members of `configs` in `/config_dump`, each with its `@type` (`admin.v3.BootstrapConfigDump`,
    /// `ClustersConfigDump`, `ListenersConfigDump`, `RoutesConfigDump`, and `EndpointsConfigDump` if
    /// `include_endpoints`), in proto3 JSON with snake_case names. `resource`, `mask` and `name_regex` are applied to it
    /// by the admin server.
    fn config_dump(&self, include_endpoints: bool) -> Vec<Value>;

    /// `/drain_listeners`: begins to drain.
    fn drain_listeners(&self, request: DrainRequest);

    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false): whether health checks of this server are to fail.
    fn fail_health_checks(&self, fail: bool);

    /// `/quitquitquit`: the process is to end soon. The answer is sent before the control thread does anything else.
    fn quit(&self);

    /// `/reopen_logs`: reopens access logs and the application's own.
    fn reopen_logs(&self);

    /// `/memory`.
    fn memory(&self) -> Memory {
        Memory::of_process()
    }

    /// `/certs` (`admin.v3.Certificates`).
    fn certs(&self) -> Value {
        json!({ "certificates": [] })
    }

    /// `/runtime`: `{"layers": [...], "entries": {...}}`.
    fn runtime(&self) -> Value {
        json!({ "layers": [], "entries": {} })
    }

    /// `/init_dump` (`admin.v3.UnreadyTargetsDumps`): what start-up still waits for, by name; empty when it is over.
    fn unready_targets(&self) -> Vec<String>;
}

/// `admin.v3.ServerInfo.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// Serving.
    Live,
    /// Serving, but health checks are told to fail.
    Draining,
    /// Nothing is configured yet.
    PreInitializing,
    /// Waiting for configuration that was asked for.
    Initializing,
}

impl ServerState {
    /// The number `server.state` shows.
    pub fn number(self) -> u64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::PreInitializing => 2,
            Self::Initializing => 3,
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        })
    }
}

/// `/server_info` (`admin.v3.ServerInfo`), but for the state.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Five parts separated by `/`; see [`crate::cli::version`].
    pub version: String,
    /// Since the start.
    pub uptime: Duration,
    /// See [`crate::cli::Cli::command_line_options`].
    pub command_line_options: Value,
    /// `config.core.v3.Node` in JSON.
    pub node: Value,
}

/// Parameters of `/drain_listeners`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainRequest {
    /// Which listeners.
    pub scope: DrainScope,
    /// Close the listeners only after the drain time (`graceful`).
    pub graceful: bool,
    /// Drain connections and never close the listeners (`skip_exit`).
    pub skip_exit: bool,
}

/// Which listeners are drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainScope {
    /// All of them.
    All,
    /// Those whose `traffic_direction` is `INBOUND` (`inboundonly`).
    Inbound,
}

/// A listener in `/listeners`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerView {
    /// Its name.
    pub name: String,
    /// Where it listens: first `address`, then `additional_addresses`, with the real ports.
    pub addresses: Vec<HostAddress>,
}

/// A cluster in `/clusters`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// `alt_stat_name`, or its name.
    pub observability_name: String,
    /// Whether it came from CDS.
    pub added_via_api: bool,
    /// `eds_cluster_config.service_name`, or the name of a cluster that uses EDS; none for others.
    pub eds_service_name: Option<String>,
    /// Limits of default priority.
    pub limits_default: CircuitLimits,
    /// Limits of high priority.
    pub limits_high: CircuitLimits,
    /// Its hosts.
    pub hosts: Vec<HostView>,
}

/// `circuit_breakers.thresholds` as they are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Connections.
    pub max_connections: u64,
    /// Requests waiting for a connection.
    pub max_pending_requests: u64,
    /// Requests under way.
    pub max_requests: u64,
    /// Retries under way.
    pub max_retries: u64,
}

impl Default for CircuitLimits {
    /// Envoy's defaults.
    fn default() -> Self {
        Self { max_connections: 1_024, max_pending_requests: 1_024, max_requests: 1_024, max_retries: 3 }
    }
}

/// An address of a host or a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// Address and port.
    Ip(SocketAddr),
    /// A Unix socket.
    Pipe(PathBuf),
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Pipe(path) => path.display().fmt(f),
        }
    }
}

impl HostAddress {
    /// `config.core.v3.Address` in JSON.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Ip(address) => json!({
                "socket_address": {"address": address.ip().to_string(), "port_value": address.port()}
            }),
            Self::Pipe(path) => json!({"pipe": {"path": path.display().to_string()}}),
        }
    }
}

/// `config.core.v3.Locality`; parts that are not set are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalityView {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

/// Why a host is not used. All false: it is healthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthFlags {
    /// Its active health check fails.
    pub failed_active_hc: bool,
    /// It was ejected as an outlier.
    pub failed_outlier_check: bool,
    /// EDS says unhealthy.
    pub failed_eds_health: bool,
    /// EDS says degraded.
    pub degraded_eds_health: bool,
    /// Its active health check says that it is degraded.
    pub degraded_active_hc: bool,
    /// Discovery does not know it any more; it is kept while it passes its checks.
    pub pending_dynamic_removal: bool,
    /// It waits for its first health check.
    pub pending_active_hc: bool,
    /// Its answer to a check asked to be left out.
    pub excluded_via_immediate_hc_fail: bool,
    /// Its last check got no answer in time.
    pub active_hc_timeout: bool,
}

/// A host of a cluster, with its counts summed over the workers.
#[derive(Debug, Clone, PartialEq)]
pub struct HostView {
    /// Where it is.
    pub address: HostAddress,
    /// The name it was resolved from, or `endpoint.hostname`; may be empty.
    pub hostname: String,
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// Priority, 0 first.
    pub priority: u32,
    /// Its locality.
    pub locality: LocalityView,
    /// Whether and why not it is used.
    pub health: HealthFlags,
    /// Percent of its requests that succeeded in the last interval of outlier detection; -1 when it is not known.
    pub success_rate: f64,
    /// The same of attempts to reach it.
    pub local_origin_success_rate: f64,
    /// Open connections.
    pub cx_active: u64,
    /// Connections that failed.
    pub cx_connect_fail: u64,
    /// Connections in all.
    pub cx_total: u64,
    /// Requests under way.
    pub rq_active: u64,
    /// Requests without an answer, or with 5xx.
    pub rq_error: u64,
    /// Requests waiting for a connection.
    pub rq_pending_active: u64,
    /// Requests with an answer that is not 5xx.
    pub rq_success: u64,
    /// Requests that took too long.
    pub rq_timeout: u64,
    /// Requests in all.
    pub rq_total: u64,
}

impl HostView {
    /// A healthy host of weight 1 that has seen nothing yet.
    pub fn new(address: HostAddress) -> Self {
        Self {
            address,
            hostname: String::new(),
            weight: 1,
            priority: 0,
            locality: LocalityView::default(),
            health: HealthFlags::default(),
            success_rate: -1.0,
            local_origin_success_rate: -1.0,
            cx_active: 0,
            cx_connect_fail: 0,
            cx_total: 0,
            rq_active: 0,
            rq_error: 0,
            rq_pending_active: 0,
            rq_success: 0,
            rq_timeout: 0,
            rq_total: 0,
        }
    }
}
