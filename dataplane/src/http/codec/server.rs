//! The client's side of one request, whichever protocol it came over.

use std::task::{Context, Poll};

use culvert_proto::{Headers, ResponseHead, h1::Framing};
use culvert_ring::Chunk;

use crate::http::codec::{Body, ReceiveError, h1, h2};

/// Where the rest of a request comes from and its response goes to.
#[derive(Clone, Copy)]
pub enum ServerStream<'c> {
    /// A connection that carries one request after the other.
    H1(&'c h1::ServerConn),
    /// One of many streams of a connection.
    H2(&'c h2::ServerStream),
}

impl ServerStream<'_> {
    /// The next piece of the request's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    #[inline]
    pub fn poll_body(self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        match self {
            Self::H1(conn) => conn.poll_body(cx),
            Self::H2(stream) => stream.poll_body(cx),
        }
    }

    /// Trailers of the request's body, once it has ended.
    pub fn take_trailers(self) -> Option<Headers> {
        match self {
            Self::H1(conn) => conn.take_trailers(),
            Self::H2(stream) => stream.take_trailers(),
        }
    }

    /// Ready when the client is gone while a response is awaited. `complete`: the whole request was received.
    #[inline]
    pub fn poll_gone(self, complete: bool, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(conn) if complete => conn.poll_gone(cx),
            Self::H1(_) => Poll::Pending,
            Self::H2(stream) => stream.poll_gone(cx),
        }
    }

    /// Tells the client to go on with its body.
    pub fn send_continue(self) {
        match self {
            Self::H1(conn) => conn.send_continue(),
            Self::H2(stream) => stream.send_continue(),
        }
    }

    /// Sends a final or informational response head. `end`: nothing follows, whatever `framing` announces.
    pub fn send_head(self, head: &ResponseHead, framing: Framing, end: bool) {
        match self {
            Self::H1(conn) => conn.send_head(head, framing),
            Self::H2(stream) => stream.send_head(head, framing, end),
        }
    }

    /// Sends a piece of the response's body.
    #[inline]
    pub fn send_data(self, chunk: Chunk) {
        match self {
            Self::H1(conn) => conn.send_data(chunk),
            Self::H2(stream) => stream.send_data(chunk),
        }
    }

    /// Ends the response's body.
    pub fn finish(self, trailers: Option<&Headers>) {
        match self {
            Self::H1(conn) => conn.finish(trailers),
            Self::H2(stream) => stream.finish(trailers),
        }
    }

    /// Ready while there is room for more of the response's body.
    ///
    /// # Errors
    /// The client is gone.
    #[inline]
    pub fn poll_ready(self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self {
            Self::H1(conn) => conn.poll_ready(cx),
            Self::H2(stream) => stream.poll_ready(cx),
        }
    }

    /// Whether there will be no further request on the connection.
    pub fn is_finished(self) -> bool {
        match self {
            Self::H1(conn) => conn.is_finished(),
            Self::H2(_) => false,
        }
    }

    /// Whether other requests share the connection, which this one says nothing about.
    pub fn is_multiplexed(self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(_) => true,
        }
    }

    /// Whether the client reset the stream of this request, and not the connection ended.
    pub fn was_reset(self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => stream.was_reset(),
        }
    }

    /// The connection is to end. One that is multiplexed is told here; the other one ends with the response.
    pub fn drain(self) {
        match self {
            Self::H1(_) => {}
            Self::H2(stream) => stream.drain(),
        }
    }
}
