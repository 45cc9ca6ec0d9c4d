//! `config.route.v3`.

use super::{Table, callout::ROUTE_RATE_LIMIT};

const NO_READER: &str = "nothing reads it";
const NO_PLUG_IN: &str = "the policy has to be in retry_policy";
const NO_HEDGING: &str = "a request is sent again only after the attempt before has ended";

pub(super) const TABLES: &[Table] = &[
    Table { used: &["config_source"], ..Table::of("envoy.config.route.v3.Vhds") },
    Table {
        used: &["name", "route_configuration_name", "route_configuration", "key"],
        only_off: &["on_demand"],
        ..Table::of("envoy.config.route.v3.ScopedRouteConfiguration")
    },
    Table { used: &["fragments"], ..Table::of("envoy.config.route.v3.ScopedRouteConfiguration.Key") },
    Table {
        used: &["string_key"],
        ..Table::of("envoy.config.route.v3.ScopedRouteConfiguration.Key.Fragment")
    },
    Table {
        used: &[
            "name",
            "virtual_hosts",
            "vhds",
            "response_headers_to_add",
            "response_headers_to_remove",
            "request_headers_to_add",
            "request_headers_to_remove",
            "most_specific_header_mutations_wins",
            "validate_clusters",
            "max_direct_response_body_size_bytes",
            "ignore_port_in_host_matching",
            "request_mirror_policies",
            "typed_per_filter_config",
        ],
        no_effect: &[("metadata", NO_READER)],
        only_off: &["ignore_path_parameters_in_path_matching"],
        ..Table::of("envoy.config.route.v3.RouteConfiguration")
    },
    Table {
        used: &[
            "name",
            "domains",
            "routes",
            "require_tls",
            "request_headers_to_add",
            "request_headers_to_remove",
            "response_headers_to_add",
            "response_headers_to_remove",
            "include_request_attempt_count",
            "include_attempt_count_in_response",
            "typed_per_filter_config",
            "request_mirror_policies",
            "retry_policy",
            "per_request_buffer_limit_bytes",
            "request_body_buffer_limit",
            "virtual_clusters",
        ],
        no_effect: &[("metadata", NO_READER)],
        only_off: &["include_is_timeout_retry_header"],
        refused: &[
            ("matcher", "route matching trees are not supported"),
            ("retry_policy_typed_config", NO_PLUG_IN),
            ("hedge_policy", NO_HEDGING),
            ("cors", "the policy has to be in typed_per_filter_config"),
        ],
        used_as: &[("rate_limits", &ROUTE_RATE_LIMIT)],
        ..Table::of("envoy.config.route.v3.VirtualHost")
    },
    Table { used: &["name", "headers"], ..Table::of("envoy.config.route.v3.VirtualCluster") },
    Table {
        used: &[
            "name",
            "match",
            "route",
            "redirect",
            "direct_response",
            "metadata",
            "request_headers_to_add",
            "request_headers_to_remove",
            "response_headers_to_add",
            "response_headers_to_remove",
            "typed_per_filter_config",
            "per_request_buffer_limit_bytes",
            "request_body_buffer_limit",
            "decorator",
            "tracing",
            "stat_prefix",
        ],
        ..Table::of("envoy.config.route.v3.Route")
    },
    Table {
        used: &[
            "prefix",
            "path",
            "safe_regex",
            "connect_matcher",
            "path_separated_prefix",
            "case_sensitive",
            "runtime_fraction",
            "headers",
            "query_parameters",
            "grpc",
        ],
        refused: &[
            ("cookies", "cookies have to be matched as the cookie header"),
            ("path_match_policy", "path templates are not supported"),
            ("tls_context", "TLS is not supported"),
            ("dynamic_metadata", "requests carry no metadata"),
            ("filter_state", "requests carry no filter state"),
        ],
        ..Table::of("envoy.config.route.v3.RouteMatch")
    },
    Table::of("envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions"),
    Table::of("envoy.config.route.v3.RouteMatch.ConnectMatcher"),
    Table {
        used: &[
            "name",
            "exact_match",
            "safe_regex_match",
            "range_match",
            "present_match",
            "prefix_match",
            "suffix_match",
            "contains_match",
            "string_match",
            "invert_match",
            "treat_missing_header_as_empty",
        ],
        ..Table::of("envoy.config.route.v3.HeaderMatcher")
    },
    Table {
        used: &["name", "string_match", "present_match"],
        ..Table::of("envoy.config.route.v3.QueryParameterMatcher")
    },
    Table {
        used: &[
            "cluster",
            "cluster_header",
            "weighted_clusters",
            "cluster_not_found_response_code",
            "prefix_rewrite",
            "regex_rewrite",
            "host_rewrite_literal",
            "auto_host_rewrite",
            "host_rewrite_header",
            "host_rewrite_path_regex",
            "append_x_forwarded_host",
            "timeout",
            "idle_timeout",
            "max_stream_duration",
            "retry_policy",
            "request_mirror_policies",
            "internal_redirect_policy",
            "upgrade_configs",
            "hash_policy",
            "include_vh_rate_limits",
            "metadata_match",
            "priority",
        ],
        refused: &[
            ("cluster_specifier_plugin", "cluster specifier plug-ins are not supported"),
            ("inline_cluster_specifier_plugin", "cluster specifier plug-ins are not supported"),
            ("path_rewrite_policy", "path templates are not supported"),
            ("retry_policy_typed_config", NO_PLUG_IN),
            ("hedge_policy", NO_HEDGING),
            ("cors", "the policy has to be in typed_per_filter_config"),
        ],
        used_as: &[("rate_limits", &ROUTE_RATE_LIMIT)],
        ..Table::of("envoy.config.route.v3.RouteAction")
    },
    Table {
        used: &["header", "cookie", "connection_properties", "query_parameter", "filter_state", "terminal"],
        ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy")
    },
    Table {
        used: &["header_name", "regex_rewrite"],
        ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.Header")
    },
    Table {
        used: &["name", "ttl", "path", "attributes"],
        ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.Cookie")
    },
    Table {
        used: &["name", "value"],
        ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute")
    },
    Table {
        used: &["source_ip"],
        ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties")
    },
    Table { used: &["name"], ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter") },
    Table { used: &["key"], ..Table::of("envoy.config.route.v3.RouteAction.HashPolicy.FilterState") },
    Table {
        used: &[
            "cluster",
            "cluster_header",
            "runtime_fraction",
            "disable_shadow_host_suffix_append",
            "host_rewrite_literal",
        ],
        no_effect: &[("trace_sampled", "mirrored requests are not traced")],
        refused: &[("request_headers_mutations", "a mirrored request has the headers of the real one")],
        ..Table::of("envoy.config.route.v3.RouteAction.RequestMirrorPolicy")
    },
    Table {
        used: &[
            "max_internal_redirects",
            "redirect_response_codes",
            "predicates",
            "allow_cross_scheme_redirect",
            "response_headers_to_copy",
        ],
        ..Table::of("envoy.config.route.v3.InternalRedirectPolicy")
    },
    Table {
        used: &["allowed_route_names"],
        ..Table::of("envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig")
    },
    Table::of("envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig"),
    Table::of("envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig"),
    Table {
        used: &[
            "retry_on",
            "num_retries",
            "per_try_timeout",
            "per_try_idle_timeout",
            "retry_host_predicate",
            "retry_priority",
            "host_selection_retry_max_attempts",
            "retriable_status_codes",
            "retry_back_off",
            "rate_limited_retry_back_off",
            "retriable_headers",
            "retriable_request_headers",
        ],
        no_effect: &[(
            "refresh_cluster_on_retry",
            "clusters that would choose another one are not supported",
        )],
        refused: &[(
            "retry_options_predicates",
            "the options of connections do not change from retry to retry",
        )],
        ..Table::of("envoy.config.route.v3.RetryPolicy")
    },
    Table {
        used: &["typed_config"],
        no_effect: &[("name", "the type says which predicate it is")],
        ..Table::of("envoy.config.route.v3.RetryPolicy.RetryHostPredicate")
    },
    Table {
        used: &["typed_config"],
        no_effect: &[("name", "the type says what it is")],
        ..Table::of("envoy.config.route.v3.RetryPolicy.RetryPriority")
    },
    Table {
        used: &["update_frequency"],
        ..Table::of("envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
    },
    Table::of("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
    Table::of("envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate"),
    Table {
        used: &["metadata_match"],
        ..Table::of("envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig")
    },
    Table {
        used: &["base_interval", "max_interval"],
        ..Table::of("envoy.config.route.v3.RetryPolicy.RetryBackOff")
    },
    Table {
        used: &["reset_headers", "max_interval"],
        ..Table::of("envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff")
    },
    Table { used: &["name", "format"], ..Table::of("envoy.config.route.v3.RetryPolicy.ResetHeader") },
    Table {
        used: &["max_stream_duration", "grpc_timeout_header_max", "grpc_timeout_header_offset"],
        ..Table::of("envoy.config.route.v3.RouteAction.MaxStreamDuration")
    },
    Table {
        used: &["upgrade_type", "enabled", "connect_config"],
        ..Table::of("envoy.config.route.v3.RouteAction.UpgradeConfig")
    },
    Table {
        refused: &[
            ("proxy_protocol_config", "tunnels begin without a PROXY header"),
            ("allow_post", "only CONNECT asks for a tunnel"),
        ],
        ..Table::of("envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig")
    },
    Table {
        used: &["clusters", "use_hash_policy", "header_name"],
        no_effect: &[
            ("total_weight", "weights are relative to their sum, as in Envoy"),
            ("runtime_key_prefix", "there is no runtime that could override the weights"),
        ],
        ..Table::of("envoy.config.route.v3.WeightedCluster")
    },
    Table {
        used: &[
            "name",
            "weight",
            "request_headers_to_add",
            "request_headers_to_remove",
            "response_headers_to_add",
            "response_headers_to_remove",
            "host_rewrite_literal",
            "typed_per_filter_config",
            "metadata_match",
        ],
        refused: &[("cluster_header", "a weighted cluster has to be named")],
        ..Table::of("envoy.config.route.v3.WeightedCluster.ClusterWeight")
    },
    Table {
        used: &[
            "https_redirect",
            "scheme_redirect",
            "host_redirect",
            "port_redirect",
            "path_redirect",
            "prefix_rewrite",
            "regex_rewrite",
            "response_code",
            "strip_query",
        ],
        ..Table::of("envoy.config.route.v3.RedirectAction")
    },
    Table {
        used: &["status", "body"],
        used_as: &[("body_format", &BODY_FORMAT)],
        ..Table::of("envoy.config.route.v3.DirectResponseAction")
    },
];

/// The body of a direct response.
const BODY_FORMAT: Table = Table {
    used: &["text_format", "text_format_source", "omit_empty_values", "content_type", "formatters"],
    refused: &[
        ("json_format", "only texts are supported"),
        ("json_format_options", "only texts are supported"),
    ],
    ..Table::of("envoy.config.core.v3.SubstitutionFormatString")
};
