//! What is known of a request or a connection when it is logged.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use culvert_model::TimePoint;
use culvert_proto::{Headers, RequestHead, Version};

use crate::{
    listener::{FilterState, Peer},
    observe::{access::Flags, trace::TraceIds},
    snapshot::HostSpec,
};

/// Everything that formats, filters and entries look at. Most of it is empty for a connection that carries no HTTP.
///
/// A listener makes one with [`Facts::connection`] when a connection ends, fills in what it knows and hands it to
/// [`Loggers::write`](crate::observe::access::Loggers::write).
pub struct Facts<'a> {
    /// At which moment of its life it is logged.
    pub log_type: LogType,
    /// The first byte of the request, or the accepting of the connection.
    pub started: Instant,
    /// Whether it is over; else the entry is an intermediate one.
    pub complete: bool,
    /// `%HOSTNAME%`
    pub hostname: &'a str,
    /// `%CONNECTION_ID%`; 0 where there is none.
    pub connection_id: u64,
    /// The client, as told by the PROXY protocol or a trusted header where there is one.
    pub remote: Peer,
    /// Where the client wanted to go.
    pub local: Peer,
    /// The other end of the socket.
    pub direct_remote: Peer,
    /// This end of the socket.
    pub direct_local: Peer,
    /// SNI; empty without.
    pub server_name: &'a str,
    /// Name of the filter chain; empty without.
    pub filter_chain: &'a str,
    /// `%CONNECTION_TERMINATION_DETAILS%`; empty without.
    pub termination: &'a str,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`; empty without.
    pub downstream_failure: &'a str,
    /// TLS with the client.
    pub tls: Option<&'a TlsFacts>,
    /// What the client speaks.
    pub protocol: Option<Version>,
    /// Method, path and authority.
    pub request: Option<&'a RequestHead>,
    /// The request's headers, which may be away from the head while they are changed.
    pub request_headers: Option<&'a Headers>,
    /// Headers of the response.
    pub response_headers: Option<&'a Headers>,
    /// Trailers of the response.
    pub response_trailers: Option<&'a Headers>,
    /// Status of the response; 0 without.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`; empty without.
    pub details: &'a str,
    /// Response flags.
    pub flags: Flags,
    /// Body bytes of the request, or all bytes from the client.
    pub bytes_received: u64,
    /// Body bytes of the response, or all bytes to the client.
    pub bytes_sent: u64,
    /// Name of the route; empty without.
    pub route_name: &'a str,
    /// Name of the virtual cluster; empty without.
    pub virtual_cluster: &'a str,
    /// `name` and `alt_stat_name` of the cluster.
    pub cluster: Option<(&'a str, &'a str)>,
    /// The endpoint that was chosen.
    pub host: Option<&'a HostSpec>,
    /// This end of the connection to it.
    pub upstream_local: Option<SocketAddr>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty without.
    pub upstream_failure: &'a str,
    /// Whether HTTP is spoken with the upstream.
    pub upstream_protocol: Option<Version>,
    /// How often an upstream was tried.
    pub attempts: u32,
    /// When what happened.
    pub times: Times,
    /// Whether the request's scheme is known: HTTP/1 leaves it to whoever receives it.
    pub scheme_known: bool,
    /// Whether it asks for the health of this server.
    pub health_check: bool,
    /// Of the request's trace.
    pub trace: Option<TraceIds>,
    /// It is traced since a service asked for that.
    pub force_traced: bool,
    /// Filter state.
    pub state: Option<&'a FilterState>,
}

/// What is known of TLS with a client. Texts are empty where there is nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsFacts {
    /// `TLSv1.3`
    pub version: String,
    /// OpenSSL's name of the cipher suite.
    pub cipher: String,
    /// IANA's number of the cipher suite.
    pub cipher_id: u16,
    /// The session id, in hexadecimal digits.
    pub session_id: String,
    /// Of the server's certificate.
    pub local: CertificateFacts,
    /// Of the client's certificate.
    pub peer: CertificateFacts,
}

/// What is logged of a certificate. Texts are empty where there is nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateFacts {
    /// Subject, in RFC 2253's form.
    pub subject: String,
    /// Issuer, in RFC 2253's form.
    pub issuer: String,
    /// Serial number, in hexadecimal digits.
    pub serial: String,
    /// SHA-1, in hexadecimal digits.
    pub fingerprint_1: String,
    /// SHA-256, in hexadecimal digits.
    pub fingerprint_256: String,
    /// PEM, with URL's escapes.
    pub pem: String,
    /// DNS names.
    pub dns_sans: Vec<String>,
    /// URIs.
    pub uri_sans: Vec<String>,
    /// When it begins to be valid, after 1970.
    pub valid_from: Option<Duration>,
    /// When it ends to be valid, after 1970.
    pub valid_to: Option<Duration>,
}

