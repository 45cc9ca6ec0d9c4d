//! Request and response heads: everything before the body, owned and recyclable.

use std::fmt;

use smallvec::SmallVec;

use crate::{Headers, h1::reason_phrase};

/// A request method (RFC 9110 section 9). Case-sensitive.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Method {
    /// `CONNECT`
    Connect,
    /// `DELETE`
    Delete,
    /// `GET`
    #[default]
    Get,
    /// `HEAD`
    Head,
    /// `OPTIONS`
    Options,
    /// Any other token. Allocates only beyond 24 bytes.
    Other(SmallVec<[u8; 24]>),
    /// `PATCH`
    Patch,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `TRACE`
    Trace,
}

impl Method {
    /// The method of that name.
    #[must_use]
    pub fn from_bytes(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"HEAD" => Self::Head,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"CONNECT" => Self::Connect,
            b"TRACE" => Self::Trace,
            other => Self::Other(SmallVec::from_slice(other)),
        }
    }

    /// The name as sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Connect => b"CONNECT",
            Self::Delete => b"DELETE",
            Self::Get => b"GET",
            Self::Head => b"HEAD",
            Self::Options => b"OPTIONS",
            Self::Other(name) => name,
            Self::Patch => b"PATCH",
            Self::Post => b"POST",
            Self::Put => b"PUT",
            Self::Trace => b"TRACE",
        }
    }

    /// Whether a request without body says so with `content-length: 0` (RFC 9110 section 8.6): all methods but those
    /// that Envoy excepts.
    #[must_use]
    pub fn expects_body(&self) -> bool {
        !matches!(self, Self::Connect | Self::Delete | Self::Get | Self::Head | Self::Trace)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// The version of HTTP that a message was received with, or goes out with.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    /// `HTTP/1.0`
    Http10,
    /// `HTTP/1.1`
    #[default]
    Http11,
    /// `HTTP/2`
    Http2,
    /// `HTTP/3`
    Http3,
}

impl Version {
    /// `HTTP/1.1` and the like, as in a start line and in `%PROTOCOL%`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }

    /// Whether a connection carries many messages at a time, each with an end and trailers of its own.
    #[must_use]
    pub fn is_multiplexed(self) -> bool {
        matches!(self, Self::Http2 | Self::Http3)
    }
}

/// The scheme of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Scheme {
    /// `http`
    #[default]
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A request without its body. Reuse one per connection: [`RequestHead::clear`] keeps the memory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// As received.
    pub version: Version,
    /// From an absolute-form target, else [`Scheme::Http`]: the caller knows about TLS.
    pub scheme: Scheme,
    /// All fields but `host`, which is [`RequestHead::authority`].
    pub headers: Headers,
    path: Vec<u8>,
    authority: Vec<u8>,
    /// How `Host` was spelled, for [`culvert_model::HeaderCase::Preserve`].
    host_spelling: HostSpelling,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct HostSpelling([u8; 4]);

impl Default for HostSpelling {
    fn default() -> Self {
        Self(*b"host")
    }
}

impl RequestHead {
    /// An empty head that owns no memory: `GET` without path.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.method = Method::Get;
        self.version = Version::Http11;
        self.scheme = Scheme::Http;
        self.headers.clear();
        self.path.clear();
        self.authority.clear();
        self.host_spelling = HostSpelling::default();
    }

    /// Path and query; `*` for an asterisk-form OPTIONS; empty for CONNECT.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path without query.
    #[must_use]
    pub fn path_only(&self) -> &[u8] {
        split_query(&self.path).0
    }

    /// The query without `?`, if there is a `?`.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        split_query(&self.path).1
    }

    /// Host and port as requested: from an absolute-form or authority-form target, else from `Host`.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// Replaces path and query.
    pub fn set_path(&mut self, path: impl AsRef<[u8]>) {
        self.path.clear();
        self.path.extend_from_slice(path.as_ref());
    }

    /// Replaces the authority.
    pub fn set_authority(&mut self, authority: impl AsRef<[u8]>) {
        self.authority.clear();
        self.authority.extend_from_slice(authority.as_ref());
    }

    /// The fields, to be changed, and beside them path and authority.
    pub fn headers_beside(&mut self) -> (&mut Headers, &[u8], &[u8]) {
        (&mut self.headers, &self.path, &self.authority)
    }

    /// Lets `change` edit path and query in place.
    pub fn edit_path<R>(&mut self, change: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        change(&mut self.path)
    }

    /// Lets `change` edit the authority in place.
    pub fn edit_authority<R>(&mut self, change: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        change(&mut self.authority)
    }

    /// How the `Host` field was spelled; `host` when it was not there.
    #[must_use]
    pub fn host_spelling(&self) -> &[u8] {
        &self.host_spelling.0
    }

    pub(crate) fn set_host_spelling(&mut self, name: [u8; 4]) {
        self.host_spelling = HostSpelling(name);
    }
}

/// A response without its body. Reuse one per connection: [`ResponseHead::clear`] keeps the memory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// As received.
    pub version: Version,
    /// All fields.
    pub headers: Headers,
    reason: Vec<u8>,
}

impl ResponseHead {
    /// An empty head that owns no memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.version = Version::Http11;
        self.headers.clear();
        self.reason.clear();
    }

    /// The reason phrase as received. Envoy does not forward it: see [`reason_phrase`].
    #[must_use]
    pub fn reason(&self) -> &[u8] {
        &self.reason
    }

    /// Sets the status and its usual reason phrase.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
        self.set_reason(reason_phrase(status));
    }

    /// Replaces the reason phrase.
    pub fn set_reason(&mut self, reason: impl AsRef<[u8]>) {
        self.reason.clear();
        self.reason.extend_from_slice(reason.as_ref());
    }
}

/// Splits at the first `?`.
pub(crate) fn split_query(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', path) {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_round_trip() {
        for name in [
            &b"GET"[..],
            b"HEAD",
            b"POST",
            b"PUT",
            b"DELETE",
            b"CONNECT",
            b"OPTIONS",
            b"TRACE",
            b"PATCH",
            b"PROPFIND",
            b"get",
            b"A-METHOD-LONGER-THAN-TWENTY-FOUR-BYTES",
        ] {
            assert_eq!(Method::from_bytes(name).as_bytes(), name);
        }
        assert!(matches!(Method::from_bytes(b"get"), Method::Other(_)), "methods are case-sensitive");
    }

    #[test]
    fn path_and_query_are_split_at_the_first_question_mark() {
        let mut head = RequestHead::new();
        head.set_path("/a?b=c?d");
        assert_eq!((head.path_only(), head.query()), (&b"/a"[..], Some(&b"b=c?d"[..])));
        head.set_path("/a");
        assert_eq!((head.path_only(), head.query()), (&b"/a"[..], None));
        head.set_path("/a?");
        assert_eq!((head.path_only(), head.query()), (&b"/a"[..], Some(&b""[..])));
    }

    #[test]
    fn clear_forgets_everything_but_memory() {
        let mut head = RequestHead::new();
        head.method = Method::Post;
        head.scheme = Scheme::Https;
        head.version = Version::Http10;
        head.set_path("/x");
        head.set_authority("a.b");
        head.set_host_spelling(*b"HOST");
        head.headers.push("a", "b");
        head.clear();
        assert_eq!(head, RequestHead::new());
        let mut response = ResponseHead::new();
        response.set_status(404);
        assert_eq!(response.reason(), b"Not Found");
        response.clear();
        assert_eq!(response, ResponseHead::new());
    }
}
