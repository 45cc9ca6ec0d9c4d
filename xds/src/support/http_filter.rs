//! HTTP filters but the router.

use super::Table;

const NO_RUNTIME: &str = "the runtime cannot override it";
const NO_TRAILERS: &str = "trailers are not changed";

pub(super) const TABLES: &[Table] = &[
    Table { used: &["config", "disabled", "is_optional"], ..Table::of("envoy.config.route.v3.FilterConfig") },
    Table {
        used: &[
            "rules",
            "rules_stat_prefix",
            "matcher",
            "shadow_rules",
            "shadow_matcher",
            "shadow_rules_stat_prefix",
        ],
        only_off: &["track_per_rule_stats"],
        ..Table::of("envoy.extensions.filters.http.rbac.v3.RBAC")
    },
    Table {
        used_as: &[("rbac", &ROUTE_RBAC)],
        ..Table::of("envoy.extensions.filters.http.rbac.v3.RBACPerRoute")
    },
    Table {
        used: &["mutations", "most_specific_header_mutations_wins"],
        ..Table::of("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation")
    },
    Table {
        used: &["mutations"],
        ..Table::of("envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute")
    },
    Table {
        used: &["request_mutations", "response_mutations"],
        refused: &[
            ("query_parameter_mutations", "parameters of queries are not changed"),
            ("response_trailers_mutations", NO_TRAILERS),
            ("request_trailers_mutations", NO_TRAILERS),
        ],
        ..Table::of("envoy.extensions.filters.http.header_mutation.v3.Mutations")
    },
    Table {
        used: &["remove", "append", "remove_on_match"],
        ..Table::of("envoy.config.common.mutation_rules.v3.HeaderMutation")
    },
    Table {
        used: &["key_matcher"],
        ..Table::of("envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch")
    },
    Table::of("envoy.extensions.filters.http.cors.v3.Cors"),
    Table {
        used: &[
            "users",
            "forward_username_header",
            "authentication_header",
            "allow_missing",
            "emit_dynamic_metadata",
        ],
        ..Table::of("envoy.extensions.filters.http.basic_auth.v3.BasicAuth")
    },
    Table { used: &["users"], ..Table::of("envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute") },
    Table {
        used: &["filter_enabled", "shadow_enabled", "additional_origins"],
        ..Table::of("envoy.extensions.filters.http.csrf.v3.CsrfPolicy")
    },
    Table {
        used: &[
            "allow_origin_string_match",
            "allow_methods",
            "allow_headers",
            "expose_headers",
            "max_age",
            "allow_credentials",
            "filter_enabled",
            "shadow_enabled",
            "allow_private_network_access",
            "forward_not_matching_preflights",
        ],
        ..Table::of("envoy.extensions.filters.http.cors.v3.CorsPolicy")
    },
    Table {
        used: &["delay", "abort", "upstream_cluster", "headers", "downstream_nodes", "max_active_faults"],
        no_effect: &[
            ("disable_downstream_cluster_stats", "faults are not counted by the client's cluster"),
            ("response_rate_limit_percent_runtime", "the rate of responses is not limited"),
        ],
        refused: &[
            ("response_rate_limit", "the rate of responses is not limited"),
            ("delay_percent_runtime", NO_RUNTIME),
            ("abort_percent_runtime", NO_RUNTIME),
            ("delay_duration_runtime", NO_RUNTIME),
            ("abort_http_status_runtime", NO_RUNTIME),
            ("abort_grpc_status_runtime", NO_RUNTIME),
            ("max_active_faults_runtime", NO_RUNTIME),
            ("filter_metadata", "requests carry no metadata"),
        ],
        ..Table::of("envoy.extensions.filters.http.fault.v3.HTTPFault")
    },
    Table {
        used: &["fixed_delay", "header_delay", "percentage"],
        ..Table::of("envoy.extensions.filters.common.fault.v3.FaultDelay")
    },
    Table::of("envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay"),
    Table {
        used: &["http_status", "grpc_status", "header_abort", "percentage", "response_body"],
        ..Table::of("envoy.extensions.filters.http.fault.v3.FaultAbort")
    },
    Table::of("envoy.extensions.filters.http.fault.v3.FaultAbort.HeaderAbort"),
    Table {
        used: &[
            "stat_prefix",
            "status",
            "token_bucket",
            "filter_enabled",
            "filter_enforced",
            "request_headers_to_add_when_not_enforced",
            "response_headers_to_add",
            "rate_limited_as_resource_exhausted",
            "descriptors",
            "stage",
            "vh_rate_limits",
            "rate_limits",
            "always_consume_default_token_bucket",
            "max_dynamic_descriptors",
            "enable_x_ratelimit_headers",
        ],
        only_off: &["local_rate_limit_per_downstream_connection", "enable_retry_after_header"],
        refused: &[("local_cluster_rate_limit", "limits are not shared among the servers of a cluster")],
        ..Table::of("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit")
    },
    Table { used: &["code"], ..Table::of("envoy.type.v3.HttpStatus") },
    Table { used: &["max_request_bytes"], ..Table::of("envoy.extensions.filters.http.buffer.v3.Buffer") },
    Table {
        used: &["disabled", "buffer"],
        ..Table::of("envoy.extensions.filters.http.buffer.v3.BufferPerRoute")
    },
    Table {
        used: &[
            "individual_method_stats_allowlist",
            "stats_for_all_methods",
            "replace_dots_in_grpc_service_name",
        ],
        no_effect: &[("emit_filter_state", "nothing reads filter state of this filter")],
        only_off: &["enable_upstream_stats"],
        ..Table::of("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig")
    },
    Table::of("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"),
    Table { used: &["services"], ..Table::of("envoy.config.core.v3.GrpcMethodList") },
    Table { used: &["name", "method_names"], ..Table::of("envoy.config.core.v3.GrpcMethodList.Service") },
    Table {
        used: &["pass_through_mode", "headers"],
        no_effect: &[("cache_time", "answers are not passed through, so there is nothing to keep")],
        refused: &[("cluster_min_healthy_percentages", "answers do not depend on the health of clusters")],
        ..Table::of("envoy.extensions.filters.http.health_check.v3.HealthCheck")
    },
];

/// `RBAC` of a route: counters are those of the filter.
const ROUTE_RBAC: Table = Table {
    used: &["rules", "matcher", "shadow_rules", "shadow_matcher"],
    no_effect: &[
        ("rules_stat_prefix", "the counters are those of the filter"),
        ("shadow_rules_stat_prefix", "the counters are those of the filter"),
    ],
    only_off: &["track_per_rule_stats"],
    ..Table::of("envoy.extensions.filters.http.rbac.v3.RBAC")
};
