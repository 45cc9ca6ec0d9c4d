//! Access logs: one line per request.

use std::{cell::RefCell, ops::BitOr, sync::Arc};

use culvert_model::{AccessLog, Format, FormatPart};

use crate::{
    http::{exchange::Exchange, format::Values},
    observe::access_log::{AccessLogs, Sink},
};

/// `%RESPONSE_FLAGS%`: why a response is not the upstream's own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Flags(u16);

impl Flags {
    /// `DC`
    pub(super) const DOWNSTREAM_TERMINATION: Self = Self(1);
    /// `DPE`
    pub(super) const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 1);
    /// `NC`
    pub(super) const NO_CLUSTER: Self = Self(1 << 2);
    /// `UH`
    pub(super) const NO_HEALTHY_UPSTREAM: Self = Self(1 << 3);
    /// `NR`
    pub(super) const NO_ROUTE: Self = Self(1 << 4);
    /// `SI`
    pub(super) const STREAM_IDLE_TIMEOUT: Self = Self(1 << 5);
    /// `UF`
    pub(super) const UPSTREAM_CONNECTION_FAILURE: Self = Self(1 << 6);
    /// `UC`
    pub(super) const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 7);
    /// `UO`
    pub(super) const UPSTREAM_OVERFLOW: Self = Self(1 << 8);
    /// `UPE`
    pub(super) const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 9);
    /// `UT`
    pub(super) const UPSTREAM_REQUEST_TIMEOUT: Self = Self(1 << 10);

    const NAMES: [(Self, &'static str); 11] = [
        (Self::DOWNSTREAM_TERMINATION, "DC"),
        (Self::DOWNSTREAM_PROTOCOL_ERROR, "DPE"),
        (Self::NO_CLUSTER, "NC"),
        (Self::NO_HEALTHY_UPSTREAM, "UH"),
        (Self::NO_ROUTE, "NR"),
        (Self::STREAM_IDLE_TIMEOUT, "SI"),
        (Self::UPSTREAM_CONNECTION_FAILURE, "UF"),
        (Self::UPSTREAM_CONNECTION_TERMINATION, "UC"),
        (Self::UPSTREAM_OVERFLOW, "UO"),
        (Self::UPSTREAM_PROTOCOL_ERROR, "UPE"),
        (Self::UPSTREAM_REQUEST_TIMEOUT, "UT"),
    ];

    /// Appends the names, separated by commas; false when there are none.
    pub(super) fn write(self, out: &mut Vec<u8>) -> bool {
        let mut any = false;
        for (flag, name) in Self::NAMES {
            if self.0 & flag.0 != 0 {
                if any {
                    out.push(b',');
                }
                out.extend_from_slice(name.as_bytes());
                any = true;
            }
        }
        any
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The access logs of a connection manager.
pub(super) struct Loggers {
    loggers: Vec<Logger>,
    line: RefCell<Vec<u8>>,
}

struct Logger {
    sink: Arc<Sink>,
    format: Format,
}

impl Loggers {
    /// Opens what is configured.
    pub(super) fn new(configured: &[AccessLog], files: &AccessLogs) -> Self {
        let open = |configured: &AccessLog| match files.sink(&configured.path) {
            Ok(sink) => {
                Some(Logger { sink, format: configured.format.clone().unwrap_or_else(default_format) })
            }
            Err(error) => {
                ::log::error!(target: "access_log", "{error}");
                None
            }
        };
        Self { loggers: configured.iter().filter_map(open).collect(), line: RefCell::default() }
    }

    /// Logs a request that has ended.
    pub(super) fn write(&self, exchange: &Exchange<'_>) {
        if self.loggers.is_empty() {
            return;
        }
        let values = Values::for_response(exchange, None);
        let mut line = self.line.borrow_mut();
        for logger in &self.loggers {
            line.clear();
            for part in &logger.format {
                if !values.append(part, None, None, &mut line) {
                    line.push(b'-');
                }
            }
            line.push(b'\n');
            logger.sink.write_line(&line);
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
        FormatPart::StartTime,
        text("] \""),
        request(":method", None),
        text(" "),
        request("x-envoy-original-path", Some(":path")),
        text(" "),
        FormatPart::Protocol,
        text("\" "),
        FormatPart::ResponseCode,
        text(" "),
        FormatPart::ResponseFlags,
        text(" "),
        FormatPart::BytesReceived,
        text(" "),
        FormatPart::BytesSent,
        text(" "),
        FormatPart::Duration,
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
        FormatPart::UpstreamHost,
        text("\""),
    ]
}
