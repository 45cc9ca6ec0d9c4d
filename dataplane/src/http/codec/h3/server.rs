//! The client's side of one stream.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use culvert_proto::{
    Headers, RequestHead, ResponseHead,
    h1::{Framing, RequestOptions},
    h3::{Code, Violation},
};
use culvert_quic::{RecvStream, SendStream};
use culvert_ring::Chunk;

use super::{
    code,
    convert::{self, Refusal},
    receive::Incoming,
    send::Outgoing,
    session::Session,
};
use crate::http::codec::{Body, ReceiveError};

/// A request's stream.
pub struct ServerStream {
    session: Rc<Session>,
    incoming: RefCell<Incoming>,
    outgoing: Outgoing,
    /// The client reset it.
    reset: Cell<bool>,
}

/// What came in place of a request's body.
#[derive(Debug)]
pub enum Received {
    /// A head; its body is framed like this.
    Head(Framing),
    /// One that is not accepted.
    Refused(culvert_proto::h1::Fault),
    /// Nothing that could be answered.
    Nothing,
}

impl ServerStream {
    /// Takes a stream over that the client has opened. `header_bytes`: the longest head it may send.
    pub fn new(session: Rc<Session>, (send, receive): (SendStream, RecvStream), header_bytes: usize) -> Self {
        session.stats.streams_active.inc();
        session.streams.set(session.streams.get() + 1);
        let incoming = RefCell::new(Incoming::new(receive, header_bytes));
        Self { session, incoming, outgoing: Outgoing::new(send), reset: Cell::new(false) }
    }

    /// Receives the request's head. `connect`: clients may ask for other protocols than HTTP (RFC 9220).
    pub fn poll_head(
        &self,
        connect: bool,
        options: &RequestOptions,
        head: &mut RequestHead,
        cx: &Context<'_>,
    ) -> Poll<Received> {
        let incoming = &mut *self.incoming.borrow_mut();
        if let Err(error) = ready!(incoming.poll_section(cx)) {
            self.reset.set(matches!(error, ReceiveError::Reset | ReceiveError::Refused));
            return Poll::Ready(Received::Nothing);
        }
        let max = incoming.fields_max();
        match convert::request_from(incoming.section(), max, connect, options, head) {
            Ok(about) => {
                self.session.stats.dropped_headers_with_underscores.add(about.dropped as u64);
                let end = incoming.begin_body(about.length, cx);
                if end && about.length.is_some_and(|length| length > 0) {
                    incoming.fail(Violation::Message);
                    return Poll::Ready(Received::Nothing);
                }
                Poll::Ready(Received::Head(convert::framing(about.length, end)))
            }
            Err(Refusal::Fault(fault)) => {
                incoming.begin_body(None, cx);
                Poll::Ready(Received::Refused(fault))
            }
            Err(Refusal::Violation(violation)) => {
                incoming.fail(violation);
                Poll::Ready(Received::Nothing)
            }
        }
    }

    /// What the client did that the protocol does not allow, if it did.
    pub fn violation(&self) -> Option<Violation> {
        self.incoming.borrow().violation()
    }

    /// The next piece of the request's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        let polled = self.incoming.borrow_mut().poll_body(cx);
        if matches!(polled, Poll::Ready(Err(ReceiveError::Refused | ReceiveError::Reset))) {
            self.note_reset();
        }
        polled
    }

    /// Trailers of the request's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        let trailers = self.incoming.borrow_mut().take_trailers();
        if trailers.is_some() {
            self.session.stats.trailers.inc();
        }
        trailers
    }

    /// Ready when the client wants no response any more, or the connection is over.
    pub fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        if self.outgoing.is_ended() {
            return Poll::Pending;
        }
        if ready!(self.outgoing.poll_stopped(cx)) {
            self.note_reset();
        }
        Poll::Ready(())
    }

    fn note_reset(&self) {
        if !self.reset.replace(true) {
            self.session.stats.rx_reset.inc();
        }
    }

    /// Tells the client to go on with its body.
    pub fn send_continue(&self) {
        let mut head = ResponseHead::default();
        head.set_status(100);
        self.outgoing.headers(&self.session, &convert::response_of(&head, Framing::None));
    }

    /// Sends a final or informational response head. `end`: nothing follows.
    pub fn send_head(&self, head: &ResponseHead, framing: Framing, end: bool) {
        self.outgoing.headers(&self.session, &convert::response_of(head, framing));
        if end {
            self.outgoing.finish(&self.session);
        }
    }

    /// Sends a piece of the response's body.
    pub fn send_data(&self, chunk: Chunk) {
        self.outgoing.data(&self.session, chunk);
    }

    /// Ends the response's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        if self.outgoing.is_ended() {
            return;
        }
        if let Some(section) = trailers.and_then(convert::trailers_of) {
            self.outgoing.headers(&self.session, &section);
        }
        self.outgoing.finish(&self.session);
    }

    /// Ready while there is room for more of the response's body.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn poll_ready(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.poll_ready(cx)
    }

    /// Whether the client reset the stream, as far as that was noticed.
    pub fn was_reset(&self) -> bool {
        self.reset.get()
    }

    /// Whether the response has been sent to its end.
    pub fn is_complete(&self) -> bool {
        self.outgoing.is_ended()
    }

    /// Whether the connection has taken the response to its end, or never will.
    pub fn is_over(&self) -> bool {
        self.outgoing.is_over()
    }

    /// The client does not take the rest of the response: gives it up.
    pub fn give_up(&self) {
        self.session.stats.tx_flush_timeout.inc();
        self.reset(Code::RequestCancelled);
    }

    /// Asks the connection to end when its streams have.
    pub fn drain(&self) {
        self.session.drain();
    }

    /// Ends the stream without an answer, or in the middle of one.
    pub fn reset(&self, reason: Code) {
        if !self.outgoing.is_over() {
            self.session.stats.tx_reset.inc();
        }
        self.outgoing.reset(code(reason));
        self.incoming.borrow_mut().stop(code(reason));
    }
}

impl Drop for ServerStream {
    fn drop(&mut self) {
        // Section 4.1: the rest of a request that is answered is not needed.
        self.incoming.borrow_mut().stop(code(Code::NoError));
        self.session.stats.streams_active.dec();
        self.session.streams.set(self.session.streams.get() - 1);
    }
}
