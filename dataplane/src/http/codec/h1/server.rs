//! The server's side of a connection: requests in, responses out.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use culvert_model::HeaderCase;
use culvert_proto::{
    Headers, RequestHead, ResponseHead,
    h1::{Framing, RequestOptions, encode_continue, encode_response, parse_request},
    h2::PREFACE,
};
use culvert_ring::Chunk;

use crate::{
    http::codec::{
        Body, ReceiveError,
        h1::{receive::Receiver, send::Sender},
    },
    observe::stats::HttpStats,
    tls::Transport,
};

/// A downstream connection.
pub struct ServerConn {
    stream: Transport,
    receiver: Receiver,
    sender: Sender,
    stats: Arc<HttpStats>,
}

/// What a connection brings while the next request is awaited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestStart {
    /// The first bytes of a request.
    Bytes,
    /// The client closed, or the connection failed.
    Closed,
}

impl ServerConn {
    /// Takes a stream over.
    pub fn new(
        stream: Transport,
        case: HeaderCase,
        buffer_limit_bytes: usize,
        stats: Arc<HttpStats>,
    ) -> Self {
        Self { stream, receiver: Receiver::new(), sender: Sender::new(case, buffer_limit_bytes), stats }
    }

    /// Waits for the first byte of a request. Owns no buffer until then.
    pub fn poll_start(&self, cx: &mut Context<'_>) -> Poll<RequestStart> {
        loop {
            if self.receiver.has_input() {
                return Poll::Ready(RequestStart::Bytes);
            }
            if self.receiver.is_closed() {
                return Poll::Ready(RequestStart::Closed);
            }
            if ready!(self.receiver.poll_fill(&self.stream, &self.stats.downstream_cx_rx_bytes_total, cx))
                .is_err()
            {
                return Poll::Ready(RequestStart::Closed);
            }
        }
    }

    /// Receives until it is clear whether the client speaks HTTP/2 without having asked (RFC 9113 section 3.3). Of a
    /// request of HTTP/1 nothing but what is there already is looked at.
    pub fn poll_http2_preface(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.receiver.poll_prefix(&self.stream, &self.stats.downstream_cx_rx_bytes_total, PREFACE, cx)
    }

    /// Receives a request head.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_head(
        &self,
        options: &RequestOptions,
        head: &mut RequestHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Framing, ReceiveError>> {
        let received = &self.stats.downstream_cx_rx_bytes_total;
        let parse = |bytes: &[u8]| parse_request(bytes, options, head);
        let framing = ready!(self.receiver.poll_head(&self.stream, received, cx, parse))?;
        self.receiver.start_body(framing);
        Poll::Ready(Ok(framing))
    }

    /// The next piece of the request's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        self.receiver.poll_body(&self.stream, &self.stats.downstream_cx_rx_bytes_total, cx)
    }

    /// What comes from now on is opaque, up to the end of the connection.
    pub fn start_tunnel(&self) {
        self.receiver.start_body(Framing::Tunnel);
    }

    /// Trailers of the request's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        self.receiver.take_trailers()
    }

    /// Ready when the connection failed while a response is awaited. Reads at most one buffer ahead.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.receiver.poll_watch(&self.stream, &self.stats.downstream_cx_rx_bytes_total, cx).map(|_| ())
    }

    /// Tells the client to go on with its body.
    pub fn send_continue(&self) {
        self.stream.write_with(encode_continue);
    }

    /// Sends a final or informational response head.
    pub fn send_head(&self, head: &ResponseHead, framing: Framing) {
        let sent = self.stream.write_with(|out| {
            let before = out.len();
            encode_response(head, framing, self.sender.case(), out);
            out.len() - before
        });
        self.stats.downstream_cx_tx_bytes_total.add(sent as u64);
        self.sender.start_body(framing);
    }

    /// Sends a piece of the response's body.
    pub fn send_data(&self, chunk: Chunk) {
        self.stats.downstream_cx_tx_bytes_total.add(chunk.len() as u64);
        self.sender.send_data(&self.stream, chunk);
    }

    /// Ends the response's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        self.sender.finish(&self.stream, trailers);
    }

    /// Ready while there is room for more of the response's body.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.sender.poll_ready(&self.stream, cx)
    }

    /// Bytes the kernel has not taken yet.
    pub fn queued(&self) -> usize {
        self.stream.queued()
    }

    /// Ready when the kernel has taken everything.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream.poll_drained(cx, 0)
    }

    /// Sends FIN once everything written has left.
    pub fn shutdown(&self) {
        self.stream.shutdown_write();
    }

    /// Receives and drops. The number of bytes; `None` when the client closed or the connection failed.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        if self.receiver.is_closed() {
            return Poll::Ready(None);
        }
        if let Some(rest) = self.receiver.take_input() {
            return Poll::Ready(Some(rest.len()));
        }
        self.stream
            .poll_read(cx)
            .map(|read| read.ok().filter(|lease| !lease.is_empty()).map(|lease| lease.len()))
    }

    /// Resets the connection.
    pub fn abort(self) {
        self.stream.abort();
    }

    /// Whether the client sent FIN and everything before it has been consumed: there will be no further request.
    pub fn is_finished(&self) -> bool {
        self.receiver.is_closed() && !self.receiver.has_input()
    }

    /// The stream, and the bytes that were received and belong to what comes after HTTP.
    pub fn into_tunnel(self) -> (Transport, Option<Chunk>) {
        let rest = self.receiver.take_input();
        (self.stream, rest)
    }
}
