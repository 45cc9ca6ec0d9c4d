//! An encrypted connection: a socket and the state of its session.

use std::{
    cell::RefCell,
    fmt, io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use culvert_ring::{Chunk, Lease, Stream, task};

use super::session::{Outgoing, RECORD_MAX, Session};

/// A TLS connection after its handshake. See [`super::Transport`] for what its methods promise.
///
/// What is written while a task runs is encrypted together when the task returns, so that a head and a small body are
/// one record. An idle connection owns no buffer.
pub struct Encrypted(Rc<Inner>);

struct Inner {
    stream: Stream,
    state: RefCell<State>,
}

struct State {
    session: Session,
    /// Written and not yet encrypted.
    pending: Vec<u8>,
    /// Decrypted and not yet read.
    received: Vec<u8>,
    /// Whether the end of the running task encrypts what is pending.
    scheduled: bool,
    shut: bool,
    failed: Option<Failure>,
}

#[derive(Clone, Copy)]
enum Failure {
    /// The connection ended without close_notify: what was received may be cut short.
    Truncated,
    /// The peer broke the protocol.
    Protocol,
}

/// Chunks up to this size are put together with what is pending.
const COPY_MAX: usize = 4 * 1024;

/// A first guess of what a task writes.
const PENDING_CAPACITY: usize = 1024;

impl Encrypted {
    /// A connection whose handshake is done; `received` is what already came after it.
    pub(super) fn new(stream: Stream, session: Session, received: Vec<u8>) -> Self {
        let state =
            State { session, pending: Vec::new(), received, scheduled: false, shut: false, failed: None };
        Self(Rc::new(Inner { stream, state: RefCell::new(state) }))
    }

    /// Looks at what rustls knows of the connection.
    pub(super) fn with_common<R>(&self, look: impl FnOnce(&rustls::CommonState) -> R) -> R {
        look(self.0.state.borrow().session.common())
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        self.0.flush();
        let mut state = self.0.state.borrow_mut();
        loop {
            if !state.received.is_empty() {
                return Poll::Ready(Ok(std::mem::take(&mut state.received).into()));
            }
            if let Some(failure) = state.failed {
                return Poll::Ready(Err(failure.into()));
            }
            if state.session.peer_closed() {
                return Poll::Ready(Ok(Lease::default()));
            }
            let lease = ready!(self.0.stream.poll_read(cx))?;
            if lease.is_empty() {
                state.failed = Some(Failure::Truncated);
                continue;
            }
            state.session.feed(&lease);
            drop(lease);
            self.0.advance(&mut state, Outgoing::Nothing);
        }
    }

    pub(super) fn send(&self, chunk: Chunk) {
        let mut state = self.0.state.borrow_mut();
        if state.is_closed() || chunk.is_empty() {
            return;
        }
        if chunk.len() > COPY_MAX || state.pending.len() + chunk.len() > RECORD_MAX {
            self.0.encrypt_pending(&mut state);
            self.0.advance(&mut state, Outgoing::Data(&chunk));
            return;
        }
        state.make_room();
        state.pending.extend_from_slice(&chunk);
        self.0.schedule(&mut state);
    }

    pub(super) fn write_with<R>(&self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut pending = {
            let mut state = self.0.state.borrow_mut();
            state.make_room();
            std::mem::take(&mut state.pending)
        };
        // Outside of the borrow, as `write` may use the connection's runtime.
        let result = write(&mut pending);
        let mut state = self.0.state.borrow_mut();
        if !state.is_closed() && !pending.is_empty() {
            state.pending = pending;
            if state.pending.len() >= RECORD_MAX {
                self.0.encrypt_pending(&mut state);
            } else {
                self.0.schedule(&mut state);
            }
        }
        result
    }

    pub(super) fn queued(&self) -> usize {
        self.0.state.borrow().pending.len() + self.0.stream.queued()
    }

    pub(super) fn poll_drained(&self, cx: &mut Context<'_>, at_most: usize) -> Poll<io::Result<()>> {
        self.0.flush();
        if let Some(failure @ Failure::Protocol) = self.0.state.borrow().failed {
            return Poll::Ready(Err(failure.into()));
        }
        self.0.stream.poll_drained(cx, at_most)
    }

    pub(super) fn shutdown_write(&self) {
        self.0.close_notify();
        self.0.stream.shutdown_write();
    }

    pub(super) fn park(&self, tag: u64) {
        self.0.flush();
        self.0.stream.park(tag);
    }

    pub(super) fn unpark(&self) -> bool {
        let quiet = self.0.stream.unpark();
        let state = self.0.state.borrow();
        quiet && state.received.is_empty() && state.failed.is_none() && !state.session.peer_closed()
    }

    pub(super) fn abort(self) {
        self.0.state.borrow_mut().shut = true;
        self.0.stream.reset();
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.0.stream
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        if culvert_ring::is_inside() {
            self.0.close_notify();
        }
    }
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").field("stream", &self.0.stream).finish_non_exhaustive()
    }
}

impl Inner {
    fn schedule(self: &Rc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.scheduled, true) {
            task::after_poll(self.clone());
        }
    }

    fn flush(&self) {
        let mut state = self.state.borrow_mut();
        if !state.pending.is_empty() {
            self.encrypt_pending(&mut state);
        }
    }

    fn encrypt_pending(&self, state: &mut State) {
        let pending = std::mem::take(&mut state.pending);
        if !pending.is_empty() && !state.is_closed() {
            self.advance(state, Outgoing::Data(&pending));
        }
    }

    fn close_notify(&self) {
        let mut state = self.state.borrow_mut();
        self.encrypt_pending(&mut state);
        if !state.is_closed() {
            self.advance(&mut state, Outgoing::CloseNotify);
            state.shut = true;
        }
    }

    /// A small record goes behind what is queued, a large one into memory of its own.
    fn advance(&self, state: &mut State, outgoing: Outgoing<'_>) {
        let State { session, received, .. } = state;
        let outcome = match outgoing {
            Outgoing::Data(data) if data.len() > COPY_MAX => {
                let mut wire = Vec::new();
                let outcome = session.advance(outgoing, received, &mut wire);
                self.stream.send(wire);
                outcome
            }
            _ => self.stream.write_with(|wire| session.advance(outgoing, received, wire)),
        };
        if let Err(error) = outcome {
            log::debug!(target: "tls", "{error}");
            state.failed = Some(Failure::Protocol);
        }
    }
}

impl task::AfterPoll for Inner {
    fn after_poll(&self) {
        let mut state = self.state.borrow_mut();
        state.scheduled = false;
        self.encrypt_pending(&mut state);
    }
}

impl State {
    fn make_room(&mut self) {
        if self.pending.capacity() == 0 {
            self.pending.reserve(PENDING_CAPACITY);
        }
    }

    /// Whether nothing can be sent any more.
    fn is_closed(&self) -> bool {
        self.shut || matches!(self.failed, Some(Failure::Protocol))
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Truncated => {
                Self::new(io::ErrorKind::UnexpectedEof, "the connection ended without close_notify")
            }
            Failure::Protocol => Self::new(io::ErrorKind::InvalidData, "the peer broke the TLS protocol"),
        }
    }
}
