//! The body of a request: to its upstream, and kept as long as it may have to be sent again.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    time::Instant,
};

use culvert_proto::Headers;
use culvert_ring::{Chunk, time};

use crate::http::codec::{Body, ClientStream, ReceiveError, ServerStream};

/// Why a request's body did not reach its upstream.
pub(super) enum PumpError {
    /// The client's side.
    Downstream(ReceiveError),
    /// The upstream's side. Its response, if it sent one, is still to be read.
    Upstream,
}

/// When something last moved, for the stream idle timeout.
pub(in crate::http) struct Activity(Cell<Instant>);

impl Activity {
    pub(in crate::http) fn new() -> Self {
        Self(Cell::new(time::now()))
    }

    pub(in crate::http) fn touch(&self) {
        self.0.set(time::now());
    }

    pub(in crate::http) fn last(&self) -> Instant {
        self.0.get()
    }
}

/// How much of a body is sent at a time when it is sent again, in bytes.
const PIECE: usize = 64 * 1024;

/// What has been received of the body of a request, as long as it may be sent again.
pub(in crate::http) struct Kept {
    bytes: RefCell<Vec<u8>>,
    trailers: RefCell<Option<Headers>>,
    limit: Cell<usize>,
    /// Something was received that is not here.
    lost: Cell<bool>,
    /// It will not be sent again.
    stopped: Cell<bool>,
    /// The client has sent all of it.
    complete: Cell<bool>,
}

impl Kept {
    /// `empty`: there is no body.
    pub(super) fn new(empty: bool) -> Self {
        Self {
            bytes: RefCell::default(),
            trailers: RefCell::default(),
            limit: Cell::new(0),
            lost: Cell::new(false),
            stopped: Cell::new(false),
            complete: Cell::new(empty),
        }
    }

    /// All of it was received before.
    pub(super) fn whole(bytes: Vec<u8>, trailers: Option<Headers>) -> Self {
        Self { bytes: bytes.into(), trailers: trailers.into(), ..Self::new(true) }
    }

    /// Keeps up to so many bytes of it from now on, in memory from `memory`.
    pub(super) fn keep_up_to(&self, limit: usize, memory: impl FnOnce() -> Vec<u8>) {
        let mut bytes = self.bytes.borrow_mut();
        if bytes.capacity() == 0 {
            *bytes = memory();
        }
        self.limit.set(limit);
    }

    /// Keeps nothing more: the answer has begun, and there is no other attempt.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// What was kept, with the trailers.
    pub(super) fn into_parts(self) -> (Vec<u8>, Option<Headers>) {
        (self.bytes.into_inner(), self.trailers.into_inner())
    }

    /// Whether the client has sent all of it.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// Whether all that was received is here.
    pub(super) fn is_whole(&self) -> bool {
        !self.lost.get()
    }

    /// Takes what was received. False when it does not fit, and nothing is kept any more.
    fn take(&self, piece: &[u8]) -> bool {
        if self.lost.get() {
            return true;
        }
        if self.stopped.get() {
            self.lost.set(true);
            return true;
        }
        let mut bytes = self.bytes.borrow_mut();
        let fits = bytes.len() + piece.len() <= self.limit.get();
        if fits {
            bytes.extend_from_slice(piece);
        } else {
            *bytes = Vec::new();
            self.lost.set(true);
        }
        fits
    }

    /// Shows all that was received already.
    pub(super) fn replay(&self, piece: impl FnOnce(&[u8]), end: impl FnOnce(Option<&Headers>)) {
        let bytes = self.bytes.borrow();
        if !bytes.is_empty() {
            piece(&bytes);
        }
        if self.complete.get() {
            end(self.trailers.borrow().as_ref());
        }
    }

    /// What is to be sent behind the first `sent` bytes.
    fn piece(&self, sent: usize) -> Option<Chunk> {
        let bytes = self.bytes.borrow();
        let rest = bytes.get(sent..).filter(|rest| !rest.is_empty())?;
        Some(Chunk::Vec(rest[..rest.len().min(PIECE)].to_vec()))
    }
}

/// Where the body of a request goes in one attempt.
pub(super) struct Pump<'p> {
    pub(super) server: ServerStream<'p>,
    pub(super) client: &'p ClientStream,
    /// Whether trailers are passed on.
    pub(super) trailers: bool,
    pub(super) kept: &'p Kept,
    pub(super) received: &'p Cell<u64>,
    pub(super) activity: &'p Activity,
    /// Is called when the body turns out to be too large to be kept.
    pub(super) overflow: &'p dyn Fn(),
    /// Is called with what is received.
    pub(super) piece: &'p dyn Fn(&[u8]),
    /// Is called when all was received, with the trailers.
    pub(super) end: &'p dyn Fn(Option<&Headers>),
}

impl Pump<'_> {
    /// Sends the whole body: first what is kept of it, then what the client sends. The upstream's pace is the client's:
    /// nothing is read while too much waits to be sent.
    pub(super) async fn run(&self) -> Result<(), PumpError> {
        let Self { server, client, kept, .. } = *self;
        let mut sent = 0;
        loop {
            poll_fn(|cx| client.poll_ready(cx)).await.map_err(|_| PumpError::Upstream)?;
            if let Some(piece) = kept.piece(sent) {
                sent += piece.len();
                client.send_data(piece);
                continue;
            }
            if !kept.is_complete() {
                match poll_fn(|cx| server.poll_body(cx)).await {
                    Ok(Body::Data(chunk)) => {
                        self.received.set(self.received.get() + chunk.len() as u64);
                        self.activity.touch();
                        (self.piece)(&chunk);
                        if !kept.take(&chunk) {
                            (self.overflow)();
                        }
                        sent += chunk.len();
                        client.send_data(chunk);
                        continue;
                    }
                    Ok(Body::End) => {
                        *kept.trailers.borrow_mut() = server.take_trailers();
                        kept.complete.set(true);
                        (self.end)(kept.trailers.borrow().as_ref());
                    }
                    Err(error) => return Err(PumpError::Downstream(error)),
                }
            }
            client.finish(kept.trailers.borrow().as_ref().filter(|_| self.trailers));
            return Ok(());
        }
    }
}
