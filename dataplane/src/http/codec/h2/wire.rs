//! A connection's bytes as the codec reads and writes them.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use culvert_model::Http2Options;
use culvert_proto::h2::{FrameGuard, FrameKind, FrameLimits, FrameScanner, Violation};
use culvert_ring::{Chunk, Lease, time};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    observe::stats::{Http2Stats, HttpStats},
    tls::Transport,
    upstream::Cluster,
};

/// A transport, and what is known of the frames that pass.
pub struct Wire {
    transport: Transport,
    owner: Owner,
    /// Counters of the frames.
    pub stats: Arc<Http2Stats>,
    /// Received and not yet read by the codec.
    received: RefCell<Lease>,
    guard: RefCell<FrameGuard>,
    sent: RefCell<FrameScanner>,
    /// How many bytes the kernel has taken in all once what was queued a while ago has left.
    read_by_then: Cell<u64>,
    /// How much may wait to be sent before the codec is held back, in bytes.
    queue_max: usize,
    /// Whether an invalid message ends the connection.
    strict: bool,
    misconduct: Cell<Option<Misconduct>>,
    /// The peer has said what it takes (SETTINGS).
    settled: Cell<bool>,
    /// The peer said that it goes away.
    going: Cell<bool>,
    /// The peer closed, or the connection failed.
    closed: Cell<bool>,
    /// Streams whose end waits to be sent.
    ending: RefCell<Vec<u32>>,
    /// The connection should be drained.
    drain: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// When something was received last.
    heard: Cell<Instant>,
    /// A stream was opened after a long silence.
    doubted: Cell<bool>,
}

/// Whose connection it is.
pub enum Owner {
    /// An upstream's.
    Client(Rc<Cluster>),
    /// A client's.
    Server(Arc<HttpStats>),
}

/// What ends a connection that the codec would go on with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Misconduct {
    /// A limit was passed, or a block of header fields cannot be read.
    Frames(Violation),
    /// The codec refused a message as invalid.
    InvalidMessage,
}

/// How much of a connection may wait for the peer at most, in bytes.
const QUEUE_MAX: usize = 256 * 1024;

/// Pieces of this size go out as they are, smaller ones behind what is queued.
const OWN_CHUNK: usize = 4 * 1024;

impl Wire {
    /// Takes a stream over. `header_bytes`: the longest head that the peer may send.
    pub fn new(
        transport: Transport,
        owner: Owner,
        stats: Arc<Http2Stats>,
        options: &Http2Options,
        buffer_limit_bytes: usize,
        header_bytes: usize,
    ) -> Rc<Self> {
        let limits = FrameLimits {
            empty_frames: options.max_empty_frames,
            priority_frames_per_stream: options.max_priority_frames_per_stream,
            window_updates_per_data_frame: options.max_window_updates_per_data_frame,
            control_frames: options.max_outbound_control_frames,
            header_block_bytes: header_bytes * 2 + 16 * 1024,
            continuations: continuations(header_bytes),
        };
        let is_server = matches!(owner, Owner::Server(_));
        let mut guard = FrameGuard::new(limits, is_server);
        if is_server {
            guard = guard.with_heads(options.hpack_table_size);
        }
        Rc::new(Self {
            transport,
            owner,
            stats,
            received: RefCell::default(),
            guard: RefCell::new(guard),
            sent: RefCell::new(FrameScanner::new(!is_server)),
            read_by_then: Cell::new(0),
            queue_max: buffer_limit_bytes.min(QUEUE_MAX),
            strict: !options.stream_error_on_invalid,
            misconduct: Cell::new(None),
            settled: Cell::new(false),
            going: Cell::new(false),
            closed: Cell::new(false),
            ending: RefCell::default(),
            drain: Cell::new(false),
            waker: RefCell::default(),
            heard: Cell::new(time::now()),
            doubted: Cell::new(false),
        })
    }

    /// Has the peer asked whether it is there, if nothing came from it for longer than `idle`.
    pub(super) fn doubt(&self, idle: Duration) {
        if time::now().saturating_duration_since(self.heard.get()) > idle {
            self.doubted.set(true);
        }
    }

    /// Whether the peer is to be asked; that is told once.
    pub(super) fn take_doubt(&self) -> bool {
        self.doubted.replace(false)
    }

