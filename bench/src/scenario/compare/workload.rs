//! What is sent, and which figures come of it.

use serde::{Serialize, Serializer};

use super::contender::Contender;
use super::metric::Metric;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scenario {
    /// HTTP/1.1 on both sides, 1 KB answers.
    Http1,
    /// HTTP/2 on both sides, cleartext with prior knowledge.
    Http2,
    /// Unary gRPC calls over HTTP/2 on both sides.
    Grpc,
    /// HTTP/1.1 in TLS 1.3 from the client, in cleartext to the backend.
    Tls,
    /// HTTP/1.1, 1 MB answers.
    Bodies,
    /// A connection for each request, and memory of idle connections.
    Connections,
}

/// One run of the load generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// As many requests as go, on the scenario's connections.
    Saturation,
    /// As many requests as go, on [`MANY`] connections.
    ManyConnections,
    /// A fixed rate, whether or not answers come (open loop).
    FixedRate,
    /// One request at a time.
    OneConnection,
    /// A connection for each request, as many as go.
    NewConnections,
}

/// Connections of [`Measurement::ManyConnections`].
pub(super) const MANY: u32 = 1000;

/// Idle connections at which memory is read.
pub(super) const IDLE_COUNTS: [u32; 3] = [500, 4000, 9000];

const KILOBYTE: usize = 1024;
const MEGABYTE: usize = 1 << 20;

impl Scenario {
    /// In the order in which they are run.
    pub const ALL: [Self; 6] =
        [Self::Http1, Self::Http2, Self::Grpc, Self::Tls, Self::Bodies, Self::Connections];

    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tls => "tls",
            Self::Bodies => "bodies",
            Self::Connections => "connections",
        }
    }

    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 1 KB answers, 64 connections",
            Self::Http2 => "HTTP/2 to HTTP/2, 1 KB answers, 64 connections of one stream",
            Self::Grpc => "gRPC unary, 1 KB messages back, 64 connections of one stream",
            Self::Tls => "TLS 1.3 terminated, HTTP/1.1, 1 KB answers, 64 connections",
            Self::Bodies => "HTTP/1.1, 1 MB answers, 8 connections",
            Self::Connections => "A connection for each request, and idle connections",
        }
    }

    /// Connections of [`Measurement::Saturation`] and [`Measurement::NewConnections`].
    pub fn connections(self) -> u32 {
        match self {
            Self::Bodies => 8,
            Self::Connections => 32,
            Self::Http1 | Self::Http2 | Self::Grpc | Self::Tls => 64,
        }
    }

    /// Length of the backend's answers.
    pub fn body_bytes(self) -> usize {
        if self == Self::Bodies { MEGABYTE } else { KILOBYTE }
    }

    /// Whether both sides speak HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    /// Its runs, in the order in which they are made.
    pub(super) fn measurements(self) -> &'static [Measurement] {
        use Measurement::{FixedRate, ManyConnections, NewConnections, OneConnection, Saturation};
        match self {
            Self::Http1 => &[OneConnection, FixedRate, Saturation, ManyConnections],
            Self::Http2 | Self::Grpc | Self::Tls => &[OneConnection, FixedRate, Saturation],
            Self::Bodies => &[Saturation],
            Self::Connections => &[NewConnections],
        }
    }

    /// The columns of its table; the first is the one that charts and ratios show.
    pub fn metrics(self) -> &'static [Metric] {
        use Metric::*;
        match self {
            Self::Http1 => {
                &[RequestCpu, RequestRate, RateP50, RateP99, RateP999, SingleP50, SingleP99, ManyCpu]
            }
            Self::Http2 | Self::Grpc | Self::Tls => {
                &[RequestCpu, RequestRate, RateP50, RateP99, RateP999, SingleP50, SingleP99]
            }
            Self::Bodies => &[RequestCpu, Throughput],
            Self::Connections => {
                &[ConnectionCpu, ConnectionRate, RssStart, Rss500, Rss4000, Rss9000, RssEach]
            }
        }
    }

    /// Why a contender has no row here.
    pub fn refuses(self, contender: Contender) -> Option<&'static str> {
        match (self, contender) {
            (Self::Http2, Contender::Nginx) => Some("does not speak HTTP/2 to backends, except for gRPC"),
            (Self::Tls, Contender::Forwarder) => Some("does not terminate TLS"),
            (Self::Http1, _) => None,
            (_, Contender::EnvoyUring | Contender::EnvoySockmap) => Some("measured with http1 only"),
            _ => None,
        }
    }
}

impl Serialize for Scenario {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
