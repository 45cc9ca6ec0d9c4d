//! Services that filters ask: over gRPC (`config.core.v3.GrpcService`) or HTTP (`HttpUri`).

use std::time::Duration;

use crate::GrpcService;

/// A service of gRPC that answers single calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcCall {
    /// Where it is.
    pub service: GrpcService,
    /// `retry_policy`
    pub retry: Option<CallRetry>,
}

/// `config.core.v3.HttpUri`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpUri {
    /// `cluster`
    pub cluster: String,
    /// Host, and port if there is one, of `uri`.
    pub authority: String,
    /// Path and query of `uri`, `/` at least.
    pub path: String,
    /// `timeout`
    pub timeout: Duration,
}

/// `config.core.v3.RetryPolicy` of a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallRetry {
    /// `retry_on`
    pub on: Vec<RetryCondition>,
    /// `num_retries`: 1.
    pub max: u32,
    /// `retry_back_off.base_interval`: 25 ms.
    pub base: Duration,
    /// `retry_back_off.max_interval`: ten times the base.
    pub longest: Duration,
}

/// A word of `retry_on`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryCondition {
    /// `connect-failure`
    ConnectFailure,
    /// `gateway-error`: 502, 503, 504, or no answer.
    GatewayError,
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`: the status of gRPC.
    Grpc(u8),
    /// `refused-stream`
    RefusedStream,
    /// `reset`: the connection or the stream was lost.
    Reset,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `5xx`, or no answer.
    ServerError,
}
