//! The receiving half of a connection, the same for both roles.

use std::{
    cell::RefCell,
    task::{Context, Poll, ready},
};

use culvert_proto::{
    Headers,
    h1::{BodyDecoder, BodyLimits, Fault, Framing, Step},
};
use culvert_ring::{Chunk, heap::Reused};

use crate::{
    http::codec::{Body, ReceiveError, h1::input::Input},
    observe::stats::Counter,
    tls::Transport,
};

/// What has been received and how far it has been understood.
pub(super) struct Receiver {
    state: RefCell<State>,
}

struct State {
    input: Input,
    /// Prefix of `input` in which no head ends; scanning starts behind it.
    scanned: usize,
    decoder: Option<Reused<BodyDecoder>>,
    /// The peer sent FIN.
    closed: bool,
}

/// Why reading ahead stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Watched {
    /// The connection failed: nobody is there any more.
    Failed,
}

impl Receiver {
    pub(super) fn new() -> Self {
        let state = State { input: Input::default(), scanned: 0, decoder: None, closed: false };
        Self { state: RefCell::new(state) }
    }

    /// Whether received bytes wait to be parsed.
    pub(super) fn has_input(&self) -> bool {
        !self.state.borrow().input.is_empty()
    }

    /// Whether the peer sent FIN.
    pub(super) fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Receives until it is clear whether the bytes begin with `prefix`. They stay to be parsed.
    pub(super) fn poll_prefix(
        &self,
        stream: &Transport,
        received: &Counter,
        prefix: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        loop {
            {
                let state = self.state.borrow();
                let bytes = state.input.bytes();
                let seen = bytes.len().min(prefix.len());
                if bytes[..seen] != prefix[..seen] || seen == prefix.len() || state.closed {
                    return Poll::Ready(bytes.starts_with(prefix));
                }
            }
            if ready!(self.poll_fill(stream, received, cx)).is_err() {
                return Poll::Ready(false);
            }
        }
    }

    /// Receives until `parse` finds a head in the bytes so far. `parse` returns the length of the head and what it
    /// makes of it.
    pub(super) fn poll_head<T>(
        &self,
        stream: &Transport,
        received: &Counter,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(usize, T)>, Fault>,
    ) -> Poll<Result<T, ReceiveError>> {
        loop {
            let mut state = self.state.borrow_mut();
            if state.worth_parsing() {
                if let Some((length, found)) = parse(state.input.bytes())? {
                    state.input.advance(length);
                    state.scanned = 0;
                    return Poll::Ready(Ok(found));
                }
                state.scanned = state.input.bytes().len();
            }
            if state.closed {
                let error =
                    if state.input.is_empty() { ReceiveError::Closed } else { ReceiveError::Truncated };
                return Poll::Ready(Err(error));
            }
            drop(state);
            ready!(self.poll_fill(stream, received, cx)).map_err(ReceiveError::Io)?;
        }
    }

    /// Receives once, whatever it is. True when there is something to parse or the peer closed.
    pub(super) fn poll_fill(
        &self,
        stream: &Transport,
        received: &Counter,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let lease = ready!(stream.poll_read(cx))?;
        let mut state = self.state.borrow_mut();
        if lease.is_empty() {
            state.closed = true;
        } else {
            received.add(lease.len() as u64);
            state.input.push(lease);
        }
        Poll::Ready(Ok(()))
    }

    /// Starts the body of the head just parsed.
    pub(super) fn start_body(&self, framing: Framing) {
        let decoder =
            (!framing.is_empty()).then(|| Reused::new(BodyDecoder::new(framing, BodyLimits::default())));
        self.state.borrow_mut().decoder = decoder;
    }

    /// The next piece of the body.
    pub(super) fn poll_body(
        &self,
        stream: &Transport,
        received: &Counter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Body, ReceiveError>> {
        loop {
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            let Some(decoder) = state.decoder.as_mut() else { return Poll::Ready(Ok(Body::End)) };
            match decoder.decode(state.input.bytes())? {
                Step::Data { skip, len } => {
                    state.input.advance(skip);
                    return Poll::Ready(Ok(Body::Data(state.input.take(len))));
                }
                Step::Done { skip } => {
                    state.input.advance(skip);
                    return Poll::Ready(Ok(Body::End));
                }
                Step::More { skip } => state.input.advance(skip),
            }
            if state.closed {
                return Poll::Ready(match decoder.finish() {
                    Ok(()) => Ok(Body::End),
                    Err(_) => Err(ReceiveError::Truncated),
                });
            }
            drop(guard);
            ready!(self.poll_fill(stream, received, cx)).map_err(ReceiveError::Io)?;
        }
    }

    /// Trailers of the body that just ended.
    pub(super) fn take_trailers(&self) -> Option<Headers> {
        let mut state = self.state.borrow_mut();
        let mut decoder = state.decoder.take()?;
        (!decoder.trailers().is_empty()).then(|| std::mem::take(decoder.trailers_mut()))
    }

    /// Reads ahead while a response is awaited, to notice a client that is gone. Holds at most one buffer: whoever
    /// pipelines more is held back. A FIN is not an end: the client may have half-closed and still wait.
    pub(super) fn poll_watch(
        &self,
        stream: &Transport,
        received: &Counter,
        cx: &mut Context<'_>,
    ) -> Poll<Watched> {
        loop {
            {
                let state = self.state.borrow();
                if state.closed || !state.input.is_empty() {
                    return Poll::Pending;
                }
            }
            match ready!(self.poll_fill(stream, received, cx)) {
                Ok(()) => {}
                Err(_) => return Poll::Ready(Watched::Failed),
            }
        }
    }

    /// Everything received and not consumed, when the connection becomes a tunnel.
    pub(super) fn take_input(&self) -> Option<Chunk> {
        let mut state = self.state.borrow_mut();
        let len = state.input.bytes().len();
        (len > 0).then(|| state.input.take(len))
    }
}

impl State {
    /// Whether parsing can tell more than last time: bytes came, and they end a line block, or so many came that a
    /// limit may be passed. Keeps a head that arrives byte by byte from being parsed for every byte.
    fn worth_parsing(&self) -> bool {
        let bytes = self.input.bytes();
        if self.scanned == 0 || bytes.len() >= self.scanned * 2 {
            return !bytes.is_empty();
        }
        let from = self.scanned.saturating_sub(3);
        bytes.len() > self.scanned && bytes[from..].windows(2).any(|pair| pair == b"\n\r" || pair == b"\n\n")
    }
}
