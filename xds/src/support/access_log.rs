//! `config.accesslog.v3` and the loggers.

use super::{
    Table,
    tracing::{CALL_ONCE, HTTP_SERVICE},
};

const NO_STATE: &str = "requests carry no filter state that has a message form";
const NO_METADATA: &str = "requests carry no metadata";

/// How streams to a collector are opened again.
const STREAM_RETRIES: Table = Table {
    used: &["retry_back_off"],
    no_effect: &[("num_retries", "a stream is opened again until it stays")],
    ..Table::of("envoy.config.core.v3.RetryPolicy")
};

/// `CommonGrpcAccessLogConfig` of a collector of OpenTelemetry.
const OTLP_COMMON: Table = Table {
    used: &["log_name", "transport_api_version", "buffer_flush_interval", "buffer_size_bytes", "custom_tags"],
    used_as: &[("grpc_service", &CALL_ONCE)],
    no_effect: &[("filter_state_objects_to_log", NO_STATE)],
    refused: &[("grpc_stream_retry_policy", "entries are not sent in a stream")],
    ..Table::of("envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig")
};

pub(super) const TABLES: &[Table] = &[
    Table { used: &["name", "typed_config", "filter"], ..Table::of("envoy.config.accesslog.v3.AccessLog") },
    Table {
        used: &[
            "status_code_filter",
            "duration_filter",
            "not_health_check_filter",
            "traceable_filter",
            "runtime_filter",
            "and_filter",
            "or_filter",
            "header_filter",
            "response_flag_filter",
            "grpc_status_filter",
            "metadata_filter",
            "log_type_filter",
        ],
        refused: &[("extension_filter", "filter extensions are not supported")],
        ..Table::of("envoy.config.accesslog.v3.AccessLogFilter")
    },
    Table { used: &["op", "value"], ..Table::of("envoy.config.accesslog.v3.ComparisonFilter") },
    Table { used: &["default_value", "runtime_key"], ..Table::of("envoy.config.core.v3.RuntimeUInt32") },
    Table { used: &["comparison"], ..Table::of("envoy.config.accesslog.v3.StatusCodeFilter") },
    Table { used: &["comparison"], ..Table::of("envoy.config.accesslog.v3.DurationFilter") },
    Table::of("envoy.config.accesslog.v3.NotHealthCheckFilter"),
    Table::of("envoy.config.accesslog.v3.TraceableFilter"),
    Table {
        used: &["runtime_key", "percent_sampled", "use_independent_randomness"],
        ..Table::of("envoy.config.accesslog.v3.RuntimeFilter")
    },
    Table { used: &["filters"], ..Table::of("envoy.config.accesslog.v3.AndFilter") },
    Table { used: &["filters"], ..Table::of("envoy.config.accesslog.v3.OrFilter") },
    Table { used: &["header"], ..Table::of("envoy.config.accesslog.v3.HeaderFilter") },
    Table { used: &["flags"], ..Table::of("envoy.config.accesslog.v3.ResponseFlagFilter") },
    Table { used: &["statuses", "exclude"], ..Table::of("envoy.config.accesslog.v3.GrpcStatusFilter") },
    Table {
        used: &["match_if_key_not_found"],
        no_effect: &[("matcher", "requests carry no metadata, so the key is never found")],
        ..Table::of("envoy.config.accesslog.v3.MetadataFilter")
    },
    Table { used: &["types", "exclude"], ..Table::of("envoy.config.accesslog.v3.LogTypeFilter") },
    Table {
        used: &["path", "format", "log_format", "json_format", "typed_json_format"],
        ..Table::of("envoy.extensions.access_loggers.file.v3.FileAccessLog")
    },
    Table { used: &["log_format"], ..Table::of("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog") },
    Table { used: &["log_format"], ..Table::of("envoy.extensions.access_loggers.stream.v3.StderrAccessLog") },
    Table {
        used: &["text_format", "text_format_source", "json_format", "omit_empty_values", "formatters"],
        no_effect: &[
            ("content_type", "it is for local replies"),
            ("json_format_options", "members are sorted in any case, as in Envoy"),
        ],
        ..Table::of("envoy.config.core.v3.SubstitutionFormatString")
    },
    Table::of("envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"),
    Table::of("envoy.extensions.formatter.metadata.v3.Metadata"),
    Table {
        used: &[
            "common_config",
            "additional_request_headers_to_log",
            "additional_response_headers_to_log",
            "additional_response_trailers_to_log",
        ],
        ..Table::of("envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig")
    },
    Table {
        used: &["common_config"],
        ..Table::of("envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig")
    },
    Table {
        used: &[
            "log_name",
            "grpc_service",
            "transport_api_version",
            "buffer_flush_interval",
            "buffer_size_bytes",
            "custom_tags",
        ],
        used_as: &[("grpc_stream_retry_policy", &STREAM_RETRIES)],
        no_effect: &[("filter_state_objects_to_log", NO_STATE)],
        ..Table::of("envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig")
    },
    Table {
        used: &[
            "disable_builtin_labels",
            "resource_attributes",
            "resource_detectors",
            "body",
            "attributes",
            "stat_prefix",
            "formatters",
            "log_name",
            "buffer_flush_interval",
            "buffer_size_bytes",
            "custom_tags",
        ],
        used_as: &[
            ("common_config", &OTLP_COMMON),
            ("http_service", &HTTP_SERVICE),
            ("grpc_service", &CALL_ONCE),
        ],
        no_effect: &[("filter_state_objects_to_log", NO_STATE)],
        ..Table::of("envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig")
    },
    Table { used: &["values"], ..Table::of("opentelemetry.proto.common.v1.KeyValueList") },
    Table { used: &["key", "value"], ..Table::of("opentelemetry.proto.common.v1.KeyValue") },
    Table { used: &["values"], ..Table::of("opentelemetry.proto.common.v1.ArrayValue") },
    Table {
        used: &["string_value", "array_value", "kvlist_value"],
        ..Table::of("opentelemetry.proto.common.v1.AnyValue")
    },
    Table { used: &["base_interval", "max_interval"], ..Table::of("envoy.config.core.v3.BackoffStrategy") },
    Table {
        used: &["tag", "literal", "environment", "request_header"],
        refused: &[("metadata", NO_METADATA), ("value", "formatted tags are not supported")],
        ..Table::of("envoy.type.tracing.v3.CustomTag")
    },
    Table { used: &["value"], ..Table::of("envoy.type.tracing.v3.CustomTag.Literal") },
    Table { used: &["name", "default_value"], ..Table::of("envoy.type.tracing.v3.CustomTag.Environment") },
    Table { used: &["name", "default_value"], ..Table::of("envoy.type.tracing.v3.CustomTag.Header") },
];
