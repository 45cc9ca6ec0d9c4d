//! `config.listener.v3` and the network filters.

use super::Table;

/// An address to listen at.
const LISTEN_ADDRESS: Table = Table {
    used: &["pipe"],
    used_as: &[("socket_address", &LISTEN_SOCKET_ADDRESS)],
    ..Table::of("envoy.config.core.v3.Address")
};

const LISTEN_SOCKET_ADDRESS: Table = Table {
    used: &["protocol", "address", "port_value", "ipv4_compat"],
    refused: &[
        ("named_port", "ports have to be given as numbers"),
        ("resolver_name", "a listener's address is a literal one"),
    ],
    ..Table::of("envoy.config.core.v3.SocketAddress")
};

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "name",
            "additional_addresses",
            "socket_options",
            "tcp_keepalive",
            "freebind",
            "transparent",
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
            "filter_chain_matcher",
            "listener_filters_timeout",
            "continue_on_listener_filters_timeout",
            "use_original_dst",
            "ignore_global_conn_limit",
            "drain_type",
            "access_log",
            "metadata",
        ],
        used_as: &[("address", &LISTEN_ADDRESS)],
        no_effect: &[
            ("stats_matcher", "counters cannot be left out"),
            ("bypass_overload_manager", "there is no overload manager that acts on listeners"),
            ("tcp_fast_open_queue_length", "connections open the ordinary way"),
            ("connection_balance_config", "the kernel spreads connections over the workers' sockets"),
            ("reuse_port", "enable_reuse_port replaces it"),
            ("max_connections_to_accept_per_socket_event", "a worker's turn has a budget of its own"),
        ],
        only_off: &["enable_mptcp"],
        refused: &[
            ("udp_listener_config", "UDP listeners are not supported"),
            ("api_listener", "API listeners are not supported"),
            ("internal_listener", "internal listeners are not supported"),
            ("fcds_config", "filter chain discovery is not supported"),
        ],
        ..Table::of("envoy.config.listener.v3.Listener")
    },
    Table { used: &["bind_to_port"], ..Table::of("envoy.config.listener.v3.Listener.DeprecatedV1") },
    Table {
        used: &["socket_options", "tcp_keepalive"],
        used_as: &[("address", &LISTEN_ADDRESS)],
        ..Table::of("envoy.config.listener.v3.AdditionalAddress")
    },
    Table { used: &["socket_options"], ..Table::of("envoy.config.core.v3.SocketOptionsOverride") },
    Table {
        used: &["name", "typed_config", "filter_disabled"],
        refused: &[("config_discovery", "extension discovery is not supported")],
        ..Table::of("envoy.config.listener.v3.ListenerFilter")
    },
    Table {
        used: &["or_match", "and_match", "not_match", "any_match", "destination_port_range"],
        ..Table::of("envoy.config.listener.v3.ListenerFilterChainMatchPredicate")
    },
    Table {
        used: &["rules"],
        ..Table::of("envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet")
    },
    Table { used: &["start", "end"], ..Table::of("envoy.type.v3.Int32Range") },
    Table { used: &["address_prefix", "prefix_len"], ..Table::of("envoy.config.core.v3.CidrRange") },
    Table::of("envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    Table::of("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"),
    Table {
        used: &["max_client_hello_size", "close_connection_on_client_hello_parsing_errors"],
        no_effect: &[("initial_read_buffer_size", "buffers are the driver's")],
        only_off: &["enable_ja3_fingerprinting", "enable_ja4_fingerprinting"],
        ..Table::of("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
    },
    Table {
        used: &["allow_requests_without_proxy_protocol", "disallowed_versions", "stat_prefix"],
        no_effect: &[("tlv_location", "no rule stores anything")],
        refused: &[
            ("rules", "what is in TLVs cannot be stored"),
            ("pass_through_tlvs", "TLVs cannot be passed on"),
        ],
        ..Table::of("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol")
    },
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
    Table {
        used: &[
            "destination_port",
            "prefix_ranges",
            "direct_source_prefix_ranges",
            "source_type",
            "source_prefix_ranges",
            "source_ports",
            "server_names",
            "transport_protocol",
            "application_protocols",
        ],
        refused: &[
            ("address_suffix", "suffixes of addresses cannot be matched"),
            ("suffix_len", "suffixes of addresses cannot be matched"),
        ],
        ..Table::of("envoy.config.listener.v3.FilterChainMatch")
    },
    Table {
        used: &["name", "typed_config"],
        refused: &[("config_discovery", "extension discovery is not supported")],
        ..Table::of("envoy.config.listener.v3.Filter")
    },
    Table {
        used: &[
            "stat_prefix",
            "cluster",
            "weighted_clusters",
            "idle_timeout",
            "max_connect_attempts",
            "max_downstream_connection_duration",
            "max_downstream_connection_duration_jitter_percentage",
            "hash_policy",
            "access_log",
            "access_log_options",
            "access_log_flush_interval",
            "flush_access_log_on_connected",
            "metadata_match",
        ],
        only_off: &["check_drain_close", "upstream_connect_mode"],
        refused: &[("tunneling_config", "tunnelling over HTTP is not supported")],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")
    },
    Table {
        used: &["access_log_flush_interval", "flush_access_log_on_connected", "flush_access_log_on_start"],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions")
    },
    Table { used: &["source_ip", "filter_state"], ..Table::of("envoy.type.v3.HashPolicy") },
    Table::of("envoy.type.v3.HashPolicy.SourceIp"),
    Table { used: &["key"], ..Table::of("envoy.type.v3.HashPolicy.FilterState") },
    Table {
        used: &["clusters"],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster")
    },
    Table {
        used: &["name", "weight", "metadata_match"],
        ..Table::of("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight")
    },
];