    /// This end of it, if it is an internet address. A system call.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.transport.local_addr().ok()?.as_socket()
    }

    /// Whether the peer has said what it takes.
    pub fn is_settled(&self) -> bool {
        self.settled.get()
    }

    /// Whether the peer said that it goes away.
    pub fn is_going(&self) -> bool {
        self.going.get()
    }

    /// Asks the connection's task to let the connection end when its streams have.
    pub fn drain(&self) {
        if !self.drain.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Whether [`Wire::drain`] was called; the task that asks is woken by a later call.
    pub fn is_draining(&self, cx: &mut Context<'_>) -> bool {
        if !self.drain.get() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        self.drain.get()
    }

    /// Whether something seems to have come that the codec has not seen.
    pub fn has_arrived(&self) -> bool {
        self.transport.has_arrived()
    }

    /// Whether the peer closed, or the connection failed.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether [`Wire::drain`] was called.
    pub fn wants_drain(&self) -> bool {
        self.drain.get()
    }

    /// The end of a stream was handed to the codec.
    pub(super) fn ends(&self, stream: u32) {
        self.ending.borrow_mut().push(stream);
    }

    /// Whether the end of a stream, which was handed to the codec, is still there.
    pub(super) fn is_ending(&self, stream: u32) -> bool {
        self.ending.borrow().contains(&stream)
    }

    /// The stream is over, sent or not.
    pub(super) fn forget(&self, stream: u32) {
        self.ending.borrow_mut().retain(|ending| *ending != stream);
    }

    /// Nobody asks for anything of a request any more that was accepted.
    pub(super) fn leave(&self, stream: u32) {
        self.forget(stream);
        self.guard.borrow_mut().forget(stream);
    }

    /// The request that opened `stream` was accepted: what the codec cut off its path, the part behind a `#`. To be called
    /// in the order of the requests.
    pub(super) fn accept(&self, stream: u32) -> Option<Box<[u8]>> {
        self.guard.borrow_mut().accept(stream)
    }

    /// Whether the codec dropped pseudo-header fields from the trailers of a request. That is told once.
    pub(super) fn take_pseudo_trailers(&self, stream: u32) -> bool {
        self.guard.borrow_mut().take_pseudo_trailers(stream)
    }

    /// Takes bytes that were received before the codec was there. They have been counted.
    pub fn received(&self, bytes: Chunk) {
        let lease = match bytes {
            Chunk::Lease(lease) => lease,
            other => other.to_vec().into(),
        };
        self.take(lease);
    }

    pub(super) fn take_misconduct(&self) -> Option<Misconduct> {
        self.misconduct.take()
    }

    /// Counts what ended the connection.
    pub(super) fn count(&self, misconduct: Misconduct) {
        let stats = &self.stats;
        match misconduct {
            Misconduct::Frames(Violation::ControlFrames) => stats.outbound_control_flood.inc(),
            Misconduct::Frames(Violation::EmptyFrames) => stats.inbound_empty_frames_flood.inc(),
            Misconduct::Frames(Violation::HeaderBlock) => stats.header_overflow.inc(),
            Misconduct::Frames(Violation::PriorityFrames) => stats.inbound_priority_frames_flood.inc(),
            Misconduct::Frames(Violation::WindowUpdates) => stats.inbound_window_update_frames_flood.inc(),
            // Envoy has no counters for them but that of the connection.
            Misconduct::Frames(Violation::HeaderCompression | Violation::HeaderFrames) => {}
            Misconduct::InvalidMessage => stats.rx_messaging_error.inc(),
        }
    }

    /// Receives and drops. The number of bytes; `None` when the peer closed or the connection failed.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        self.transport
            .poll_read(cx)
            .map(|read| read.ok().filter(|lease| !lease.is_empty()).map(|lease| lease.len()))
    }

    /// Ready when the kernel has taken everything.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.poll_drained(cx, 0)
    }

    /// Bytes the kernel has not taken yet.
    pub fn queued(&self) -> usize {
        self.transport.queued()
    }

    /// Sends FIN once everything written has left.
    pub fn shutdown(&self) {
        self.transport.shutdown_write();
    }

    fn count_received(&self, bytes: usize) {
        match &self.owner {
            Owner::Client(cluster) => cluster.stats.upstream_cx_rx_bytes_total.add(bytes as u64),
            Owner::Server(stats) => stats.downstream_cx_rx_bytes_total.add(bytes as u64),
        }
    }

    /// Keeps for the codec what it may see of `lease`.
    fn take(&self, mut lease: Lease) {
        self.heard.set(time::now());
        if let Err((good, violation)) = self.look(&lease) {
            self.misconduct.set(Some(Misconduct::Frames(violation)));
            lease.truncate(good);
        }
        *self.received.borrow_mut() = lease;
    }

    fn look(&self, lease: &Lease) -> Result<(), (usize, Violation)> {
        let mut guard = self.guard.borrow_mut();
        // All that had been written when this was looked at last has left since: the peer reads.
        let left = self.transport.bytes_sent();
        if left >= self.read_by_then.get() {
            guard.drained();
            self.read_by_then.set(left + self.transport.queued() as u64);
        }
        guard.receive(lease, |header| match header.kind {
            FrameKind::GoAway => self.going.set(true),
            FrameKind::Settings if !header.is_ack() => self.settled.set(true),
            FrameKind::ResetStream => self.stats.rx_reset.inc(),
            _ => {}
        })
    }

    fn sent(&self, bytes: &[u8]) {
        match &self.owner {
            Owner::Client(cluster) => cluster.stats.upstream_cx_tx_bytes_total.add(bytes.len() as u64),
            Owner::Server(stats) => stats.downstream_cx_tx_bytes_total.add(bytes.len() as u64),
        }
        let mut rest = bytes;
        let mut scanner = self.sent.borrow_mut();
        while let Some(header) = scanner.next(&mut rest) {
            if header.ends_stream() || header.kind == FrameKind::ResetStream {
                self.forget(header.stream);
            }
            match header.kind {
                FrameKind::Data => self.guard.borrow_mut().sent_data(),
                FrameKind::Headers if matches!(self.owner, Owner::Client(_)) => {
                    self.guard.borrow_mut().sent_headers();
                }
                FrameKind::GoAway => self.stats.goaway_sent.inc(),
                FrameKind::ResetStream => {
                    self.stats.tx_reset.inc();
                    // Nothing else is said with this of a stream: an invalid message.
                    let invalid = rest.starts_with(&u32::from(h2::Reason::PROTOCOL_ERROR).to_be_bytes());
                    if invalid && self.strict {
                        self.misconduct.set(Some(Misconduct::InvalidMessage));
                    } else if invalid {
                        self.stats.rx_messaging_error.inc();
                    }
                }
                _ => {}
            }
        }
    }
}

