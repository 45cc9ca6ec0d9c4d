//! Format strings: `%REQ(X)%` and its kind (Envoy's substitution formatter, grammar measured on 1.40).

mod time;

use culvert_model::{
    Format, FormatPart, GrpcStatusStyle, Operator, PathSource, TimePart, TimePoint, TimeUnit,
};

use crate::at::At;

/// Why a format string was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FormatError {
    /// It is not written as format strings are.
    #[error("{0}")]
    Malformed(String),
    /// An operator that does not exist, or is not supported.
    #[error("{0}")]
    Unsupported(String),
}

/// Parses a format string at `at`.
pub(crate) fn format(at: &At<'_>, text: &str) -> Option<Format> {
    match parse(text) {
        Ok(format) => Some(format),
        Err(FormatError::Malformed(reason)) => at.error(reason),
        Err(FormatError::Unsupported(reason)) => at.unsupported(reason),
    }
}

/// Parses a format string. `%%` is a percent sign.
///
/// # Errors
/// A command that is malformed, not known or not supported.
fn parse(format: &str) -> Result<Format, FormatError> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(after) = rest.strip_prefix("%%") {
            text.push('%');
            rest = after;
            continue;
        }
        let Some((command, after)) = split(rest) else {
            let position = format.len() - rest.len();
            return malformed(format!("no valid command at position {position} of {format:?}"));
        };
        match part(&command)? {
            FormatPart::Text(known) => text.push_str(&known),
            part => {
                if !text.is_empty() {
                    parts.push(FormatPart::Text(std::mem::take(&mut text)));
                }
                parts.push(part);
            }
        }
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(FormatPart::Text(text));
    }
    Ok(parts)
}

/// `NAME(argument):max` between percent signs.
struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    max: Option<usize>,
}

/// The command at the start of `text`, and what follows it.
fn split(text: &str) -> Option<(Command<'_>, &str)> {
    let body = text.strip_prefix('%')?;
    let end = body.find(|c: char| !matches!(c, 'A'..='Z' | '0'..='9' | '_'))?;
    let (name, rest) = body.split_at(end);
    if name.is_empty() {
        return None;
    }
    let Some(inner) = rest.strip_prefix('(') else {
        let (max, after) = tail(rest)?;
        return Some((Command { name, argument: None, max }, after));
    };
    // The argument ends at the first parenthesis that leaves a well-formed rest.
    inner.match_indices(')').find_map(|(close, _)| {
        let (max, after) = tail(&inner[close + 1..])?;
        Some((Command { name, argument: Some(&inner[..close]), max }, after))
    })
}

/// `:max%` or `%`, and what follows.
fn tail(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(after) = text.strip_prefix('%') {
        return Some((None, after));
    }
    let (digits, after) = text.strip_prefix(':')?.split_once('%')?;
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    number.then(|| digits.parse().ok()).flatten().map(|max| (Some(max), after))
}

fn malformed<T>(reason: String) -> Result<T, FormatError> {
    Err(FormatError::Malformed(reason))
}

fn unsupported<T>(reason: String) -> Result<T, FormatError> {
    Err(FormatError::Unsupported(reason))
}

/// Operators that Envoy has and that stand for something that does not exist here.
const WITHOUT_SOURCE: &[(&str, &str)] = &[
    ("BYTES_RETRANSMITTED", "bytes on the wire are not counted by request"),
    ("COALESCE", "operators cannot be combined"),
    ("DOWNSTREAM_CX_RTT", "round-trip times are not measured"),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", "how a connection was closed is not recorded"),
    ("DOWNSTREAM_HANDSHAKE_DURATION", "handshakes are not measured"),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", "how a connection was closed is not recorded"),
    ("FILE_CONTENT", "files are not read for a format"),
    ("PACKETS_RETRANSMITTED", "bytes on the wire are not counted by request"),
    ("ROUNDTRIP_DURATION", "acknowledgements are not measured"),
    ("ROUTE_RESOLUTION_COUNT", "a request is routed once"),
    ("UPSTREAM_CONNECTION_ID", "upstream connections have no id"),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", "the wait for a connection is not measured"),
];

