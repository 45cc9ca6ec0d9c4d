//! `config.cluster.v3`, its protocol options and its load balancers.

use super::{
    Table,
    http::{UPSTREAM_COMMON, UPSTREAM_HTTP1},
};

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "name",
            "alt_stat_name",
            "type",
            "eds_cluster_config",
            "connect_timeout",
            "per_connection_buffer_limit_bytes",
            "lb_policy",
            "load_assignment",
            "max_requests_per_connection",
            "circuit_breakers",
            "cluster_type",
            "cleanup_interval",
            "dns_failure_refresh_rate",
            "dns_jitter",
            "dns_resolvers",
            "dns_resolution_config",
            "maglev_lb_config",
            "original_dst_lb_config",
            "ring_hash_lb_config",
            "upstream_bind_config",
            "upstream_connection_options",
            "use_tcp_for_dns_lookups",
            "wait_for_warm_on_init",
            "typed_extension_protocol_options",
            "dns_refresh_rate",
            "respect_dns_ttl",
            "dns_lookup_family",
            "typed_dns_resolver_config",
            "least_request_lb_config",
            "round_robin_lb_config",
            "common_lb_config",
            "transport_socket",
            "transport_socket_matches",
            "load_balancing_policy",
            "upstream_http_protocol_options",
            "http2_protocol_options",
            "protocol_selection",
            "health_checks",
            "outlier_detection",
            "ignore_health_on_host_removal",
            "lb_subset_config",
        ],
        used_as: &[
            ("common_http_protocol_options", &UPSTREAM_COMMON),
            ("http_protocol_options", &UPSTREAM_HTTP1),
        ],
        no_effect: &[
            ("metadata", "nothing reads it"),
            ("stats_matcher", "counters cannot be left out"),
            ("track_cluster_stats", "request counters are always kept"),
            ("track_timeout_budgets", "timeout budgets are not counted"),
            ("lrs_report_endpoint_metrics", "load is not reported"),
        ],
        only_off: &["connection_pool_per_downstream_connection", "close_connections_on_host_health_failure"],
        refused: &[
            ("transport_socket_matcher", "transport_socket_matches choose transport sockets"),
            ("filters", "filters on connections to upstreams are not supported"),
            ("lrs_server", "load is not reported"),
            ("preconnect_policy", "connections are opened when they are needed"),
        ],
        ..Table::of("envoy.config.cluster.v3.Cluster")
    },
    Table {
        used: &[
            "consecutive_5xx",
            "interval",
            "base_ejection_time",
            "max_ejection_percent",
            "enforcing_consecutive_5xx",
            "enforcing_success_rate",
            "success_rate_minimum_hosts",
            "success_rate_request_volume",
            "success_rate_stdev_factor",
            "consecutive_gateway_failure",
            "enforcing_consecutive_gateway_failure",
            "split_external_local_origin_errors",
            "consecutive_local_origin_failure",
            "enforcing_consecutive_local_origin_failure",
            "enforcing_local_origin_success_rate",
            "failure_percentage_threshold",
            "enforcing_failure_percentage",
            "enforcing_failure_percentage_local_origin",
            "failure_percentage_minimum_hosts",
            "failure_percentage_request_volume",
            "max_ejection_time",
            "max_ejection_time_jitter",
            "successful_active_health_check_uneject_host",
            "always_eject_one_host",
        ],
        only_off: &["detect_degraded_hosts"],
        ..Table::of("envoy.config.cluster.v3.OutlierDetection")
    },
    Table {
        used: &["config", "transport_socket"],
        only_off: &["allow_unspecified_address", "tlv_as_pool_key"],
        ..Table::of("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport")
    },
    Table {
        used: &["version"],
        refused: &[
            ("pass_through_tlvs", "headers of the PROXY protocol carry addresses only"),
            ("added_tlvs", "headers of the PROXY protocol carry addresses only"),
        ],
        ..Table::of("envoy.config.core.v3.ProxyProtocolConfig")
    },
    Table {
        used: &["name", "match", "transport_socket"],
        ..Table::of("envoy.config.cluster.v3.Cluster.TransportSocketMatch")
    },
    Table {
        used: &["eds_config", "service_name"],
        ..Table::of("envoy.config.cluster.v3.Cluster.EdsClusterConfig")
    },
    Table {
        used: &["choice_count", "active_request_bias", "slow_start_config"],
        ..Table::of("envoy.config.cluster.v3.Cluster.LeastRequestLbConfig")
    },
    Table { used: &["slow_start_config"], ..Table::of("envoy.config.cluster.v3.Cluster.RoundRobinLbConfig") },
    Table {
        used: &["slow_start_window", "aggression", "min_weight_percent"],
        ..Table::of("envoy.config.cluster.v3.Cluster.SlowStartConfig")
    },
    Table {
        used: &["slow_start_window", "aggression", "min_weight_percent"],
        ..Table::of("envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig")
    },
    Table {
        used: &["default_value"],
        no_effect: &[("runtime_key", "no runtime can override the value")],
        ..Table::of("envoy.config.core.v3.RuntimeDouble")
    },
    Table {
        used: &[
            "close_connections_on_host_set_change",
            "consistent_hashing_lb_config",
            "healthy_panic_threshold",
            "ignore_new_hosts_until_first_hc",
            "locality_weighted_lb_config",
            "zone_aware_lb_config",
        ],
        no_effect: &[("update_merge_window", "updates take effect at once")],
        refused: &[("override_host_status", "hosts cannot be overridden")],
        ..Table::of("envoy.config.cluster.v3.Cluster.CommonLbConfig")
    },
    Table::of("envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig"),
    Table {
        used: &["routing_enabled", "min_cluster_size", "fail_traffic_on_panic"],
        ..Table::of("envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig")
    },
    Table {
        used: &["use_hostname_for_hashing", "hash_balance_factor"],
        ..Table::of("envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig")
    },
    Table {
        used: &["minimum_ring_size", "maximum_ring_size", "hash_function"],
        ..Table::of("envoy.config.cluster.v3.Cluster.RingHashLbConfig")
    },
    Table { used: &["table_size"], ..Table::of("envoy.config.cluster.v3.Cluster.MaglevLbConfig") },
    Table {
        used: &["use_http_header", "http_header_name", "upstream_port_override"],
        refused: &[("metadata_key", "request metadata cannot name an address")],
        ..Table::of("envoy.config.cluster.v3.Cluster.OriginalDstLbConfig")
    },
    Table {
        used: &["name", "typed_config"],
        ..Table::of("envoy.config.cluster.v3.Cluster.CustomClusterType")
    },
    Table {
        used: &["base_interval", "max_interval"],
        ..Table::of("envoy.config.cluster.v3.Cluster.RefreshRate")
    },
    Table {
        used: &["tcp_keepalive"],
        only_off: &["set_local_interface_name_on_upstream_connections"],
        refused: &[("happy_eyeballs_config", "addresses are tried in the order of their families")],
        ..Table::of("envoy.config.cluster.v3.UpstreamConnectionOptions")
    },
    Table {
        used: &["keepalive_probes", "keepalive_time", "keepalive_interval"],
        ..Table::of("envoy.config.core.v3.TcpKeepalive")
    },
    Table {
        used: &[
            "source_address",
            "freebind",
            "socket_options",
            "extra_source_addresses",
            "additional_source_addresses",
        ],
        refused: &[("local_address_selector", "the address of the destination's IP version is used")],
        only_off: &["validate_network_namespaces"],
        ..Table::of("envoy.config.core.v3.BindConfig")
    },
    Table {
        used: &["address"],
        refused: &[("socket_options", "the options of upstream_bind_config are used for all addresses")],
        ..Table::of("envoy.config.core.v3.ExtraSourceAddress")
    },
    Table {
        used: &["level", "name", "int_value", "buf_value", "state"],
        no_effect: &[("description", "nothing reads it")],
        refused: &[
            ("type", "options are for TCP sockets"),
            ("ip_version", "options are for both IP versions"),
        ],
        ..Table::of("envoy.config.core.v3.SocketOption")
    },
    Table {
        used: &[
            "dns_refresh_rate",
            "dns_failure_refresh_rate",
            "respect_dns_ttl",
            "dns_jitter",
            "dns_lookup_family",
            "typed_dns_resolver_config",
            "all_addresses_in_single_endpoint",
            "dns_min_refresh_rate",
        ],
        ..Table::of("envoy.extensions.clusters.dns.v3.DnsCluster")
    },
    Table {
        used: &["base_interval", "max_interval"],
        ..Table::of("envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate")
    },
    Table { used: &["clusters"], ..Table::of("envoy.extensions.clusters.aggregate.v3.ClusterConfig") },
    Table { used: &["policies"], ..Table::of("envoy.config.cluster.v3.LoadBalancingPolicy") },
    Table {
        used: &["typed_extension_config"],
        ..Table::of("envoy.config.cluster.v3.LoadBalancingPolicy.Policy")
    },
    Table {
        used: &["locality_lb_config", "slow_start_config"],
        ..Table::of("envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin")
    },
    Table {
        used: &[
            "choice_count",
            "locality_lb_config",
            "enable_full_scan",
            "selection_method",
            "active_request_bias",
            "slow_start_config",
        ],
        ..Table::of("envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest")
    },
    Table {
        used: &["locality_lb_config"],
        ..Table::of("envoy.extensions.load_balancing_policies.random.v3.Random")
    },
    Table {
        used: &[
            "hash_function",
            "minimum_ring_size",
            "maximum_ring_size",
            "use_hostname_for_hashing",
            "consistent_hashing_lb_config",
            "locality_weighted_lb_config",
            "hash_balance_factor",
        ],
        ..Table::of("envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash")
    },
    Table {
        used: &["table_size", "consistent_hashing_lb_config", "locality_weighted_lb_config"],
        ..Table::of("envoy.extensions.load_balancing_policies.maglev.v3.Maglev")
    },
    Table {
        used: &["use_hostname_for_hashing", "hash_policy", "hash_balance_factor"],
        ..Table::of("envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig")
    },
    Table::of("envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided"),
    Table {
        used: &["endpoint_picking_policy"],
        ..Table::of("envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality")
    },
    Table { used: &["decay_time"], ..Table::of("culvert.v1.PeakEwma") },
    Table {
        used: &[
            "fallback_policy",
            "default_subset",
            "subset_selectors",
            "locality_weight_aware",
            "scale_locality_weight",
            "panic_mode_any",
            "list_as_any",
            "metadata_fallback_policy",
        ],
        ..Table::of("envoy.config.cluster.v3.Cluster.LbSubsetConfig")
    },
    Table {
        used: &["keys", "single_host_per_subset", "fallback_policy", "fallback_keys_subset"],
        ..Table::of("envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector")
    },
    Table {
        used: &[
            "fallback_policy",
            "default_subset",
            "subset_selectors",
            "allow_redundant_keys",
            "locality_weight_aware",
            "scale_locality_weight",
            "panic_mode_any",
            "list_as_any",
            "metadata_fallback_policy",
            "subset_lb_policy",
        ],
        ..Table::of("envoy.extensions.load_balancing_policies.subset.v3.Subset")
    },
    Table {
        used: &["keys", "single_host_per_subset", "fallback_policy", "fallback_keys_subset"],
        ..Table::of("envoy.extensions.load_balancing_policies.subset.v3.Subset.LbSubsetSelector")
    },
    Table {
        used: &["locality_weighted_lb_config", "zone_aware_lb_config"],
        ..Table::of("envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig")
    },
    Table {
        used: &[
            "routing_enabled",
            "min_cluster_size",
            "fail_traffic_on_panic",
            "force_locality_direct_routing",
            "force_local_zone",
            "locality_basis",
        ],
        ..Table::of("envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig")
    },
    Table {
        used: &["min_size"],
        ..Table::of(
            "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig.ForceLocalZone",
        )
    },
    Table::of("envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig"),
    Table {
        used: &["thresholds", "per_host_thresholds"],
        ..Table::of("envoy.config.cluster.v3.CircuitBreakers")
    },
    Table {
        used: &[
            "priority",
            "max_connections",
            "max_pending_requests",
            "max_requests",
            "max_retries",
            "retry_budget",
            "track_remaining",
        ],
        no_effect: &[(
            "max_connection_pools",
            "there is one pool for each endpoint, network namespace and worker",
        )],
        ..Table::of("envoy.config.cluster.v3.CircuitBreakers.Thresholds")
    },
    Table {
        used: &["budget_percent", "budget_interval", "min_retry_concurrency"],
        ..Table::of("envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget")
    },
    Table {
        used: &[
            "upstream_http_protocol_options",
            "explicit_http_config",
            "use_downstream_protocol_config",
            "auto_config",
            "hash_policy",
        ],
        used_as: &[("common_http_protocol_options", &UPSTREAM_COMMON)],
        refused: &[
            ("http_filters", "upstream HTTP filters are not supported"),
            ("outlier_detection", "outlier detection is not supported"),
            ("request_mirror_policies", "mirroring is not supported"),
            ("retry_policy", "retries are not supported"),
        ],
        ..Table::of("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
    },
    Table {
        used_as: &[("http_protocol_options", &UPSTREAM_HTTP1)],
        used: &["http2_protocol_options"],
        refused: &[("http3_protocol_options", "HTTP/3 is not supported")],
        ..Table::of("envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig")
    },
    Table {
        used_as: &[("http_protocol_options", &UPSTREAM_HTTP1)],
        used: &["http2_protocol_options"],
        no_effect: &[("http3_protocol_options", "no client speaks HTTP/3 here")],
        ..Table::of("envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig")
    },
    Table {
        used_as: &[("http_protocol_options", &UPSTREAM_HTTP1)],
        used: &["http2_protocol_options"],
        refused: &[
            ("http3_protocol_options", "HTTP/3 is not supported"),
            ("alternate_protocols_cache_options", "HTTP/3 is not supported"),
        ],
        ..Table::of("envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig")
    },
    Table {
        used: &["auto_sni", "auto_san_validation", "override_auto_sni_header"],
        ..Table::of("envoy.config.core.v3.UpstreamHttpProtocolOptions")
    },
];
