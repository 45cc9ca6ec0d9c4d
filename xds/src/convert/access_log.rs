//! `config.accesslog.v3` and the loggers.

use culvert_model::{AccessLog, Format};
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{self as pb, access_log::ConfigType},
        core::v3::{SubstitutionFormatString, substitution_format_string},
    },
    extensions::access_loggers::{
        file::v3::{FileAccessLog, file_access_log},
        stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
    },
};

use super::{core, extension_name, unpack};
use crate::{NoteKind, at::At, format};

/// One entry of `access_log`.
pub(super) fn access_log(at: &At<'_>, log: &pb::AccessLog) -> Option<AccessLog> {
    let Some(ConfigType::TypedConfig(any)) = log.config_type.as_ref() else {
        return at.field("typed_config").error("value is required");
    };
    let at = at.field("typed_config");
    if let Some(file) = unpack::<FileAccessLog>(any) {
        return file_log(&at, &file);
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
    at.error(format!("{} is not an access logger", extension_name(Some(any))))
}

fn file_log(at: &At<'_>, file: &FileAccessLog) -> Option<AccessLog> {
    let format = match file.access_log_format.as_ref() {
        None => None,
        Some(file_access_log::AccessLogFormat::Format(text)) if text.is_empty() => None,
        Some(file_access_log::AccessLogFormat::Format(text)) => Some(line(&at.field("format"), text)?),
        Some(file_access_log::AccessLogFormat::LogFormat(format)) => {
            Some(log_format(&at.field("log_format"), format)?)
        }
        Some(_) => return at.unsupported("JSON access logs are not supported"),
    };
    Some(AccessLog { path: file.path.clone(), format })
}

fn stream_log(at: &At<'_>, path: &str, format: Option<&SubstitutionFormatString>) -> Option<AccessLog> {
    let format = match format {
        Some(format) => Some(log_format(&at.field("log_format"), format)?),
        None => None,
    };
    Some(AccessLog { path: path.to_owned(), format })
}

fn log_format(at: &At<'_>, format: &SubstitutionFormatString) -> Option<Format> {
    match format.format.as_ref()? {
        substitution_format_string::Format::TextFormat(text) => line(&at.field("text_format"), text),
        substitution_format_string::Format::TextFormatSource(source) => {
            let at = at.field("text_format_source");
            line(&at, &core::text(&at, source)?)
        }
        substitution_format_string::Format::JsonFormat(_) => {
            at.unsupported("JSON access logs are not supported")
        }
    }
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
