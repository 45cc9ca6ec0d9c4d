//! What to send, how fast, for how long.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::wire::append_pattern;

/// A run of the load generator, ready to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// What is spoken on a connection.
    pub protocol: Protocol,
    /// TLS around it, if any.
    pub tls: Option<Tls>,
    /// The whole request as it goes onto the wire of HTTP/1.1; unused by others.
    pub request: Vec<u8>,
    /// Whether the method is HEAD, whose responses have no body.
    pub request_is_head: bool,
    /// How many connections are used at the same time; at least one.
    pub connections: usize,
    /// When requests are sent.
    pub pacing: Pacing,
    /// Whether a connection carries one request or many.
    pub reuse: Reuse,
    /// Length of the measured window. The run ends at the latest one `timeout` after it.
    pub duration: Duration,
    /// Ends the window early, after this many requests were sent.
    pub requests_max: Option<u64>,
    /// Load of the same kind before the window, not measured.
    pub warm_up: Duration,
    /// Longest wait for a connect and for a response.
    pub timeout: Duration,
    /// Directories of cgroups (version 2) whose CPU time over the window is part of the result.
    pub cpu_of: Vec<PathBuf>,
    /// Processes whose CPU time over the window, with their descendants', is part of the result.
    pub cpu_of_processes: Vec<u32>,
}

/// What is spoken on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time.
    Http1,
    /// HTTP/2, with prior knowledge or by ALPN.
    Http2(Http2Plan),
}

/// Requests over HTTP/2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2Plan {
    /// Method, for example GET.
    pub method: String,
    /// Scheme, authority, path and query in one.
    pub uri: String,
    /// Names and values; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Vec<u8>,
    /// Requests under way on one connection at the same time; at least one.
    pub streams: usize,
    /// The answer must end with `grpc-status: 0`.
    pub grpc: bool,
}

/// How to speak TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Versions, trust, ALPN; sessions are resumed through it.
    pub config: Arc<ClientConfig>,
    /// SNI, and what a certificate would have to be for.
    pub name: ServerName<'static>,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pacing {
    /// Each connection sends its next request once it has the response to the last.
    Closed,
    /// Requests are due at a fixed rate, whether or not earlier ones were answered, and their latency counts from
    /// when they were due: a stalled server cannot hide behind a client that politely waits.
    Open {
        /// Requests per second; positive.
        rate: f64,
    },
}

/// Whether a connection carries one request or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Connections are kept alive.
    KeepAlive,
    /// One request per connection, announced with `Connection: close`; latency includes the connect.
    PerRequest,
}

/// An `http://` or `https://` URL, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// First address the host resolves to.
    pub address: SocketAddr,
    /// Value of the Host header.
    pub authority: String,
    /// Path and query; starts with a slash.
    pub path: String,
    /// The URL's scheme is https.
    pub is_https: bool,
    /// The host alone, as in the authority, without brackets.
    pub host: String,
}

/// A URL or header that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A header argument is not `Name: value`.
    #[error("header {0:?}: not of the form 'Name: value'")]
    Header(String),
    /// The host has no address.
    #[error("url {url:?}: host {host:?}: {source}")]
    Resolve {
        /// The URL as given.
        url: String,
        /// The host and port within it.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// The host cannot be named in TLS.
    #[error("url {0:?}: the host is no name for TLS")]
    ServerName(String),
    /// Something that HTTP/2 is not sent with here.
    #[error("{0} does not go with --http2 or --grpc")]
    Http2(&'static str),
    /// Not an `http://` or `https://` URL.
    #[error("url {0:?}: must look like http://host[:port][/path] or https://...")]
    Url(String),
}

impl Target {
    /// Parses `http://host[:port][/path]`, or the same with https, and resolves its host.
    ///
    /// # Errors
    /// Names the URL, when it is malformed or its host has no address.
    pub fn resolve(url: &str) -> Result<Self, PlanError> {
        let malformed = || PlanError::Url(url.to_owned());
        let is_https = url.starts_with("https://");
        let rest = url.strip_prefix(if is_https { "https://" } else { "http://" }).ok_or_else(malformed)?;
        let split = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(split);
        if authority.is_empty() || url.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return Err(malformed());
        }
        let with_port = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        let name = with_port.map_or(authority, |(name, _)| name).trim_matches(['[', ']']).to_owned();
        let port = if is_https { 443 } else { 80 };
        let host = if with_port.is_some() { authority.to_owned() } else { format!("{authority}:{port}") };
        let resolved = host
            .to_socket_addrs()
            .and_then(|mut addresses| addresses.next().ok_or_else(|| std::io::Error::other("no address")));
        let address = resolved.map_err(|source| PlanError::Resolve { url: url.to_owned(), host, source })?;
        let path = match path.strip_prefix('?') {
            Some(query) => format!("/?{query}"),
            None if path.is_empty() => "/".to_owned(),
            None => path.to_owned(),
        };
        Ok(Self { address, authority: authority.to_owned(), path, is_https, host: name })
    }
}

