//! The upstream's side of one request, whichever protocol it goes over.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
};

use culvert_proto::{Headers, Method, RequestHead, ResponseHead, Version, h1::Framing};
use culvert_ring::Chunk;

use crate::http::codec::{Body, ReceiveError, h1, h2, h3};

/// Where a request goes to and its response comes from.
pub enum ClientStream {
    /// A connection of its own.
    H1(h1::ClientConn),
    /// One of many streams of a connection.
    H2(h2::ClientStream),
    /// The same over QUIC.
    H3(h3::ClientStream),
}

impl ClientStream {
    /// What it speaks.
    pub fn version(&self) -> Version {
        match self {
            Self::H1(_) => Version::Http11,
            Self::H2(_) => Version::Http2,
            Self::H3(_) => Version::Http3,
        }
    }

    /// This end of the connection, if it is an internet address. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(conn) => conn.local_addr(),
            Self::H2(stream) => stream.local_addr(),
            Self::H3(stream) => stream.local_addr(),
        }
    }

    /// Whether its protocol cannot express the head that was to be sent; nothing was.
    pub fn is_unsendable(&self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => stream.is_unsendable(),
            Self::H3(stream) => stream.is_unsendable(),
        }
    }

    /// Bytes the kernel has accepted for sending so far on a connection of its own.
    pub fn bytes_sent(&self) -> u64 {
        match self {
            Self::H1(conn) => conn.bytes_sent(),
            Self::H2(_) | Self::H3(_) => 0,
        }
    }

    /// Bytes that the other end of a connection of its own has acknowledged, the first segment counted as one. A system
    /// call.
    pub fn bytes_acknowledged(&self) -> Option<u64> {
        match self {
            Self::H1(conn) => conn.bytes_acknowledged(),
            Self::H2(_) | Self::H3(_) => None,
        }
    }

    /// Sends a request head.
    pub fn send_head(&self, head: &RequestHead, framing: Framing) {
        match self {
            Self::H1(conn) => conn.send_head(head, framing),
            Self::H2(stream) => stream.send_head(head, framing),
            Self::H3(stream) => stream.send_head(head, framing),
        }
    }

    /// Sends a piece of the request's body.
    #[inline]
    pub fn send_data(&self, chunk: Chunk) {
        match self {
            Self::H1(conn) => conn.send_data(chunk),
            Self::H2(stream) => stream.send_data(chunk),
            Self::H3(stream) => stream.send_data(chunk),
        }
    }

    /// Ends the request's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        match self {
            Self::H1(conn) => conn.finish(trailers),
            Self::H2(stream) => stream.finish(trailers),
            Self::H3(stream) => stream.finish(trailers),
        }
    }

    /// Ready while there is room for more of the request's body.
    ///
    /// # Errors
    /// The upstream takes no more.
    #[inline]
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self {
            Self::H1(conn) => conn.poll_ready(cx),
            Self::H2(stream) => stream.poll_ready(cx),
            Self::H3(stream) => stream.poll_ready(cx),
        }
    }

    /// Receives a response head, informational ones included.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    #[inline]
    pub fn poll_head(
        &self,
        method: &Method,
        head: &mut ResponseHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Framing, ReceiveError>> {
        match self {
            Self::H1(conn) => conn.poll_head(method, head, cx),
            Self::H2(stream) => stream.poll_head(method, head, cx),
            Self::H3(stream) => stream.poll_head(method, head, cx),
        }
    }

    /// The next piece of the response's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    #[inline]
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        match self {
            Self::H1(conn) => conn.poll_body(cx),
            Self::H2(stream) => stream.poll_body(cx),
            Self::H3(stream) => stream.poll_body(cx),
        }
    }

    /// Trailers of the response's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        match self {
            Self::H1(conn) => conn.take_trailers(),
            Self::H2(stream) => stream.take_trailers(),
            Self::H3(stream) => stream.take_trailers(),
        }
    }

    /// Whether the connection can carry another request when this one gives it back. One that is shared is not given back.
    pub fn is_reusable(&self) -> bool {
        match self {
            Self::H1(conn) => conn.is_reusable(),
            Self::H2(_) | Self::H3(_) => false,
        }
    }

    /// Watches the idle connection; see [`crate::tls::Transport::park`].
    pub fn park(&self, tag: u64) {
        match self {
            Self::H1(conn) => conn.park(tag),
            Self::H2(_) | Self::H3(_) => {}
        }
    }

    /// Takes it out of [`ClientStream::park`]; false when something arrived meanwhile.
    pub fn unpark(&self) -> bool {
        match self {
            Self::H1(conn) => conn.unpark(),
            Self::H2(_) | Self::H3(_) => false,
        }
    }

    /// Gives up a tunnel: its other end sees that it is cut.
    pub fn abort(self) {
        match self {
            Self::H1(conn) => conn.abort(),
            // Its stream is reset.
            Self::H2(_) | Self::H3(_) => {}
        }
    }

    /// Whether it is known not to take upgrades. HTTP/2 says so in its settings.
    pub fn refuses_upgrades(&self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => stream.refuses_upgrades(),
            Self::H3(stream) => stream.refuses_upgrades(),
        }
    }
}
