//! `config.rbac.v3`, and the matchers of what requests and connections carry.

use super::Table;

const NO_CEL: &str = "expressions (CEL) are not supported";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["action", "policies"],
        refused: &[("audit_logging_options", "audit loggers are not supported")],
        ..Table::of("envoy.config.rbac.v3.RBAC")
    },
    Table {
        used: &["permissions", "principals"],
        refused: &[("condition", NO_CEL), ("checked_condition", NO_CEL), ("cel_config", NO_CEL)],
        ..Table::of("envoy.config.rbac.v3.Policy")
    },
    Table {
        used: &[
            "and_rules",
            "or_rules",
            "any",
            "header",
            "url_path",
            "destination_ip",
            "destination_port",
            "destination_port_range",
            "metadata",
            "not_rule",
            "requested_server_name",
            "sourced_metadata",
        ],
        refused: &[
            ("matcher", "matchers that are extensions are not supported"),
            ("uri_template", "templates of paths are not supported"),
        ],
        ..Table::of("envoy.config.rbac.v3.Permission")
    },
    Table { used: &["rules"], ..Table::of("envoy.config.rbac.v3.Permission.Set") },
    Table {
        used: &[
            "and_ids",
            "or_ids",
            "any",
            "authenticated",
            "source_ip",
            "direct_remote_ip",
            "remote_ip",
            "header",
            "url_path",
            "metadata",
            "filter_state",
            "not_id",
            "sourced_metadata",
        ],
        refused: &[("custom", "principals that are extensions are not supported")],
        ..Table::of("envoy.config.rbac.v3.Principal")
    },
    Table { used: &["ids"], ..Table::of("envoy.config.rbac.v3.Principal.Set") },
    Table { used: &["principal_name"], ..Table::of("envoy.config.rbac.v3.Principal.Authenticated") },
    Table {
        used: &["metadata_matcher", "metadata_source"],
        ..Table::of("envoy.config.rbac.v3.SourcedMetadata")
    },
    Table { used: &["name", "action"], ..Table::of("envoy.config.rbac.v3.Action") },
    Table { used: &["path"], ..Table::of("envoy.type.matcher.v3.PathMatcher") },
    Table {
        used: &["filter", "path", "value", "invert"],
        ..Table::of("envoy.type.matcher.v3.MetadataMatcher")
    },
    Table { used: &["key"], ..Table::of("envoy.type.matcher.v3.MetadataMatcher.PathSegment") },
    Table {
        used: &[
            "null_match",
            "double_match",
            "string_match",
            "bool_match",
            "present_match",
            "list_match",
            "or_match",
        ],
        ..Table::of("envoy.type.matcher.v3.ValueMatcher")
    },
    Table::of("envoy.type.matcher.v3.ValueMatcher.NullMatch"),
    Table { used: &["range", "exact"], ..Table::of("envoy.type.matcher.v3.DoubleMatcher") },
    Table { used: &["start", "end"], ..Table::of("envoy.type.v3.DoubleRange") },
    Table { used: &["one_of"], ..Table::of("envoy.type.matcher.v3.ListMatcher") },
    Table { used: &["value_matchers"], ..Table::of("envoy.type.matcher.v3.OrMatcher") },
    Table {
        used: &["key", "string_match"],
        refused: &[("address_match", "objects are texts")],
        ..Table::of("envoy.type.matcher.v3.FilterStateMatcher")
    },
];
