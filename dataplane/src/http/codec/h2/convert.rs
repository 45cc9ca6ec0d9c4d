//! Heads of the codec to heads of ours, and back (RFC 9113 sections 8.2 and 8.3).

use culvert_model::UnderscoresAction;
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead, Scheme, Version,
    h1::{Fault, Framing, RequestOptions, push_decimal},
    host,
};
use h2::ext::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header, uri};

/// Turns a request into `head`, which is cleared first. `fragment`: what stood behind a `#` in its path; `end`: nothing
/// follows it. Returns how its body is framed, and how many fields were dropped for the underscores in their names.
///
/// # Errors
/// What the connection manager does not accept; the codec has refused what RFC 9113 forbids.
pub(super) fn request_from(
    request: &http::request::Parts,
    fragment: Option<&[u8]>,
    end: bool,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<(Framing, usize), Fault> {
    head.clear();
    head.version = Version::Http2;
    head.method = Method::from_bytes(request.method.as_str().as_bytes());
    let uri = &request.uri;
    if uri.scheme() == Some(&uri::Scheme::HTTPS) {
        head.scheme = Scheme::Https;
    }
    head.set_path(uri.path_and_query().map_or("", uri::PathAndQuery::as_str));
    fields_from(&request.headers, &mut head.headers);
    if let Some(protocol) = request.extensions.get::<Protocol>() {
        // RFC 8441: what HTTP/1 calls an upgrade.
        head.method = Method::Get;
        head.headers.push("connection", "Upgrade");
        head.headers.push("upgrade", protocol.as_str());
    }
    join_cookies(&request.headers, &mut head.headers);
    if head.headers.len() > options.max_count {
        return Err(Fault::HeadersTooMany);
    }
    let mut dropped = 0;
    match options.underscores {
        UnderscoresAction::Allow => {}
        UnderscoresAction::Drop => dropped = head.headers.retain(|name, _| !name.contains(&b'_')),
        UnderscoresAction::Reject => {
            if head.headers.iter().any(|(name, _)| name.contains(&b'_')) {
                return Err(Fault::Underscore);
            }
        }
    }
    // `:authority` goes before `host`, which is its copy at best.
    match uri.authority() {
        Some(authority) => head.set_authority(authority.as_str()),
        None => {
            let mut hosts = request.headers.get_all(header::HOST).iter();
            let host = hosts.next().ok_or(Fault::HostMissing)?;
            if hosts.next().is_some() {
                return Err(Fault::Host);
            }
            head.set_authority(host.as_bytes());
        }
    }
    head.headers.remove("host");
    if head.authority().is_empty() {
        return Err(Fault::HostMissing);
    }
    // RFC 9113 section 8.3.1: without userinfo.
    if head.authority().contains(&b'@') || !host::is_valid(head.authority()) {
        return Err(Fault::Host);
    }
    let framing = framing(&request.headers, end)?;
    if let Some(fragment) = fragment {
        // RFC 9113 section 8.2.1. The codec has looked at what comes before it.
        if fragment.iter().any(|byte| byte.is_ascii_control() || *byte == b' ') {
            return Err(Fault::InvalidCharacter);
        }
        // Last, as Envoy's connection manager looks at it: the request is known, and logged, by then.
        head.edit_path(|path| {
            path.push(b'#');
            path.extend_from_slice(fragment);
        });
        return Err(Fault::Fragment);
    }
    Ok((framing, dropped))
}

/// Turns a response into `head`. `end`: nothing follows it.
///
/// # Errors
/// What HTTP/2 does not have.
pub(super) fn response_from(
    response: &http::response::Parts,
    end: bool,
    request_method: &Method,
    head: &mut ResponseHead,
) -> Result<Framing, Fault> {
    head.clear();
    head.version = Version::Http2;
    let status = response.status.as_u16();
    if status == 101 {
        return Err(Fault::StatusLine);
    }
    head.set_status(status);
    fields_from(&response.headers, &mut head.headers);
    if *request_method == Method::Head || matches!(status, 100..=199 | 204 | 304) {
        return Ok(Framing::None);
    }
    match framing(&response.headers, end)? {
        // It is known that nothing follows, which HTTP/1 has to be told.
        Framing::None => Ok(Framing::Length(0)),
        other => Ok(other),
    }
}

/// A request for an upstream.
///
/// # Errors
/// An authority that HTTP/2 has no place for.
pub(super) fn request_of(head: &RequestHead, framing: Framing) -> Result<Request<()>, Fault> {
    let upgrade = head.headers.get("upgrade").filter(|_| framing == Framing::Tunnel);
    let upgrade = upgrade.filter(|_| head.method != Method::Connect);
    let upgrade =
        upgrade.map(|upgrade| std::str::from_utf8(upgrade).map_err(|_| Fault::Method)).transpose()?;
    let method = match upgrade {
        Some(_) => http::Method::CONNECT,
        None => http::Method::from_bytes(head.method.as_bytes()).map_err(|_| Fault::Method)?,
    };
    let authority = uri::Authority::try_from(head.authority()).map_err(|_| Fault::Host)?;
    let mut parts = uri::Parts::default();
    parts.authority = Some(authority);
    if head.method != Method::Connect {
        parts.scheme = Some(match head.scheme {
            Scheme::Http => uri::Scheme::HTTP,
            Scheme::Https => uri::Scheme::HTTPS,
        });
        parts.path_and_query = Some(path_of(head.path())?);
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Fault::Target)?;
    *request.version_mut() = http::Version::HTTP_2;
    if let Some(upgrade) = upgrade {
        request.extensions_mut().insert(Protocol::from(upgrade));
    }
    let fields = request.headers_mut();
    *fields = fields_of(&head.headers);
    set_length(fields, framing, false);
    Ok(request)
}

/// A response for a client.
pub(super) fn response_of(head: &ResponseHead, framing: Framing) -> Response<()> {
    let mut response = Response::new(());
    // Statuses above 599 exist; those that are no number of three digits were refused when they were received.
    *response.status_mut() = match framing {
        Framing::Tunnel => StatusCode::OK,
        _ => StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY),
    };
    let fields = response.headers_mut();
    *fields = fields_of(&head.headers);
    set_length(fields, framing, !matches!(head.status, 100..=199 | 204));
    response
}

