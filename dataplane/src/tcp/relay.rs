//! Moving bytes both ways between two streams.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_ring::{Chunk, time, time::Timer};

use crate::tls::Transport;

/// What a relay did.
pub(super) struct Moved {
    /// Bytes from the first stream to the second.
    pub(super) from_a: u64,
    /// Bytes from the second stream to the first.
    pub(super) from_b: u64,
    /// How it ended.
    pub(super) ended: Ended,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// One side failed; the other has not seen an orderly end.
    Failed,
    /// Both sides sent FIN, and both FINs were passed on.
    Finished,
    /// Nothing moved for the idle timeout.
    Idle,
}

/// Moves bytes until both directions have ended. A FIN is passed on in its direction while the other goes on. At most
/// `limit` bytes (256 KiB at the most) wait in each direction; then its source is not read.
pub(super) async fn relay(
    a: &Transport,
    b: &Transport,
    from_a: Option<Chunk>,
    from_b: Option<Chunk>,
    idle: Option<Duration>,
    limit: usize,
) -> Moved {
    let activity = Cell::new(time::now());
    let (sent_a, sent_b) = (Cell::new(0), Cell::new(0));
    let limit = limit.min(QUEUE_MAX);
    let mut there = pin!(one_way(a, b, from_a, limit, &sent_a, &activity));
    let mut back = pin!(one_way(b, a, from_b, limit, &sent_b, &activity));
    let (mut there_done, mut back_done) = (false, false);
    let mut timer = Timer::new();
    if let Some(idle) = idle {
        timer.set(time::now() + idle);
    }
    let ended = poll_fn(|cx| {
        for (done, direction) in [(&mut there_done, there.as_mut()), (&mut back_done, back.as_mut())] {
            if !*done && let Poll::Ready(result) = direction.poll(cx) {
                if result.is_err() {
                    return Poll::Ready(Ended::Failed);
                }
                *done = true;
            }
        }
        if there_done && back_done {
            return Poll::Ready(Ended::Finished);
        }
        while timer.poll_expired(cx).is_ready() {
            let Some(idle) = idle else { break };
            let due = activity.get() + idle;
            if due <= time::now() {
                return Poll::Ready(Ended::Idle);
            }
            timer.set(due);
        }
        Poll::Pending
    })
    .await;
    Moved { from_a: sent_a.get(), from_b: sent_b.get(), ended }
}

/// How much may wait in one direction, in bytes.
const QUEUE_MAX: usize = 256 * 1024;

async fn one_way(
    from: &Transport,
    to: &Transport,
    first: Option<Chunk>,
    limit: usize,
    sent: &Cell<u64>,
    activity: &Cell<Instant>,
) -> std::io::Result<()> {
    if let Some(chunk) = first {
        sent.set(sent.get() + chunk.len() as u64);
        to.send(chunk);
    }
    loop {
        to.drained(limit).await?;
        let lease = from.read().await?;
        if lease.is_empty() {
            to.shutdown_write();
            return to.drained(0).await;
        }
        activity.set(time::now());
        sent.set(sent.get() + lease.len() as u64);
        to.send(Chunk::Lease(lease));
    }
}
