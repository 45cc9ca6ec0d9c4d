//! HTTP in the clear: the preface of HTTP/2, or a request line.

/// What the first bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Http {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// The beginning of HTTP, as far as can be seen.
    Incomplete,
    /// Not HTTP.
    Not,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line that is waited for, as in Envoy.
const LINE_MAX: usize = 64 * 1024;
const METHOD_MAX: usize = 32;

/// Looks for HTTP.
pub fn http(bytes: &[u8]) -> Http {
    let same = bytes.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
    if same == PREFACE.len() {
        return Http::Http2;
    }
    if same == bytes.len() {
        return Http::Incomplete;
    }
    // A robust server takes empty lines before the request line (RFC 9112 section 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > LINE_MAX { Http::Not } else { request_line(&bytes[blank..]) }
}

fn request_line(line: &[u8]) -> Http {
    let end = memchr::memchr(b'\n', line);
    let line = &line[..end.unwrap_or(line.len())];
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    if method > METHOD_MAX || line.len() > LINE_MAX {
        return Http::Not;
    }
    let after = &line[method..];
    let target = match after {
        [] if end.is_none() => return Http::Incomplete,
        [b' ', target @ ..] if method > 0 => target,
        _ => return Http::Not,
    };
    if target.iter().any(|byte| matches!(byte, 0..=8 | 11..=12 | 14..=31 | 127)) {
        return Http::Not;
    }
    if end.is_none() {
        return Http::Incomplete;
    }
    let target = target.strip_suffix(b"\r").unwrap_or(target);
    match memchr::memrchr(b' ', target).map(|space| (space, &target[space + 1..])) {
        Some((1.., b"HTTP/1.1")) => Http::Http11,
        // Envoy takes any other minor version for 1.0.
        Some((1.., [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'])) => Http::Http10,
        _ => Http::Not,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