fn part(command: &Command<'_>) -> Result<FormatPart, FormatError> {
    let (name, argument, max) = (command.name, command.argument.unwrap_or_default(), command.max);
    if let Some(operator) = Operator::ALL.iter().find(|operator| operator.name() == name) {
        return bare(command, FormatPart::Operator(*operator));
    }
    let between = |from, to, unit| FormatPart::Between { from, to, unit };
    let ms = TimeUnit::Milliseconds;
    match name {
        "REQ" => {
            let (name, alternative) = headers(command)?;
            Ok(FormatPart::RequestHeader { name, alternative, max })
        }
        // The request's headers as they are when it is logged, which is what both look at.
        "STREAM_INFO_REQ" => {
            let (name, alternative) = headers(command)?;
            Ok(FormatPart::RequestHeader { name, alternative, max })
        }
        "REQ_WITHOUT_QUERY" => {
            let (name, alternative) = headers(command)?;
            Ok(FormatPart::RequestHeaderWithoutQuery { name, alternative, max })
        }
        "RESP" => {
            let (name, alternative) = headers(command)?;
            Ok(FormatPart::ResponseHeader { name, alternative, max })
        }
        "TRAILER" => {
            let (name, alternative) = headers(command)?;
            Ok(FormatPart::ResponseTrailer { name, alternative, max })
        }
        "START_TIME" => Ok(FormatPart::StartTime(time_format(command)?)),
        "EMIT_TIME" => Ok(FormatPart::EmitTime(time_format(command)?)),
        "DOWNSTREAM_PEER_CERT_V_START" => Ok(FormatPart::PeerCertificateTime(false, time_format(command)?)),
        "DOWNSTREAM_PEER_CERT_V_END" => Ok(FormatPart::PeerCertificateTime(true, time_format(command)?)),
        "REQUEST_DURATION" => {
            bare(command, between(TimePoint::DownstreamRxBegin, TimePoint::DownstreamRxEnd, ms))
        }
        "REQUEST_TX_DURATION" => {
            bare(command, between(TimePoint::DownstreamRxBegin, TimePoint::UpstreamTxEnd, ms))
        }
        "RESPONSE_DURATION" => {
            bare(command, between(TimePoint::DownstreamRxBegin, TimePoint::UpstreamRxBegin, ms))
        }
        "RESPONSE_TX_DURATION" => {
            bare(command, between(TimePoint::UpstreamRxBegin, TimePoint::DownstreamTxEnd, ms))
        }
        "COMMON_DURATION" => common_duration(argument),
        "GRPC_STATUS" => Ok(FormatPart::GrpcStatus(match argument {
            "" | "CAMEL_STRING" => GrpcStatusStyle::Camel,
            "NUMBER" => GrpcStatusStyle::Number,
            "SNAKE_STRING" => GrpcStatusStyle::Snake,
            _ => {
                return malformed(
                    "GRPC_STATUS only supports CAMEL_STRING, SNAKE_STRING or NUMBER".to_owned(),
                );
            }
        })),
        "GRPC_STATUS_NUMBER" => bare(command, FormatPart::GrpcStatus(GrpcStatusStyle::Number)),
        "PATH" => {
            let (first, second) = argument.split_once(':').unwrap_or((argument, ""));
            let query = match first {
                "" | "WQ" => true,
                "NQ" => false,
                _ => return malformed(format!("%PATH({argument})%: {first:?} is neither WQ nor NQ")),
            };
            Ok(FormatPart::Path { query, which: path_source(command, second)?, max })
        }
        "QUERY_PARAM" if argument.is_empty() => malformed("%QUERY_PARAM% requires parameters".to_owned()),
        "QUERY_PARAM" => Ok(FormatPart::QueryParameter { name: argument.to_owned(), max }),
        "QUERY_PARAMS" => match argument {
            "" | "ORIG" => Ok(FormatPart::QueryString { which: PathSource::Path, max }),
            "DECODED" => unsupported("%QUERY_PARAMS(DECODED)% is not supported".to_owned()),
            _ => malformed(format!(
                "Invalid QUERY_PARAMS option: '{argument}', only 'ORIG'/'DECODED' are allowed"
            )),
        },
        "ENVIRONMENT" if argument.is_empty() => malformed("%ENVIRONMENT% requires parameters".to_owned()),
        "ENVIRONMENT" => {
            let mut value = std::env::var(argument).unwrap_or_else(|_| "-".to_owned());
            if let Some(max) = max {
                value.truncate(value.floor_char_boundary(max));
            }
            Ok(FormatPart::Text(value))
        }
        "FILTER_STATE" => filter_state(argument, max),
        // Nothing here attaches metadata to requests or state to upstreams, and clusters' and routes' metadata is not
        // kept.
        "DYNAMIC_METADATA" | "UPSTREAM_FILTER_STATE" => match argument {
            "" => malformed(format!("%{name}% requires parameters")),
            _ => Ok(FormatPart::Nothing),
        },
        "METADATA" => match argument.split(':').next().unwrap_or_default() {
            "DYNAMIC" => Ok(FormatPart::Nothing),
            kind @ ("CLUSTER"
            | "LISTENER"
            | "LISTENER_FILTER_CHAIN"
            | "ROUTE"
            | "UPSTREAM_HOST"
            | "VIRTUAL_HOST") => unsupported(format!("%METADATA({kind}:...)% is not supported")),
            kind => malformed(format!("{kind:?} is not supported type of metadata in %METADATA%")),
        },
        _ => match WITHOUT_SOURCE.iter().find(|(known, _)| *known == name) {
            Some((_, reason)) => unsupported(format!("%{name}% is not supported: {reason}")),
            None => unsupported(format!("%{name}% is not a supported operator")),
        },
    }
}

