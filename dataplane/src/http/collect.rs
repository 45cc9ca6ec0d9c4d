//! Holding a request's body back until a filter has decided.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Instant,
};

use culvert_ring::time;

use crate::http::{codec::ReceiveError, exchange::Exchange, filters::Verdict, log::Flags, reply::Reply};

/// What was received of a request's body. It is kept, and read again by whoever forwards the request.
pub(super) enum Collected {
    /// All of it, and it is not longer than allowed.
    Whole,
    /// At least as much as is allowed.
    Part,
    /// The client has gone, or has sent what is no body.
    Failed(ReceiveError),
    /// It took too long.
    Expired(Reply),
}

impl Exchange<'_> {
    /// Receives the request's body to its end, or until there are `enough` bytes of it.
    pub(super) async fn collect_body(&self, enough: usize) -> Collected {
        let config = &self.conn.manager.spec.config;
        let idle = config.stream_idle_timeout.filter(|idle| !idle.is_zero());
        let due = config.request_timeout.map(|max| self.record.started + max);
        let mut timer = time::Timer::new();
        loop {
            if self.framing.is_empty() || self.upgrading {
                return Collected::Whole;
            }
            // Whoever read it before may have been allowed more.
            if self.stream.with_kept(<[u8]>::len) >= enough {
                return Collected::Part;
            }
            if self.stream.has_kept_all() {
                return Collected::Whole;
            }
            let stalled = idle.map(|idle| time::now() + idle);
            let limit = match (stalled, due) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            match limit {
                Some(limit) => timer.set(limit),
                None => timer.clear(),
            }
            let received = poll_fn(|cx| {
                if let Poll::Ready(received) = self.stream.poll_keep(cx) {
                    return Poll::Ready(Some(received));
                }
                if timer.is_set() { timer.poll_expired(cx).map(|()| None) } else { Poll::Pending }
            })
            .await;
            match received {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Collected::Failed(error),
                None => return Collected::Expired(self.too_slow(due)),
            }
        }
    }

    fn too_slow(&self, due: Option<Instant>) -> Reply {
        let stats = &self.conn.manager.stats;
        if due.is_some_and(|due| due <= time::now()) {
            stats.downstream_rq_timeout.inc();
            return Reply::new(408, "request timeout").details("request_overall_timeout");
        }
        stats.downstream_rq_idle_timeout.inc();
        Reply::new(408, "stream timeout").flag(Flags::STREAM_IDLE_TIMEOUT).details("stream_idle_timeout")
    }

    /// What `work` brings, unless the client goes before, or it takes longer than a request may stand still: whoever is
    /// asked may have no limit of its own.
    pub(super) async fn attended<T>(&self, work: impl Future<Output = T>) -> Result<T, Verdict> {
        let complete = self.framing.is_empty() || self.upgrading || self.stream.has_kept_all();
        let mut work = pin!(work);
        let config = &self.conn.manager.spec.config;
        let mut timer = time::Timer::new();
        if let Some(idle) = config.stream_idle_timeout.filter(|idle| !idle.is_zero()) {
            timer.set(time::now() + idle);
        }
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if self.stream.poll_gone(complete, cx).is_ready() {
                return Poll::Ready(Err(Verdict::Gone));
            }
            if timer.is_set() && timer.poll_expired(cx).is_ready() {
                return Poll::Ready(Err(Verdict::Reply(self.stands_still())));
            }
            Poll::Pending
        })
        .await
    }

    fn stands_still(&self) -> Reply {
        self.conn.manager.stats.downstream_rq_idle_timeout.inc();
        // The client has sent what it has to: it has not been too slow.
        let complete = self.framing.is_empty() || self.upgrading || self.stream.has_kept_all();
        Reply::new(if complete { 504 } else { 408 }, "stream timeout")
            .flag(Flags::STREAM_IDLE_TIMEOUT)
            .details("stream_idle_timeout")
    }
}
