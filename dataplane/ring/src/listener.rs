//! A listening socket.

use std::{
    future::poll_fn,
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd},
    task::{Context, Poll},
};

use socket2::SockRef;

use crate::{Stream, context, io::Key, net};

/// A listening TCP or Unix socket of the current runtime. Dropping it stops accepting and closes it.
///
/// When descriptors or memory run out, accepting pauses for a moment and goes on by itself; see
/// [`crate::RuntimeStats::accept_backoffs`].
#[derive(Debug)]
pub struct Listener {
    key: Key,
    _local: PhantomData<*const ()>,
}

impl Listener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        Ok(Self { key: context::with(|core| core.io().insert_listener(fd)), _local: PhantomData })
    }

    /// The next connection.
    ///
    /// # Errors
    /// Only when the descriptor is not a listening socket.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let accepted = context::with(|core| core.io().poll_accept(self.key, cx));
        accepted.map_ok(Stream::adopt)
    }

    /// The next connection as a descriptor, for instance to hand it to another worker.
    ///
    /// # Errors
    /// Those of [`Listener::poll_accept`].
    pub fn poll_accept_fd(&self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        context::with(|core| core.io().poll_accept(self.key, cx))
    }

    /// Takes no new connections any more; those that wait can still be accepted. A client that comes now is told nothing,
    /// and asks again after a second.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn refuse_new(&self) -> io::Result<()> {
        context::with(|core| match core.io().slot(self.key).and_then(|slot| slot.fd.as_ref()) {
            Some(fd) => net::drop_packets(fd.as_fd()),
            None => Ok(()),
        })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// Those of [`Listener::poll_accept`].
    pub async fn accept(&self) -> io::Result<Stream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        context::try_with(|core| core.io().close(self.key));
    }
}