/// A command that takes neither parameters nor a length.
fn bare(command: &Command<'_>, part: FormatPart) -> Result<FormatPart, FormatError> {
    match command.max.is_some() || command.argument.is_some_and(|argument| !argument.is_empty()) {
        true => malformed(format!("%{}% does not take any parameters or length", command.name)),
        false => Ok(part),
    }
}

/// `key`, `key:TYPED` or `key:PLAIN`.
fn filter_state(argument: &str, max: Option<usize>) -> Result<FormatPart, FormatError> {
    let (key, style) = argument.split_once(':').unwrap_or((argument, ""));
    match (key, style) {
        ("", _) => malformed("%FILTER_STATE% requires parameters".to_owned()),
        (key, "" | "PLAIN" | "TYPED") => {
            Ok(FormatPart::FilterState { key: key.to_owned(), typed: style != "PLAIN", max })
        }
        (_, style) if style.starts_with("FIELD:") => {
            unsupported(format!("%FILTER_STATE({argument})% is not supported: objects have no fields"))
        }
        _ => malformed(format!(
            "%FILTER_STATE({argument})%: invalid serialization type, only PLAIN, TYPED and FIELD are supported"
        )),
    }
}

fn time_format(command: &Command<'_>) -> Result<Vec<TimePart>, FormatError> {
    match (command.max, command.argument.unwrap_or_default()) {
        (Some(_), _) => malformed(format!("%{}% does not take a length", command.name)),
        (None, "") => Ok(vec![TimePart::Default]),
        (None, format) => time::parse(format),
    }
}

fn common_duration(argument: &str) -> Result<FormatPart, FormatError> {
    let parts: Vec<_> = argument.split(':').collect();
    let [from, to, unit] = parts[..] else {
        return malformed("Invalid common duration configuration: expected START:END:PRECISION".to_owned());
    };
    let unit = match unit {
        "ms" => TimeUnit::Milliseconds,
        "ns" => TimeUnit::Nanoseconds,
        "us" => TimeUnit::Microseconds,
        _ => return malformed(format!("Invalid common duration precision: {unit}")),
    };
    let (from, to) = (time_point(from)?, time_point(to)?);
    Ok(FormatPart::Between { from, to, unit })
}

