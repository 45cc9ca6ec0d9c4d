//! The client's side of a connection: requests out, responses in.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead,
    h1::{Framing, ResponseOptions, encode_request, parse_response},
};
use culvert_ring::Chunk;

use crate::{
    http::codec::{
        Body, ReceiveError,
        h1::{receive::Receiver, send::Sender},
    },
    tls::Transport,
    upstream::Cluster,
};

/// An upstream connection.
pub struct ClientConn {
    stream: Transport,
    receiver: Receiver,
    sender: Sender,
    options: ResponseOptions,
    cluster: Rc<Cluster>,
    /// Nobody speaks HTTP there.
    opaque: bool,
}

impl ClientConn {
    /// Takes a connected stream over.
    pub fn new(stream: Transport, cluster: Rc<Cluster>) -> Self {
        let config = cluster.config();
        let options = ResponseOptions {
            max_bytes: config.max_response_headers_bytes,
            preserve_case: config.header_case == culvert_model::HeaderCase::Preserve,
            ..ResponseOptions::default()
        };
        let sender = Sender::new(config.header_case, config.buffer_limit_bytes);
        Self { stream, receiver: Receiver::new(), sender, options, cluster, opaque: false }
    }

    /// Takes a connected stream over that is the end of a tunnel: heads are not sent, and the answer is 200 at once.
    pub fn tunnel(stream: Transport, cluster: Rc<Cluster>) -> Self {
        Self { opaque: true, ..Self::new(stream, cluster) }
    }

    /// This end of it, if it is an internet address. A system call.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.stream.local_addr().ok()?.as_socket()
    }

    /// Bytes the kernel has accepted for sending so far.
    pub fn bytes_sent(&self) -> u64 {
        self.stream.bytes_sent()
    }

    /// Bytes that the other end has acknowledged. A system call; `None` where it is no TCP connection.
    pub fn bytes_acknowledged(&self) -> Option<u64> {
        Some(culvert_ring::net::tcp_info(self.stream.fd()).ok()?.bytes_acked)
    }

    /// Sends a request head.
    pub fn send_head(&self, head: &RequestHead, framing: Framing) {
        self.sender.start_body(framing);
        if self.opaque {
            return;
        }
        let sent = self.stream.write_with(|out| {
            let before = out.len();
            encode_request(head, framing, self.sender.case(), out);
            out.len() - before
        });
        self.cluster.stats.upstream_cx_tx_bytes_total.add(sent as u64);
    }

    /// Sends a piece of the request's body.
    pub fn send_data(&self, chunk: Chunk) {
        self.cluster.stats.upstream_cx_tx_bytes_total.add(chunk.len() as u64);
        self.sender.send_data(&self.stream, chunk);
    }

    /// Ends the request's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        self.sender.finish(&self.stream, trailers);
    }

    /// Ready while there is room for more of the request's body.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.sender.poll_ready(&self.stream, cx)
    }

    /// Receives a response head, informational ones included.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_head(
        &self,
        method: &Method,
        head: &mut ResponseHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Framing, ReceiveError>> {
        if self.opaque {
            head.clear();
            head.set_status(200);
            self.receiver.start_body(Framing::Tunnel);
            return Poll::Ready(Ok(Framing::Tunnel));
        }
        let received = &self.cluster.stats.upstream_cx_rx_bytes_total;
        let parse = |bytes: &[u8]| parse_response(bytes, &self.options, method, head);
        let framing = ready!(self.receiver.poll_head(&self.stream, received, cx, parse))?;
        self.receiver.start_body(framing);
        Poll::Ready(Ok(framing))
    }

    /// The next piece of the response's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        self.receiver.poll_body(&self.stream, &self.cluster.stats.upstream_cx_rx_bytes_total, cx)
    }

    /// Trailers of the response's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        self.receiver.take_trailers()
    }

    /// Whether the connection can carry another request: nothing unexpected was received and nothing is left to send.
    pub fn is_reusable(&self) -> bool {
        !self.receiver.has_input() && !self.receiver.is_closed() && self.stream.queued() == 0
    }

    /// Watches the idle connection; see [`Transport::park`].
    pub fn park(&self, tag: u64) {
        self.stream.park(tag);
    }

    /// Takes it out of [`ClientConn::park`]; false when something arrived meanwhile.
    pub fn unpark(&self) -> bool {
        self.stream.unpark()
    }

    /// Resets the connection.
    pub fn abort(self) {
        self.stream.abort();
    }
}
