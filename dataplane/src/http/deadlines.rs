//! The timeouts of one forwarded request.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use culvert_model::{HttpConnectionManager, RouteAction};
use culvert_ring::{time, time::Timer};

use crate::http::{connection::Timers, pump::Activity};

/// Which limits a request has while it is with an upstream, waiting for a connection included.
pub(super) struct Deadlines {
    /// `idle_timeout` of the route, else `stream_idle_timeout`.
    idle: Option<Duration>,
    /// `request_timeout`, as a moment: it counts from the request's first byte.
    request: Option<Instant>,
    /// `timeout` of the route: counts from the moment the request is complete.
    route: Option<Duration>,
}

/// Which limit was passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expired {
    /// Nothing moved for too long.
    Idle,
    /// The request was not complete in time.
    Request,
    /// The response was not.
    Route,
}

impl Deadlines {
    pub(super) fn new(action: &RouteAction, manager: &HttpConnectionManager, started: Instant) -> Self {
        Self {
            idle: action.idle_timeout.or(manager.stream_idle_timeout).filter(|idle| !idle.is_zero()),
            request: manager.request_timeout.map(|max| started + max),
            route: action.timeout,
        }
    }

    /// Starts the timers.
    pub(super) fn start(&self, request_complete: bool, timers: &mut Timers) {
        arm(&mut timers.wait, self.idle.map(|idle| time::now() + idle));
        if request_complete {
            self.request_completed(timers);
        } else {
            arm(&mut timers.route, self.request);
        }
    }

    /// The request is complete: from now on the route's timeout counts.
    pub(super) fn request_completed(&self, timers: &mut Timers) {
        arm(&mut timers.route, self.route.map(|max| time::now() + max));
    }

    /// Ready when a limit was passed.
    pub(super) fn poll(
        &self,
        request_complete: bool,
        activity: &Activity,
        timers: &mut Timers,
        cx: &mut Context<'_>,
    ) -> Poll<Expired> {
        if timers.route.poll_expired(cx).is_ready() {
            return Poll::Ready(if request_complete { Expired::Route } else { Expired::Request });
        }
        while timers.wait.poll_expired(cx).is_ready() {
            let Some(idle) = self.idle else { break };
            let due = activity.last() + idle;
            if due <= time::now() {
                return Poll::Ready(Expired::Idle);
            }
            timers.wait.set(due);
        }
        Poll::Pending
    }
}

fn arm(timer: &mut Timer, deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => timer.set(deadline),
        None => timer.clear(),
    }
}
