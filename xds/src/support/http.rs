//! The HTTP connection manager and its filters.

use super::Table;

/// `Http1ProtocolOptions` of a connection manager.
const DOWNSTREAM_HTTP1: Table = Table {
    used: &[
        "allow_absolute_url",
        "accept_http_10",
        "default_host_for_http_10",
        "header_key_format",
        "enable_trailers",
        "allow_chunked_length",
    ],
    no_effect: &[("use_balsa_parser", "there is one HTTP/1 parser")],
    only_off: &[
        "override_stream_error_on_invalid_http_message",
        "send_fully_qualified_url",
        "allow_custom_methods",
    ],
    refused: &[("ignore_http_11_upgrade", "upgrades cannot be ignored by name")],
    ..Table::of("envoy.config.core.v3.Http1ProtocolOptions")
};

/// `HttpProtocolOptions` of a connection manager.
const DOWNSTREAM_COMMON: Table = Table {
    used: &[
        "idle_timeout",
        "max_connection_duration",
        "max_headers_count",
        "headers_with_underscores_action",
        "max_requests_per_connection",
        "max_stream_duration",
    ],
    no_effect: &[("max_response_headers_kb", "it limits what upstreams send; clusters have it too")],
    ..Table::of("envoy.config.core.v3.HttpProtocolOptions")
};

/// `Http1ProtocolOptions` of a cluster.
pub(super) const UPSTREAM_HTTP1: Table = Table {
    used: &["header_key_format", "enable_trailers"],
    no_effect: &[
        ("allow_absolute_url", "it is about requests that are received"),
        ("accept_http_10", "it is about requests that are received"),
        ("default_host_for_http_10", "it is about requests that are received"),
        ("use_balsa_parser", "there is one HTTP/1 parser"),
    ],
    only_off: &[
        "override_stream_error_on_invalid_http_message",
        "send_fully_qualified_url",
        "allow_chunked_length",
        "allow_custom_methods",
    ],
    ..Table::of("envoy.config.core.v3.Http1ProtocolOptions")
};

/// `HttpProtocolOptions` of a cluster.
pub(super) const UPSTREAM_COMMON: Table = Table {
    used: &[
        "idle_timeout",
        "max_connection_duration",
        "max_requests_per_connection",
        "max_response_headers_kb",
        "max_stream_duration",
    ],
    no_effect: &[("headers_with_underscores_action", "it is about requests that are received")],
    ..Table::of("envoy.config.core.v3.HttpProtocolOptions")
};

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["subject", "cert", "chain", "dns", "uri"],
        only_off: &["issuer", "format"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.\
             SetCurrentClientCertDetails",
        )
    },
    Table {
        used: &[
            "codec_type",
            "http2_protocol_options",
            "stat_prefix",
            "rds",
            "route_config",
            "scoped_routes",
            "http_filters",
            "server_name",
            "server_header_transformation",
            "max_request_headers_kb",
            "stream_idle_timeout",
            "stream_flush_timeout",
            "request_timeout",
            "request_headers_timeout",
            "drain_timeout",
            "delayed_close_timeout",
            "access_log",
            "use_remote_address",
            "xff_num_trusted_hops",
            "skip_xff_append",
            "via",
            "generate_request_id",
            "preserve_external_request_id",
            "always_set_request_id_in_response",
            "upgrade_configs",
            "normalize_path",
            "merge_slashes",
            "path_with_escaped_slashes_action",
            "request_id_extension",
            "strip_matching_host_port",
            "strip_any_host_port",
            "strip_trailing_host_dot",
            "append_x_forwarded_port",
            "forward_client_cert_details",
            "set_current_client_cert_details",
            "internal_address_config",
            "tracing",
            "scheme_header_transformation",
            "early_header_mutation_extensions",
        ],
        used_as: &[
            ("common_http_protocol_options", &DOWNSTREAM_COMMON),
            ("http_protocol_options", &DOWNSTREAM_HTTP1),
        ],
        no_effect: &[
            ("http3_protocol_options", "HTTP/3 is not spoken; UDP listeners are refused"),
            ("add_proxy_protocol_connection_state", "the PROXY protocol is not spoken"),
        ],
        only_off: &[
            "add_user_agent",
            "proxy_100_continue",
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
            "append_local_overload",
            "http1_safe_max_connection_duration",
            "stream_error_on_invalid_http_message",
            "flush_access_log_on_new_request",
        ],
        refused: &[
            ("original_ip_detection_extensions", "the client's address cannot be taken from elsewhere"),
            ("local_reply_config", "local replies cannot be changed"),
            ("access_log_flush_interval", "access logs are written when a request ends"),
            ("access_log_options", "access logs are written when a request ends"),
        ],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager")
    },
    Table {
        used: &["scheme_to_overwrite", "match_upstream"],
        ..Table::of("envoy.config.core.v3.SchemeHeaderTransformation")
    },
    Table {
        used: &["mutations"],
        ..Table::of("envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation")
    },
    Table {
        used: &["unix_sockets", "cidr_ranges"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
        )
    },
    Table {
        used: &[
            "name",
            "scope_key_builder",
            "rds_config_source",
            "scoped_route_configurations_list",
            "scoped_rds",
        ],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes")
    },
    Table {
        used: &["fragments"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder",
        )
    },
    Table {
        used: &["header_value_extractor"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder",
        )
    },
    Table {
        used: &["name", "element_separator", "index", "element"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor",
        )
    },
    Table {
        used: &["separator", "key"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor.KvElement",
        )
    },
    Table {
        used: &["scoped_route_configurations"],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRouteConfigurationsList",
        )
    },
    Table {
        used: &["scoped_rds_config_source"],
        refused: &[("srds_resources_locator", "names of xdstp are not supported")],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.ScopedRds")
    },
    Table {
        used: &["config_source", "route_config_name"],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.Rds")
    },
    Table {
        used: &["name", "typed_config", "config_discovery", "is_optional", "disabled"],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter")
    },
    Table {
        used: &["config_source", "default_config", "apply_default_config_without_warming", "type_urls"],
        ..Table::of("envoy.config.core.v3.ExtensionConfigSource")
    },
    Table {
        used: &["upgrade_type", "enabled"],
        refused: &[("filters", "upgraded requests go through the filters of all requests")],
        ..Table::of(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        )
    },
    Table {
        used: &["typed_config"],
        ..Table::of("envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension")
    },
    Table {
        used: &["pack_trace_reason", "use_request_id_for_trace_sampling"],
        ..Table::of("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig")
    },
    Table {
        used: &["proper_case_words", "stateful_formatter"],
        ..Table::of("envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat")
    },
    Table::of("envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords"),
    Table {
        only_off: &["forward_reason_phrase"],
        refused: &[("formatter_type_on_envoy_headers", "headers that Culvert adds are in lower case")],
        ..Table::of("envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig")
    },
    Table {
        used: &["suppress_envoy_headers", "start_child_span"],
        no_effect: &[
            ("dynamic_stats", "counters of clusters are always kept"),
            ("suppress_grpc_request_failure_code_stats", "there are no gRPC counters"),
        ],
        only_off: &["respect_expected_rq_timeout", "reject_connect_request_early_data"],
        refused: &[
            ("upstream_log", "upstream access logs are not supported"),
            ("upstream_http_filters", "upstream HTTP filters are not supported"),
        ],
        ..Table::of("envoy.extensions.filters.http.router.v3.Router")
    },
];
