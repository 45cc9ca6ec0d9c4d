//! Moving bytes both ways between two streams.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_ring::{Chunk, net, time, time::Timer};

use crate::tls::Transport;

/// One end of a relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// The first stream.
    A,
    /// The second stream.
    B,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// The time it may last has passed.
    Expired,
    /// This end failed; the other one has not seen an orderly end, and has been sent all that came before the failure.
    Failed(End),
    /// Both sides sent FIN, and both FINs were passed on.
    Finished,
    /// Nothing moved for the idle timeout.
    Idle,
}

/// What a relay goes by.
pub(super) struct Terms<'t> {
    /// How long nothing may move.
    pub(super) idle: Option<Duration>,
    /// When it ends at the latest.
    pub(super) until: Option<Instant>,
    /// How many bytes may wait in each direction; then its source is not read.
    pub(super) limit: usize,
    /// Is called with bytes received from an end.
    pub(super) count: &'t dyn Fn(End, u64),
    /// Is called again and again, at this interval.
    pub(super) every: Option<(Duration, &'t dyn Fn())>,
}

/// Moves bytes until both directions have ended. A FIN is passed on in its direction while the other goes on. At most
/// `limit` bytes (256 KiB at the most) wait in each direction.
pub(super) async fn relay(
    a: &Transport,
    b: &Transport,
    from_a: Option<Chunk>,
    from_b: Option<Chunk>,
    terms: Terms<'_>,
) -> Ended {
    let activity = Cell::new(time::now());
    let limit = terms.limit.min(QUEUE_MAX);
    let (count_a, count_b) = (|n| (terms.count)(End::A, n), |n| (terms.count)(End::B, n));
    let mut there = pin!(one_way(a, b, from_a, limit, &count_a, &activity));
    let mut back = pin!(one_way(b, a, from_b, limit, &count_b, &activity));
    let (mut there_done, mut back_done) = (false, false);
    let (mut idle, mut until, mut every) = (Timer::new(), Timer::new(), Timer::new());
    if let Some(timeout) = terms.idle {
        idle.set(time::now() + timeout);
    }
    if let Some(moment) = terms.until {
        until.set(moment);
    }
    if let Some((interval, _)) = terms.every {
        every.set(time::now() + interval);
    }
    let mut failed = None;
    let ended = poll_fn(|cx| {
        for (done, direction, source) in
            [(&mut there_done, there.as_mut(), End::A), (&mut back_done, back.as_mut(), End::B)]
        {
            if !*done && let Poll::Ready(result) = direction.poll(cx) {
                match result {
                    Ok(()) => {}
                    // Nothing more comes from there, nor can anything be sent there.
                    Err(Broken::Source) => return Poll::Ready(Ended::Failed(source)),
                    // What it had sent before may still be under way.
                    Err(Broken::Sink) => failed = failed.or_else(|| Some(source.other())),
                }
                *done = true;
            }
        }
        if there_done && back_done {
            return Poll::Ready(failed.map_or(Ended::Finished, Ended::Failed));
        }
        if until.is_set() && until.poll_expired(cx).is_ready() {
            return Poll::Ready(Ended::Expired);
        }
        while let Some((interval, tick)) = terms.every
            && every.poll_expired(cx).is_ready()
        {
            tick();
            every.set(time::now() + interval);
        }
        while let Some(timeout) = terms.idle
            && idle.poll_expired(cx).is_ready()
        {
            let due = activity.get() + timeout;
            if due <= time::now() {
                return Poll::Ready(Ended::Idle);
            }
            idle.set(due);
        }
        Poll::Pending
    })
    .await;
    match ended {
        Ended::Failed(End::A) => delivered(b).await,
        Ended::Failed(End::B) => delivered(a).await,
        Ended::Expired | Ended::Finished | Ended::Idle => {}
    }
    ended
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// How much may wait in one direction, in bytes.
const QUEUE_MAX: usize = 256 * 1024;

/// Which end of a direction failed.
enum Broken {
    Sink,
    Source,
}

async fn one_way(
    from: &Transport,
    to: &Transport,
    first: Option<Chunk>,
    limit: usize,
    count: &dyn Fn(u64),
    activity: &Cell<Instant>,
) -> Result<(), Broken> {
    let sink = |_| Broken::Sink;
    if let Some(chunk) = first {
        count(chunk.len() as u64);
        to.send(chunk);
    }
    loop {
        to.drained(limit).await.map_err(sink)?;
        let Ok(lease) = from.read().await else {
            // What was received before goes out all the same. If it cannot, both ends have failed.
            let _ = to.drained(0).await;
            return Err(Broken::Source);
        };
        if lease.is_empty() {
            to.shutdown_write();
            return to.drained(0).await.map_err(sink);
        }
        activity.set(time::now());
        count(lease.len() as u64);
        to.send(Chunk::Lease(lease));
    }
}

/// Waits until the peer has what was sent to it: a reset would take back what it has not. Not for ever.
async fn delivered(to: &Transport) {
    let until = time::now() + DELIVERY_PATIENCE;
    while time::now() < until {
        match net::tcp_info(to.fd()) {
            Ok(info) if info.unacked > 0 || info.notsent_bytes > 0 => time::sleep(DELIVERY_CHECK).await,
            // A Unix socket's peer has it at once.
            _ => return,
        }
    }
}

const DELIVERY_PATIENCE: Duration = Duration::from_secs(1);
const DELIVERY_CHECK: Duration = Duration::from_millis(5);
