//! The upstream's side: a connection, and the streams of its requests.

use std::{
    cell::RefCell,
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use culvert_model::Http2Options;
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead,
    h1::{Fault, Framing},
};
use culvert_ring::Chunk;
use h2::{
    Reason,
    client::{self, ResponseFuture, SendRequest},
};

use super::{
    body::{Incoming, Outgoing},
    convert,
    keepalive::Keepalive,
    wire::{Io, Wire},
};
use crate::http::codec::{Body, ReceiveError};

/// Streams that may be open before a server has ever said how many it takes.
pub const STREAMS_UNTIL_SETTINGS: u32 = 100;

/// An upstream connection. Nothing on it moves unless [`ClientConn::poll_end`] is polled.
pub struct ClientConn {
    wire: Rc<Wire>,
    conn: client::Connection<Io, Bytes>,
    keepalive: Option<Keepalive>,
}

/// What opens streams on a connection.
pub struct Opener {
    wire: Rc<Wire>,
    send: SendRequest<Bytes>,
    /// After such a silence a stream has the server asked whether it is there.
    idle: Option<Duration>,
}

impl ClientConn {
    /// Opens a connection: what it says first waits to be sent, nothing is awaited.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn open(
        wire: Rc<Wire>,
        options: &Http2Options,
        header_bytes: usize,
        buffer_limit_bytes: usize,
    ) -> Result<(Self, Opener), h2::Error> {
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(options.stream_window.unwrap_or(Http2Options::STREAM_WINDOW))
            .initial_connection_window_size(
                options.connection_window.unwrap_or(Http2Options::CONNECTION_WINDOW),
            )
            .initial_max_send_streams(STREAMS_UNTIL_SETTINGS as usize)
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
            .header_table_size(options.hpack_table_size)
            .enable_push(false)
            .max_send_buffer_size(super::send_buffer(buffer_limit_bytes));
        let (send, mut conn) = builder.handshake(Io(wire.clone())).await?;
        let keepalive = Keepalive::new(conn.ping_pong(), options);
        Ok((
            Self { wire: wire.clone(), conn, keepalive },
            Opener { wire, send, idle: options.keepalive_idle },
        ))
    }

    /// Ready when the connection is over. Everything on it moves while this is polled.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Some(keepalive) = &mut self.keepalive
            && self.wire.take_doubt()
        {
            keepalive.ask();
        }
        if let Poll::Ready(ended) = Pin::new(&mut self.conn).poll(cx) {
            return Poll::Ready(ended);
        }
        if let Some(misconduct) = self.wire.take_misconduct() {
            self.wire.count(misconduct);
            log::debug!(target: "upstream", "connection closed: {misconduct:?}");
            return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into()));
        }
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll(cx).is_ready()
        {
            self.wire.stats.keepalive_timeout.inc();
            return Poll::Ready(Err(Reason::NO_ERROR.into()));
        }
        Poll::Pending
    }
}

impl Opener {
    /// How many streams the server takes; `None` before it has said so.
    pub fn max_streams(&self) -> Option<u32> {
        let max = self.send.current_max_send_streams();
        self.wire.is_settled().then(|| u32::try_from(max).unwrap_or(u32::MAX))
    }

    /// Whether the server said that it goes away.
    pub fn is_going(&self) -> bool {
        self.wire.is_going()
    }

    /// Whether something seems to have come that the connection's task has not seen.
    pub fn has_arrived(&self) -> bool {
        self.wire.has_arrived()
    }

    /// A stream for one request; `None` when the connection takes no more.
    pub fn stream(&mut self, cx: &mut Context<'_>) -> Option<ClientStream> {
        let mut send = self.send.clone();
        match send.poll_ready(cx) {
            Poll::Ready(Ok(())) => {
                if let Some(idle) = self.idle {
                    self.wire.doubt(idle);
                }
                Some(ClientStream::new(self.wire.clone(), send))
            }
            Poll::Pending | Poll::Ready(Err(_)) => None,
        }
    }
}

/// A request's stream.
pub struct ClientStream {
    wire: Rc<Wire>,
    state: RefCell<State>,
}

enum State {
    /// Nothing has been sent.
    Idle(SendRequest<Bytes>),
    /// The request could not be sent.
    Failed(Option<ReceiveError>),
    /// The request is on its way.
    Sent { response: ResponseFuture, outgoing: Outgoing, incoming: Option<Incoming>, tunnel: Option<Asked> },
}

