//! Response heads (RFC 9112 sections 4, 5 and 6.3).

use crate::{
    Method, ResponseHead, Version,
    h1::{
        Fault, Framing,
        field::{self, FramingFields},
        scan,
    },
};

/// What [`parse_response`] accepts.
#[derive(Clone, Copy, Debug)]
pub struct ResponseOptions {
    /// Longest head in bytes, status line and blank line included: 60 KiB.
    pub max_bytes: usize,
    /// Most header fields: 100.
    pub max_count: usize,
    /// Whether the spelling of names is kept.
    pub preserve_case: bool,
}

impl Default for ResponseOptions {
    fn default() -> Self {
        Self { max_bytes: 60 * 1024, max_count: 100, preserve_case: false }
    }
}

/// Parses the response head at the start of `buf` into `out`, which is cleared first.
///
/// `request_method` is that of the request it answers: it decides whether there is a body. Returns as
/// [`super::parse_request`] does. An interim response (1xx but 101) has [`Framing::None`]: the next head follows. A 101
/// has [`Framing::Tunnel`]; whether it was asked for is for the caller to know.
///
/// # Errors
/// The first [`Fault`] of the head, also of an incomplete one that no further byte could mend.
pub fn parse_response(
    buf: &[u8],
    opts: &ResponseOptions,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<Option<(usize, Framing)>, Fault> {
    out.clear();
    out.headers.set_preserve_case(opts.preserve_case);
    let window = &buf[..buf.len().min(opts.max_bytes)];
    check_protocol(window)?;
    let Some(block) = scan::block(window)? else {
        return if buf.len() >= opts.max_bytes { Err(Fault::HeadersTooLarge) } else { Ok(None) };
    };
    // A block that starts with the blank line has no status line; check_protocol has refused it.
    let (line, fields) = window[..block.len].split_at(block.first_line_len);
    let line = line.strip_suffix(b"\r\n").ok_or(Fault::StatusLine)?;
    parse_status_line(line, out)?;
    let mut framing = FramingFields::default();
    field::parse_block(fields, block.lines - 1, opts.max_count, |name, value| {
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => framing.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => framing.transfer_encoding(value),
            _ => {}
        }
        out.headers.push(name, value);
        Ok(())
    })?;
    Ok(Some((block.len, body_framing(framing, request_method, out)?)))
}

const PROTOCOL: &[u8] = b"HTTP/1.";

/// Refuses what cannot become a status line, so that another protocol is noticed at its first bytes.
fn check_protocol(window: &[u8]) -> Result<(), Fault> {
    let common = PROTOCOL.len().min(window.len());
    if window[..common] == PROTOCOL[..common] { Ok(()) } else { Err(Fault::StatusLine) }
}

/// `HTTP/1.x NNN reason`; the space after the number may be missing with an empty reason, as it often is.
fn parse_status_line(line: &[u8], out: &mut ResponseHead) -> Result<(), Fault> {
    let (version, rest) = line.split_at_checked(b"HTTP/1.1 ".len()).ok_or(Fault::StatusLine)?;
    out.version = match version {
        b"HTTP/1.1 " => Version::Http11,
        b"HTTP/1.0 " => Version::Http10,
        _ => return Err(Fault::StatusLine),
    };
    let (status, reason) = match rest {
        [a, b, c] => ([*a, *b, *c], &[][..]),
        [a, b, c, b' ', reason @ ..] => ([*a, *b, *c], reason),
        _ => return Err(Fault::StatusLine),
    };
    let status =
        field::decimal(&status).and_then(|status| u16::try_from(status).ok()).ok_or(Fault::StatusLine)?;
    if status < 100 {
        return Err(Fault::StatusLine);
    }
    if memchr::memchr(b'\r', reason).is_some() {
        return Err(Fault::BareCr);
    }
    if reason.iter().any(|&byte| field::is_control(byte)) {
        return Err(Fault::InvalidCharacter);
    }
    out.status = status;
    out.set_reason(reason);
    Ok(())
}

/// RFC 9112 section 6.3, in its order.
fn body_framing(
    fields: FramingFields,
    request_method: &Method,
    head: &ResponseHead,
) -> Result<Framing, Fault> {
    let has_body_fields = fields.has_transfer_encoding() || fields.length.is_some_and(|length| length > 0);
    match head.status {
        100..=199 | 204 if has_body_fields => return Err(Fault::BodyNotAllowed),
        101 => return Ok(Framing::Tunnel),
        200..=299 if *request_method == Method::Connect => return Ok(Framing::Tunnel),
        _ => {}
    }
    let chunked = fields.is_chunked(head.version, false)?;
    if *request_method == Method::Head || matches!(head.status, 100..=199 | 204 | 304) {
        return Ok(Framing::None);
    }
    Ok(match fields.length {
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    })
}
