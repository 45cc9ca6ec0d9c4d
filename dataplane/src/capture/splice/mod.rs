//! Splicing: bytes between culvert and the applications of its pods, and between culvert's own sockets in two pods of this
//! node, skip TCP and IP. The kernel's part is in `culvert-bpf`; here is who is spliced, and when.
//!
//! What makes sockets different when they are spliced falls in three classes.
//!
//! | class | what | how it is met |
//! |---|---|---|
//! | A: holds, or splicing is off | bytes in flight are bounded | `--splice-limit` for each direction, beyond it TCP with its own flow control |
//! | A | bytes stay in order | what goes by redirection waits until all that went by TCP has been read |
//! | A | nothing is lost at the end of a stream, or when a socket enters or leaves the map | a socket enters with nothing unread, and leaves with nothing under way |
//! | A | FIONREAD is right | a verdict that does nothing, where the kernel needs one |
//! | A | readers and pollers are woken | by the kernel; the self-test sees that they are |
//! | A | no more than 64 messages wait in one direction, however small: the kernel spends a KiB on each | as the bound of bytes |
//! | B: the connection is not spliced | `SO_RCVLOWAT`, `SO_ZEROCOPY`, `TCP_ULP` | seen when the connection is made and when they are set; then both directions go by TCP, and the application's socket leaves the map once nothing is under way to it |
//! | B | MPTCP; sockets that another eBPF program has (EBUSY); connections in TLS by the kernel | left alone |
//! | B, under `auto` | sockets in blocking mode: their `recv` returns EAGAIN when the kernel (6.18, and those before) wakes it for nothing, as when the socket's own FIN is acknowledged | a socket enters that is in non-blocking mode when it connects, or whose listener was when it began to listen, after culvert had started; one whose mode changes is no more redirected from its next message on. `on` takes them all |
//! | B | pods and listeners that opt out | `splice: false` of the pod, `splice: false` in the listener's metadata `culvert` |
//! | C: differs, by design | a close with bytes unread sends FIN, not RST | |
//! | C | `MSG_WAITALL` may return short | |
//! | C | tcpdump, `TCP_INFO` and conntrack do not see the bytes | counters `culvert.splice.*` do |
//! | C | splice(2), `TCP_ZEROCOPY_RECEIVE` and io_uring's zero-copy receive find nothing in a spliced socket | opt the pod out |
//! | C | a `recv` that began, in another thread, before its socket was connected is not woken | opt the pod out |
//! | C | with the system's `tcp_mem`, or the reader's memory cgroup, exhausted a send fails with ENOMEM where TCP would wait | |
//! | C | `recv` with `MSG_TRUNC` to discard fails; `TCP_INQ` and time stamps are missing; `MSG_OOB` reads ordinary bytes where there is a verdict | |
//! | C | a FIN sent by one thread may overtake what another is sending | |
//! | C | a process that calls setsockopt with a length beyond its memory is told EFAULT: a program looks at options on the whole node | |

mod decision;
mod watch;
mod worker;

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use culvert_bpf::Splice;

pub use decision::{Decision, decide};
pub use worker::{Ends, WorkerSplice};

/// `--splice`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SpliceMode {
    /// Where the running kernel passes the self-test.
    #[default]
    Auto,
    /// Wherever the programs can be loaded, and sockets in blocking mode too; capture does not start where they cannot.
    On,
    /// Nowhere.
    Off,
}

/// Most bytes in flight in one direction of a connection, unless `--splice-limit` says otherwise.
pub const DEFAULT_LIMIT: u64 = 256 * 1024;

/// Settings of splicing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpliceSettings {
    /// `--splice`
    pub mode: SpliceMode,
    /// `--splice-limit`, bytes; 0 redirects nothing.
    pub limit: u64,
}

impl Default for SpliceSettings {
    fn default() -> Self {
        Self { mode: SpliceMode::default(), limit: DEFAULT_LIMIT }
    }
}

/// What a pod's connections are spliced with.
#[derive(Debug)]
pub struct PodSplice {
    /// The programs.
    pub(super) programs: Splice,
    /// What became of its connections.
    pub(super) counters: PodSpliceCounters,
}

/// Of one pod, since it was enrolled. Written when connections begin and end, and now and then between.
#[derive(Debug, Default)]
pub(super) struct PodSpliceCounters {
    spliced: AtomicU64,
    fell_back: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// [`PodSpliceCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PodSpliceCounts {
    /// Connections of which culvert's end has entered.
    pub spliced: u64,
    /// How often a direction returned to TCP: at the limit, or for an option of the application's.
    pub fell_back: u64,
    /// Bytes redirected to culvert.
    pub bytes_in: u64,
    /// Bytes redirected from culvert.
    pub bytes_out: u64,
}

impl PodSplice {
    pub(super) fn new(programs: Splice) -> Self {
        Self { programs, counters: PodSpliceCounters::default() }
    }

    /// The counts so far.
    pub fn counts(&self) -> PodSpliceCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        PodSpliceCounts {
            spliced: load(&counters.spliced),
            fell_back: load(&counters.fell_back),
            bytes_in: load(&counters.bytes_in),
            bytes_out: load(&counters.bytes_out),
        }
    }
}

impl PodSpliceCounters {
    fn add(&self, counts: PodSpliceCounts) {
        let pairs = [
            (&self.spliced, counts.spliced),
            (&self.fell_back, counts.fell_back),
            (&self.bytes_in, counts.bytes_in),
            (&self.bytes_out, counts.bytes_out),
        ];
        for (counter, count) in pairs.into_iter().filter(|(_, count)| *count > 0) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// `--splice` was given something else.
#[derive(Debug, thiserror::Error)]
#[error("splice mode {0:?}: expected auto, on or off")]
pub struct UnknownSpliceMode(String);

impl FromStr for SpliceMode {
    type Err = UnknownSpliceMode;

    fn from_str(text: &str) -> Result<Self, UnknownSpliceMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(UnknownSpliceMode(text.to_owned())),
        }
    }
}

impl fmt::Display for SpliceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}
