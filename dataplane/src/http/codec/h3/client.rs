//! The upstream's side: what opens streams on a connection, and the streams of its requests.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead,
    h1::{Fault, Framing},
    h3::Code,
};
use culvert_quic::{ConnectionError, RecvStream, SendStream};
use culvert_ring::Chunk;

use super::{code, convert, receive::Incoming, send::Outgoing, session::Session};
use crate::http::codec::{Body, ReceiveError};

/// What opens streams on a connection.
pub struct Opener {
    session: Rc<Session>,
    header_bytes: usize,
    /// A stream that was opened and is not used yet: how many the server takes is known no other way.
    next: RefCell<Option<(SendStream, RecvStream)>>,
}

impl Opener {
    /// For a connection that is established. `header_bytes`: the longest head that the server may send.
    pub fn new(session: Rc<Session>, header_bytes: usize) -> Self {
        Self { session, header_bytes, next: RefCell::default() }
    }

    /// Whether the server said that it goes away, or the connection is over.
    pub fn is_going(&self) -> bool {
        self.session.going().is_some() || self.session.quic.error().is_some()
    }

    /// Bytes received and sent since this was last asked.
    pub fn take_bytes(&self) -> (u64, u64) {
        self.session.take_bytes()
    }

    /// Whether the server takes another stream now.
    pub fn has_room(&self) -> bool {
        let next = &mut *self.next.borrow_mut();
        if next.is_none()
            && let Poll::Ready(Ok(opened)) =
                self.session.quic.poll_open_bi(&Context::from_waker(Waker::noop()))
        {
            *next = Some(opened);
        }
        next.is_some()
    }

    /// A stream for one request; `None` when the connection takes no more.
    pub fn stream(&mut self) -> Option<ClientStream> {
        if !self.has_room() {
            return None;
        }
        let streams = self.next.take()?;
        Some(ClientStream::new(self.session.clone(), streams, self.header_bytes))
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        if let Some((mut send, mut receive)) = self.next.take() {
            send.reset(code(Code::RequestCancelled));
            receive.stop(code(Code::RequestCancelled));
        }
        self.session.retired.set(true);
        self.session.wake();
    }
}

impl Session {
    /// Ready when an upstream's connection is over. It is closed when nobody opens streams on it any more and the last one
    /// has ended.
    pub fn poll_end(&self, cx: &Context<'_>) -> Poll<ConnectionError> {
        let ended = self.poll(cx);
        if ended.is_pending() && self.retired.get() && self.streams.get() == 0 {
            self.quic.close(code(Code::NoError), b"");
            return self.quic.poll_closed(cx);
        }
        ended
    }
}

/// A request's stream.
pub struct ClientStream {
    session: Rc<Session>,
    id: u64,
    incoming: RefCell<Incoming>,
    outgoing: Outgoing,
    tunnel: RefCell<Option<Asked>>,
    unsendable: Cell<bool>,
}

/// The tunnel that a request asks for.
enum Asked {
    Connect,
    /// To this protocol.
    Upgrade(Vec<u8>),
}

impl ClientStream {
    fn new(session: Rc<Session>, (send, receive): (SendStream, RecvStream), header_bytes: usize) -> Self {
        session.stats.streams_active.inc();
        session.streams.set(session.streams.get() + 1);
        Self {
            id: u64::from(send.id()),
            session,
            incoming: RefCell::new(Incoming::new(receive, header_bytes)),
            outgoing: Outgoing::new(send),
            tunnel: RefCell::default(),
            unsendable: Cell::new(false),
        }
    }

