//! Request heads (RFC 9112 sections 3 and 5).

use culvert_model::{HttpConnectionManager, UnderscoresAction};

use crate::{
    Method, RequestHead, Scheme, Version,
    h1::{
        Fault, Framing,
        field::{self, FramingFields},
        scan,
    },
    host,
};

/// What [`parse_request`] accepts.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// Longest head in bytes, request line and blank line included: 60 KiB. Beyond: 431.
    pub max_bytes: usize,
    /// Most header fields, `host` included: 100. Beyond: 431.
    pub max_count: usize,
    /// Whether HTTP/1.0 is served, else 426.
    pub allow_http10: bool,
    /// Authority of an HTTP/1.0 request without `host`; empty: such a request is refused with 400.
    pub default_host: String,
    /// Whether absolute-form targets are taken, else 404.
    pub allow_absolute_url: bool,
    /// Whether `content-length` beside `transfer-encoding: chunked` is dropped instead of refused.
    pub allow_chunked_length: bool,
    /// Whether the spelling of names is kept.
    pub preserve_case: bool,
    /// What happens to names with an underscore.
    pub underscores: UnderscoresAction,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            max_bytes: 60 * 1024,
            max_count: 100,
            allow_http10: false,
            default_host: String::new(),
            allow_absolute_url: true,
            allow_chunked_length: false,
            preserve_case: false,
            underscores: UnderscoresAction::Allow,
        }
    }
}

impl From<&HttpConnectionManager> for RequestOptions {
    fn from(manager: &HttpConnectionManager) -> Self {
        Self {
            max_bytes: manager.max_request_headers_bytes,
            max_count: manager.max_headers_count,
            allow_http10: manager.http1.accept_http_10,
            default_host: manager.http1.default_host_for_http_10.clone(),
            allow_absolute_url: manager.http1.allow_absolute_url,
            allow_chunked_length: manager.http1.allow_chunked_length,
            preserve_case: manager.http1.header_case == culvert_model::HeaderCase::Preserve,
            underscores: manager.underscores,
        }
    }
}

/// Parses the request head at the start of `buf` into `out`, which is cleared first.
///
/// Returns how many bytes the head takes and how the body after it is delimited; `None` when the head is not complete
/// yet: call again with the same bytes and more. The result does not depend on how often that happens. Empty lines
/// before the request line are skipped and count as part of the head.
///
/// # Errors
/// The first [`Fault`] of the head, also of an incomplete one that no further byte could mend.
pub fn parse_request(
    buf: &[u8],
    opts: &RequestOptions,
    out: &mut RequestHead,
) -> Result<Option<(usize, Framing)>, Fault> {
    out.clear();
    out.headers.set_preserve_case(opts.preserve_case);
    let window = &buf[..buf.len().min(opts.max_bytes)];
    let Some(start) = skip_empty_lines(window)? else { return more(buf, opts) };
    let window = &window[start..];
    check_method(window)?;
    // The request line is judged first, so that a fault in it is found as soon as it is there.
    let Some(line) = first_line(window)? else { return more(buf, opts) };
    let version = parse_request_line(line, opts, out)?;
    let Some(block) = scan::block(window)? else { return more(buf, opts) };
    let fields = &window[block.first_line_len..block.len];
    let framing = parse_fields(fields, block.lines - 1, version, opts, out)?;
    // Last, as Envoy's connection manager looks at it: the request is known, and logged, by then.
    if memchr::memchr(b'#', out.path()).is_some() {
        return Err(Fault::Fragment);
    }
    Ok(Some((start + block.len, framing)))
}

/// An incomplete head that has used up its bytes will not become complete.
fn more(buf: &[u8], opts: &RequestOptions) -> Result<Option<(usize, Framing)>, Fault> {
    if buf.len() >= opts.max_bytes { Err(Fault::HeadersTooLarge) } else { Ok(None) }
}

