//! `config.listener.v3` and the network filters.

use super::Table;

const NOTHING_WAITS: &str = "no supported listener filter waits for bytes";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "name",
            "address",
            "additional_addresses",
            "stat_prefix",
            "filter_chains",
            "default_filter_chain",
            "per_connection_buffer_limit_bytes",
            "deprecated_v1",
            "listener_filters",
            "traffic_direction",
            "enable_reuse_port",
            "tcp_backlog_size",
            "bind_to_port",
        ],
        no_effect: &[
            ("metadata", "nothing reads it"),
            ("stats_matcher", "counters cannot be left out"),
            ("listener_filters_timeout", NOTHING_WAITS),
            ("continue_on_listener_filters_timeout", NOTHING_WAITS),
            ("tcp_fast_open_queue_length", "connections open the ordinary way"),
            ("connection_balance_config", "the kernel spreads connections over the workers' sockets"),
            ("reuse_port", "enable_reuse_port replaces it"),
            ("max_connections_to_accept_per_socket_event", "a worker's turn has a budget of its own"),
        ],
        only_off: &[
            "use_original_dst",
            "transparent",
            "freebind",
            "enable_mptcp",
            "ignore_global_conn_limit",
            "bypass_overload_manager",
            "drain_type",
        ],
        refused: &[
            ("filter_chain_matcher", "filter chains cannot be matched"),
            ("udp_listener_config", "UDP listeners are not supported"),
            ("api_listener", "API listeners are not supported"),
            ("internal_listener", "internal listeners are not supported"),
            ("access_log", "listeners have no access log of their own"),
            ("fcds_config", "filter chain discovery is not supported"),
        ],
        ..Table::of("envoy.config.listener.v3.Listener")
    },
    Table { used: &["bind_to_port"], ..Table::of("envoy.config.listener.v3.Listener.DeprecatedV1") },
    Table { used: &["address"], ..Table::of("envoy.config.listener.v3.AdditionalAddress") },
    Table {
        used: &["name", "typed_config"],
        refused: &[("config_discovery", "extension discovery is not supported")],
        ..Table::of("envoy.config.listener.v3.ListenerFilter")
    },
    Table::of("envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    Table {
        used: &[
            "filters",
            "transport_socket",
            "name",
            "filter_chain_match",
            "transport_socket_connect_timeout",
        ],
        no_effect: &[("metadata", "nothing reads it")],
        only_off: &["use_proxy_proto"],
        ..Table::of("envoy.config.listener.v3.FilterChain")
    },
    // Present and empty it matches everything.
    Table {
        refused: &[
            ("destination_port", "filter chains cannot be matched"),
            ("prefix_ranges", "filter chains cannot be matched"),
            ("address_suffix", "filter chains cannot be matched"),
            ("suffix_len", "filter chains cannot be matched"),
            ("direct_source_prefix_ranges", "filter chains cannot be matched"),
            ("source_type", "filter chains cannot be matched"),
            ("source_prefix_ranges", "filter chains cannot be matched"),
            ("source_ports", "filter chains cannot be matched"),
            ("server_names", "filter chains cannot be matched"),
            ("transport_protocol", "filter chains cannot be matched"),
            ("application_protocols", "filter chains cannot be matched"),
        ],
        ..Table::of("envoy.config.listener.v3.FilterChainMatch")
    },
    Table {
        used: &["name", "typed_config"],
        refused: &[("config_discovery", "extension discovery is not supported")],
        ..Table::of("envoy.config.listener.v3.Filter")
    },
    Table {
        used: &["stat_prefix", "cluster", "weighted_clusters", "idle_timeout"],
        only_off: &["check_drain_close", "upstream_connect_mode"],
        refused: &[
            ("metadata_match", "subset load balancing is not supported"),
            ("tunneling_config", "tunnelling over HTTP is not supported"),
            ("hash_policy", "hash policies are not supported"),
            ("access_log", "access logs of TCP connections are not supported"),
        ],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")
    },
    Table {
        used: &["clusters"],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster")
    },
    Table {
        used: &["name", "weight"],
        refused: &[("metadata_match", "subset load balancing is not supported")],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight")
    },
];
