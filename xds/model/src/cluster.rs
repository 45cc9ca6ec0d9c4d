//! Clusters (`config.cluster.v3`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    ConfigSource, DnsAssignment, HashPolicy, Http2Options, Http3Options, LbPolicy, LoadAssignment,
    LocalityPolicy, QuicOptions, SlowStart, Struct, Subsets,
};

/// `config.cluster.v3.Cluster`.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `name`
    pub name: Arc<str>,
    /// `alt_stat_name`, else `name`.
    pub stat_name: String,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// `lb_policy`, or `load_balancing_policy`, which goes first.
    pub lb_policy: LbPolicy,
    /// `locality_config_specifier` of either.
    pub localities: LocalityPolicy,
    /// `slow_start_config` of either: endpoints have all of their weight at once.
    pub slow_start: Option<SlowStart>,
    /// `lb_subset_config`, or `Subset` of `load_balancing_policy`: endpoints are chosen whatever their labels.
    pub subsets: Option<Arc<Subsets>>,
    /// `hash_policy` of the load balancing policy, else of the HTTP protocol options: takes the place of the routes'.
    pub hash_policy: Vec<HashPolicy>,
    /// `common_lb_config.healthy_panic_threshold` in percent: 50; 0 (and `{}`) turns panic off.
    pub panic_percent: u32,
    /// `common_lb_config.close_connections_on_host_set_change`: false.
    pub close_on_host_set_change: bool,
    /// `wait_for_warm_on_init`: true. Whether start-up waits for its first endpoints.
    pub wait_for_warm: bool,
    /// `connect_timeout`: 5 s.
    pub connect_timeout: Duration,
    /// `circuit_breakers.thresholds` of priority DEFAULT.
    pub circuit_breakers: CircuitBreakers,
    /// `circuit_breakers.thresholds` of priority HIGH.
    pub high_priority_breakers: CircuitBreakers,
    /// `circuit_breakers.per_host_thresholds.max_connections` of priority DEFAULT: unlimited.
    pub max_connections_per_host: Option<u32>,
    /// `upstream_bind_config`
    pub bind: Option<Arc<BindConfig>>,
    /// `upstream_connection_options.tcp_keepalive`
    pub keepalive: Option<TcpKeepalive>,
    /// `transport_socket_matches`: the first one whose criteria an endpoint's metadata has takes the place of `tls`; else
    /// the first one whose criteria its locality's has.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    /// Idle timeout of pooled connections, `common_http_protocol_options.idle_timeout`: 1 h; `None` when 0.
    pub idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_connection_duration`: unlimited. A connection takes no request after it.
    pub max_connection_duration: Option<Duration>,
    /// `common_http_protocol_options.max_stream_duration`: unlimited. How long an attempt may take, from the moment that it
    /// has a connection to the end of its response.
    pub max_stream_duration: Option<Duration>,
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
    /// `config.version` of a `ProxyProtocolUpstreamTransport` around it: connections begin with such a header.
    pub proxy_protocol: Option<ProxyVersion>,
    /// What of a request names the server in the handshake (`upstream_http_protocol_options`): nothing.
    pub request_names: Option<Arc<RequestNames>>,
    /// What its connections speak.
    pub protocol: UpstreamProtocol,
    /// How HTTP/2 is spoken, where it is (`http2_protocol_options`, here or in the HTTP protocol options).
    pub http2: Option<Http2Options>,
    /// How QUIC is spoken, where it is (`http3_protocol_options.quic_protocol_options`).
    pub quic: Option<QuicOptions>,
    /// How HTTP/3 is spoken, where it is (`http3_protocol_options`).
    pub http3: Http3Options,
    /// `health_checks`: endpoints are what EDS says.
    pub health_check: Option<Arc<crate::HealthCheck>>,
    /// `outlier_detection`: none.
    pub outlier_detection: Option<Arc<crate::OutlierDetection>>,
    /// `common_lb_config.ignore_new_hosts_until_first_hc`: false. Endpoints that wait for their first check do not count
    /// when it is asked how many are healthy.
    pub ignore_new_until_checked: bool,
    /// `ignore_health_on_host_removal`: false, an endpoint that passes its checks stays until it fails one, whatever
    /// discovery says.
    pub ignore_health_on_removal: bool,
}

/// `config.core.v3.UpstreamHttpProtocolOptions`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestNames {
    /// `auto_sni`: the request's host is the SNI, unless it is an IP address.
    pub sni: bool,
    /// `auto_san_validation`: the certificate has to be for the request's host.
    pub san: bool,
    /// `override_auto_sni_header`, lower case: the header to take instead of the host where a request has it.
    pub header: Option<String>,
}

/// `HttpProtocolOptions.upstream_protocol_options`, or the presence of `Cluster.http2_protocol_options`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UpstreamProtocol {
    /// `auto_config`: what the TLS handshake agrees on.
    Auto,
    /// `use_downstream_protocol_config`: what the client speaks.
    Downstream,
    /// `explicit_http_config.http_protocol_options`
    #[default]
    Http1,
    /// `explicit_http_config.http2_protocol_options`
    Http2,
    /// `explicit_http_config.http3_protocol_options`
    Http3,
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
    /// `STRICT_DNS`, `LOGICAL_DNS`, or `extensions.clusters.dns.v3.DnsCluster`.
    Dns {
        /// Names to resolve with their ports, weights and priorities.
        assignment: Arc<DnsAssignment>,
        /// How they are resolved.
        options: Arc<DnsOptions>,
    },
    /// `ORIGINAL_DST`: where the downstream connection was going.
    OriginalDst(OriginalDst),
    /// `extensions.clusters.aggregate.v3.ClusterConfig`: the endpoints of these clusters, those of the first one with
    /// the highest priority.
    Aggregate(Vec<Arc<str>>),
}

/// How names are resolved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsOptions {
    /// `LOGICAL_DNS`, `all_addresses_in_single_endpoint`: there is one endpoint, whose address is the first one of the
    /// last answer. A new answer closes no connection.
    pub logical: bool,
    /// `dns_refresh_rate`: 5 s.
    pub refresh: Duration,
    /// `dns_failure_refresh_rate`, base and longest interval after failures, with full jitter; else `refresh`.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// `respect_dns_ttl`: false.
    pub respect_ttl: bool,
    /// `dns_jitter`: up to this much is added to each interval.
    pub jitter: Duration,
    /// `dns_min_refresh_rate`: 0. The shortest interval that a TTL may ask for.
    pub min_refresh: Duration,
    /// `dns_lookup_family`
    pub family: DnsFamily,
    /// `typed_dns_resolver_config`, or what it replaces; the bootstrap's without.
    pub resolver: Option<DnsResolver>,
}

/// Who resolves names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DnsResolver {
    /// `resolvers`; empty for the system's.
    pub servers: Vec<SocketAddr>,
    /// `use_resolvers_as_fallback`: the system's servers are asked first.
    pub servers_are_fallback: bool,
    /// `dns_resolver_options.use_tcp_for_dns_lookups`
    pub tcp: bool,
    /// `dns_resolver_options.no_default_search_domain`
    pub no_search: bool,
    /// `query_timeout_seconds`: 5 s.
    pub timeout: Option<Duration>,
    /// `query_tries`: 4.
    pub tries: Option<u32>,
    /// `rotate_nameservers`
    pub rotate: bool,
}

/// `Cluster.OriginalDstLbConfig`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OriginalDst {
    /// `http_header_name` when `use_http_header`, lower case: a request header that names the address.
    pub header: Option<String>,
    /// `upstream_port_override`: the port to connect to instead of the original one.
    pub port: Option<u16>,
    /// `cleanup_interval`: 5 s. An endpoint not used for so long is forgotten.
    pub cleanup: Duration,
}

/// `Cluster.TransportSocketMatch`.
#[derive(Clone, Debug)]
pub struct TransportSocketMatch {
    /// `name`; of its counters.
    pub name: String,
    /// `match`: what the endpoint's (or its locality's) metadata `envoy.transport_socket_match` has to contain.
    pub criteria: Struct,
    /// `transport_socket`; `None` for bytes as they are.
    pub tls: Option<Arc<crate::UpstreamTls>>,
    /// See [`Cluster::proxy_protocol`].
    pub proxy_protocol: Option<ProxyVersion>,
}

/// `config.core.v3.ProxyProtocolConfig.Version`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyVersion {
    /// `V1`: a line of text.
    V1,
    /// `V2`: binary.
    V2,
}

/// `config.core.v3.BindConfig`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BindConfig {
    /// `source_address`, and `extra_source_addresses`: the first one of the destination's family is used, and the first
    /// one when there is none.
    pub sources: Vec<SocketAddr>,
    /// `freebind`: also addresses that are not the host's.
    pub freebind: bool,
    /// `socket_options`, applied before binding.
    pub options: Vec<SocketOption>,
}

/// `config.core.v3.SocketOption`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketOption {
    /// `level`
    pub level: i32,
    /// `name`
    pub name: i32,
    /// `int_value` or `buf_value`, as `setsockopt(2)` takes it.
    pub value: Vec<u8>,
}

/// `config.core.v3.TcpKeepalive`. What is not given is the kernel's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpKeepalive {
    /// `keepalive_probes`
    pub probes: Option<u32>,
    /// `keepalive_time`
    pub time: Option<Duration>,
    /// `keepalive_interval`
    pub interval: Option<Duration>,
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

/// `CircuitBreakers.Thresholds`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CircuitBreakers {
    /// 1,024
    pub max_connections: u32,
    /// 1,024
    pub max_pending_requests: u32,
    /// 1,024
    pub max_requests: u32,
    /// 3; `retry_budget` takes its place.
    pub max_retries: u32,
    /// `retry_budget`
    pub retry_budget: Option<RetryBudget>,
    /// `track_remaining`: whether what is left is counted.
    pub track_remaining: bool,
}

/// `CircuitBreakers.Thresholds.RetryBudget`: how many retries there may be at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryBudget {
    /// `budget_percent`, in millionths of the requests: 200,000.
    pub per_million: u32,
    /// `budget_interval`: which requests count, those of the last so long. Zero, the default: those that are active or
    /// pending.
    pub interval: Duration,
    /// `min_retry_concurrency`: 3, always allowed.
    pub min: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: 1_024,
            max_pending_requests: 1_024,
            max_requests: 1_024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}
