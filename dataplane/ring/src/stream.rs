//! A connected socket.

use std::{
    future::poll_fn,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    task::{Context, Poll},
};

use socket2::{SockAddr, SockRef};

use crate::{
    buf::{Chunk, Lease},
    context,
    io::{Key, Slot},
    watch::Watch,
};

/// A connected TCP or Unix stream socket of the current runtime.
///
/// Dropping it closes the connection; what is queued is still sent, for at most a second. All methods must be called
/// inside the runtime it was made in.
#[derive(Debug)]
pub struct Stream {
    key: Key,
    /// The slot belongs to the thread.
    _local: PhantomData<*const ()>,
}

impl Stream {
    /// Takes over a connected, non-blocking socket.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        Ok(Self::adopt(fd))
    }

    /// Connects `fd` to `addr`. Dropping the future gives up and closes the socket.
    ///
    /// # Errors
    /// Those of connect(2): refused, unreachable, timed out, no address left.
    pub async fn connect(fd: OwnedFd, addr: &SockAddr) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        let key = context::with(|core| core.io().connect(fd, addr))?;
        let stream = Self { key, _local: PhantomData };
        poll_fn(|cx| context::with(|core| core.io().poll_connected(key, cx))).await?;
        Ok(stream)
    }

    /// Receives; an empty lease is the end of the peer's stream. Nothing is received unless it is asked for, except for
    /// one buffer when a read was given up.
    ///
    /// # Errors
    /// Those of recv(2), once and for all.
    #[inline]
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        context::with(|core| core.io().poll_read(self.key, cx))
    }

    /// Receives, like [`Stream::poll_read`]. A read that is given up loses nothing.
    ///
    /// # Errors
    /// Those of recv(2).
    pub async fn read(&self) -> io::Result<Lease> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Says that much is to come, so that large buffers (256 KiB) are used from the next receive on. Without it the size adapts: a
    /// receive that fills a small buffer is followed by a large one.
    pub fn want_large(&self, bulk: bool) {
        context::with(|core| core.io().want_large(self.key, bulk));
    }

    /// Queues a chunk. All that is queued while a task runs leaves together; small chunks (2 KiB) behind others are
    /// copied, large ones are sent from where they are. After an error or [`Stream::shutdown_write`] it is dropped.
    #[inline]
    pub fn send(&self, chunk: impl Into<Chunk>) {
        let chunk = chunk.into();
        context::with(|core| core.io().send(self.key, chunk));
    }

    /// Appends to the queue by writing straight into its last buffer. What the buffer already holds must be left alone.
    pub fn write_with<R>(&self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut tail = context::with(|core| core.io().take_tail(self.key));
        // Outside of the borrow, as `write` may use the runtime.
        let result = write(&mut tail);
        context::with(|core| core.io().put_tail(self.key, tail));
        result
    }

    /// Bytes queued that the kernel has not accepted yet.
    #[inline]
    pub fn queued(&self) -> usize {
        context::with(|core| core.io().slot(self.key).map_or(0, Slot::queued))
    }

    /// Ready when no more than `at_most` bytes are queued.
    ///
    /// # Errors
    /// The error that ended sending; it stays.
    #[inline]
    pub fn poll_drained(&self, cx: &mut Context<'_>, at_most: usize) -> Poll<io::Result<()>> {
        context::with(|core| core.io().poll_drained(self.key, at_most, cx))
    }

    /// Waits, like [`Stream::poll_drained`].
    ///
    /// # Errors
    /// The error that ended sending.
    pub async fn drained(&self, at_most: usize) -> io::Result<()> {
        poll_fn(|cx| self.poll_drained(cx, at_most)).await
    }

    /// Closes the sending side (FIN) behind everything queued. Later sends are dropped.
    pub fn shutdown_write(&self) {
        context::with(|core| core.io().shutdown_write(self.key));
    }

    /// Bytes the kernel has accepted for sending so far.
    pub fn bytes_sent(&self) -> u64 {
        context::with(|core| core.io().slot(self.key).map_or(0, |it| it.sent))
    }

    /// Has `watch` follow the stream's progress, in place of who did before.
    pub fn watch(&self, watch: Box<dyn Watch>) {
        context::with(|core| core.io().watch(self.key, watch));
    }

    /// Puts an idle connection aside: when anything arrives (data, the end, an error), `tag` is reported by
    /// [`poll_parked_event`], once. No task needs to wait for it.
    pub fn park(&self, tag: u64) {
        context::with(|core| core.io().park(self.key, tag));
    }

    /// Takes the connection back. False when something has arrived meanwhile (or it was not parked): then it is no use
    /// for a new request. Its tag may still be in the queue of [`poll_parked_event`].
    pub fn unpark(&self) -> bool {
        context::with(|core| core.io().unpark(self.key))
    }

    /// Whether something seems to have arrived, or the connection to have ended, that was not received yet. A look at what is
    /// known already: no system call.
    pub fn has_arrived(&self) -> bool {
        context::with(|core| core.io().has_arrived(self.key))
    }

    /// Closes the connection with a reset (RST); what is queued is lost.
    pub fn abort(self) {
        let this = std::mem::ManuallyDrop::new(self);
        context::try_with(|core| core.io().abort(this.key));
    }

    /// Closes the connection like [`Stream::abort`]; every use of it fails from now on.
    pub fn reset(&self) {
        context::try_with(|core| core.io().abort(self.key));
    }

    /// The peer's address. A system call each time.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        SockRef::from(&self.fd()).peer_addr()
    }

    /// The own address. A system call each time.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SockAddr> {
        SockRef::from(&self.fd()).local_addr()
    }

    /// The descriptor, for socket options and the like.
    ///
    /// # Panics
    /// When the runtime has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        let raw = context::with(|core| {
            core.io().slot(self.key).and_then(|it| it.fd.as_ref()).map(AsRawFd::as_raw_fd)
        });
        let Some(raw) = raw else { panic!("the stream's runtime has ended") };
        // SAFETY: the slot keeps the descriptor open until the stream is dropped or aborted; a runtime that ends before its
        // streams leaves their descriptors open.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    pub(crate) fn adopt(fd: OwnedFd) -> Self {
        Self { key: context::with(|core| core.io().insert_stream(fd)), _local: PhantomData }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        context::try_with(|core| core.io().close(self.key));
    }
}

/// Ready with the tag of a parked stream on which something has arrived. One task of a runtime waits here.
pub fn poll_parked_event(cx: &mut Context<'_>) -> Poll<u64> {
    context::with(|core| core.io().poll_parked(cx))
}