/// Moments of a request. `None` has not come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The request was received.
    pub rx_end: Option<Instant>,
    /// The response began to be sent.
    pub tx_begin: Option<Instant>,
    /// The response was sent.
    pub tx_end: Option<Instant>,
    /// The request began to be sent to the upstream.
    pub upstream_tx_begin: Option<Instant>,
    /// The request was sent to the upstream.
    pub upstream_tx_end: Option<Instant>,
    /// The response began to be received from the upstream.
    pub upstream_rx_begin: Option<Instant>,
    /// The response was received from the upstream.
    pub upstream_rx_end: Option<Instant>,
}

/// `data.accesslog.v3.AccessLogType`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogType {
    /// Of a listener.
    #[default]
    NotSet,
    /// A TCP proxy takes a connection over.
    TcpConnectionStart,
    /// The upstream of a TCP proxy is connected.
    TcpUpstreamConnected,
    /// In the course of a connection.
    TcpPeriodic,
    /// The end of a connection.
    TcpConnectionEnd,
    /// The beginning of a request.
    DownstreamStart,
    /// In the course of a request.
    DownstreamPeriodic,
    /// The end of a request.
    DownstreamEnd,
}

impl LogType {
    /// Number and name in Envoy.
    pub fn envoy(self) -> (i32, &'static str) {
        match self {
            Self::NotSet => (0, "NotSet"),
            Self::TcpConnectionStart => (14, "TcpConnectionStart"),
            Self::TcpUpstreamConnected => (1, "TcpUpstreamConnected"),
            Self::TcpPeriodic => (2, "TcpPeriodic"),
            Self::TcpConnectionEnd => (3, "TcpConnectionEnd"),
            Self::DownstreamStart => (4, "DownstreamStart"),
            Self::DownstreamPeriodic => (5, "DownstreamPeriodic"),
            Self::DownstreamEnd => (6, "DownstreamEnd"),
        }
    }
}

impl<'a> Facts<'a> {
    /// A connection that has ended, of which nothing but its ends is known yet.
    pub fn connection(log_type: LogType, started: Instant, remote: Peer, local: Peer) -> Self {
        Self {
            log_type,
            started,
            complete: true,
            hostname: "",
            connection_id: 0,
            remote,
            local,
            direct_remote: remote,
            direct_local: local,
            server_name: "",
            filter_chain: "",
            termination: "",
            downstream_failure: "",
            tls: None,
            protocol: None,
            request: None,
            request_headers: None,
            response_headers: None,
            response_trailers: None,
            status: 0,
            details: "",
            flags: Flags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            route_name: "",
            virtual_cluster: "",
            cluster: None,
            host: None,
            upstream_local: None,
            upstream_failure: "",
            upstream_protocol: None,
            attempts: 0,
            times: Times::default(),
            scheme_known: true,
            health_check: false,
            trace: None,
            force_traced: false,
            state: None,
        }
    }

    /// The value of a request's header, pseudo headers included.
    pub fn request_header(&self, name: &str) -> Option<&'a [u8]> {
        let head = self.request;
        match name {
            ":method" => head.map(|head| head.method.as_bytes()),
            ":path" => head.map(RequestHead::path).filter(|path| !path.is_empty()),
            ":authority" | "host" => {
                head.map(RequestHead::authority).filter(|authority| !authority.is_empty())
            }
            ":scheme" if !self.scheme_known => None,
            ":scheme" => head.map(|head| head.scheme.as_str().as_bytes()),
            name => self.request_headers?.get(name),
        }
    }

    /// Whether the request is gRPC's.
    pub fn is_grpc(&self) -> bool {
        let Some(kind) = self.request_header("content-type") else { return false };
        kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+', ..]))
    }

    /// gRPC's status: of the trailers, else of the headers, else what HTTP's status stands for.
    pub fn grpc_status(&self) -> u32 {
        let given = [self.response_trailers, self.response_headers]
            .into_iter()
            .flatten()
            .find_map(|headers| headers.get("grpc-status"));
        if let Some(given) = given {
            let number = std::str::from_utf8(given).ok().and_then(|text| text.trim().parse().ok());
            return number.unwrap_or(UNKNOWN);
        }
        match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => UNKNOWN,
        }
    }

    /// A moment of it.
    pub fn moment(&self, point: TimePoint) -> Option<Instant> {
        let times = &self.times;
        match point {
            TimePoint::DownstreamRxBegin => self.request.map(|_| self.started),
            TimePoint::DownstreamRxEnd => times.rx_end,
            TimePoint::DownstreamTxBegin => times.tx_begin,
            TimePoint::DownstreamTxEnd => times.tx_end,
            TimePoint::UpstreamRxBegin => times.upstream_rx_begin,
            TimePoint::UpstreamRxEnd => times.upstream_rx_end,
            TimePoint::UpstreamTxBegin => times.upstream_tx_begin,
            TimePoint::UpstreamTxEnd => times.upstream_tx_end,
        }
    }
}

const UNKNOWN: u32 = 2;
