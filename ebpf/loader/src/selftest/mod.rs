//! Whether splicing keeps what it must on the running kernel: every fault that others met is provoked with the very
//! programs that will serve, in a network namespace and a cgroup that are gone afterwards.
//!
//! Kernel versions tell nothing here: distributions backport features and regressions alike.

mod bounds;
mod counts;
mod ends;
mod pair;
mod stage;
mod wakeups;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{SpliceConfig, sandbox::ProbeCgroup};
use stage::{Deadline, Stage};

/// How long one attempt may take. It takes about a tenth of that.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The second attempt's time, when the first was not wrong but late: a machine that boots has other things to do.
const SECOND_ATTEMPT: Duration = Duration::from_secs(4);
/// What cleaning up may take besides.
const GRACE: Duration = Duration::from_secs(1);

/// What is put to the test.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// Most bytes in flight in one direction, as in [`SpliceConfig`].
    pub limit: u64,
    /// Where a cgroup for the test may be made; `None` for the root of the cgroup2 hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Something that is made to go wrong, to see that it is noticed: for tests.
    pub fault: Option<Fault>,
}

/// A fault that a self-test must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The verdict that repairs FIONREAD on some kernels is left out.
    NoVerdict,
    /// The programs are told a limit without end.
    NoLimit,
}

/// A property that splicing must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// The programs can be loaded, attached and tried.
    Setup,
    /// Sockets of applications enter before they can send, whoever makes the connection.
    Enrolment,
    /// FIONREAD counts what waits, however it has come.
    Fionread,
    /// Redirected bytes are charged to the receiving socket.
    Accounting,
    /// Bytes in flight to a proxy that does not read stay within the limit; the rest is TCP's.
    BoundToProxy,
    /// Bytes in flight to an application that does not read stay within the limit; the rest is TCP's.
    BoundToApp,
    /// What was sent before the proxy's socket enters stays before what is sent after.
    OrderAtEntry,
    /// Bytes stay in order when a connection changes between redirection and TCP.
    Order,
    /// What two threads send on one socket at the same time arrives, and is counted.
    ConcurrentSenders,
    /// A half-close arrives behind all that was sent.
    HalfClose,
    /// A close arrives behind all that was sent.
    Close,
    /// `epoll_wait` sees redirected bytes, level-triggered.
    EpollLevel,
    /// `epoll_wait` sees redirected bytes, edge-triggered.
    EpollEdge,
    /// A `recv` that waits is woken.
    BlockingRecv,
    /// io_uring's poll and receive complete.
    IoUring,
    /// Small messages, for each of which the kernel keeps a piece of memory of its own, are bounded too.
    SmallMessages,
    /// A `recv` that waits goes on waiting when it is woken for something else than bytes.
    SpuriousWakeup,
    /// The test has come to an end in its time.
    Deadline,
}

impl Property {
    /// All of them, in the order in which they are tested.
    pub const ALL: [Self; 18] = [
        Self::Setup,
        Self::Enrolment,
        Self::Fionread,
        Self::Accounting,
        Self::BoundToProxy,
        Self::BoundToApp,
        Self::OrderAtEntry,
        Self::Order,
        Self::ConcurrentSenders,
        Self::HalfClose,
        Self::Close,
        Self::EpollLevel,
        Self::EpollEdge,
        Self::BlockingRecv,
        Self::IoUring,
        Self::SmallMessages,
        Self::SpuriousWakeup,
        Self::Deadline,
    ];