/// The tunnel that a request asks for.
enum Asked {
    Connect,
    /// To this protocol.
    Upgrade(Vec<u8>),
}

impl ClientStream {
    fn new(wire: Rc<Wire>, send: SendRequest<Bytes>) -> Self {
        wire.stats.streams_active.inc();
        Self { wire, state: RefCell::new(State::Idle(send)) }
    }

    /// This end of the connection, if it is an internet address. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.wire.local_addr()
    }

    /// Whether the server has said what it takes, and that is no extended CONNECT (RFC 8441).
    pub fn refuses_upgrades(&self) -> bool {
        match &*self.state.borrow() {
            State::Idle(send) => self.wire.is_settled() && !send.is_extended_connect_protocol_enabled(),
            State::Failed(_) | State::Sent { .. } => false,
        }
    }

    /// Sends a request head.
    pub fn send_head(&self, head: &RequestHead, framing: Framing) {
        let state = &mut *self.state.borrow_mut();
        let State::Idle(send) = state else { return };
        let end = framing.is_empty();
        let sent = convert::request_of(head, framing)
            .map_err(ReceiveError::from)
            .and_then(|request| send.send_request(request, end).map_err(ReceiveError::from));
        let tunnel = (framing == Framing::Tunnel).then(|| match head.headers.get("upgrade") {
            Some(protocol) if head.method != Method::Connect => Asked::Upgrade(protocol.to_vec()),
            _ => Asked::Connect,
        });
        *state = match sent {
            Ok((response, stream)) => {
                State::Sent { response, outgoing: Outgoing::new(stream, end), incoming: None, tunnel }
            }
            Err(error) => State::Failed(Some(error)),
        };
    }

    /// Whether HTTP/2 cannot express the request's head, so that nothing of it was sent.
    pub fn is_unsendable(&self) -> bool {
        matches!(&*self.state.borrow(), State::Failed(Some(ReceiveError::Fault(_))))
    }

    /// Sends a piece of the request's body.
    pub fn send_data(&self, chunk: Chunk) {
        if let State::Sent { outgoing, .. } = &mut *self.state.borrow_mut() {
            outgoing.send(chunk);
        }
    }

    /// Ends the request's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        if let State::Sent { outgoing, .. } = &mut *self.state.borrow_mut() {
            outgoing.finish(trailers);
        }
    }

    /// Ready while there is room for more of the request's body.
    ///
    /// # Errors
    /// The stream takes no more.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.state.borrow_mut() {
            State::Sent { outgoing, .. } => outgoing.poll_ready(cx),
            State::Failed(_) | State::Idle(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
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
        let state = &mut *self.state.borrow_mut();
        let (response, slot, tunnel) = match state {
            State::Sent { response, incoming, tunnel, .. } => (response, incoming, tunnel),
            State::Failed(error) => {
                return Poll::Ready(Err(error.take().unwrap_or(ReceiveError::Closed)));
            }
            State::Idle(_) => return Poll::Ready(Err(ReceiveError::Closed)),
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let (parts, ()) = interim?.into_parts();
            return Poll::Ready(convert::response_from(&parts, true, method, head).map_err(Fault::into));
        }
        let (parts, body) = ready!(Pin::new(response).poll(cx))?.into_parts();
        let incoming = Incoming::new(body);
        let mut framing = convert::response_from(&parts, incoming.is_ended(), method, head);
        *slot = Some(incoming);
        if framing.is_ok()
            && matches!(head.status, 200..=299)
            && let Some(asked) = tunnel.take()
        {
            framing = Ok(Framing::Tunnel);
            head.headers.remove("content-length");
            if let Asked::Upgrade(protocol) = asked {
                // As HTTP/1 says it.
                head.set_status(101);
                head.headers.push("connection", "Upgrade");
                head.headers.push("upgrade", protocol);
            }
        }
        Poll::Ready(framing.map_err(Fault::into))
    }

    /// The next piece of the response's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        match &mut *self.state.borrow_mut() {
            State::Sent { incoming: Some(incoming), .. } => incoming.poll(cx),
            State::Sent { .. } | State::Failed(_) | State::Idle(_) => Poll::Ready(Err(ReceiveError::Closed)),
        }
    }

    /// Trailers of the response's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        let State::Sent { incoming: Some(incoming), .. } = &mut *self.state.borrow_mut() else { return None };
        let trailers = incoming.take_trailers();
        if trailers.is_some() {
            self.wire.stats.trailers.inc();
        }
        trailers
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.wire.stats.streams_active.dec();
    }
}