fn time_point(name: &str) -> Result<TimePoint, FormatError> {
    Ok(match name {
        "DS_RX_BEG" => TimePoint::DownstreamRxBegin,
        "DS_RX_END" => TimePoint::DownstreamRxEnd,
        "DS_TX_BEG" => TimePoint::DownstreamTxBegin,
        "DS_TX_END" => TimePoint::DownstreamTxEnd,
        "US_CX_BEG" | "US_CX_END" => {
            return unsupported("%COMMON_DURATION%: the times of connecting are not recorded".to_owned());
        }
        "US_RX_BEG" => TimePoint::UpstreamRxBegin,
        "US_RX_END" => TimePoint::UpstreamRxEnd,
        "US_TX_BEG" => TimePoint::UpstreamTxBegin,
        "US_TX_END" => TimePoint::UpstreamTxEnd,
        // Envoy takes any other name for a moment that a filter of its own may record.
        _ => return unsupported(format!("%COMMON_DURATION%: no moment is called {name:?}")),
    })
}

fn path_source(command: &Command<'_>, text: &str) -> Result<PathSource, FormatError> {
    Ok(match text {
        "" | "ORIG_OR_PATH" => PathSource::OriginalOrPath,
        "ORIG" => PathSource::Original,
        "PATH" => PathSource::Path,
        _ => {
            return malformed(format!("%{}%: {text:?} is none of ORIG, PATH and ORIG_OR_PATH", command.name));
        }
    })
}

