//! The client's side of one stream.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use culvert_proto::{
    Headers, RequestHead, ResponseHead,
    h1::{Fault, Framing, RequestOptions},
};
use culvert_ring::Chunk;
use h2::{Reason, RecvStream, server::SendResponse};

use super::{
    body::{Incoming, Outgoing},
    convert,
    wire::Wire,
};
use crate::http::codec::{Body, ReceiveError};

/// A request's stream.
pub struct ServerStream {
    wire: Rc<Wire>,
    id: u32,
    /// What stood behind a `#` in the path.
    fragment: Option<Box<[u8]>>,
    state: RefCell<State>,
}

struct State {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    /// Once the final head is sent.
    outgoing: Option<Outgoing>,
    /// The client reset it.
    reset: bool,
}

impl ServerStream {
    /// To be made of requests in the order in which they were accepted.
    pub(super) fn new(wire: Rc<Wire>, body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        wire.stats.streams_active.inc();
        let id = respond.stream_id().into();
        let fragment = wire.accept(id);
        let state = State { incoming: Incoming::new(body), respond, outgoing: None, reset: false };
        Self { wire, id, fragment, state: RefCell::new(state) }
    }

    /// Turns what the codec made of the request's head into `head`. Returns how the body is framed.
    ///
    /// # Errors
    /// What the connection manager does not accept.
    pub fn head(
        &self,
        parts: &http::request::Parts,
        options: &RequestOptions,
        head: &mut RequestHead,
    ) -> Result<Framing, Fault> {
        let end = self.state.borrow().incoming.is_ended();
        let (framing, dropped) = convert::request_from(parts, self.fragment.as_deref(), end, options, head)?;
        self.wire.stats.dropped_headers_with_underscores.add(dropped as u64);
        Ok(framing)
    }

    /// The next piece of the request's body.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        let state = &mut *self.state.borrow_mut();
        let polled = state.incoming.poll(cx);
        if matches!(polled, Poll::Ready(Ok(Body::End))) && self.wire.take_pseudo_trailers(self.id) {
            // RFC 9113 section 8.1: the request is malformed.
            state.send_reset(Reason::PROTOCOL_ERROR);
            return Poll::Ready(Err(ReceiveError::Broken));
        }
        if matches!(polled, Poll::Ready(Err(ReceiveError::Refused | ReceiveError::Reset))) {
            state.reset = true;
        }
        polled
    }

    /// Trailers of the request's body, once it has ended.
    pub fn take_trailers(&self) -> Option<Headers> {
        let trailers = self.state.borrow_mut().incoming.take_trailers();
        if trailers.is_some() {
            self.wire.stats.trailers.inc();
        }
        trailers
    }

    /// Ready when the client reset the stream, or the connection failed.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.borrow_mut();
        let reset = match &mut state.outgoing {
            Some(outgoing) if outgoing.is_ended() => return Poll::Pending,
            Some(outgoing) => ready!(outgoing.poll_reset(cx)),
            None => ready!(state.respond.poll_reset(cx)),
        };
        state.reset |= reset.is_ok();
        Poll::Ready(())
    }

    /// Tells the client to go on with its body.
    pub fn send_continue(&self) {
        let mut response = http::Response::new(());
        *response.status_mut() = http::StatusCode::CONTINUE;
        // A stream that was reset takes nothing, here and below; whoever waits for it is told.
        let _ = self.state.borrow_mut().respond.send_informational(response);
    }

    /// Sends a final or informational response head. `end`: nothing follows.
    pub fn send_head(&self, head: &ResponseHead, framing: Framing, end: bool) {
        let response = convert::response_of(head, framing);
        let state = &mut *self.state.borrow_mut();
        if head.status < 200 && framing != Framing::Tunnel {
            let _ = state.respond.send_informational(response);
            return;
        }
        if let Ok(stream) = state.respond.send_response(response, end) {
            state.outgoing = Some(Outgoing::new(stream, end));
            if end {
                self.wire.ends(self.id);
            }
        }
    }

    /// Sends a piece of the response's body.
    pub fn send_data(&self, chunk: Chunk) {
        if let Some(outgoing) = &mut self.state.borrow_mut().outgoing {
            outgoing.send(chunk);
        }
    }

    /// Ends the response's body.
    pub fn finish(&self, trailers: Option<&Headers>) {
        if let Some(outgoing) = &mut self.state.borrow_mut().outgoing
            && !outgoing.is_ended()
        {
            outgoing.finish(trailers);
            self.wire.ends(self.id);
        }
    }

    /// Ready while there is room for more of the response's body.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state.borrow_mut().outgoing {
            Some(outgoing) => outgoing.poll_ready(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Whether the client reset the stream, as far as that was noticed.
    pub fn was_reset(&self) -> bool {
        self.state.borrow().reset
    }

    /// Whether the response has been sent to its end.
    pub fn is_complete(&self) -> bool {
        self.state.borrow().outgoing.as_ref().is_some_and(Outgoing::is_ended)
    }

    /// Whether the response has left to its end, or never will: the client reset the stream, or the connection failed.
    pub fn is_over(&self, cx: &mut Context<'_>) -> bool {
        if !self.wire.is_ending(self.id) {
            return true;
        }
        let outgoing = &mut self.state.borrow_mut().outgoing;
        outgoing.as_mut().is_none_or(|outgoing| outgoing.poll_reset(cx).is_ready())
    }

    /// The client does not take the rest of the response: gives it up.
    pub fn give_up(&self) {
        self.wire.stats.tx_flush_timeout.inc();
        self.reset(Reason::INTERNAL_ERROR);
    }

    /// Asks the connection to end when its streams have.
    pub fn drain(&self) {
        self.wire.drain();
    }

    /// Ends the stream without an answer, or in the middle of one.
    pub fn reset(&self, reason: Reason) {
        self.state.borrow_mut().send_reset(reason);
    }
}

impl State {
    fn send_reset(&mut self, reason: Reason) {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

impl Drop for ServerStream {
    fn drop(&mut self) {
        self.wire.leave(self.id);
        self.wire.stats.streams_active.dec();
    }
}
