//! Writing heads and chunks. Nothing is formatted through `fmt`: this runs twice per request.

use culvert_model::HeaderCase;

use crate::{Headers, Method, RequestHead, ResponseHead, Version, h1::Framing};

/// What follows the data of each chunk.
pub const CHUNK_FOOTER: &[u8] = b"\r\n";

/// Appends a request head: `METHOD path HTTP/1.1`, `host`, the fields, the framing, a blank line.
///
/// The framing fields come from `body` alone: a `content-length` among the headers only marks the place, a
/// `transfer-encoding` is dropped. A request without body whose method expects one gets `content-length: 0`, as Envoy
/// sends it. [`Framing::UntilClose`] and [`Framing::Tunnel`] add nothing.
pub fn encode_request(head: &RequestHead, body: Framing, case: HeaderCase, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(if head.method == Method::Connect { head.authority() } else { head.path() });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = if case == HeaderCase::Preserve { head.host_spelling() } else { b"host" };
    encode_field(host, head.authority(), case, out);
    let body = match body {
        Framing::None if head.method.expects_body() => Framing::Length(0),
        other => other,
    };
    encode_fields(&head.headers, body, case, out, LengthWithoutBody::Drop);
}

/// Appends a response head: version, status, reason, the fields, the framing, a blank line.
///
/// As in [`encode_request`], but with [`Framing::None`] a `content-length` of the headers stays (HEAD, 304), or else a
/// `transfer-encoding`, unless the status forbids it (1xx, 204; RFC 9110 section 8.6). The reason is the usual one of the
/// status, as Envoy sends it.
pub fn encode_response(head: &ResponseHead, body: Framing, case: HeaderCase, out: &mut Vec<u8>) {
    out.extend_from_slice(if head.version == Version::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    push_decimal(u64::from(head.status), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(head.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    let bodiless = matches!(head.status, 100..=199 | 204);
    let body = if bodiless { Framing::None } else { body };
    let length = if bodiless { LengthWithoutBody::Drop } else { LengthWithoutBody::Keep };
    encode_fields(&head.headers, body, case, out, length);
}

/// Appends `HTTP/1.1 100 Continue` with its blank line.
pub fn encode_continue(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Appends the line before a chunk of `len` bytes. After them goes [`CHUNK_FOOTER`]. A `len` of 0 would end the body
/// and appends nothing.
pub fn encode_chunk_header(len: usize, out: &mut Vec<u8>) {
    let nibbles = (usize::BITS - len.leading_zeros()).div_ceil(4);
    for nibble in (0..nibbles).rev() {
        out.push(b"0123456789abcdef"[len >> (4 * nibble) & 0xf]);
    }
    if nibbles > 0 {
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the last chunk and the trailers.
pub fn encode_last_chunk(trailers: &Headers, case: HeaderCase, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    encode_fields(trailers, Framing::Tunnel, case, out, LengthWithoutBody::Drop);
}

/// Appends a number in decimal.
pub fn push_decimal(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(Decimal::new(number).as_ref());
}

/// A number in decimal, for a header's value.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The digits of `number`.
    #[must_use]
    pub fn new(mut number: u64) -> Self {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { digits, start };
            }
        }
    }
}

impl AsRef<[u8]> for Decimal {
    fn as_ref(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

/// What happens to a `content-length` when there is no body.
#[derive(Clone, Copy, Eq, PartialEq)]
enum LengthWithoutBody {
    Drop,
    Keep,
}

fn encode_fields(
    headers: &Headers,
    body: Framing,
    case: HeaderCase,
    out: &mut Vec<u8>,
    length: LengthWithoutBody,
) {
    let mut framed = false;
    for ((name, value), (spelled, _)) in headers.iter().zip(headers.iter_spelled()) {
        let shown = if case == HeaderCase::Preserve { spelled } else { name };
        match name {
            b"content-length" => match body {
                Framing::Length(bytes) if !framed => {
                    framed = true;
                    encode_length(shown, bytes, case, out);
                }
                Framing::None if !framed && length == LengthWithoutBody::Keep => {
                    framed = true;
                    encode_field(shown, value, case, out);
                }
                _ => {}
            },
            b"transfer-encoding" if body == Framing::None && length == LengthWithoutBody::Keep => {
                encode_field(shown, value, case, out);
            }
            b"transfer-encoding" => {}
            _ => encode_field(shown, value, case, out),
        }
    }
    match body {
        Framing::Chunked => encode_field(b"transfer-encoding", b"chunked", case, out),
        Framing::Length(bytes) if !framed => encode_length(b"content-length", bytes, case, out),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

fn encode_field(name: &[u8], value: &[u8], case: HeaderCase, out: &mut Vec<u8>) {
    encode_name(name, case, out);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn encode_length(name: &[u8], bytes: u64, case: HeaderCase, out: &mut Vec<u8>) {
    encode_name(name, case, out);
    push_decimal(bytes, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the name and `: `. Proper case is Envoy's: a letter at the start, and after anything but a letter or digit.
fn encode_name(name: &[u8], case: HeaderCase, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(name);
    if case == HeaderCase::Proper {
        let mut raise = true;
        for byte in &mut out[start..] {
            if raise {
                byte.make_ascii_uppercase();
            }
            raise = !byte.is_ascii_alphanumeric();
        }
    }
    out.extend_from_slice(b": ");
}

/// The reason phrase of a status (RFC 9110 section 15 and the IANA registry); `Unknown` for others, as in Envoy.
#[must_use]
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400..=499 => client_error_phrase(status),
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => UNKNOWN,
    }
}

const UNKNOWN: &str = "Unknown";

fn client_error_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        _ => UNKNOWN,
    }
}
