//! HTTP filters that ask somebody.

use super::Table;

const NO_SPANS: &str = "calls of filters have no spans";
const NO_TYPED: &str = "there is no typed metadata";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["retry_back_off", "num_retries", "retry_on"],
        refused: &[
            ("retry_priority", "calls are tried again on any priority"),
            ("retry_host_predicate", "calls are tried again on any host"),
            ("host_selection_retry_max_attempts", "calls are tried again on any host"),
        ],
        ..Table::of("envoy.config.core.v3.RetryPolicy")
    },
    Table {
        used: &[
            "http_service",
            "transport_api_version",
            "failure_mode_allow",
            "failure_mode_allow_header_add",
            "with_request_body",
            "clear_route_cache",
            "status_on_error",
            "metadata_context_namespaces",
            "route_metadata_context_namespaces",
            "filter_enabled",
            "deny_at_disable",
            "include_peer_certificate",
            "stat_prefix",
            "allowed_headers",
            "disallowed_headers",
            "include_tls_session",
            "charge_cluster_response_stats",
            "encode_raw_headers",
        ],
        used_as: &[("grpc_service", &CALL)],
        no_effect: &[
            ("typed_metadata_context_namespaces", NO_TYPED),
            ("route_typed_metadata_context_namespaces", NO_TYPED),
            ("validate_mutations", "headers that are none make the answer an error in any case"),
            ("emit_client_span", NO_SPANS),
        ],
        only_off: &[
            "emit_filter_state_stats",
            "max_denied_response_body_bytes",
            "enforce_response_header_limits",
            "shadow_mode",
        ],
        refused: &[
            ("filter_enabled_metadata", "it cannot be enabled by metadata"),
            ("bootstrap_metadata_labels_key", "the destination has no labels"),
            ("decoder_header_mutation_rules", "rules for what the service may change are not supported"),
            ("enable_dynamic_metadata_ingestion", "metadata of the service is always taken"),
            ("filter_metadata", "requests carry no metadata of the filter's own"),
        ],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz")
    },
    Table {
        used: &["max_request_bytes", "allow_partial_message", "pack_as_bytes"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.BufferSettings")
    },
    Table {
        used: &[
            "path_prefix",
            "path_override",
            "authorization_request",
            "authorization_response",
            "retry_policy",
        ],
        used_as: &[("server_uri", &SERVER_URI)],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.HttpService")
    },
    Table {
        used: &["allowed_headers", "headers_to_add"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest")
    },
    Table {
        used: &[
            "allowed_upstream_headers",
            "allowed_upstream_headers_to_append",
            "allowed_client_headers",
            "allowed_client_headers_on_success",
            "dynamic_metadata_from_headers",
        ],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse")
    },
    Table {
        used: &["disabled", "check_settings"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute")
    },
    Table {
        used: &["context_extensions", "disable_request_body_buffering", "with_request_body", "http_service"],
        used_as: &[("grpc_service", &CALL)],
        no_effect: &[("emit_client_span", NO_SPANS)],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.CheckSettings")
    },
];

/// A service that is asked once for each request, where others are streams.
const CALL: Table = Table {
    used: &["timeout", "initial_metadata", "retry_policy"],
    used_as: &[("envoy_grpc", &CALLED)],
    refused: &[("google_grpc", "only envoy_grpc is supported")],
    ..Table::of("envoy.config.core.v3.GrpcService")
};

const CALLED: Table = Table {
    used: &["cluster_name", "authority"],
    only_off: &["skip_envoy_headers"],
    refused: &[
        ("retry_policy", "only that of the service itself is supported"),
        ("max_receive_message_length", "answers of up to 4 MiB are received"),
    ],
    ..Table::of("envoy.config.core.v3.GrpcService.EnvoyGrpc")
};

/// The service of `ext_authz`, whose path is that of the request.
const SERVER_URI: Table = Table {
    used: &["cluster", "timeout"],
    no_effect: &[("uri", "requests go to the cluster, with the host and the path of what is checked")],
    ..Table::of("envoy.config.core.v3.HttpUri")
};
