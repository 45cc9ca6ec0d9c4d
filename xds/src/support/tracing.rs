//! Tracing: connection managers, routes, and `config.trace.v3`.

use super::{Table, callout::CALL};

/// `CustomTag` of spans; logs have fewer.
pub(super) const SPAN_TAG: Table = Table {
    used: &["tag", "literal", "environment", "request_header", "metadata", "value"],
    ..Table::of("envoy.type.tracing.v3.CustomTag")
};

/// Headers of requests to a collector.
const PLAIN_HEADER: Table = Table {
    used: &["header"],
    only_off: &["append_action", "keep_empty_value"],
    refused: &[("append", "headers are set")],
    ..Table::of("envoy.config.core.v3.HeaderValueOption")
};

/// A collector that speaks HTTP.
pub(super) const HTTP_SERVICE: Table = Table {
    used: &["http_uri"],
    used_as: &[("request_headers_to_add", &PLAIN_HEADER)],
    refused: &[("formatters", "headers cannot have substitutions here")],
    ..Table::of("envoy.config.core.v3.HttpService")
};

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "client_sampling",
            "random_sampling",
            "overall_sampling",
            "verbose",
            "max_path_tag_length",
            "provider",
            "spawn_upstream_span",
            "operation",
            "upstream_operation",
            "no_context_propagation",
        ],
        used_as: &[("custom_tags", &SPAN_TAG)],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
        )
    },
    Table {
        used: &["client_sampling", "random_sampling", "overall_sampling", "operation", "upstream_operation"],
        used_as: &[("custom_tags", &SPAN_TAG)],
        ..Table::of("envoy.config.route.v3.Tracing")
    },
    Table { used: &["operation", "propagate"], ..Table::of("envoy.config.route.v3.Decorator") },
    Table {
        used: &["metadata_key", "default_value"],
        no_effect: &[("kind", "only metadata of requests are supported, which is checked")],
        ..Table::of("envoy.type.tracing.v3.CustomTag.Metadata")
    },
    Table { used: &["name", "typed_config"], ..Table::of("envoy.config.trace.v3.Tracing.Http") },
    Table {
        used: &[
            "service_name",
            "resource_detectors",
            "sampler",
            "max_cache_size",
            "set_telemetry_sdk_resource_attributes",
            "set_service_name_resource_attribute",
            "set_instrumentation_scope",
        ],
        used_as: &[("grpc_service", &CALL_ONCE), ("http_service", &HTTP_SERVICE)],
        refused: &[("exporter", "the exporter has to be grpc_service or http_service")],
        ..Table::of("envoy.config.trace.v3.OpenTelemetryConfig")
    },
    Table {
        used: &["attributes"],
        ..Table::of(
            "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
        )
    },
    Table::of(
        "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig",
    ),
    Table::of("envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig"),
    Table {
        used: &["wrapped_sampler"],
        ..Table::of("envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig")
    },
    Table {
        used: &["sampling_percentage"],
        ..Table::of("envoy.extensions.tracers.opentelemetry.samplers.v3.TraceIdRatioBasedSamplerConfig")
    },
    Table {
        used: &[
            "collector_cluster",
            "collector_endpoint",
            "trace_id_128bit",
            "shared_span_context",
            "collector_endpoint_version",
            "collector_hostname",
            "split_spans_for_request",
        ],
        only_off: &["trace_context_option"],
        refused: &[(
            "collector_service",
            "the collector has to be in collector_cluster and collector_endpoint",
        )],
        ..Table::of("envoy.config.trace.v3.ZipkinConfig")
    },
];

/// A collector is called, and not again when that fails.
pub(super) const CALL_ONCE: Table = Table {
    used: &["timeout", "initial_metadata"],
    refused: &[
        ("google_grpc", "only envoy_grpc is supported"),
        ("retry_policy", "what a collector refuses is dropped"),
    ],
    ..CALL
};
