//! The timeouts of a request: its route's, and what it says itself.

use std::time::{Duration, Instant};

use culvert_model::{RetryPolicy, RouteAction};
use culvert_proto::Headers;
use culvert_ring::{time, time::Timer};

/// Headers that say how long a request may take. They are for this proxy, not for its upstream.
pub(super) const REQUEST_HEADERS: [&str; 5] = [
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-upstream-stream-duration-ms",
];

/// How long a request and each of its attempts may take (Envoy's `FilterUtility::finalTimeout`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timeouts {
    /// Over all attempts, from the completion of the request on.
    pub(super) whole: Option<Duration>,
    /// For one attempt, from the moment that it has a connection and the request is complete.
    pub(super) per_try: Option<Duration>,
    /// How long nothing may come from the upstream in one attempt.
    pub(super) per_try_idle: Option<Duration>,
    /// For one attempt and all of its response, from the moment that it has a connection.
    pub(super) duration: Option<Duration>,
    /// Whether the client wants to be answered 204 in place of 504 when one of them was passed.
    pub(super) alternative: bool,
}

impl Timeouts {
    /// `duration`: the cluster's `max_stream_duration`, in whose place a request may put its own.
    pub(super) fn new(
        action: &RouteAction,
        policy: Option<&RetryPolicy>,
        headers: &Headers,
        duration: Option<Duration>,
    ) -> Self {
        // `max_stream_duration` takes the place of `timeout`.
        let route = action.timeout.filter(|_| action.max_stream_duration.is_none());
        let whole = asked(headers, REQUEST_HEADERS[0]).unwrap_or(route);
        let own = policy.and_then(|policy| policy.per_try_timeout);
        let per_try = asked(headers, REQUEST_HEADERS[1]).unwrap_or(own);
        Self {
            whole,
            per_try: per_try.filter(|per_try| whole.is_none_or(|whole| *per_try < whole)),
            per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout),
            duration: asked(headers, REQUEST_HEADERS[4]).unwrap_or(duration),
            alternative: headers.contains(REQUEST_HEADERS[2]),
        }
    }

    /// What an attempt tells its upstream (`x-envoy-expected-rq-timeout-ms`), when the request was complete so long ago.
    pub(super) fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let expected = self.per_try.or(self.whole)?;
        let left = self.whole.map(|whole| whole.saturating_sub(elapsed).max(Duration::from_millis(1)));
        Some(left.map_or(expected, |left| left.min(expected)))
    }

    /// The limits of an attempt that begins now; `None` when there are none.
    pub(super) fn attempt(&self) -> Option<TryTimers> {
        let any = self.per_try.is_some() || self.per_try_idle.is_some() || self.duration.is_some();
        any.then(|| {
            let mut end = Timer::new();
            if let Some(limit) = self.duration {
                end.set(time::now() + limit);
            }
            TryTimers {
                limits: *self,
                due: Timer::new(),
                idle: Timer::new(),
                end,
                last: time::now(),
                started: false,
            }
        })
    }
}

/// The header's number of milliseconds; the inner `None` is no limit.
fn asked(headers: &Headers, name: &str) -> Option<Option<Duration>> {
    let text = std::str::from_utf8(headers.get(name)?).ok()?;
    let millis = text.trim().parse().ok()?;
    Some(Some(Duration::from_millis(millis)).filter(|limit| !limit.is_zero()))
}

/// Which limit of an attempt was passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TryExpired {
    /// With its response it took longer than the cluster allows.
    Duration,
    Idle,
    Whole,
}

/// The timers of one attempt.
pub(super) struct TryTimers {
    limits: Timeouts,
    due: Timer,
    idle: Timer,
    end: Timer,
    last: Instant,
    started: bool,
}

impl TryTimers {
    /// Ready when a limit was passed. `complete`: the client has sent the whole request. `answered`: the answer has begun,
    /// from where on only standing still counts. `activity`: when something moved last.
    pub(super) fn poll(
        &mut self,
        complete: bool,
        answered: bool,
        activity: Instant,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<TryExpired> {
        use std::task::Poll;
        if self.end.is_set() && self.end.poll_expired(cx).is_ready() {
            return Poll::Ready(TryExpired::Duration);
        }
        if complete
            && !std::mem::replace(&mut self.started, complete)
            && let Some(limit) = self.limits.per_try
        {
            self.due.set(time::now() + limit);
        }
        // Nobody knows for how long a client, or either end of a tunnel, has nothing to say.
        if complete && let Some(limit) = self.limits.per_try_idle {
            if !self.idle.is_set() {
                self.last = time::now();
                self.idle.set(self.last + limit);
            }
            while self.idle.poll_expired(cx).is_ready() {
                let due = activity.max(self.last) + limit;
                if due <= time::now() {
                    return Poll::Ready(TryExpired::Idle);
                }
                self.idle.set(due);
            }
        }
        if self.due.is_set() && !answered {
            self.due.poll_expired(cx).map(|()| TryExpired::Whole)
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_expects_no_more_than_is_left() {
        let timeouts = |whole, per_try| Timeouts {
            whole: Some(whole).filter(|millis| *millis > 0).map(Duration::from_millis),
            per_try: Some(per_try).filter(|millis| *millis > 0).map(Duration::from_millis),
            per_try_idle: None,
            duration: None,
            alternative: false,
        };
        for (whole, per_try, elapsed, expected) in [
            (0, 0, 5, None),
            (100, 0, 0, Some(100)),
            (100, 0, 30, Some(70)),
            (100, 0, 100, Some(1)),
            (100, 40, 30, Some(40)),
            (100, 40, 80, Some(20)),
            (0, 40, 80, Some(40)),
        ] {
            let found = timeouts(whole, per_try).expected(Duration::from_millis(elapsed));
            assert_eq!(found, expected.map(Duration::from_millis), "{whole} {per_try} {elapsed}");
        }
    }
}