    /// What it says, for those who have to do with it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Setup => "the programs that splice can be loaded, attached and tried",
            Self::Enrolment => "sockets enter before they can send, whoever makes the connection",
            Self::Fionread => "applications are told right how many bytes wait",
            Self::Accounting => "what an application has not read is known from what its socket is charged",
            Self::BoundToProxy => "a proxy that does not read is owed no more than the limit",
            Self::BoundToApp => "an application that does not read is owed no more than the limit",
            Self::OrderAtEntry => "what was sent before a socket enters is read first",
            Self::Order => "bytes stay in order when a connection changes between redirection and TCP",
            Self::ConcurrentSenders => "what two threads send at the same time arrives and is counted",
            Self::HalfClose => "nothing that was sent before a half-close is lost",
            Self::Close => "nothing that was sent before a close is lost",
            Self::EpollLevel => "epoll tells of redirected bytes, level-triggered",
            Self::EpollEdge => "epoll tells of redirected bytes, edge-triggered",
            Self::BlockingRecv => "a recv that waits is woken by redirected bytes",
            Self::IoUring => "io_uring's poll and receive complete by redirected bytes",
            Self::SmallMessages => {
                "small messages to a reader that stopped are bounded by the memory they take"
            }
            Self::SpuriousWakeup => "a recv that waits does not fail when it is woken for nothing",
            Self::Deadline => "the test comes to its end in time",
        }
    }

    /// Its name: in the log, in `culvert doctor` and in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Enrolment => "enrolment",
            Self::Fionread => "fionread",
            Self::Accounting => "accounting",
            Self::BoundToProxy => "bound_to_proxy",
            Self::BoundToApp => "bound_to_app",
            Self::OrderAtEntry => "order_at_entry",
            Self::Order => "order",
            Self::ConcurrentSenders => "concurrent_senders",
            Self::HalfClose => "half_close",
            Self::Close => "close",
            Self::EpollLevel => "epoll_level",
            Self::EpollEdge => "epoll_edge",
            Self::BlockingRecv => "blocking_recv",
            Self::IoUring => "io_uring",
            Self::SmallMessages => "small_messages",
            Self::SpuriousWakeup => "spurious_wakeup",
            Self::Deadline => "deadline",
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What was found about one property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub property: Property,
    /// Whether the kernel has it.
    pub passed: bool,
    /// What was seen, one line.
    pub detail: String,
}

/// What a self-test has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTestReport {
    /// The properties that were tested. What depends on a failed one is not tested.
    pub checks: Vec<Check>,
    /// Whether the verdict that repairs FIONREAD was attached, as it then must be when serving.
    pub verdict: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl SelfTestReport {
    /// The first property that the kernel lacks.
    pub fn failure(&self) -> Option<&Check> {
        self.checks.iter().find(|check| !check.passed)
    }

    /// Whether splicing may be used.
    pub fn passed(&self) -> bool {
        self.failure().is_none()
    }

    fn failed(property: Property, detail: String, elapsed: Duration) -> Self {
        Self { checks: vec![Check { property, passed: false, detail }], verdict: false, elapsed }
    }
}

/// Tests the running kernel. Blocks, for a fraction of a second, and for six at the very worst.
///
/// Nothing remains of it: namespaces, cgroup, programs and maps are gone when it returns, and should the process be
/// killed in the middle, all but an empty cgroup, which the next one removes.
pub fn selftest(test: &SelfTest) -> SelfTestReport {
    let (report, late) = attempt(test, ATTEMPT);
    if late { attempt(test, SECOND_ATTEMPT).0 } else { report }
}

/// Runs on a thread that nobody waits for longer than promised, whatever the kernel does to it. Says also whether what failed
/// was only late. The cgroup goes in any case, and what is attached to it.
fn attempt(test: &SelfTest, time: Duration) -> (SelfTestReport, bool) {
    let begun = Instant::now();
    let failed = |property, why| SelfTestReport::failed(property, why, begun.elapsed());
    let cgroup = match stage::cgroup(test.cgroup.as_deref()) {
        Ok(cgroup) => Arc::new(cgroup),
        Err(why) => return (failed(Property::Setup, why), false),
    };
    let (sender, receiver) = mpsc::channel();
    let (own, inside) = (test.clone(), cgroup.clone());
    let run = move || {
        let done = configurations(&own, &inside, Deadline::after(time));
        drop(inside);
        let _ = sender.send(done);
    };
    let spawned = thread::Builder::new().name("splice-test".into()).spawn(run);
    let (report, late) = match spawned {
        Err(error) => (failed(Property::Setup, error.to_string()), false),
        Ok(_) => receiver.recv_timeout(time + GRACE).unwrap_or_else(|_| {
            cgroup.remove();
            let late = format!("no end after {} ms", begun.elapsed().as_millis());
            (failed(Property::Deadline, late), true)
        }),
    };
    (SelfTestReport { elapsed: begun.elapsed(), ..report }, late)
}

