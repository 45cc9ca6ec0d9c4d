//! The client's side of one request, whichever protocol it came over.

use std::task::{Context, Poll, ready};

use culvert_proto::{Headers, ResponseHead, h1::Framing};
use culvert_ring::Chunk;

use crate::http::codec::{
    Body, ReceiveError,
    detour::{Decoder, Detour, Encoder},
    h1, h2, h3,
};

/// Where the rest of a request comes from and its response goes to.
#[derive(Clone, Copy)]
pub struct ServerStream<'c> {
    side: Side<'c>,
    detour: &'c Detour,
}

#[derive(Clone, Copy)]
enum Side<'c> {
    /// A connection that carries one request after the other.
    H1(&'c h1::ServerConn),
    /// One of many streams of a connection.
    H2(&'c h2::ServerStream),
    /// The same over QUIC.
    H3(&'c h3::ServerStream),
}

impl<'c> ServerStream<'c> {
    /// A request on a connection of HTTP/1.
    pub fn of_connection(conn: &'c h1::ServerConn, detour: &'c Detour) -> Self {
        Self { side: Side::H1(conn), detour }
    }

    /// A stream of HTTP/2.
    pub fn of_stream(stream: &'c h2::ServerStream, detour: &'c Detour) -> Self {
        Self { side: Side::H2(stream), detour }
    }

    /// A stream of HTTP/3.
    pub fn of_quic(stream: &'c h3::ServerStream, detour: &'c Detour) -> Self {
        Self { side: Side::H3(stream), detour }
    }

    /// The next piece of the request's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    #[inline]
    pub fn poll_body(self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        if self.detour.is_broken() {
            return Poll::Ready(Err(ReceiveError::Encoding));
        }
        if let Some(kept) = self.detour.take_kept() {
            return Poll::Ready(Ok(Body::Data(kept)));
        }
        if self.detour.has_ended() {
            return Poll::Ready(Ok(Body::End));
        }
        self.poll_received(cx)
    }

    fn poll_received(self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        let received = if self.detour.is_decoding() { self.poll_decoded(cx) } else { self.poll_side(cx) };
        if let Poll::Ready(Ok(Body::Data(chunk))) = &received {
            self.detour.received(chunk);
        }
        received
    }

    fn poll_side(self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        match self.side {
            Side::H1(conn) => conn.poll_body(cx),
            Side::H2(stream) => stream.poll_body(cx),
            Side::H3(stream) => stream.poll_body(cx),
        }
    }

    fn poll_decoded(self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        loop {
            if self.detour.is_broken() {
                return Poll::Ready(Err(ReceiveError::Encoding));
            }
            match ready!(self.poll_side(cx))? {
                Body::Data(chunk) => match self.detour.decode(&chunk) {
                    Some(decoded) if decoded.is_empty() => {}
                    Some(decoded) => return Poll::Ready(Ok(Body::Data(Chunk::Vec(decoded)))),
                    None => return Poll::Ready(Err(ReceiveError::Encoding)),
                },
                Body::End if self.detour.is_decoded() => return Poll::Ready(Ok(Body::End)),
                Body::End => return Poll::Ready(Err(ReceiveError::Encoding)),
            }
        }
    }

    /// Reads the request's body through `decoder`.
    pub fn decode_with(self, decoder: Box<dyn Decoder>) {
        self.detour.set_decoder(decoder);
    }

    /// Receives more of the request's body and keeps it for [`ServerStream::poll_body`]. Whether that was its end.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_keep(self, cx: &mut Context<'_>) -> Poll<Result<bool, ReceiveError>> {
        if self.detour.is_broken() {
            return Poll::Ready(Err(ReceiveError::Encoding));
        }
        if self.detour.has_ended() {
            return Poll::Ready(Ok(true));
        }
        Poll::Ready(Ok(match ready!(self.poll_received(cx))? {
            Body::Data(chunk) => {
                self.detour.keep(&chunk);
                false
            }
            Body::End => {
                self.detour.keep_end();
                true
            }
        }))
    }

    /// What was kept of the request's body and not read since.
    pub fn with_kept<R>(self, read: impl FnOnce(&[u8]) -> R) -> R {
        self.detour.with_kept(read)
    }

    /// Whether all of the request's body was kept.
    pub fn has_kept_all(self) -> bool {
        self.detour.has_ended()
    }

    /// Takes what was kept of the request's body, where that is all of it, and what it should be. Its trailers are still
    /// to be taken.
    pub fn take_kept(self) -> Option<Vec<u8>> {
        (self.detour.has_ended() && !self.detour.is_broken()).then(|| self.detour.take_bytes())
    }

    /// Has the request's body, whose end was reached, received once more.
    pub fn put_back(self, bytes: Vec<u8>, trailers: Option<Headers>) {
        self.detour.put_back(bytes, trailers);
    }

    /// Counts the messages of gRPC that request and response consist of, from now on.
    pub fn count_messages(self) {
        self.detour.count_messages();
        // What came before it was asked for; what comes later is counted as it comes.
        self.with_kept(|kept| self.detour.received(kept));
    }

    /// Messages of the request and of the response, as far as they were counted.
    pub fn messages(self) -> (u64, u64) {
        self.detour.messages()
    }

    /// Sends the response's body through `encoder`, whatever the length of it becomes.
    pub fn encode_with(self, encoder: Box<dyn Encoder>) {
        self.detour.set_encoder(encoder);
    }

    /// What the client sends from now on is the body.
    pub fn start_tunnel(self) {
        match self.side {
            Side::H1(conn) => conn.start_tunnel(),
            Side::H2(_) | Side::H3(_) => {}
        }
    }

    /// Trailers of the request's body, once it has ended.
    pub fn take_trailers(self) -> Option<Headers> {
        if let Some(trailers) = self.detour.take_trailers() {
            return Some(trailers);
        }
        match self.side {
            Side::H1(conn) => conn.take_trailers(),
            Side::H2(stream) => stream.take_trailers(),
            Side::H3(stream) => stream.take_trailers(),
        }
    }

    /// Ready when the client is gone while a response is awaited. `complete`: the whole request was received.
    #[inline]
    pub fn poll_gone(self, complete: bool, cx: &mut Context<'_>) -> Poll<()> {
        match self.side {
            Side::H1(conn) if complete => conn.poll_gone(cx),
            Side::H1(_) => Poll::Pending,
            Side::H2(stream) => stream.poll_gone(cx),
            Side::H3(stream) => stream.poll_gone(cx),
        }
    }

    /// Tells the client to go on with its body.
    pub fn send_continue(self) {
        match self.side {
            Side::H1(conn) => conn.send_continue(),
            Side::H2(stream) => stream.send_continue(),
            Side::H3(stream) => stream.send_continue(),
        }
    }

    /// Sends a final or informational response head. `end`: nothing follows, whatever `framing` announces.
    pub fn send_head(self, head: &ResponseHead, framing: Framing, end: bool) {
        let framing = match framing {
            Framing::Length(_) if self.detour.is_encoding() && !end && head.status >= 200 => Framing::Chunked,
            framing => framing,
        };
        match self.side {
            Side::H1(conn) => conn.send_head(head, framing),
            Side::H2(stream) => stream.send_head(head, framing, end),
            Side::H3(stream) => stream.send_head(head, framing, end),
        }
    }

    /// Sends a piece of the response's body.
    #[inline]
    pub fn send_data(self, chunk: Chunk) {
        self.detour.sending(&chunk);
        if self.detour.is_encoding() {
            if let Some(encoded) = self.detour.encode(&chunk).filter(|encoded| !encoded.is_empty()) {
                self.send(Chunk::Vec(encoded));
            }
            return;
        }
        self.send(chunk);
    }

    fn send(self, chunk: Chunk) {
        self.detour.count(chunk.len());
        match self.side {
            Side::H1(conn) => conn.send_data(chunk),
            Side::H2(stream) => stream.send_data(chunk),
            Side::H3(stream) => stream.send_data(chunk),
        }
    }

    /// Bytes of the response's body that were sent, as they left.
    pub fn sent(self) -> u64 {
        self.detour.sent()
    }

    /// Whether trailers of the response become part of its body, whatever the client takes.
    pub fn takes_trailers(self) -> bool {
        self.detour.takes_trailers()
    }

    /// Ends the response's body.
    pub fn finish(self, trailers: Option<&Headers>) {
        let mut trailers = trailers;
        if self.detour.is_encoding() {
            let taken = self.detour.takes_trailers();
            let rest = self.detour.end(trailers);
            if taken {
                trailers = None;
            }
            if !rest.is_empty() {
                self.send(Chunk::Vec(rest));
            }
        }
        match self.side {
            Side::H1(conn) => conn.finish(trailers),
            Side::H2(stream) => stream.finish(trailers),
            Side::H3(stream) => stream.finish(trailers),
        }
    }

    /// Ready while there is room for more of the response's body.
    ///
    /// # Errors
    /// The client is gone.
    #[inline]
    pub fn poll_ready(self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.side {
            Side::H1(conn) => conn.poll_ready(cx),
            Side::H2(stream) => stream.poll_ready(cx),
            Side::H3(stream) => stream.poll_ready(cx),
        }
    }

    /// Whether there will be no further request on the connection.
    pub fn is_finished(self) -> bool {
        match self.side {
            Side::H1(conn) => conn.is_finished(),
            Side::H2(_) | Side::H3(_) => false,
        }
    }

    /// Whether other requests share the connection, which this one says nothing about.
    pub fn is_multiplexed(self) -> bool {
        matches!(self.side, Side::H2(_) | Side::H3(_))
    }

    /// Whether the client reset the stream of this request, and not the connection ended.
    pub fn was_reset(self) -> bool {
        match self.side {
            Side::H1(_) => false,
            Side::H2(stream) => stream.was_reset(),
            Side::H3(stream) => stream.was_reset(),
        }
    }

    /// The connection is to end. One that is multiplexed is told here; the other one ends with the response.
    pub fn drain(self) {
        match self.side {
            Side::H1(_) => {}
            Side::H2(stream) => stream.drain(),
            Side::H3(stream) => stream.drain(),
        }
    }
}
