//! `config.accesslog.v3` and the loggers.

mod filter;
mod grpc;
mod json;
mod otlp;

use culvert_model::{AccessLog, Format, LogFormat, LogSink};
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{self as pb, access_log::ConfigType},
        core::v3::{SubstitutionFormatString, TypedExtensionConfig, substitution_format_string},
    },
    extensions::{
        access_loggers::{
            file::v3::{FileAccessLog, file_access_log},
            grpc::v3::{HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
            stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
        },
        formatter::{metadata::v3::Metadata, req_without_query::v3::ReqWithoutQuery},
    },
};

use super::{core, extension_name, unpack};
use crate::{NoteKind, at::At, format};

/// A repeated `access_log` field; `at` is the field.
pub(super) fn access_logs(at: &At<'_>, logs: &[pb::AccessLog]) -> Option<Vec<AccessLog>> {
    let converted: Vec<_> = logs.iter().enumerate().map(|(i, log)| access_log(&at.index(i), log)).collect();
    converted.into_iter().collect()
}

fn access_log(at: &At<'_>, log: &pb::AccessLog) -> Option<AccessLog> {
    let filter = match log.filter.as_ref() {
        Some(filter) => filter::filter(&at.field("filter"), filter).map(Some),
        None => Some(None),
    };
    let sink = sink(at, log);
    Some(AccessLog { sink: sink?, filter: filter? })
}

fn sink(at: &At<'_>, log: &pb::AccessLog) -> Option<LogSink> {
    let Some(ConfigType::TypedConfig(any)) = log.config_type.as_ref() else {
        return at.field("typed_config").error("value is required");
    };
    let at = at.field("typed_config");
    if let Some(file) = unpack::<FileAccessLog>(any) {
        let format = file_format(&at, &file)?;
        return Some(LogSink::File { path: file.path, format });
    }
    if let Some(stream) = unpack::<StdoutAccessLog>(any) {
        let format =
            stream.access_log_format.map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
        return stream_log(&at, "/dev/stdout", format.as_ref());
    }
    if let Some(stream) = unpack::<StderrAccessLog>(any) {
        let format =
            stream.access_log_format.map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
        return stream_log(&at, "/dev/stderr", format.as_ref());
    }
    if let Some(config) = unpack::<HttpGrpcAccessLogConfig>(any) {
        return grpc::http(&at, &config).map(LogSink::GrpcHttp);
    }
    if let Some(config) = unpack::<TcpGrpcAccessLogConfig>(any) {
        return grpc::tcp(&at, &config).map(LogSink::GrpcTcp);
    }
    if let Some(config) = unpack::<OpenTelemetryAccessLogConfig>(any) {
        return otlp::log(&at, &config).map(LogSink::OpenTelemetry);
    }
    at.error(format!("{} is not an access logger", extension_name(Some(any))))
}

fn file_format(at: &At<'_>, file: &FileAccessLog) -> Option<LogFormat> {
    match file.access_log_format.as_ref() {
        None => Some(LogFormat::Default),
        Some(file_access_log::AccessLogFormat::Format(text)) if text.is_empty() => Some(LogFormat::Default),
        Some(file_access_log::AccessLogFormat::Format(text)) => {
            Some(LogFormat::Text { parts: line(&at.field("format"), text)?, omit_empty: false })
        }
        Some(file_access_log::AccessLogFormat::LogFormat(format)) => {
            log_format(&at.field("log_format"), format)
        }
        Some(file_access_log::AccessLogFormat::JsonFormat(format)) => {
            Some(LogFormat::Json { root: json::object(&at.field("json_format"), format)?, omit_empty: false })
        }
        Some(file_access_log::AccessLogFormat::TypedJsonFormat(format)) => {
            let root = json::object(&at.field("typed_json_format"), format)?;
            Some(LogFormat::Json { root, omit_empty: false })
        }
    }
}

fn stream_log(at: &At<'_>, path: &str, format: Option<&SubstitutionFormatString>) -> Option<LogSink> {
    let format = match format {
        Some(format) => log_format(&at.field("log_format"), format)?,
        None => LogFormat::Default,
    };
    Some(LogSink::File { path: path.to_owned(), format })
}

fn log_format(at: &At<'_>, format: &SubstitutionFormatString) -> Option<LogFormat> {
    formatters(&at.field("formatters"), &format.formatters)?;
    let omit_empty = format.omit_empty_values;
    match format.format.as_ref()? {
        substitution_format_string::Format::TextFormat(text) => {
            Some(LogFormat::Text { parts: line(&at.field("text_format"), text)?, omit_empty })
        }
        substitution_format_string::Format::TextFormatSource(source) => {
            let at = at.field("text_format_source");
            Some(LogFormat::Text { parts: line(&at, &core::text(&at, source)?)?, omit_empty })
        }
        substitution_format_string::Format::JsonFormat(format) => {
            Some(LogFormat::Json { root: json::object(&at.field("json_format"), format)?, omit_empty })
        }
    }
}

/// A text that is not a line of a log: its format, and whether what has no value is left out.
pub(super) fn text(at: &At<'_>, format: &SubstitutionFormatString) -> Option<(Format, bool)> {
    formatters(&at.field("formatters"), &format.formatters)?;
    let parts = match format.format.as_ref()? {
        substitution_format_string::Format::TextFormat(text) => {
            format::format(&at.field("text_format"), text)
        }
        substitution_format_string::Format::TextFormatSource(source) => {
            let at = at.field("text_format_source");
            format::format(&at, &core::text(&at, source)?)
        }
        substitution_format_string::Format::JsonFormat(_) => {
            at.field("json_format").unsupported("only texts are supported")
        }
    };
    Some((parts?, format.omit_empty_values))
}

/// Formatters add operators. Those of the supported ones are always there.
fn formatters(at: &At<'_>, formatters: &[TypedExtensionConfig]) -> Option<()> {
    let mut supported = Some(());
    for (index, formatter) in formatters.iter().enumerate() {
        let any = formatter.typed_config.as_ref();
        if any.and_then(unpack::<ReqWithoutQuery>).is_none() && any.and_then(unpack::<Metadata>).is_none() {
            supported = at
                .index(index)
                .field("typed_config")
                .unsupported(format!("{} is not a supported formatter", extension_name(any)));
        }
    }
    supported
}

/// The format of a line. Every line ends with one newline, which the format may bring.
fn line(at: &At<'_>, text: &str) -> Option<Format> {
    let line = match text.strip_suffix('\n') {
        Some(line) => line,
        None => {
            at.note(NoteKind::Warning, "the format does not end with a newline; one is added to each line");
            text
        }
    };
    format::format(at, line)
}
