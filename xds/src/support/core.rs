//! `config.core.v3`, `type.matcher.v3` and `type.v3`: what other messages share.

use super::Table;

const OWN_SOCKET: &str = "every query has a socket of its own";

pub(super) const TABLES: &[Table] = &[
    Table { used: &["socket_address", "pipe"], ..Table::of("envoy.config.core.v3.Address") },
    Table {
        used: &["protocol", "address", "port_value"],
        only_off: &["ipv4_compat"],
        refused: &[
            ("named_port", "ports have to be given as numbers"),
            ("resolver_name", "names are resolved by clusters of type STRICT_DNS"),
        ],
        ..Table::of("envoy.config.core.v3.SocketAddress")
    },
    Table { used: &["path", "mode"], ..Table::of("envoy.config.core.v3.Pipe") },
    Table {
        used: &[
            "path",
            "path_config_source",
            "api_config_source",
            "ads",
            "initial_fetch_timeout",
            "resource_api_version",
        ],
        refused: &[("self", "it is for resources that name their own control plane")],
        ..Table::of("envoy.config.core.v3.ConfigSource")
    },
    Table::of("envoy.config.core.v3.AggregatedConfigSource"),
    Table { used: &["region", "zone", "sub_zone"], ..Table::of("envoy.config.core.v3.Locality") },
    Table {
        used: &[
            "api_type",
            "transport_api_version",
            "cluster_names",
            "grpc_services",
            "refresh_delay",
            "request_timeout",
            "rate_limit_settings",
            "set_node_on_first_message_only",
        ],
        refused: &[("config_validators", "validators of control planes are not supported")],
        ..Table::of("envoy.config.core.v3.ApiConfigSource")
    },
    Table { used: &["max_tokens", "fill_rate"], ..Table::of("envoy.config.core.v3.RateLimitSettings") },
    Table {
        used: &["envoy_grpc", "initial_metadata"],
        no_effect: &[("timeout", "a stream has no time limit")],
        refused: &[
            ("google_grpc", "only envoy_grpc is supported"),
            ("retry_policy", "streams are opened again with a back-off of their own"),
        ],
        ..Table::of("envoy.config.core.v3.GrpcService")
    },
    Table {
        used: &["cluster_name", "authority"],
        no_effect: &[("skip_envoy_headers", "headers of Envoy's own are not sent")],
        refused: &[
            ("retry_policy", "streams are opened again with a back-off of their own"),
            ("max_receive_message_length", "messages of up to 256 MiB are received"),
        ],
        ..Table::of("envoy.config.core.v3.GrpcService.EnvoyGrpc")
    },
    Table {
        used: &[
            "hpack_table_size",
            "max_concurrent_streams",
            "initial_stream_window_size",
            "initial_connection_window_size",
            "max_outbound_control_frames",
            "max_consecutive_inbound_frames_with_empty_payload",
            "max_inbound_priority_frames_per_stream",
            "max_inbound_window_update_frames_per_data_frame_sent",
            "stream_error_on_invalid_http_messaging",
            "override_stream_error_on_invalid_http_message",
            "connection_keepalive",
            "allow_connect",
        ],
        no_effect: &[
            ("max_outbound_frames", "a peer that takes nothing is not read from"),
            ("max_metadata_size", "metadata frames are not read"),
            ("use_oghttp2_codec", "it chooses between Envoy's codecs"),
            ("enable_huffman_encoding", "headers are compressed in any case"),
        ],
        only_off: &["allow_metadata"],
        refused: &[("custom_settings_parameters", "settings of one's own are not sent")],
        ..Table::of("envoy.config.core.v3.Http2ProtocolOptions")
    },
    Table {
        used: &["interval", "timeout", "interval_jitter", "connection_idle_interval"],
        ..Table::of("envoy.config.core.v3.KeepaliveSettings")
    },
    Table {
        used: &["path", "watched_directory"],
        no_effect: &[("poll_interval", "files are watched with inotify")],
        ..Table::of("envoy.config.core.v3.PathConfigSource")
    },
    Table {
        used: &["path"],
        no_effect: &[("watch_modify", "files edited in place are seen in any case")],
        ..Table::of("envoy.config.core.v3.WatchedDirectory")
    },
    Table { used: &["name", "typed_config"], ..Table::of("envoy.config.core.v3.TypedExtensionConfig") },
    Table {
        used: &["resolvers", "dns_resolver_options"],
        ..Table::of("envoy.config.core.v3.DnsResolutionConfig")
    },
    Table {
        used: &["use_tcp_for_dns_lookups", "no_default_search_domain"],
        ..Table::of("envoy.config.core.v3.DnsResolverOptions")
    },
    Table {
        used: &[
            "resolvers",
            "use_resolvers_as_fallback",
            "dns_resolver_options",
            "query_timeout_seconds",
            "query_tries",
            "rotate_nameservers",
        ],
        no_effect: &[
            ("udp_max_queries", OWN_SOCKET),
            ("max_udp_channel_duration", OWN_SOCKET),
            ("reinit_channel_on_timeout", OWN_SOCKET),
        ],
        only_off: &["filter_unroutable_families", "qcache_max_ttl"],
        refused: &[("edns0_max_payload_size", "the size of answers cannot be chosen")],
        ..Table::of("envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig")
    },
    Table {
        used: &["num_retries"],
        no_effect: &[("num_resolver_threads", "resolving takes no threads")],
        ..Table::of("envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig")
    },
    Table {
        no_effect: &[("include_unroutable_families", "addresses of all families are taken")],
        ..Table::of("envoy.extensions.network.dns_resolver.apple.v3.AppleDnsResolverConfig")
    },
    Table { used: &["name", "typed_config"], ..Table::of("envoy.config.core.v3.TransportSocket") },
    Table::of("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
    Table {
        used: &["filename", "inline_bytes", "inline_string", "environment_variable"],
        refused: &[("watched_directory", "the file is read once")],
        ..Table::of("envoy.config.core.v3.DataSource")
    },
    Table {
        used: &["header", "append", "append_action", "keep_empty_value"],
        ..Table::of("envoy.config.core.v3.HeaderValueOption")
    },
    Table { used: &["key", "value", "raw_value"], ..Table::of("envoy.config.core.v3.HeaderValue") },
    Table {
        used: &["default_value"],
        no_effect: &[("runtime_key", "there is no runtime that could override the default value")],
        ..Table::of("envoy.config.core.v3.RuntimeFractionalPercent")
    },
    Table { used: &["numerator", "denominator"], ..Table::of("envoy.type.v3.FractionalPercent") },
    Table { used: &["value"], ..Table::of("envoy.type.v3.Percent") },
    Table { used: &["start", "end"], ..Table::of("envoy.type.v3.Int64Range") },
    Table {
        used: &["exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"],
        ..Table::of("envoy.type.matcher.v3.StringMatcher")
    },
    Table { used: &["google_re2", "regex"], ..Table::of("envoy.type.matcher.v3.RegexMatcher") },
    Table {
        no_effect: &[("max_program_size", "the size of compiled expressions has a limit of its own")],
        ..Table::of("envoy.type.matcher.v3.RegexMatcher.GoogleRE2")
    },
    Table {
        used: &["pattern", "substitution"],
        ..Table::of("envoy.type.matcher.v3.RegexMatchAndSubstitute")
    },
];
