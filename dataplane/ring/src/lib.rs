//! The machine room of a worker: I/O drivers, receive buffers, sockets, timers and the executor that runs on them.
//!
//! One [`Runtime`] belongs to one thread and nothing in it is shared. Its loop has one shape for both drivers: run the
//! tasks that are ready, send what they queued, wait once for the kernel, take in what happened.
//!
//! - [`probe`] decides between io_uring and epoll.
//! - [`Listener`] and [`Stream`] are sockets. Receiving is on demand and yields [`Lease`]s on shared buffers; sending
//!   queues [`Chunk`]s.
//! - [`UdpSocket`] is one for datagrams, in trains of which one call moves many.
//! - [`task`], [`time`] and [`mailbox`] are what a task needs besides.
//! - [`net`] makes sockets and sets their options.
//! - [`heap`] gives memory back.
//!
//! This crate is the only place of the request path with `unsafe` code.

mod buf;
mod config;
mod context;
mod driver;
pub mod heap;
mod inner;
mod io;
mod listener;
pub mod mailbox;
pub mod net;
mod probe;
mod runtime;
pub mod sched;
mod stats;
mod stream;
pub mod task;
pub mod time;
mod udp;
mod wake;
mod watch;

pub use buf::{Chunk, Lease};
pub use config::{BufferConfig, DriverKind, IoChoice, RuntimeConfig};
pub use context::is_inside;
pub use listener::Listener;
pub use probe::{Probe, ProbeError, probe};
pub use runtime::Runtime;
pub use stats::{RuntimeStats, stats};
pub use stream::{Stream, poll_parked_event};
pub use udp::{Ecn, MAX_SEGMENTS, Received, Transmit, UdpSocket};
pub use wake::WakeHandle;
pub use watch::{Progress, Watch};
