//! What a runtime is made of: the driver and the sizes of its queues and buffers.

use std::fmt;

/// Which driver the operator asked for (`--io`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where the kernel grants it, epoll elsewhere.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll, without trying io_uring.
    Epoll,
}

/// The driver that moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// Readiness: edge-triggered epoll and non-blocking calls.
    Epoll,
    /// Completions: one io_uring per worker.
    Uring,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        })
    }
}

/// The receive buffers of one worker. Memory is reserved, and resident only once a buffer has been used.
#[derive(Clone, Copy, Debug)]
pub struct BufferConfig {
    /// Bytes in a small buffer, which holds a request or response head and a small body.
    pub small_size: u32,
    /// Number of small buffers (1 to 32768).
    pub small_count: u16,
    /// Bytes in a large buffer, used for bulk bodies.
    pub large_size: u32,
    /// Number of large buffers (1 to 32768).
    pub large_count: u16,
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self { small_size: 8192, small_count: 512, large_size: 256 * 1024, large_count: 64 }
    }
}

/// How one worker's runtime is built.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeConfig {
    /// The driver, normally the one [`crate::probe`] chose.
    pub driver: DriverKind,
    /// Submission queue entries (io_uring only); the completion queue is four times as long.
    pub sq_entries: u32,
    /// Receive buffers.
    pub buffers: BufferConfig,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { driver: DriverKind::Epoll, sq_entries: 512, buffers: BufferConfig::default() }
    }
}