/// Without the verdict, which costs a little on every message, where the kernel counts right without it; else with it.
fn configurations(test: &SelfTest, cgroup: &ProbeCgroup, deadline: Deadline) -> (SelfTestReport, bool) {
    let verdicts: &[bool] = match test.fault {
        Some(Fault::NoVerdict) => &[false],
        _ if counts::needs_verdict(deadline) => &[true],
        _ => &[false, true],
    };
    let mut report = None;
    for &verdict in verdicts {
        let done = one(test, cgroup, verdict, deadline);
        let passed = done.0.passed();
        report = Some(done);
        if passed || deadline.is_over() {
            break;
        }
    }
    report.unwrap_or_else(|| (SelfTestReport::failed(Property::Setup, String::new(), Duration::ZERO), false))
}

fn one(test: &SelfTest, cgroup: &ProbeCgroup, verdict: bool, deadline: Deadline) -> (SelfTestReport, bool) {
    let limit = if test.fault == Some(Fault::NoLimit) { u64::MAX >> 1 } else { test.limit };
    let config = SpliceConfig { limit, verdict, blocking: true };
    let (mut checks, mut late) = (Vec::new(), false);
    let staged = Stage::with(cgroup, config, test.limit, deadline, |stage| {
        late = run(stage, &mut checks);
    });
    if let Err(detail) = staged {
        checks.insert(0, Check { property: Property::Setup, passed: false, detail });
    }
    (SelfTestReport { checks, verdict, elapsed: Duration::ZERO }, late)
}

/// A check: what was seen, or what is wrong.
type Outcome = Result<String, Wrong>;

/// Why a check did not pass.
#[derive(Debug)]
enum Wrong {
    /// The kernel does what it must not.
    Fault(String),
    /// The time is over.
    Late(String),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late(error.to_string()),
            _ => Self::Fault(error.to_string()),
        }
    }
}

/// Something that must hold.
fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong::Fault(otherwise())) }
}

/// All checks, up to the first that does not pass; whether that was only late.
fn run(stage: &Stage<'_>, checks: &mut Vec<Check>) -> bool {
    type Test = fn(&Stage<'_>) -> Outcome;
    let tests: [(Property, Test); 16] = [
        (Property::Enrolment, counts::enrolment),
        (Property::Fionread, counts::fionread),
        (Property::Accounting, counts::accounting),
        (Property::BoundToProxy, bounds::to_proxy),
        (Property::BoundToApp, bounds::to_app),
        (Property::OrderAtEntry, bounds::order_at_entry),
        (Property::Order, bounds::order),
        (Property::ConcurrentSenders, ends::concurrent_senders),
        (Property::HalfClose, ends::half_close),
        (Property::Close, ends::close),
        (Property::EpollLevel, wakeups::epoll_level),
        (Property::EpollEdge, wakeups::epoll_edge),
        (Property::BlockingRecv, wakeups::blocking_recv),
        (Property::IoUring, wakeups::io_uring),
        (Property::SmallMessages, bounds::small_messages),
        (Property::SpuriousWakeup, wakeups::spurious),
    ];
    for (property, test) in tests {
        let (passed, late, detail) = match test(stage) {
            Ok(detail) => (true, false, detail),
            Err(Wrong::Fault(detail)) => (false, false, detail),
            Err(Wrong::Late(detail)) => (false, true, detail),
        };
        // Whether something does not come or the whole is too slow cannot be told apart when the time is over.
        let check = match late && stage.deadline.is_over() {
            true => Check { property: Property::Deadline, passed, detail: format!("{property}: {detail}") },
            false => Check { property, passed, detail },
        };
        checks.push(check);
        if !passed {
            return late;
        }
    }
    false
}