/// CONTINUATION frames that a head of that many bytes may come in, with a quarter to spare: as the codec has it.
fn continuations(header_bytes: usize) -> u32 {
    let needed = u32::try_from(header_bytes / 16_384).unwrap_or(u32::MAX).max(1);
    needed.saturating_add(needed / 4).max(5)
}

/// What the codec reads from and writes to.
pub(super) struct Io(pub(super) Rc<Wire>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &*self.0;
        while wire.received.borrow().is_empty() {
            // Whoever misbehaves is not read from any more; the connection's task sees it as soon as the codec waits.
            if wire.misconduct.get().is_some() {
                return Poll::Pending;
            }
            let read = ready!(wire.transport.poll_read(cx));
            wire.closed.set(read.as_ref().map_or(true, |lease| lease.is_empty()));
            let lease = read?;
            if lease.is_empty() {
                return Poll::Ready(Ok(()));
            }
            wire.count_received(lease.len());
            wire.take(lease);
        }
        let mut received = wire.received.borrow_mut();
        let taken = received.len().min(buf.remaining());
        buf.put_slice(&received[..taken]);
        received.advance(taken);
        if received.is_empty() {
            *received = Lease::default();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &*self.0;
        ready!(wire.transport.poll_drained(cx, wire.queue_max))?;
        wire.sent(bytes);
        if bytes.len() >= OWN_CHUNK {
            wire.transport.send(Chunk::Vec(bytes.to_vec()));
        } else {
            wire.transport.write_with(|out| out.extend_from_slice(bytes));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is queued leaves at the end of the turn; how much may be queued is for `poll_write` to say.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.transport.shutdown_write();
        self.0.transport.poll_drained(cx, 0)
    }
}