/// Where the request line starts; `None` when it is not there yet (RFC 9112 section 2.2).
fn skip_empty_lines(window: &[u8]) -> Result<Option<usize>, Fault> {
    let mut start = 0;
    loop {
        match &window[start..] {
            [b'\r', b'\n', ..] => start += 2,
            [] | [b'\r'] => return Ok(None),
            [b'\r', ..] => return Err(Fault::BareCr),
            [b'\n', ..] => return Err(Fault::BareLf),
            _ => return Ok(Some(start)),
        }
    }
}

/// The methods Envoy takes without `allow_custom_methods`.
const METHODS: [&[u8]; 34] = [
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"NOTIFY",
    b"OPTIONS",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"PUT",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"TRACE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// Refuses what cannot become a known method, so that another protocol is noticed at its first bytes.
fn check_method(window: &[u8]) -> Result<(), Fault> {
    if window.starts_with(b"GET ") || window.starts_with(b"POST ") {
        return Ok(());
    }
    let known = METHODS.iter().any(|method| {
        let common = method.len().min(window.len());
        window[..common] == method[..common]
            && window.get(common).is_none_or(|&next| next == b' ' || next == b'\r')
    });
    if known { Ok(()) } else { Err(Fault::Method) }
}

/// The request line without its line end; `None` when it is not complete.
fn first_line(window: &[u8]) -> Result<Option<&[u8]>, Fault> {
    let Some(feed) = memchr::memchr(b'\n', window) else { return Ok(None) };
    match window[..feed].strip_suffix(b"\r") {
        Some(line) => Ok(Some(line)),
        None => Err(Fault::BareLf),
    }
}

fn parse_request_line(line: &[u8], opts: &RequestOptions, out: &mut RequestHead) -> Result<Version, Fault> {
    let space = memchr::memchr(b' ', line).ok_or(Fault::RequestLine)?;
    let (method, rest) = (&line[..space], &line[space + 1..]);
    out.method = Method::from_bytes(method);
    let target_len = rest.iter().position(|&byte| !is_target_byte(byte)).unwrap_or(rest.len());
    let (target, rest) = rest.split_at(target_len);
    if target.is_empty() {
        return Err(Fault::RequestLine);
    }
    let version = match rest {
        b" HTTP/1.1" => Version::Http11,
        b" HTTP/1.0" if opts.allow_http10 => Version::Http10,
        // "GET /" alone is HTTP/0.9.
        [] | b" " => return Err(Fault::VersionUnserved),
        [b' ', version @ ..] => return Err(version_fault(version)),
        [b'\r', ..] => return Err(Fault::BareCr),
        [b'\t', ..] => return Err(Fault::RequestLine),
        [byte, ..] if field::is_control(*byte) => return Err(Fault::InvalidCharacter),
        _ => return Err(Fault::Target),
    };
    out.version = version;
    parse_target(target, opts, out)?;
    Ok(version)
}

/// Visible ASCII.
fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e)
}

fn version_fault(version: &[u8]) -> Fault {
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Fault::VersionUnserved
        }
        _ if memchr::memchr2(b' ', b'\t', version).is_some() => Fault::RequestLine,
        _ => Fault::Version,
    }
}

/// Splits the target into scheme, authority and path (RFC 9112 section 3.2).
fn parse_target(target: &[u8], opts: &RequestOptions, out: &mut RequestHead) -> Result<(), Fault> {
    if out.method == Method::Connect {
        return parse_authority_form(target, out);
    }
    match target {
        [b'/', ..] => {
            out.set_path(target);
            Ok(())
        }
        b"*" if out.method == Method::Options => {
            out.set_path(target);
            Ok(())
        }
        b"*" => Err(Fault::Url),
        _ => parse_absolute_form(target, opts, out),
    }
}

fn parse_authority_form(target: &[u8], out: &mut RequestHead) -> Result<(), Fault> {
    match host::split_port(target) {
        (_, Some(_)) if host::is_valid_target(target) => {
            out.set_authority(target);
            Ok(())
        }
        _ => Err(Fault::Url),
    }
}

