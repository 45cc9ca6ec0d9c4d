//! Access logs: what is known of a request or connection, which entries are kept, and how they are written.
//!
//! A room that logs owns [`Loggers`], fills in [`Facts`] and calls [`Loggers::write`]. Lines go to files through
//! [`crate::observe::access_log`]; entries for collectors are encoded here and handed to the control thread through a
//! bounded queue ([`pipe`]). Nothing waits.

mod entry;
mod facts;
mod filter;
mod flags;
mod json;
mod operators;
mod otlp;
pub mod pipe;
mod time;

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use culvert_model::{
    AccessLog, AccessLogFilter, Format, FormatPart, GrpcLog, LogFormat, LogSink, Operator, OtlpLog, OtlpValue,
};

pub(crate) use entry::{bytes as put_bytes, message, varint as put_varint};
pub use facts::{CertificateFacts, Facts, LogType, Times, TlsFacts};
pub use flags::Flags;
pub(crate) use json::quote_from;
pub(crate) use operators::wall_clock;
pub use operators::{Value, append};
use pipe::Pipe;
pub(crate) use time::write as write_time;

use crate::observe::{access::pipe::Pipes, access_log::AccessLogs, access_log::Sink};

/// Runtime values, for filters that a key may override.
pub type Runtime = BTreeMap<String, String>;

/// The access logs of one listener, connection manager or TCP proxy on one worker.
#[derive(Default)]
pub struct Loggers {
    loggers: Vec<Logger>,
    upstream_local: bool,
    line: RefCell<Vec<u8>>,
}

struct Logger {
    filter: Option<AccessLogFilter>,
    output: Output,
}

enum Output {
    File { sink: Arc<Sink>, format: LineFormat },
    Http { pipe: Arc<Pipe>, config: Arc<GrpcLog> },
    Tcp { pipe: Arc<Pipe>, config: Arc<GrpcLog> },
    OpenTelemetry { pipe: Arc<Pipe>, config: Arc<OtlpLog> },
}

enum LineFormat {
    Json { root: culvert_model::JsonTemplate, omit_empty: bool },
    Text { parts: Format, missing: &'static [u8] },
}

impl Loggers {
    /// Opens what is configured.
    pub fn new(configured: &[AccessLog], files: &AccessLogs, pipes: &Pipes) -> Self {
        let loggers: Vec<_> = configured.iter().filter_map(|log| open(log, files, pipes)).collect();
        let upstream_local = loggers.iter().any(Logger::wants_upstream_local);
        Self { loggers, upstream_local, line: RefCell::default() }
    }

    /// Whether nothing is logged.
    pub fn is_empty(&self) -> bool {
        self.loggers.is_empty()
    }

    /// Whether [`Facts::upstream_local`] is looked at: finding it out is a system call.
    pub fn wants_upstream_local(&self) -> bool {
        self.upstream_local
    }

