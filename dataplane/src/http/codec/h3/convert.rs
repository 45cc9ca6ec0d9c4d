//! Field sections to heads, and back (RFC 9114, sections 4.2 to 4.4).

use culvert_model::UnderscoresAction;
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead, Scheme, Version,
    h1::{Fault, Framing, RequestOptions, push_decimal},
    h3::{Violation, qpack},
    host,
};

/// Why a request is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The connection manager does not accept it.
    Fault(Fault),
    /// The protocol does not allow it.
    Violation(Violation),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// What a request's head is, beside itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct About {
    /// `content-length`
    pub(super) length: Option<u64>,
    /// Fields that were dropped for the underscores in their names.
    pub(super) dropped: usize,
}

/// Pseudo-header fields of a request.
#[derive(Default)]
struct Pseudo {
    method: Option<Method>,
    scheme: Option<Scheme>,
    has_path: bool,
    has_authority: bool,
    protocol: Option<Vec<u8>>,
}

/// Turns a field section into `head`, which is cleared first. `connect`: other protocols may be asked for (RFC 9220).
///
/// # Errors
/// See [`Refusal`].
pub(super) fn request_from(
    section: &[u8],
    max_bytes: usize,
    connect: bool,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<About, Refusal> {
    head.clear();
    head.version = Version::Http3;
    let mut pseudo = Pseudo::default();
    let mut fields = Fields::default();
    let mut scratch = Vec::new();
    let decoded =
        qpack::decode(section, max_bytes, &mut scratch, |name, value| match name.strip_prefix(b":") {
            Some(name) if !fields.begun => pseudo.take(name, value, head),
            Some(_) => Err(Violation::Message),
            None => fields.take(name, value, &mut head.headers),
        });
    match decoded {
        Ok(()) => {}
        Err(Violation::TooMuch) => return Err(Fault::HeadersTooLarge.into()),
        Err(violation) => return Err(violation.into()),
    }
    pseudo.complete(connect, head)?;
    fields.join_cookies(&mut head.headers);
    if head.headers.len() > options.max_count {
        return Err(Fault::HeadersTooMany.into());
    }
    let mut about = About { length: fields.length()?, dropped: 0 };
    match options.underscores {
        UnderscoresAction::Allow => {}
        UnderscoresAction::Drop => about.dropped = head.headers.retain(|name, _| !name.contains(&b'_')),
        UnderscoresAction::Reject => {
            if head.headers.iter().any(|(name, _)| name.contains(&b'_')) {
                return Err(Fault::Underscore.into());
            }
        }
    }
    // `:authority` goes before `host`, which is its copy at best.
    if !pseudo.has_authority {
        let mut hosts = head.headers.get_all("host");
        let host = hosts.next().ok_or(Fault::HostMissing)?.to_vec();
        if hosts.next().is_some() {
            return Err(Fault::Host.into());
        }
        drop(hosts);
        head.set_authority(&host);
    }
    head.headers.remove("host");
    if head.authority().is_empty() {
        return Err(Fault::HostMissing.into());
    }
    if head.authority().contains(&b'@') || !host::is_valid(head.authority()) {
        return Err(Fault::Host.into());
    }
    if head.path().contains(&b'#') {
        return Err(Fault::Fragment.into());
    }
    Ok(about)
}

/// How the body of a message is framed. `end`: nothing follows the head.
pub(super) fn framing(length: Option<u64>, end: bool) -> Framing {
    match length {
        _ if end => Framing::None,
        // Without the end of the stream, trailers may follow even nothing.
        None | Some(0) => Framing::Chunked,
        Some(length) => Framing::Length(length),
    }
}

impl Pseudo {
    fn take(&mut self, name: &[u8], value: &[u8], head: &mut RequestHead) -> Result<(), Violation> {
        match name {
            b"method" if self.method.is_none() && is_token(value) => {
                self.method = Some(Method::from_bytes(value));
            }
            b"scheme" if self.scheme.is_none() => {
                // Others are for gateways; they are as good as none here.
                let secure = value.eq_ignore_ascii_case(b"https");
                self.scheme = Some(if secure { Scheme::Https } else { Scheme::Http });
            }
            b"path" if !self.has_path => {
                if value.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
                    return Err(Violation::Message);
                }
                self.has_path = true;
                head.set_path(value);
            }
            b"authority" if !self.has_authority => {
                self.has_authority = true;
                head.set_authority(value);
            }
            b"protocol" if self.protocol.is_none() => self.protocol = Some(value.to_vec()),
            _ => return Err(Violation::Message),
        }
        Ok(())
    }

    /// What has to be there is, and nothing else (sections 4.3.1 and 4.4).
    fn complete(&mut self, connect: bool, head: &mut RequestHead) -> Result<(), Violation> {
        head.method = self.method.take().ok_or(Violation::Message)?;
        head.scheme = self.scheme.unwrap_or_default();
        let path = head.path();
        let path_ok = path.starts_with(b"/") || path == b"*" && head.method == Method::Options;
        match (&head.method, self.protocol.take()) {
            (Method::Connect, None) => {
                if self.scheme.is_some() || self.has_path || !self.has_authority {
                    return Err(Violation::Message);
                }
                return Ok(());
            }
            (Method::Connect, Some(protocol)) if connect && is_token(&protocol) => {
                // What HTTP/1 calls an upgrade.
                head.headers.push("connection", "Upgrade");
                head.headers.push("upgrade", protocol);
            }
            (_, Some(_)) => return Err(Violation::Message),
            (_, None) => {}
        }
        if self.scheme.is_none() || !self.has_path || !path_ok {
            return Err(Violation::Message);
        }
        if head.method == Method::Connect {
            head.method = Method::Get;
        }
        Ok(())
    }
}