/// `name?alternative`, in lower case.
fn headers(command: &Command<'_>) -> Result<(String, Option<String>), FormatError> {
    let argument = command.argument.unwrap_or_default();
    if argument.is_empty() {
        return malformed(format!("%{}% requires parameters", command.name));
    }
    let mut names = argument.split('?').map(str::to_ascii_lowercase);
    let (name, alternative) =
        (names.next().unwrap_or_default(), names.next().filter(|name| !name.is_empty()));
    if names.next().is_some() {
        return malformed(format!("more than 1 alternative header in %{}({argument})%", command.name));
    }
    let valid =
        |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b":!#$%&'*+-.^_|~`".contains(&b));
    if !valid(&name) || alternative.as_deref().is_some_and(|name| !valid(name)) {
        return malformed(format!("%{}({argument})% names a header with invalid characters", command.name));
    }
    match (name.is_empty(), alternative) {
        (true, Some(alternative)) => Ok((alternative, None)),
        (_, alternative) => Ok((name, alternative)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, alternative: Option<&str>, max: Option<usize>) -> FormatPart {
        FormatPart::RequestHeader { name: name.to_owned(), alternative: alternative.map(str::to_owned), max }
    }

    #[test]
    fn commands_and_literals() {
        let text = |text: &str| FormatPart::Text(text.to_owned());
        for (format, parts) in [
            ("", vec![]),
            ("plain", vec![text("plain")]),
            ("100%%", vec![text("100%")]),
            ("%%%%", vec![text("%%")]),
            ("%REQ(:METHOD)%", vec![request(":method", None, None)]),
            ("%REQ(A?B):10%", vec![request("a", Some("b"), Some(10))]),
            ("%REQ(a?)%", vec![request("a", None, None)]),
            ("%REQ(?b)%", vec![request("b", None, None)]),
            ("%REQ(a):0%", vec![request("a", None, Some(0))]),
            ("%REQ(a)%%REQ(b)%", vec![request("a", None, None), request("b", None, None)]),
            ("%REQ(a%b)%", vec![request("a%b", None, None)]),
            (
                "%RESPONSE_CODE%x%%y%PROTOCOL%\n",
                vec![
                    FormatPart::Operator(Operator::ResponseCode),
                    text("x%y"),
                    FormatPart::Operator(Operator::Protocol),
                    text("\n"),
                ],
            ),
            ("%START_TIME()%", vec![FormatPart::StartTime(vec![TimePart::Default])]),
            (
                "%RESP(c):3%",
                vec![FormatPart::ResponseHeader { name: "c".to_owned(), alternative: None, max: Some(3) }],
            ),
        ] {
            assert_eq!(parse(format), Ok(parts), "{format}");
        }
    }

    #[test]
    fn every_operator_has_its_part() {
        for name in Operator::ALL.iter().map(|operator| operator.name()).chain([
            "GRPC_STATUS_NUMBER",
            "REQUEST_DURATION",
            "REQUEST_TX_DURATION",
            "RESPONSE_DURATION",
            "RESPONSE_TX_DURATION",
            "START_TIME",
        ]) {
            assert_eq!(parse(&format!("%{name}%")).map(|parts| parts.len()), Ok(1), "{name}");
            assert!(parse(&format!("%{name}:3%")).is_err(), "{name}");
        }
    }

    #[test]
    fn operators_with_parameters() {
        use TimePoint::*;
        let between = |from, to, unit| FormatPart::Between { from, to, unit };
        let ms = TimeUnit::Milliseconds;
        for (format, part) in [
            ("%REQUEST_DURATION%", between(DownstreamRxBegin, DownstreamRxEnd, ms)),
            ("%RESPONSE_TX_DURATION%", between(UpstreamRxBegin, DownstreamTxEnd, ms)),
            (
                "%COMMON_DURATION(DS_TX_BEG:DS_TX_END:us)%",
                between(DownstreamTxBegin, DownstreamTxEnd, TimeUnit::Microseconds),
            ),
            (
                "%COMMON_DURATION(US_TX_END:US_RX_END:ns)%",
                between(UpstreamTxEnd, UpstreamRxEnd, TimeUnit::Nanoseconds),
            ),
            ("%GRPC_STATUS%", FormatPart::GrpcStatus(GrpcStatusStyle::Camel)),
            ("%GRPC_STATUS(SNAKE_STRING)%", FormatPart::GrpcStatus(GrpcStatusStyle::Snake)),
            ("%GRPC_STATUS_NUMBER%", FormatPart::GrpcStatus(GrpcStatusStyle::Number)),
            ("%PATH%", FormatPart::Path { query: true, which: PathSource::OriginalOrPath, max: None }),
            (
                "%PATH(NQ:ORIG):4%",
                FormatPart::Path { query: false, which: PathSource::Original, max: Some(4) },
            ),
            ("%QUERY_PARAM(a):2%", FormatPart::QueryParameter { name: "a".to_owned(), max: Some(2) }),
            ("%QUERY_PARAMS(ORIG)%", FormatPart::QueryString { which: PathSource::Path, max: None }),
            ("%DYNAMIC_METADATA(a:b)%", FormatPart::Nothing),
            ("%METADATA(DYNAMIC:a)%", FormatPart::Nothing),
            (
                "%FILTER_STATE(a:PLAIN):5%",
                FormatPart::FilterState { key: "a".to_owned(), typed: false, max: Some(5) },
            ),
            ("%ENVIRONMENT(CULVERT_NOT_SET)%", FormatPart::Text("-".to_owned())),
            ("%EMIT_TIME(%s)%", FormatPart::EmitTime(vec![TimePart::Timestamp])),
            ("%DOWNSTREAM_PEER_CERT_V_END(%Y)%", FormatPart::PeerCertificateTime(true, vec![TimePart::Year])),
        ] {
            assert_eq!(parse(format), Ok(vec![part]), "{format}");
        }
    }

    #[test]
    fn what_envoy_refuses() {
        for format in [
            "%",
            "100%",
            "% FOO%",
            "%FOO%",
            "%REQ%",
            "%REQ()%",
            "%REQ(a",
            "%REQ(a)",
            "%REQ(a?b?c)%",
            "%REQ(a):x%",
            "%REQ(a):%",
            "%REQ(a):-1%",
            "%req(a)%",
            "%REQ(a b)%",
            "%REQ(ü)%",
            "%REQ(a))%",
            "%PROTOCOL(x)%",
            "%PROTOCOL:3%",
            "%START_TIME():5%",
            "%GRPC_STATUS(x)%",
            "%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%",
            "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%",
            "%PATH(XQ)%",
            "%QUERY_PARAM%",
            "%ENVIRONMENT%",
            "%FILTER_STATE%",
            "%METADATA(x:y)%",
        ] {
            assert!(parse(format).is_err(), "{format}");
        }
        assert_eq!(parse("ab%C").unwrap_err().to_string(), "no valid command at position 2 of \"ab%C\"");
        assert_eq!(
            parse("%FILE_CONTENT(a)%").unwrap_err().to_string(),
            "%FILE_CONTENT% is not supported: files are not read for a format"
        );
        assert_eq!(parse("%FOO%").unwrap_err().to_string(), "%FOO% is not a supported operator");
    }
}
