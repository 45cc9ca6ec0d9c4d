//! The TLS client hello: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3 (server name), RFC 7301 (ALPN).

/// What the first bytes are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Tls {
    /// The beginning of a client hello, as far as can be seen.
    Incomplete,
    /// A client hello.
    Hello(Hello),
    /// Not TLS, or not a client hello that can be understood.
    Not,
    /// A client hello longer than is looked at.
    TooLarge,
}

/// What a client hello asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hello {
    /// The name in `server_name`, in lower case; empty when there is none.
    pub server_name: String,
    /// The protocols in `application_layer_protocol_negotiation`, in the client's order.
    pub protocols: Vec<String>,
}

const RECORD_HEADER: usize = 5;
/// A plain-text record holds no more (RFC 8446 section 5.1).
const RECORD_MAX: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;

/// Looks for a client hello of at most `max` bytes, the headers of its records included. It may come in several records.
pub fn tls(bytes: &[u8], max: usize) -> Tls {
    // What is behind is not looked at, however much came at once.
    let bytes = &bytes[..bytes.len().min(max)];
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        let header = match rest.len() {
            0 => return short(bytes, max),
            length => &rest[..length.min(RECORD_HEADER)],
        };
        // As soon as it can be told: a server that speaks first is not to wait for a whole header.
        if header[0] != HANDSHAKE || header.get(1).is_some_and(|major| *major != 3) {
            return Tls::Not;
        }
        let [_, _, _, high, low] = *header else { return short(bytes, max) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > RECORD_MAX {
            return Tls::Not;
        }
        rest = &rest[RECORD_HEADER..];
        let fragment = &rest[..rest.len().min(length)];
        hello.extend_from_slice(fragment);
        match hello.first() {
            None => return short(bytes, max),
            Some(kind) if *kind != CLIENT_HELLO => return Tls::Not,
            Some(_) => {}
        }
        if let [_, a, b, c, body @ ..] = hello.as_slice() {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if RECORD_HEADER + 4 + length > max {
                return Tls::TooLarge;
            }
            if let Some(body) = body.get(..length) {
                return parse(body).map_or(Tls::Not, Tls::Hello);
            }
        }
        if fragment.len() < length {
            return short(bytes, max);
        }
        rest = &rest[length..];
    }
}

fn short(bytes: &[u8], max: usize) -> Tls {
    if bytes.len() >= max { Tls::TooLarge } else { Tls::Incomplete }
}

/// The body of a client hello; `None` when it is malformed.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    // legacy_version, random
    body.take(2 + 32)?;
    let session = body.u8()?;
    body.take(session.into())?;
    let suites = body.u16()?;
    body.take(suites.into())?;
    let compression = body.u8()?;
    body.take(compression.into())?;
    let mut hello = Hello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let length = body.u16()?;
    let mut extensions = Reader(body.take(length.into())?);
    if !body.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let content = Reader(extensions.take(length.into())?);
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut content: Reader<'_>) -> Option<String> {
    let length = content.u16()?;
    let mut list = Reader(content.take(length.into())?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let length = list.u16()?;
        let name = list.take(length.into())?;
        if kind == HOST_NAME {
            let text = std::str::from_utf8(name).ok()?;
            return (!text.contains('\0')).then(|| text.to_ascii_lowercase());
        }
    }
    Some(String::new())
}

fn protocols(mut content: Reader<'_>) -> Option<Vec<String>> {
    let length = content.u16()?;
    let mut list = Reader(content.take(length.into())?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let length = list.u8()?;
        protocols.push(String::from_utf8_lossy(list.take(length.into())?).into_owned());
    }
    Some(protocols)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}