/// What is found out about the fields of a message.
#[derive(Default)]
struct Fields {
    begun: bool,
    cookies: usize,
    length: Option<Result<u64, Fault>>,
}

impl Fields {
    fn take(&mut self, name: &[u8], value: &[u8], headers: &mut Headers) -> Result<(), Violation> {
        self.begun = true;
        if !is_name(name) || !is_value(value) {
            return Err(Violation::Message);
        }
        match name {
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                return Err(Violation::Message);
            }
            b"te" if !value.eq_ignore_ascii_case(b"trailers") => return Err(Violation::Message),
            b"content-length" => {
                let parsed = decimal(value).ok_or(Fault::ContentLength);
                self.length = Some(match self.length {
                    None => parsed,
                    Some(_) => Err(Fault::ContentLengthRepeated),
                });
            }
            b"cookie" => self.cookies += 1,
            _ => {}
        }
        headers.push(name, value);
        Ok(())
    }

    fn length(&self) -> Result<Option<u64>, Fault> {
        self.length.transpose()
    }

    /// Section 4.2.1: what a client may have split is one field again.
    fn join_cookies(&self, headers: &mut Headers) {
        if self.cookies > 1 {
            let crumbs: Vec<&[u8]> = headers.get_all("cookie").collect();
            let joined = crumbs.join(&b"; "[..]);
            headers.set("cookie", joined);
        }
    }
}

/// Turns a response's field section into `head`. Returns what its `content-length` says.
///
/// # Errors
/// What the protocol does not allow.
pub(super) fn response_from(
    section: &[u8],
    max_bytes: usize,
    head: &mut ResponseHead,
) -> Result<Option<u64>, Violation> {
    head.clear();
    head.version = Version::Http3;
    let mut status = None;
    let mut fields = Fields::default();
    qpack::decode(section, max_bytes, &mut Vec::new(), |name, value| match name {
        b":status" if status.is_none() && !fields.begun => {
            status = Some(status_of(value).ok_or(Violation::Message)?);
            Ok(())
        }
        name if name.starts_with(b":") => Err(Violation::Message),
        name => fields.take(name, value, &mut head.headers),
    })?;
    head.set_status(status.ok_or(Violation::Message)?);
    fields.length().map_err(|_| Violation::Message)
}

/// How a response's body is framed. `end`: nothing follows its head.
pub(super) fn response_framing(status: u16, method: &Method, length: Option<u64>, end: bool) -> Framing {
    if !has_body(status, method) {
        return Framing::None;
    }
    match framing(length, end) {
        // It is known that nothing follows, which HTTP/1 has to be told.
        Framing::None => Framing::Length(0),
        other => other,
    }
}

/// Whether a response of that status has a body, and its `content-length` is that of it.
pub(super) fn has_body(status: u16, method: &Method) -> bool {
    *method != Method::Head && !matches!(status, 100..=199 | 204 | 304)
}