/// Writes a request: a `Host` header unless `headers` has one, `Content-Length` for a body, `Connection: close` for
/// one request per connection.
///
/// # Errors
/// Names the header that is not `Name: value`.
pub fn render_request(
    target: &Target,
    method: &str,
    headers: &[String],
    body_bytes: usize,
    reuse: Reuse,
) -> Result<Vec<u8>, PlanError> {
    let mut head = format!("{method} {} HTTP/1.1\r\n", target.path);
    let mut has_host = false;
    for header in headers {
        let malformed = || PlanError::Header(header.clone());
        let (name, value) = header.split_once(':').ok_or_else(malformed)?;
        if name.is_empty() || header.contains(['\r', '\n', '\0']) || name.contains(' ') {
            return Err(malformed());
        }
        has_host |= name.eq_ignore_ascii_case("host");
        head.push_str(&format!("{name}: {}\r\n", value.trim()));
    }
    if !has_host {
        head.push_str(&format!("Host: {}\r\n", target.authority));
    }
    if body_bytes > 0 {
        head.push_str(&format!("Content-Length: {body_bytes}\r\n"));
    }
    if reuse == Reuse::PerRequest {
        head.push_str("Connection: close\r\n");
    }
    head.push_str("\r\n");
    let mut request = head.into_bytes();
    append_pattern(&mut request, 0, body_bytes);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, address, authority, path) in [
            ("http://127.0.0.1:8080/a?b=c", "127.0.0.1:8080", "127.0.0.1:8080", "/a?b=c"),
            ("http://127.0.0.1", "127.0.0.1:80", "127.0.0.1", "/"),
            ("http://127.0.0.1?x", "127.0.0.1:80", "127.0.0.1", "/?x"),
            ("http://[::1]:81/", "[::1]:81", "[::1]:81", "/"),
            ("http://[::1]/", "[::1]:80", "[::1]", "/"),
            ("https://[::1]/", "[::1]:443", "[::1]", "/"),
        ] {
            let target = Target::resolve(url).expect(url);
            assert_eq!(target.address, address.parse().expect("address"), "{url}");
            assert_eq!((target.authority.as_str(), target.path.as_str()), (authority, path));
            assert!(["127.0.0.1", "::1"].contains(&target.host.as_str()), "{url}");
            assert_eq!(target.is_https, url.starts_with("https"));
        }
        for url in
            ["127.0.0.1:80", "ftp://127.0.0.1/", "http:///x", "http://127.0.0.1/a b", "http://127.0.0.1/\r\n"]
        {
            assert!(matches!(Target::resolve(url), Err(PlanError::Url(_))), "{url}");
        }
        assert!(matches!(Target::resolve("http://127.0.0.1:99999/"), Err(PlanError::Resolve { .. })));
    }

    #[test]
    fn requests_carry_what_was_asked() {
        let target = Target::resolve("http://127.0.0.1:1/p").expect("url");
        let plain = render_request(&target, "GET", &[], 0, Reuse::KeepAlive).expect("request");
        assert_eq!(plain, b"GET /p HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");

        let headers = ["host: reviews".to_owned(), "Cookie:  user=jason ".to_owned()];
        let full = render_request(&target, "POST", &headers, 2, Reuse::PerRequest).expect("request");
        let expected = b"POST /p HTTP/1.1\r\nhost: reviews\r\nCookie: user=jason\r\nContent-Length: 2\r\n\
            Connection: close\r\n\r\n\x00\x01";
        assert_eq!(full, expected);

        for bad in ["novalue", ": x", "a b: c", "a: b\r\nc: d"] {
            let refused = render_request(&target, "GET", &[bad.to_owned()], 0, Reuse::KeepAlive);
            assert!(matches!(refused, Err(PlanError::Header(_))), "{bad:?}");
        }
    }
}
