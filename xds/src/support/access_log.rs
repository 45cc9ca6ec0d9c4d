//! `config.accesslog.v3` and the loggers.

use super::Table;

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["name", "typed_config"],
        refused: &[("filter", "access log filters are not supported")],
        ..Table::of("envoy.config.accesslog.v3.AccessLog")
    },
    Table {
        used: &["path", "format", "log_format"],
        refused: &[
            ("json_format", "JSON access logs are not supported"),
            ("typed_json_format", "JSON access logs are not supported"),
        ],
        ..Table::of("envoy.extensions.access_loggers.file.v3.FileAccessLog")
    },
    Table { used: &["log_format"], ..Table::of("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog") },
    Table { used: &["log_format"], ..Table::of("envoy.extensions.access_loggers.stream.v3.StderrAccessLog") },
    Table {
        used: &["text_format", "text_format_source"],
        no_effect: &[("content_type", "it is for local replies")],
        only_off: &["omit_empty_values"],
        refused: &[
            ("json_format", "JSON access logs are not supported"),
            ("formatters", "formatter extensions are not supported"),
        ],
        ..Table::of("envoy.config.core.v3.SubstitutionFormatString")
    },
];