/// Turns a field section into trailers.
///
/// # Errors
/// What the protocol does not allow.
pub(super) fn trailers_from(
    section: &[u8],
    max_bytes: usize,
    trailers: &mut Headers,
) -> Result<(), Violation> {
    let mut fields = Fields::default();
    qpack::decode(section, max_bytes, &mut Vec::new(), |name, value| fields.take(name, value, trailers))
}

/// A request's field section.
///
/// # Errors
/// An authority that HTTP/3 has no place for.
pub(super) fn request_of(head: &RequestHead, framing: Framing) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(256);
    qpack::begin(&mut out);
    let upgrade = head.headers.get("upgrade").filter(|_| framing == Framing::Tunnel);
    let upgrade = upgrade.filter(|_| head.method != Method::Connect);
    let method = if upgrade.is_some() { b"CONNECT" } else { head.method.as_bytes() };
    if head.authority().is_empty() {
        return Err(Fault::Host);
    }
    qpack::encode(b":method", method, &mut out);
    qpack::encode(b":authority", head.authority(), &mut out);
    if head.method != Method::Connect {
        qpack::encode(b":scheme", head.scheme.as_str().as_bytes(), &mut out);
        qpack::encode(b":path", head.path(), &mut out);
    }
    if let Some(protocol) = upgrade {
        qpack::encode(b":protocol", protocol, &mut out);
    }
    push_fields(&head.headers, Some((framing, false)), &mut out);
    Ok(out)
}

/// A response's field section.
pub(super) fn response_of(head: &ResponseHead, framing: Framing) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    qpack::begin(&mut out);
    let status = if framing == Framing::Tunnel { 200 } else { head.status };
    let digits = [100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8);
    qpack::encode(b":status", &digits, &mut out);
    push_fields(&head.headers, Some((framing, !matches!(head.status, 100..=199 | 204))), &mut out);
    out
}

/// A field section of trailers; `None` when nothing is left of them.
pub(super) fn trailers_of(trailers: &Headers) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    qpack::begin(&mut out);
    let empty = out.len();
    push_fields(trailers, None, &mut out);
    (out.len() > empty).then_some(out)
}

/// Fields but those of a connection, with the `content-length` that the framing has. `keep`: without body, one that is
/// there stays (HEAD, 304). What is no field of HTTP/3 is left out; the parser let it through for HTTP/1.
fn push_fields(headers: &Headers, framing: Option<(Framing, bool)>, out: &mut Vec<u8>) {
    let stays = match framing {
        // The end of the stream says it; a field is as it was.
        None | Some((Framing::Length(0), _)) => true,
        Some((Framing::None, keep)) => keep,
        Some(_) => false,
    };
    for (name, value) in headers {
        let left_out = match name {
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
            | b"host" => true,
            b"te" => !value.eq_ignore_ascii_case(b"trailers"),
            b"content-length" => !stays,
            _ => false,
        };
        if !left_out && is_name(name) && is_value(value) {
            qpack::encode(name, value, out);
        }
    }
    if let Some((Framing::Length(length @ 1..), _)) = framing {
        let mut text = Vec::with_capacity(20);
        push_decimal(length, &mut text);
        qpack::encode(b"content-length", &text, out);
    }
}

fn status_of(value: &[u8]) -> Option<u16> {
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = *value else { return None };
    let status = [a, b, c].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    // There is no switching of protocols (section 4.5).
    (status != 101).then_some(status)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits?.parse().ok()
}

/// A field name: a token without capitals.
fn is_name(name: &[u8]) -> bool {
    is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}

fn is_token(bytes: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_tchar)
}