/// Fields as they are.
pub(super) fn fields_from(fields: &HeaderMap, headers: &mut Headers) {
    for (name, value) in fields {
        headers.push(name.as_str(), value.as_bytes());
    }
}

/// Fields but those of a connection. What is no field of HTTP/2 is left out; the parser let it through for HTTP/1.
pub(super) fn fields_of(headers: &Headers) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if matches!(
            name,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" | b"host"
        ) || name == b"te" && !value.eq_ignore_ascii_case(b"trailers")
        {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}

fn path_of(path: &[u8]) -> Result<uri::PathAndQuery, Fault> {
    if let Ok(path) = uri::PathAndQuery::try_from(path) {
        return Ok(path);
    }
    // HTTP/1 paths may have bytes that URIs may not; they mean the same when they are escaped.
    let mut escaped = Vec::with_capacity(path.len() + 16);
    for byte in path {
        if byte.is_ascii_graphic()
            && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        {
            escaped.push(*byte);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            escaped.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    uri::PathAndQuery::try_from(escaped.as_slice()).map_err(|_| Fault::Target)
}

/// RFC 9113 section 8.2.3: what a client may have split is one field again.
fn join_cookies(fields: &HeaderMap, headers: &mut Headers) {
    let mut crumbs = fields.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    headers.set("cookie", joined);
}

fn framing(fields: &HeaderMap, end: bool) -> Result<Framing, Fault> {
    if end {
        return Ok(Framing::None);
    }
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(Framing::Chunked),
        (Some(_), Some(_)) => Err(Fault::ContentLengthRepeated),
        (Some(length), None) => length
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            // Without the end of the stream, trailers may follow even nothing.
            .map(|length| if length == 0 { Framing::Chunked } else { Framing::Length(length) })
            .ok_or(Fault::ContentLength),
    }
}

/// Writes `content-length` as the framing has it. `keep`: without body, one that is there stays (HEAD, 304).
fn set_length(fields: &mut HeaderMap, framing: Framing, keep: bool) {
    match framing {
        // The end of the stream says it; a field is as it was.
        Framing::Length(0) => {}
        Framing::Length(length) => {
            let mut text = Vec::with_capacity(20);
            push_decimal(length, &mut text);
            if let Ok(value) = HeaderValue::from_bytes(&text) {
                fields.insert(header::CONTENT_LENGTH, value);
            }
        }
        Framing::None if keep => {}
        Framing::Chunked | Framing::None | Framing::Tunnel | Framing::UntilClose => {
            fields.remove(header::CONTENT_LENGTH);
        }
    }
}
