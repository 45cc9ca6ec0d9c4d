//! What a stream sends.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use culvert_proto::h3::frame;
use culvert_quic::{SendStream, StreamError, VarInt};
use culvert_ring::Chunk;

use super::session::Session;

/// A stream's sending side. What cannot be sent at once waits here; the connection's task sends it as credit comes.
pub(super) struct Outgoing {
    shared: Rc<RefCell<State>>,
}

/// What the connection's task needs of it.
pub(super) struct State {
    stream: SendStream,
    queue: Vec<Bytes>,
    /// Nothing comes behind the queue.
    ended: bool,
    /// The end was said to the connection, or it failed.
    over: bool,
    failed: Option<StreamError>,
    /// In the list of the connection's task.
    listed: bool,
    waker: Option<Waker>,
}

/// Pieces up to this size are copied behind the head of their frame.
const COPIED: usize = 2 * 1024;

impl Outgoing {
    pub(super) fn new(stream: SendStream) -> Self {
        let state = State {
            stream,
            queue: Vec::new(),
            ended: false,
            over: false,
            failed: None,
            listed: false,
            waker: None,
        };
        Self { shared: Rc::new(RefCell::new(state)) }
    }

    /// Whether the end was handed over.
    pub(super) fn is_ended(&self) -> bool {
        self.shared.borrow().ended
    }

    /// Whether everything was taken by the connection, or never will be.
    pub(super) fn is_over(&self) -> bool {
        self.shared.borrow().over
    }

    /// Ready when nothing waits for credit.
    pub(super) fn poll_ready(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.shared.borrow_mut();
        if state.failed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends a frame of header fields.
    pub(super) fn headers(&self, session: &Session, section: &[u8]) {
        let mut bytes = Vec::with_capacity(section.len() + 8);
        frame::write_head(frame::HEADERS, section.len() as u64, &mut bytes);
        bytes.extend_from_slice(section);
        self.push(session, [bytes.into(), Bytes::new()]);
    }

    /// Sends a piece of a body.
    pub(super) fn data(&self, session: &Session, chunk: Chunk) {
        if chunk.is_empty() {
            return;
        }
        let mut head = Vec::with_capacity(16 + if chunk.len() <= COPIED { chunk.len() } else { 0 });
        frame::write_head(frame::DATA, chunk.len() as u64, &mut head);
        let rest = if chunk.len() <= COPIED {
            head.extend_from_slice(&chunk);
            Bytes::new()
        } else {
            match chunk {
                Chunk::Bytes(bytes) => bytes,
                Chunk::Lease(lease) => BytesMut::from(&*lease).freeze(),
                Chunk::Static(bytes) => Bytes::from_static(bytes),
                Chunk::Vec(bytes) => bytes.into(),
            }
        };
        self.push(session, [head.into(), rest]);
    }

    fn push(&self, session: &Session, pieces: [Bytes; 2]) {
        let state = &mut *self.shared.borrow_mut();
        if state.ended || state.failed.is_some() {
            return;
        }
        state.queue.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        self.flush(state, session);
    }

    /// Ends the stream behind what was sent.
    pub(super) fn finish(&self, session: &Session) {
        let state = &mut *self.shared.borrow_mut();
        if !std::mem::replace(&mut state.ended, true) {
            self.flush(state, session);
        }
    }

    /// Sends what there is credit for; the rest is left to the connection's task.
    fn flush(&self, state: &mut State, session: &Session) {
        if state.listed {
            return;
        }
        let cx = Context::from_waker(Waker::noop());
        if state.advance(&cx).is_pending() {
            state.listed = true;
            session.leave(&self.shared);
        }
    }

    /// Ready when the peer wants no more of it, or the connection is over. It tells how: whether it was the stream.
    pub(super) fn poll_stopped(&self, cx: &Context<'_>) -> Poll<bool> {
        self.shared.borrow_mut().stream.poll_delivered(cx).map(|outcome| outcome.is_ok())
    }

    /// Gives up what was not delivered.
    pub(super) fn reset(&self, code: VarInt) {
        let state = &mut *self.shared.borrow_mut();
        if !state.over {
            (state.ended, state.over) = (true, true);
            state.queue = Vec::new();
            state.stream.reset(code);
        }
    }
}

impl State {
    /// Sends what waits, as far as credit goes.
    pub(super) fn advance(&mut self, cx: &Context<'_>) -> Poll<()> {
        while !self.queue.is_empty() {
            match self.stream.poll_write(&mut self.queue, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(_)) => self.queue.retain(|piece| !piece.is_empty()),
                Poll::Ready(Err(error)) => {
                    self.queue = Vec::new();
                    (self.failed, self.over) = (Some(error), true);
                }
            }
        }
        if self.ended && !self.over {
            self.over = true;
            // Fails only when nobody wants it any more.
            self.failed = self.stream.finish().err();
        }
        self.listed = false;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Poll::Ready(())
    }
}