/// A field value has no control characters but tabs.
fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        qpack::begin(&mut out);
        fields.iter().for_each(|(name, value)| qpack::encode(name.as_bytes(), value.as_bytes(), &mut out));
        out
    }

    fn request(fields: &[(&str, &str)]) -> Result<(RequestHead, About), Refusal> {
        let mut head = RequestHead::default();
        let options = RequestOptions::default();
        request_from(&section(fields), 60 << 10, false, &options, &mut head).map(|about| (head, about))
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/x?y")];

    fn get_with(more: &[(&'static str, &'static str)]) -> Result<(RequestHead, About), Refusal> {
        request(&[&GET[..], more].concat())
    }

    #[test]
    fn a_request_is_what_it_says() {
        let more = [("cookie", "a=1"), ("x-y", "z"), ("cookie", "b=2"), ("content-length", "7")];
        let (head, about) = get_with(&more).unwrap();
        assert_eq!((&head.method, head.scheme, head.version), (&Method::Get, Scheme::Https, Version::Http3));
        assert_eq!((head.authority(), head.path()), (&b"a.test"[..], &b"/x?y"[..]));
        assert_eq!(head.headers.get("cookie"), Some(&b"a=1; b=2"[..]));
        assert_eq!(about, About { length: Some(7), dropped: 0 });
        let (head, _) = request(&[(":method", "CONNECT"), (":authority", "a.test:443")]).unwrap();
        assert_eq!(head.method, Method::Connect);
    }

    /// RFC 9114, sections 4.1.2, 4.2, 4.3 and 4.4.
    #[test]
    fn malformed_requests_are_refused() {
        let malformed = Err(Refusal::Violation(Violation::Message));
        let is_malformed = |fields: &[(&'static str, &'static str)]| {
            assert_eq!(request(fields).map(|_| ()), malformed.map(|_: ()| ()), "{fields:?}");
        };
        for missing in 0..4 {
            if missing != 2 {
                let mut fields = GET.to_vec();
                fields.remove(missing);
                is_malformed(&fields);
            }
            is_malformed(&[&GET[..], &GET[missing..=missing]].concat());
        }
        for more in [
            ("X-Upper", "a"),
            ("", "a"),
            ("a b", "a"),
            ("a", "b\r\nc: d"),
            ("a", "\0"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            (":status", "200"),
            (":other", "x"),
            (":protocol", "websocket"),
        ] {
            is_malformed(&[&GET[..], &[more]].concat());
        }
        let mut late = GET.to_vec();
        late.insert(1, ("a", "b"));
        is_malformed(&late);
        is_malformed(&[(":method", "CONNECT"), (":authority", "a"), (":path", "/")]);
        is_malformed(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "x")]);
        is_malformed(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/a b")]);
    }

    #[test]
    fn what_the_manager_does_not_accept_is_a_fault() {
        let fault = |fields: &[(&'static str, &'static str)]| request(fields).map(|_| ());
        let without = [GET[0], GET[1], GET[3]];
        assert_eq!(fault(&without), Err(Refusal::Fault(Fault::HostMissing)));
        assert_eq!(fault(&[&without[..], &[("host", "b.test")]].concat()), Ok(()));
        let twice = [("content-length", "1"), ("content-length", "1")];
        assert_eq!(get_with(&twice).map(|_| ()), Err(Refusal::Fault(Fault::ContentLengthRepeated)));
        assert_eq!(
            get_with(&[("content-length", "+1")]).map(|_| ()),
            Err(Refusal::Fault(Fault::ContentLength))
        );
        let mut user = GET;
        user[2].1 = "u@a.test";
        assert_eq!(fault(&user), Err(Refusal::Fault(Fault::Host)));
        let big = "x".repeat(61 << 10);
        let fields = [&GET[..], &[("x", big.as_str())]].concat();
        assert_eq!(request(&fields).map(|_| ()), Err(Refusal::Fault(Fault::HeadersTooLarge)));
    }

    #[test]
    fn heads_go_out_as_they_come_in() {
        let (mut head, _) = get_with(&[("accept", "*/*"), ("content-length", "3")]).unwrap();
        head.headers.push("connection", "close");
        head.headers.push("x-bad", "a\nb");
        let sent = request_of(&head, Framing::Length(3)).unwrap();
        let mut again = RequestHead::default();
        let about = request_from(&sent, 1_000, false, &RequestOptions::default(), &mut again).unwrap();
        assert_eq!(about.length, Some(3));
        let names: Vec<_> = again.headers.iter().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, [&b"accept"[..], b"content-length"]);
        let mut response = ResponseHead::default();
        response.set_status(599);
        response.headers.push("content-length", "9");
        let mut read = ResponseHead::default();
        let sent = response_of(&response, Framing::Chunked);
        assert_eq!(response_from(&sent, 1_000, &mut read), Ok(None));
        assert_eq!(read.status, 599);
        assert_eq!(
            response_from(&response_of(&response, Framing::None), 1_000, &mut read),
            Ok(Some(9)),
            "HEAD"
        );
        for bad in ["", "99", "101", "20x", "1000"] {
            assert_eq!(response_from(&section(&[(":status", bad)]), 99, &mut read), Err(Violation::Message));
        }
    }
}