    /// Logs one entry.
    pub fn write(&self, facts: &Facts<'_>, runtime: &Runtime) {
        for logger in &self.loggers {
            if logger.filter.as_ref().is_some_and(|filter| !filter::passes(filter, facts, runtime)) {
                continue;
            }
            match &logger.output {
                Output::File { sink, format } => {
                    let mut line = self.line.borrow_mut();
                    line.clear();
                    format.write(facts, &mut line);
                    line.push(b'\n');
                    sink.write_line(&line);
                }
                Output::Http { pipe, config } => pipe.push(|out| entry::http(facts, config, out)),
                Output::Tcp { pipe, config } => pipe.push(|out| entry::tcp(facts, config, out)),
                Output::OpenTelemetry { pipe, config } => {
                    let mut text = self.line.borrow_mut();
                    pipe.push(|out| otlp::record(facts, config, &mut text, out));
                }
            }
        }
    }
}

impl Logger {
    fn wants_upstream_local(&self) -> bool {
        let is_wanted = |part: &FormatPart| {
            matches!(
                part,
                FormatPart::Operator(
                    Operator::UpstreamLocalAddress | Operator::UpstreamLocalIp | Operator::UpstreamLocalPort
                )
            )
        };
        match &self.output {
            Output::File { format: LineFormat::Text { parts, .. }, .. } => parts.iter().any(is_wanted),
            Output::File { format: LineFormat::Json { root, .. }, .. } => any_part(root, &is_wanted),
            Output::Http { .. } | Output::Tcp { .. } => true,
            Output::OpenTelemetry { config, .. } => {
                let values = config.body.iter().chain(config.attributes.iter().map(|(_, value)| value));
                values.into_iter().any(|value| any_value(value, &is_wanted))
            }
        }
    }
}

fn any_part(template: &culvert_model::JsonTemplate, is_wanted: &impl Fn(&FormatPart) -> bool) -> bool {
    use culvert_model::JsonTemplate;
    match template {
        JsonTemplate::List(members) => members.iter().any(|member| any_part(member, is_wanted)),
        JsonTemplate::Object(members) => members.iter().any(|(_, member)| any_part(member, is_wanted)),
        JsonTemplate::Value(parts) => parts.iter().any(is_wanted),
        JsonTemplate::Literal(_) | JsonTemplate::Null => false,
    }
}

fn any_value(value: &OtlpValue, is_wanted: &impl Fn(&FormatPart) -> bool) -> bool {
    match value {
        OtlpValue::List(members) => members.iter().any(|member| any_value(member, is_wanted)),
        OtlpValue::Map(members) => members.iter().any(|(_, member)| any_value(member, is_wanted)),
        OtlpValue::Text(parts) => parts.iter().any(is_wanted),
    }
}

impl LineFormat {
    fn write(&self, facts: &Facts<'_>, line: &mut Vec<u8>) {
        match self {
            Self::Json { root, omit_empty } => json::write(root, *omit_empty, facts, line),
            Self::Text { parts, missing } => write_text(parts, missing, facts, line),
        }
    }
}

/// Appends a text; `missing` is what stands for what has no value.
pub(crate) fn write_text(parts: &[FormatPart], missing: &[u8], facts: &Facts<'_>, out: &mut Vec<u8>) {
    for part in parts {
        let start = out.len();
        if append(part, facts, out) == Value::Absent {
            out.extend_from_slice(missing);
        } else if matches!(part, FormatPart::FilterState { typed: true, .. }) {
            quote_from(out, start);
        }
    }
}

fn open(log: &AccessLog, files: &AccessLogs, pipes: &Pipes) -> Option<Logger> {
    let output = match &log.sink {
        LogSink::File { path, format } => match files.sink(path) {
            Ok(sink) => Output::File { sink, format: line_format(format) },
            Err(error) => {
                ::log::error!(target: "access_log", "{error}");
                return None;
            }
        },
        LogSink::GrpcHttp(config) => {
            Output::Http { pipe: pipes.open(config, pipe::Kind::Http), config: config.clone() }
        }
        LogSink::GrpcTcp(config) => {
            Output::Tcp { pipe: pipes.open(config, pipe::Kind::Tcp), config: config.clone() }
        }
        LogSink::OpenTelemetry(config) => {
            Output::OpenTelemetry { pipe: pipes.open_otlp(config), config: config.clone() }
        }
    };
    Some(Logger { filter: log.filter.clone(), output })
}

fn line_format(format: &LogFormat) -> LineFormat {
    match format {
        LogFormat::Default => LineFormat::Text { parts: default_format(), missing: b"-" },
        LogFormat::Json { root, omit_empty } => {
            LineFormat::Json { root: root.clone(), omit_empty: *omit_empty }
        }
        LogFormat::Text { parts, omit_empty } => {
            LineFormat::Text { parts: parts.clone(), missing: if *omit_empty { b"" } else { b"-" } }
        }
    }
}

/// Envoy's default format (docs: "Default format string").
fn default_format() -> Format {
    let text = |text: &str| FormatPart::Text(text.to_owned());
    let request = |name: &str, alternative: Option<&str>| FormatPart::RequestHeader {
        name: name.to_owned(),
        alternative: alternative.map(str::to_owned),
        max: None,
    };
    let service_time = FormatPart::ResponseHeader {
        name: "x-envoy-upstream-service-time".to_owned(),
        alternative: None,
        max: None,
    };
    vec![
        text("["),
        FormatPart::StartTime(vec![culvert_model::TimePart::Default]),
        text("] \""),
        request(":method", None),
        text(" "),
        request("x-envoy-original-path", Some(":path")),
        text(" "),
        FormatPart::Operator(Operator::Protocol),
        text("\" "),
        FormatPart::Operator(Operator::ResponseCode),
        text(" "),
        FormatPart::Operator(Operator::ResponseFlags),
        text(" "),
        FormatPart::Operator(Operator::BytesReceived),
        text(" "),
        FormatPart::Operator(Operator::BytesSent),
        text(" "),
        FormatPart::Operator(Operator::Duration),
        text(" "),
        service_time,
        text(" \""),
        request("x-forwarded-for", None),
        text("\" \""),
        request("user-agent", None),
        text("\" \""),
        request("x-request-id", None),
        text("\" \""),
        request(":authority", None),
        text("\" \""),
        FormatPart::Operator(Operator::UpstreamHost),
        text("\""),
    ]
}

#[cfg(test)]
mod tests;
