//! `config.core.v3.HealthCheck`.

use super::Table;

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "timeout",
            "interval",
            "initial_jitter",
            "interval_jitter",
            "interval_jitter_percent",
            "unhealthy_threshold",
            "healthy_threshold",
            "alt_port",
            "reuse_connection",
            "http_health_check",
            "tcp_health_check",
            "grpc_health_check",
            "no_traffic_interval",
            "no_traffic_healthy_interval",
            "unhealthy_interval",
            "unhealthy_edge_interval",
            "healthy_edge_interval",
            "tls_options",
            "event_log_path",
            "event_logger",
            "always_log_health_check_failures",
            "always_log_health_check_success",
        ],
        refused: &[
            ("custom_health_check", "custom health checkers are not supported"),
            ("event_service", "events of health checks are not reported"),
            ("transport_socket_match_criteria", "checks use the transport socket of the endpoint"),
        ],
        ..Table::of("envoy.config.core.v3.HealthCheck")
    },
    Table {
        used: &["event_log_path"],
        ..Table::of("envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink")
    },
    Table { used: &["text", "binary"], ..Table::of("envoy.config.core.v3.HealthCheck.Payload") },
    Table {
        used: &[
            "host",
            "path",
            "send",
            "receive",
            "response_buffer_size",
            "request_headers_to_add",
            "request_headers_to_remove",
            "expected_statuses",
            "retriable_statuses",
            "codec_client_type",
            "service_name_matcher",
            "method",
        ],
        ..Table::of("envoy.config.core.v3.HealthCheck.HttpHealthCheck")
    },
    Table {
        used: &["send", "receive"],
        refused: &[("proxy_protocol_config", "checks do not begin with a PROXY header")],
        ..Table::of("envoy.config.core.v3.HealthCheck.TcpHealthCheck")
    },
    Table {
        used: &["service_name", "authority", "initial_metadata"],
        ..Table::of("envoy.config.core.v3.HealthCheck.GrpcHealthCheck")
    },
    Table { used: &["alpn_protocols"], ..Table::of("envoy.config.core.v3.HealthCheck.TlsOptions") },
];