    /// This end of the connection, where it is known.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.session.quic.local_addr()
    }

    /// Whether the server has said what it takes, and that is no extended CONNECT (RFC 9220).
    pub fn refuses_upgrades(&self) -> bool {
        self.session.settings().is_some_and(|settings| !settings.connect_protocol)
    }

    /// Sends a request head.
    pub fn send_head(&self, head: &RequestHead, framing: Framing) {
        let Ok(section) = convert::request_of(head, framing) else {
            return self.unsendable.set(true);
        };
        if framing == Framing::Tunnel {
            *self.tunnel.borrow_mut() = Some(match head.headers.get("upgrade") {
                Some(protocol) if head.method != Method::Connect => Asked::Upgrade(protocol.to_vec()),
                _ => Asked::Connect,
            });
        }
        self.outgoing.headers(&self.session, &section);
        if framing.is_empty() {
            self.outgoing.finish(&self.session);
        }
    }

    /// Whether HTTP/3 cannot express the request's head, so that nothing of it was sent.
    pub fn is_unsendable(&self) -> bool {
        self.unsendable.get()
    }

    /// Sends a piece of the request's body.
    pub fn send_data(&self, chunk: Chunk) {
        self.outgoing.data(&self.session, chunk);
    }

    /// Ends the request's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        if self.outgoing.is_ended() {
            return;
        }
        if let Some(section) = trailers.and_then(convert::trailers_of) {
            self.outgoing.headers(&self.session, &section);
        }
        self.outgoing.finish(&self.session);
    }

    /// Ready while there is room for more of the request's body.
    ///
    /// # Errors
    /// The stream takes no more.
    pub fn poll_ready(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.poll_ready(cx)
    }

    /// Receives a response head, informational ones included.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_head(
        &self,
        method: &Method,
        head: &mut ResponseHead,
        cx: &Context<'_>,
    ) -> Poll<Result<Framing, ReceiveError>> {
        if self.unsendable.get() {
            return Poll::Ready(Err(Fault::Host.into()));
        }
        let incoming = &mut *self.incoming.borrow_mut();
        if let Err(error) = ready!(incoming.poll_section(cx)) {
            return Poll::Ready(Err(self.failed(incoming, error)));
        }
        let length = match convert::response_from(incoming.section(), incoming.fields_max(), head) {
            Ok(length) => length,
            Err(violation) => {
                let error = incoming.fail(violation);
                return Poll::Ready(Err(self.failed(incoming, error)));
            }
        };
        if matches!(head.status, 100..=199) {
            return Poll::Ready(Ok(Framing::None));
        }
        let expected = length.filter(|_| convert::has_body(head.status, method));
        let end = incoming.begin_body(expected, cx);
        if end && expected.is_some_and(|length| length > 0) {
            let error = incoming.fail(culvert_proto::h3::Violation::Message);
            return Poll::Ready(Err(self.failed(incoming, error)));
        }
        if let Some(asked) = self.tunnel.take().filter(|_| matches!(head.status, 200..=299)) {
            head.headers.remove("content-length");
            if let Asked::Upgrade(protocol) = asked {
                // As HTTP/1 says it.
                head.set_status(101);
                head.headers.push("connection", "Upgrade");
                head.headers.push("upgrade", protocol);
            }
            return Poll::Ready(Ok(Framing::Tunnel));
        }
        Poll::Ready(Ok(convert::response_framing(head.status, method, length, end)))
    }

    /// What an error means: a stream that the server does not take any more was not looked at.
    fn failed(&self, incoming: &Incoming, error: ReceiveError) -> ReceiveError {
        if let Some(violation) = incoming.violation() {
            self.session.judge(violation);
        }
        match error {
            ReceiveError::Reset => {
                self.session.stats.rx_reset.inc();
                error
            }
            ReceiveError::Closed | ReceiveError::Io(_)
                if self.session.going().is_some_and(|last| self.id >= last) =>
            {
                ReceiveError::Refused
            }
            other => other,
        }
    }

    /// The next piece of the response's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        let incoming = &mut *self.incoming.borrow_mut();
        let received = ready!(incoming.poll_body(cx));
        Poll::Ready(received.map_err(|error| self.failed(incoming, error)))
    }

    /// Trailers of the response's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        let trailers = self.incoming.borrow_mut().take_trailers();
        if trailers.is_some() {
            self.session.stats.trailers.inc();
        }
        trailers
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let whole = self.incoming.get_mut().is_ended();
        let reason = if whole { Code::NoError } else { Code::RequestCancelled };
        if !whole {
            self.session.stats.tx_reset.inc();
        }
        self.incoming.get_mut().stop(code(reason));
        if !self.outgoing.is_ended() {
            self.outgoing.reset(code(reason));
        }
        self.session.stats.streams_active.dec();
        self.session.streams.set(self.session.streams.get() - 1);
        if self.session.retired.get() {
            self.session.wake();
        }
    }
}
