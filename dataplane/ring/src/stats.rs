//! Counters of one runtime, read by its own thread.

use crate::context;

/// What the runtime of this thread has done since it was made. All fields but `slots` and `tasks` only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuntimeStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Calls that waited for or submitted I/O (`epoll_wait`, `io_uring_enter`).
    pub waits: u64,
    /// Events handled: completions, or readiness reports.
    pub completions: u64,
    /// Buffers received.
    pub recvs: u64,
    /// Bytes received.
    pub recv_bytes: u64,
    /// Send operations that finished.
    pub sends: u64,
    /// Bytes the kernel accepted.
    pub sent_bytes: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Datagrams received that were longer than a buffer, and were dropped.
    pub truncated: u64,
    /// Times a listener paused because descriptors ran out (EMFILE, ENFILE, ENOBUFS, ENOMEM).
    pub accept_backoffs: u64,
    /// Receives that found no buffer and had to wait.
    pub enobufs: u64,
    /// Receives that got memory of their own because no buffer came back in time.
    pub heap_recvs: u64,
    /// Sends and receives that the kernel ended without outcome, to be started anew after a pause.
    pub stalls: u64,
    /// Completions for a socket that was gone.
    pub stale: u64,
    /// Tasks that ended by a panic.
    pub task_panics: u64,
    /// Sockets open or closing now.
    pub slots: u64,
    /// Tasks alive now.
    pub tasks: u64,
}

/// The counters of the current thread's runtime; zeroes outside of one.
pub fn stats() -> RuntimeStats {
    context::try_with(crate::inner::Core::stats).unwrap_or_default()
}
