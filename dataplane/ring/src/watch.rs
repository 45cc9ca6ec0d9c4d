//! Somebody who follows a stream's progress.

use std::os::fd::BorrowedFd;

/// How far a stream has come since its socket was handed to the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes that the kernel has taken.
    pub sent: u64,
    /// Bytes that are queued, those included that the kernel is being given.
    pub queued: usize,
}

/// Is called right after bytes have moved, on the way of every request: it must be quick, must not wait, and must not use
/// the runtime. It is dropped when the stream has ended, before its descriptor is closed.
pub trait Watch {
    /// Bytes were received.
    fn received(&mut self, socket: BorrowedFd<'_>, progress: Progress);

    /// The kernel has taken bytes.
    fn sent(&mut self, socket: BorrowedFd<'_>, progress: Progress);
}
