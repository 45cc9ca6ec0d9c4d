//! Active health checks (`config.core.v3.HealthCheck`).

use std::{net::SocketAddr, time::Duration};

use crate::{AppendAction, StringMatcher};

/// `config.core.v3.HealthCheck`: how the endpoints of a cluster are checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// `timeout`: how long a check may take, connecting included.
    pub timeout: Duration,
    /// Time between checks.
    pub intervals: HealthIntervals,
    /// `initial_jitter`: the first check of an endpoint is put off by up to this much. 0.
    pub initial_jitter: Duration,
    /// `interval_jitter`: up to this much is added to each interval. 0.
    pub interval_jitter: Duration,
    /// `interval_jitter_percent`: up to this share of the interval is added to it. 0.
    pub interval_jitter_percent: u32,
    /// `unhealthy_threshold`: failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// `healthy_threshold`: successes in a row that make it healthy again.
    pub healthy_threshold: u32,
    /// `reuse_connection`: true.
    pub reuse_connection: bool,
    /// `alt_port`: the port to check instead of the endpoint's; what the endpoint itself says goes first.
    pub alt_port: Option<u16>,
    /// `tls_options.alpn_protocols`: offered instead of those of the transport socket, unless empty.
    pub alpn: Vec<String>,
    /// What is asked.
    pub checker: HealthChecker,
    /// `event_logger`, `event_log_path`: files that events are written to.
    pub event_logs: Vec<String>,
    /// `always_log_health_check_failures`: each failure is an event, not just the first one and those that change
    /// something.
    pub logs_failures: bool,
    /// `always_log_health_check_success`: the same of successes.
    pub logs_successes: bool,
}

/// Time between two checks of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthIntervals {
    /// `interval`: of a healthy endpoint.
    pub healthy: Duration,
    /// `unhealthy_interval`: of an unhealthy endpoint; else `interval`.
    pub unhealthy: Duration,
    /// `unhealthy_edge_interval`: after a failure while still healthy; else `unhealthy_interval`.
    pub unhealthy_edge: Duration,
    /// `healthy_edge_interval`: after a success while still unhealthy; else `interval`.
    pub healthy_edge: Duration,
    /// `no_traffic_interval`: while the cluster has never had a connection. 60 s.
    pub no_traffic: Duration,
    /// `no_traffic_healthy_interval`: the same, of a healthy endpoint; else `no_traffic_interval`.
    pub no_traffic_healthy: Duration,
}

/// `HealthCheck.health_checker`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HealthChecker {
    /// `http_health_check`
    Http(Box<HttpHealthCheck>),
    /// `tcp_health_check`
    Tcp(TcpHealthCheck),
    /// `grpc_health_check`
    Grpc(GrpcHealthCheck),
}

/// `HealthCheck.HttpHealthCheck`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpHealthCheck {
    /// `host`: of the request; the cluster's name when empty.
    pub host: String,
    /// `path`
    pub path: String,
    /// `method`: GET.
    pub method: String,
    /// `send`: the body of the request.
    pub send: Vec<u8>,
    /// `receive`: what the body of the response has to contain, in this order.
    pub receive: Vec<Vec<u8>>,
    /// `response_buffer_size`: so much of the body is looked at. 1024; `None` (0) for all of it.
    pub buffer: Option<usize>,
    /// `request_headers_to_add`, after `request_headers_to_remove`.
    pub add: Vec<CheckHeader>,
    /// `request_headers_to_remove`, lower case.
    pub remove: Vec<String>,
    /// `expected_statuses`, ends excluded: 200.
    pub expected: Vec<(u16, u16)>,
    /// `retriable_statuses`, ends excluded: they count towards `unhealthy_threshold`. Others make unhealthy at once.
    pub retriable: Vec<(u16, u16)>,
    /// `codec_client_type: HTTP2`
    pub http2: bool,
    /// `service_name_matcher`: what `x-envoy-upstream-healthchecked-cluster` of the response has to be.
    pub service_name: Option<StringMatcher>,
}

/// A header of the request of a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckHeader {
    /// Lower case.
    pub name: String,
    /// The text as it is.
    pub value: String,
    /// What happens to a header of that name that is there already.
    pub action: AppendAction,
}

/// `HealthCheck.TcpHealthCheck`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TcpHealthCheck {
    /// `send`
    pub send: Vec<u8>,
    /// `receive`: what the answer has to contain, in this order. When empty a connection is enough.
    pub receive: Vec<Vec<u8>>,
}

/// `HealthCheck.GrpcHealthCheck`: `grpc.health.v1.Health/Check`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GrpcHealthCheck {
    /// `service_name`
    pub service: String,
    /// `authority`: the cluster's name when empty.
    pub authority: String,
    /// `initial_metadata`
    pub metadata: Vec<CheckHeader>,
}

/// `config.endpoint.v3.Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EndpointCheck {
    /// `address`: where to check instead.
    pub address: Option<SocketAddr>,
    /// `port_value`: the port of it.
    pub port: Option<u16>,
    /// `hostname`: the host (or authority) of requests to it.
    pub hostname: String,
    /// `disable_active_health_check`
    pub disabled: bool,
}
