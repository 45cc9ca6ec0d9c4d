//! Network filters but the connection manager and the TCP proxy.

use super::Table;

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "rules",
            "matcher",
            "shadow_rules",
            "shadow_matcher",
            "shadow_rules_stat_prefix",
            "stat_prefix",
            "delay_deny",
        ],
        no_effect: &[("enforcement_type", "what rules look at does not change while a connection lasts")],
        ..Table::of("envoy.extensions.filters.network.rbac.v3.RBAC")
    },
    Table {
        used: &["on_new_connection"],
        refused: &[
            ("on_downstream_tls_handshake", "values are set when a connection begins"),
            ("on_downstream_data", "values are set when a connection begins"),
        ],
        ..Table::of("envoy.extensions.filters.network.set_filter_state.v3.Config")
    },
    Table {
        used: &["object_key", "factory_key", "format_string", "read_only", "skip_if_empty"],
        refused: &[("shared_with_upstream", "upstream connections have no filter state")],
        ..Table::of("envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue")
    },
    Table {
        used: &["stat_prefix", "max_connections", "delay", "runtime_enabled"],
        ..Table::of("envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit")
    },
    Table {
        used: &["stat_prefix", "token_bucket", "runtime_enabled"],
        refused: &[("share_key", "every filter has a bucket of its own")],
        ..Table::of("envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit")
    },
    Table {
        used: &["max_tokens", "tokens_per_fill", "fill_interval"],
        ..Table::of("envoy.type.v3.TokenBucket")
    },
    Table { used: &["default_value", "runtime_key"], ..Table::of("envoy.config.core.v3.RuntimeFeatureFlag") },
    Table { used: &["response"], ..Table::of("envoy.extensions.filters.network.direct_response.v3.Config") },
    Table::of("envoy.extensions.filters.network.echo.v3.Echo"),
    Table::of("envoy.extensions.filters.network.sni_cluster.v3.SniCluster"),
];
