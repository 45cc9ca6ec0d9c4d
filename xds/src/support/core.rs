//! `config.core.v3`, `type.matcher.v3` and `type.v3`: what other messages share.

use super::Table;

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
        used: &["path", "path_config_source", "initial_fetch_timeout", "resource_api_version"],
        refused: &[
            ("api_config_source", "xDS over gRPC or REST is not supported"),
            ("ads", "aggregated xDS is not supported"),
            ("self", "xDS over gRPC is not supported"),
        ],
        ..Table::of("envoy.config.core.v3.ConfigSource")
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
