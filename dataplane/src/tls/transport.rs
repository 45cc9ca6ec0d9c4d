//! What every room above reads from and writes to: a socket, in the clear or not.

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    io,
    os::fd::BorrowedFd,
    task::{Context, Poll},
};

use culvert_ring::{Chunk, Lease, Stream};
use socket2::SockAddr;

use super::stream::Encrypted;

/// A connected stream. It has the methods of [`Stream`] and the same promises; in the clear it costs one branch more.
#[derive(Debug)]
pub enum Transport {
    /// In the clear.
    Plain(Stream),
    /// In the clear, with bytes that a listener filter has received already.
    Peeked(Box<Peeked>),
    /// Encrypted.
    Tls(Encrypted),
}

/// A stream whose first bytes were received before it was handed on.
pub struct Peeked {
    stream: Stream,
    leftover: Cell<Option<Lease>>,
}

impl Transport {
    /// A connection in the clear. `leftover` are bytes received already; they are read first.
    pub fn plain(stream: Stream, leftover: Option<Chunk>) -> Self {
        match leftover {
            Some(chunk) if !chunk.is_empty() => {
                let leftover = Cell::new(Some(lease_of(chunk)));
                Self::Peeked(Box::new(Peeked { stream, leftover }))
            }
            _ => Self::Plain(stream),
        }
    }

    /// Receives; see [`Stream::poll_read`].
    ///
    /// # Errors
    /// Those of recv(2), once and for all. Encrypted, an end without close_notify is one of kind `UnexpectedEof`.
    #[inline]
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        match self {
            Self::Plain(stream) => stream.poll_read(cx),
            Self::Peeked(peeked) => match peeked.leftover.take() {
                Some(lease) => Poll::Ready(Ok(lease)),
                None => peeked.stream.poll_read(cx),
            },
            Self::Tls(encrypted) => encrypted.poll_read(cx),
        }
    }

    /// Receives. A read that is given up loses nothing.
    ///
    /// # Errors
    /// Those of recv(2).
    pub async fn read(&self) -> io::Result<Lease> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Says that much is to come; see [`Stream::want_large`].
    pub fn want_large(&self, bulk: bool) {
        self.stream().want_large(bulk);
    }

    /// Queues a chunk; see [`Stream::send`].
    #[inline]
    pub fn send(&self, chunk: impl Into<Chunk>) {
        match self {
            Self::Plain(stream) => stream.send(chunk),
            Self::Peeked(peeked) => peeked.stream.send(chunk),
            Self::Tls(encrypted) => encrypted.send(chunk.into()),
        }
    }

    /// Appends to the queue; see [`Stream::write_with`].
    #[inline]
    pub fn write_with<R>(&self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        match self {
            Self::Plain(stream) => stream.write_with(write),
            Self::Peeked(peeked) => peeked.stream.write_with(write),
            Self::Tls(encrypted) => encrypted.write_with(write),
        }
    }

    /// Bytes queued that the kernel has not accepted yet.
    #[inline]
    pub fn queued(&self) -> usize {
        match self {
            Self::Plain(stream) => stream.queued(),
            Self::Peeked(peeked) => peeked.stream.queued(),
            Self::Tls(encrypted) => encrypted.queued(),
        }
    }

    /// Ready when no more than `at_most` bytes are queued.
    ///
    /// # Errors
    /// The error that ended sending; it stays.
    #[inline]
    pub fn poll_drained(&self, cx: &mut Context<'_>, at_most: usize) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_drained(cx, at_most),
            Self::Peeked(peeked) => peeked.stream.poll_drained(cx, at_most),
            Self::Tls(encrypted) => encrypted.poll_drained(cx, at_most),
        }
    }

    /// Waits, like [`Transport::poll_drained`].
    ///
    /// # Errors
    /// The error that ended sending.
    pub async fn drained(&self, at_most: usize) -> io::Result<()> {
        poll_fn(|cx| self.poll_drained(cx, at_most)).await
    }

    /// Closes the sending side behind everything queued. Later sends are dropped.
    pub fn shutdown_write(&self) {
        match self {
            Self::Plain(stream) => stream.shutdown_write(),
            Self::Peeked(peeked) => peeked.stream.shutdown_write(),
            Self::Tls(encrypted) => encrypted.shutdown_write(),
        }
    }

    /// Bytes the kernel has accepted for sending so far.
    pub fn bytes_sent(&self) -> u64 {
        self.stream().bytes_sent()
    }

    /// Puts an idle connection aside; see [`Stream::park`].
    pub fn park(&self, tag: u64) {
        match self {
            Self::Plain(stream) => stream.park(tag),
            Self::Peeked(peeked) => peeked.stream.park(tag),
            Self::Tls(encrypted) => encrypted.park(tag),
        }
    }

    /// Takes the connection back; see [`Stream::unpark`].
    pub fn unpark(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.unpark(),
            Self::Peeked(peeked) => peeked.stream.unpark(),
            Self::Tls(encrypted) => encrypted.unpark(),
        }
    }

    /// Whether something seems to have arrived; see [`Stream::has_arrived`].
    pub fn has_arrived(&self) -> bool {
        self.stream().has_arrived()
    }

    /// Closes the connection with a reset (RST); what is queued is lost.
    pub fn abort(self) {
        match self {
            Self::Plain(stream) => stream.abort(),
            Self::Peeked(peeked) => peeked.stream.abort(),
            Self::Tls(encrypted) => encrypted.abort(),
        }
    }

    /// Whether the handshake agreed on HTTP/2.
    pub fn agreed_on_http2(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Peeked(_) => false,
            Self::Tls(encrypted) => encrypted.with_common(|common| common.alpn_protocol() == Some(b"h2")),
        }
    }

    /// The peer's address. A system call each time.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        self.stream().peer_addr()
    }

    /// The own address. A system call each time.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SockAddr> {
        self.stream().local_addr()
    }

    /// The descriptor, for socket options and the like.
    ///
    /// # Panics
    /// When the runtime has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream().fd()
    }

    /// The socket and what was received of it already; `None` when the connection is encrypted.
    pub(super) fn into_plain(self) -> Option<(Stream, Option<Lease>)> {
        match self {
            Self::Plain(stream) => Some((stream, None)),
            Self::Peeked(peeked) => Some((peeked.stream, peeked.leftover.take())),
            Self::Tls(_) => None,
        }
    }

    #[inline]
    fn stream(&self) -> &Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Peeked(peeked) => &peeked.stream,
            Self::Tls(encrypted) => encrypted.stream(),
        }
    }
}

impl fmt::Debug for Peeked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peeked").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl From<Stream> for Transport {
    fn from(stream: Stream) -> Self {
        Self::Plain(stream)
    }
}

fn lease_of(chunk: Chunk) -> Lease {
    match chunk {
        Chunk::Lease(lease) => lease,
        Chunk::Vec(bytes) => bytes.into(),
        other => other.to_vec().into(),
    }
}
