//! Clusters and endpoints (`config.cluster.v3`, `config.endpoint.v3`).

use std::{sync::Arc, time::Duration};

use crate::{Address, ConfigSource};

/// `config.cluster.v3.Cluster`.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `name`
    pub name: Arc<str>,
    /// `alt_stat_name`, else `name`.
    pub stat_name: String,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// `lb_policy`
    pub lb_policy: LbPolicy,
    /// `connect_timeout`: 5 s.
    pub connect_timeout: Duration,
    /// `circuit_breakers.thresholds` of priority DEFAULT.
    pub circuit_breakers: CircuitBreakers,
    /// Idle timeout of pooled connections, `common_http_protocol_options.idle_timeout`: 1 h; `None` when 0.
    pub idle_timeout: Option<Duration>,
    /// `max_requests_per_connection`, here or in the HTTP protocol options: unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// How names are written on HTTP/1 connections to it (`http_protocol_options.header_key_format`).
    pub header_case: crate::HeaderCase,
    /// `http_protocol_options.enable_trailers` of the cluster: false, request trailers are dropped.
    pub enable_trailers: bool,
    /// `per_connection_buffer_limit_bytes`: 1 MiB.
    pub buffer_limit_bytes: usize,
    /// `max_response_headers_kb` in bytes: 60 KiB.
    pub max_response_headers_bytes: usize,
    /// `transport_socket`; `None` for bytes as they are.
    pub tls: Option<Arc<crate::UpstreamTls>>,
    /// Whether connections speak HTTP/2 (`http2_protocol_options`, `explicit_http_config.http2_protocol_options`).
    pub http2: Option<Http2Options>,
}

/// `config.core.v3.Http2ProtocolOptions`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Http2Options {
    /// `connection_keepalive.interval`: off.
    pub keepalive_interval: Option<Duration>,
    /// `connection_keepalive.timeout`: how long an answer may take.
    pub keepalive_timeout: Option<Duration>,
    /// `initial_stream_window_size` in bytes: the client's own.
    pub stream_window: Option<u32>,
    /// `initial_connection_window_size` in bytes: the client's own.
    pub connection_window: Option<u32>,
}

/// `Cluster.type` with what belongs to it.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// `EDS`
    Eds {
        /// `eds_cluster_config.service_name`, else the cluster's name.
        service_name: String,
        /// `eds_cluster_config.eds_config`
        source: ConfigSource,
    },
    /// `STATIC`
    Static(Arc<LoadAssignment>),
    /// `STRICT_DNS`
    StrictDns {
        /// Names to resolve with their ports, weights and priorities.
        assignment: Arc<DnsAssignment>,
        /// `dns_refresh_rate`: 5 s.
        refresh: Duration,
        /// `respect_dns_ttl`
        respect_ttl: bool,
        /// `dns_lookup_family`
        family: DnsFamily,
    },
}

/// `Cluster.DnsLookupFamily`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DnsFamily {
    /// `ALL`
    All,
    /// `AUTO`: IPv6, and IPv4 when there is none.
    #[default]
    Auto,
    /// `V4_ONLY`
    V4Only,
    /// `V4_PREFERRED`
    V4Preferred,
    /// `V6_ONLY`
    V6Only,
}

/// `Cluster.lb_policy` with its settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LbPolicy {
    /// `LEAST_REQUEST`
    LeastRequest {
        /// `choice_count`: 2; at least 2.
        choices: u32,
    },
    /// `RANDOM`
    Random,
    /// `ROUND_ROBIN`
    RoundRobin,
}

/// `CircuitBreakers.Thresholds`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CircuitBreakers {
    /// 1,024
    pub max_connections: u32,
    /// 1,024
    pub max_pending_requests: u32,
    /// 1,024
    pub max_requests: u32,
    /// 3
    pub max_retries: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 1_024, max_pending_requests: 1_024, max_requests: 1_024, max_retries: 3 }
    }
}

/// `config.endpoint.v3.ClusterLoadAssignment` with resolved addresses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LoadAssignment {
    /// All endpoints of all localities, priority 0 first.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint that can be connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// `hostname`, for `auto_host_rewrite`; for DNS the name that was resolved.
    pub hostname: String,
    /// Endpoint weight times its locality's share: at least 1.
    pub weight: u32,
    /// `priority`: 0 is used first.
    pub priority: u32,
    /// `health_status`
    pub health: Health,
}

/// `core.v3.HealthStatus`, reduced to what it means for choosing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Health {
    /// `DEGRADED`
    Degraded,
    /// `UNKNOWN`, `HEALTHY`
    #[default]
    Healthy,
    /// `UNHEALTHY`, `DRAINING`, `TIMEOUT`
    Unhealthy,
}

/// The names of a `STRICT_DNS` cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DnsAssignment {
    /// In configuration order.
    pub names: Vec<DnsEndpoint>,
}

/// One name of a `STRICT_DNS` cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsEndpoint {
    /// Name or literal address.
    pub host: String,
    /// `port_value`
    pub port: u16,
    /// See [`Endpoint::hostname`]; empty for the name itself.
    pub hostname: String,
    /// See [`Endpoint::weight`].
    pub weight: u32,
    /// See [`Endpoint::priority`].
    pub priority: u32,
    /// See [`Endpoint::health`].
    pub health: Health,
}
