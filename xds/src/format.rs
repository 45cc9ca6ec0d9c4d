//! Format strings: `%REQ(X)%` and its kind (Envoy's substitution formatter, grammar measured on 1.40).

use culvert_model::{Format, FormatPart};

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
        if !text.is_empty() {
            parts.push(FormatPart::Text(std::mem::take(&mut text)));
        }
        parts.push(part(&command)?);
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

fn part(command: &Command<'_>) -> Result<FormatPart, FormatError> {
    let name = command.name;
    match name {
        "REQ" => {
            let (name, alternative) = headers(command)?;
            return Ok(FormatPart::RequestHeader { name, alternative, max: command.max });
        }
        "RESP" => {
            let (name, alternative) = headers(command)?;
            return Ok(FormatPart::ResponseHeader { name, alternative, max: command.max });
        }
        "START_TIME" if command.argument.is_some_and(|argument| !argument.is_empty()) => {
            return unsupported("%START_TIME% with a format of its own is not supported".to_owned());
        }
        _ => {}
    }
    let part = match name {
        "BYTES_RECEIVED" => FormatPart::BytesReceived,
        "BYTES_SENT" => FormatPart::BytesSent,
        "DOWNSTREAM_LOCAL_ADDRESS" => FormatPart::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => FormatPart::DownstreamLocalIp,
        "DOWNSTREAM_LOCAL_PORT" => FormatPart::DownstreamLocalPort,
        "DOWNSTREAM_REMOTE_ADDRESS" => FormatPart::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => FormatPart::DownstreamRemoteIp,
        "DOWNSTREAM_REMOTE_PORT" => FormatPart::DownstreamRemotePort,
        "DURATION" => FormatPart::Duration,
        "HOSTNAME" => FormatPart::Hostname,
        "PROTOCOL" => FormatPart::Protocol,
        "RESPONSE_CODE" => FormatPart::ResponseCode,
        "RESPONSE_CODE_DETAILS" => FormatPart::ResponseCodeDetails,
        "RESPONSE_FLAGS" => FormatPart::ResponseFlags,
        "ROUTE_NAME" => FormatPart::RouteName,
        "START_TIME" => FormatPart::StartTime,
        "UPSTREAM_CLUSTER" => FormatPart::UpstreamCluster,
        "UPSTREAM_HOST" => FormatPart::UpstreamHost,
        _ => return unsupported(format!("%{name}% is not a supported operator")),
    };
    match command.max.is_some() || command.argument.is_some_and(|argument| !argument.is_empty()) {
        true => malformed(format!("%{name}% does not take any parameters or length")),
        false => Ok(part),
    }
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
                vec![FormatPart::ResponseCode, text("x%y"), FormatPart::Protocol, text("\n")],
            ),
            ("%START_TIME()%", vec![FormatPart::StartTime]),
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
        for name in [
            "BYTES_RECEIVED",
            "BYTES_SENT",
            "DOWNSTREAM_LOCAL_ADDRESS",
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
            "DOWNSTREAM_LOCAL_PORT",
            "DOWNSTREAM_REMOTE_ADDRESS",
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
            "DOWNSTREAM_REMOTE_PORT",
            "DURATION",
            "HOSTNAME",
            "PROTOCOL",
            "RESPONSE_CODE",
            "RESPONSE_CODE_DETAILS",
            "RESPONSE_FLAGS",
            "ROUTE_NAME",
            "START_TIME",
            "UPSTREAM_CLUSTER",
            "UPSTREAM_HOST",
        ] {
            assert_eq!(parse(&format!("%{name}%")).map(|parts| parts.len()), Ok(1), "{name}");
            assert!(parse(&format!("%{name}:3%")).is_err(), "{name}");
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
        ] {
            assert!(parse(format).is_err(), "{format}");
        }
        assert_eq!(parse("ab%C").unwrap_err().to_string(), "no valid command at position 2 of \"ab%C\"");
        assert_eq!(parse("%FOO%").unwrap_err().to_string(), "%FOO% is not a supported operator");
    }
}