fn parse_absolute_form(target: &[u8], opts: &RequestOptions, out: &mut RequestHead) -> Result<(), Fault> {
    let colon = memchr::memchr(b':', target).ok_or(Fault::Target)?;
    let (scheme, rest) = target.split_at(colon);
    let Some(rest) = rest.strip_prefix(b"://") else { return Err(Fault::Target) };
    if !opts.allow_absolute_url {
        return Err(Fault::PathNotAbsolute);
    }
    out.scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case(b"http") => Scheme::Http,
        scheme if scheme.eq_ignore_ascii_case(b"https") => Scheme::Https,
        _ => return Err(Fault::Scheme),
    };
    let authority_len = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_len);
    if !host::is_valid_target(authority) {
        return Err(Fault::Url);
    }
    out.set_authority(authority);
    match path {
        [] => out.set_path("/"),
        [b'?', ..] => return Err(Fault::PathNotAbsolute),
        _ => out.set_path(path),
    }
    Ok(())
}

fn parse_fields(
    block: &[u8],
    lines: usize,
    version: Version,
    opts: &RequestOptions,
    out: &mut RequestHead,
) -> Result<Framing, Fault> {
    let mut framing = FramingFields::default();
    let mut host: Option<(&[u8], &[u8])> = None;
    field::parse_block(block, lines, opts.max_count, |name, value| {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                return if host.replace((name, value)).is_some() { Err(Fault::HostRepeated) } else { Ok(()) };
            }
            10 if name.eq_ignore_ascii_case(b"connection") => check_connection(value)?,
            14 if name.eq_ignore_ascii_case(b"content-length") => framing.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => framing.transfer_encoding(value),
            _ if opts.underscores != UnderscoresAction::Allow && memchr::memchr(b'_', name).is_some() => {
                return if opts.underscores == UnderscoresAction::Drop {
                    Ok(())
                } else {
                    Err(Fault::Underscore)
                };
            }
            _ => {}
        }
        out.headers.push(name, value);
        Ok(())
    })?;
    settle_authority(host, version, opts, out)?;
    settle_framing(framing, version, opts, out)
}

/// Envoy's `Utility::sanitizeConnectionHeader`: what it refuses, with its limit of nominated fields.
fn check_connection(value: &[u8]) -> Result<(), Fault> {
    const NOMINATED_MAX: usize = 9;
    let mut nominated = 0;
    for name in field::list(value) {
        nominated += 1;
        let name_is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        if name_is(b"host") {
            return Err(Fault::HostMissing);
        }
        let own =
            name_is(b"x-forwarded-for") || name_is(b"x-forwarded-host") || name_is(b"x-forwarded-proto");
        if own || name[0] == b':' || nominated > NOMINATED_MAX {
            return Err(Fault::ConnectionNominates);
        }
    }
    Ok(())
}

/// RFC 9112 section 3.2: `host` has to be there once and to be valid, even where the target overrides it.
fn settle_authority(
    host: Option<(&[u8], &[u8])>,
    version: Version,
    opts: &RequestOptions,
    out: &mut RequestHead,
) -> Result<(), Fault> {
    let Some((name, value)) = host else {
        if version == Version::Http11 {
            return Err(Fault::HostMissing);
        }
        if out.authority().is_empty() {
            if opts.default_host.is_empty() {
                return Err(Fault::HostMissing);
            }
            out.set_authority(&opts.default_host);
        }
        return Ok(());
    };
    if !value.is_empty() && !host::is_valid(value) {
        return Err(Fault::Host);
    }
    if let Ok(spelling) = name.try_into() {
        out.set_host_spelling(spelling);
    }
    if out.authority().is_empty() {
        out.set_authority(value);
    }
    Ok(())
}

fn settle_framing(
    fields: FramingFields,
    version: Version,
    opts: &RequestOptions,
    out: &mut RequestHead,
) -> Result<Framing, Fault> {
    if out.method == Method::Connect {
        return match fields.length {
            _ if fields.has_transfer_encoding() => Err(Fault::TransferEncodingUnknown),
            None | Some(0) => Ok(Framing::None),
            Some(_) => Err(Fault::BodyNotAllowed),
        };
    }
    if fields.is_chunked(version, opts.allow_chunked_length)? {
        if fields.length.is_some() {
            out.headers.remove("content-length");
        }
        return Ok(Framing::Chunked);
    }
    Ok(fields.length.map_or(Framing::None, Framing::Length))
}
