//! Tracing: `HttpConnectionManager.Tracing`, what routes say of it, and the tracers (`config.trace.v3`).

use std::sync::Arc;

use crate::{CustomTag, Format, Fraction, GrpcService, HttpUri};

/// `HttpConnectionManager.Tracing`.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// `client_sampling`, `random_sampling` and `overall_sampling`.
    pub sampling: TraceSampling,
    /// `verbose`: spans tell when the first and the last bytes came and went.
    pub verbose: bool,
    /// `max_path_tag_length`: 256.
    pub max_path_tag_length: usize,
    /// `custom_tags`, by tag.
    pub custom_tags: Vec<(String, SpanTag)>,
    /// `provider`; requests are only marked without one.
    pub provider: Option<Arc<TraceProvider>>,
    /// `spawn_upstream_span`, or `start_child_span` of the router: each attempt has a span.
    pub spawn_upstream_span: bool,
    /// `operation`: what spans of requests are called.
    pub operation: Option<Format>,
    /// `upstream_operation`: what spans of attempts are called.
    pub upstream_operation: Option<Format>,
    /// `no_context_propagation`, turned round: upstreams are told of the trace.
    pub propagate: bool,
}

/// How many requests are traced; all unless told otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceSampling {
    /// `client_sampling`: of those with `x-client-trace-id`. Runtime key `tracing.client_enabled`.
    pub client: Fraction,
    /// `random_sampling`: of all others. Runtime key `tracing.random_sampling`.
    pub random: Fraction,
    /// `overall_sampling`: of all that would be traced. Runtime key `tracing.global_enabled`.
    pub overall: Fraction,
}

/// `config.route.v3.Tracing` and `config.route.v3.Decorator`.
#[derive(Clone, Debug, Default)]
pub struct RouteTracing {
    /// In place of what the connection manager says.
    pub sampling: Option<TraceSampling>,
    /// `custom_tags`; they come before those of the connection manager that are called the same.
    pub custom_tags: Vec<(String, SpanTag)>,
    /// `operation`
    pub operation: Option<Format>,
    /// `upstream_operation`
    pub upstream_operation: Option<Format>,
    /// `decorator`
    pub decorator: Option<Decorator>,
}

/// `config.route.v3.Decorator`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decorator {
    /// `operation`: what spans are called.
    pub operation: String,
    /// `propagate`: true. The other side is told.
    pub propagate: bool,
}

/// A tag of a span.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SpanTag {
    /// What logs have too.
    Plain(CustomTag),
    /// `value`: nothing when empty.
    Format(Format),
    /// `metadata` of the request.
    Metadata {
        /// `metadata_key.key`
        namespace: String,
        /// `metadata_key.path`
        path: Vec<String>,
        /// `default_value`; no tag when it is empty and there is no value.
        default: String,
    },
}

/// `config.trace.v3.Tracing.Http`: who is told of spans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TraceProvider {
    /// `OpenTelemetryConfig`
    OpenTelemetry(OpenTelemetry),
    /// `ZipkinConfig`
    Zipkin(Zipkin),
}

/// `config.trace.v3.OpenTelemetryConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenTelemetry {
    /// `grpc_service` or `http_service`; without either spans go nowhere, but contexts do.
    pub exporter: Option<OtlpExporter>,
    /// Attributes of the resource: `service.name`, the SDK's, and those that `resource_detectors` find.
    pub resource: Vec<(String, String)>,
    /// `sampler`
    pub sampler: Option<TraceSampler>,
    /// `max_cache_size`: 1,024 spans.
    pub max_cache_size: usize,
    /// `set_instrumentation_scope`: true.
    pub scope: bool,
}

/// Where `ExportTraceServiceRequest`s go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OtlpExporter {
    /// `grpc_service`
    Grpc(GrpcService),
    /// `http_service`
    Http {
        /// `http_uri`
        uri: HttpUri,
        /// `request_headers_to_add`
        headers: Vec<(String, String)>,
    },
}

/// `OpenTelemetryConfig.sampler`: it decides in place of what came with the request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TraceSampler {
    /// `AlwaysOnSamplerConfig`
    AlwaysOn,
    /// `ParentBasedSamplerConfig`: as what the request came with says, else as this one does.
    ParentBased(Box<Self>),
    /// `TraceIdRatioBasedSamplerConfig`
    Ratio(Fraction),
}

/// `config.trace.v3.ZipkinConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Zipkin {
    /// `collector_cluster`
    pub cluster: String,
    /// `collector_endpoint`: a path.
    pub path: String,
    /// `collector_hostname`, or the cluster's name.
    pub authority: String,
    /// `trace_id_128bit`
    pub wide_ids: bool,
    /// `shared_span_context`: true. The span of the client goes on here.
    pub shared: bool,
    /// `split_spans_for_request`: spans of requests are a server's also where the listener is an outbound one.
    pub split: bool,
}
