//! The timeouts of one forwarded request.

use std::{
    cell::Cell,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use culvert_model::{HttpConnectionManager, RouteAction};
use culvert_proto::Headers;
use culvert_ring::{time, time::Timer};

use crate::http::{connection::Timers, grpc, router::body::Activity};

/// Which limits a request has while it is with an upstream, waiting for a connection included.
pub(super) struct Deadlines {
    /// `idle_timeout` of the route, else `stream_idle_timeout`.
    idle: Option<Duration>,
    /// `request_timeout`, as a moment: it counts from the request's first byte.
    request: Option<Instant>,
    /// `timeout` of the route: counts from the moment the request is complete.
    route: Option<Duration>,
    /// When the request, or from its completion on the response, has to be complete.
    due: Cell<Option<Instant>>,
    /// When all of it has to be over: `max_stream_duration`, or what the request's `grpc-timeout` says.
    end: Option<Instant>,
}

/// Which limit was passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expired {
    /// It took longer than a stream may.
    Duration,
    /// Nothing moved for too long.
    Idle,
    /// The request was not complete in time.
    Request,
    /// The response was not.
    Route,
}

impl Deadlines {
    /// Those of a request that was `started` then. `route`: the limit of the route, or what takes its place.
    pub(super) fn new(
        action: &RouteAction,
        route: Option<Duration>,
        manager: &HttpConnectionManager,
        headers: &Headers,
        started: Instant,
    ) -> Self {
        let request = manager.request_timeout.map(|max| started + max);
        Self {
            idle: action.idle_timeout.or(manager.stream_idle_timeout).filter(|idle| !idle.is_zero()),
            request,
            route,
            due: Cell::new(request),
            end: duration(action, manager, headers).map(|max| started + max),
        }
    }

    /// Starts the timers. `tunnel`: there is no end of a request to be awaited.
    pub(super) fn start(&self, request_complete: bool, tunnel: bool, timers: &mut Timers) {
        arm(&mut timers.wait, self.idle.map(|idle| time::now() + idle));
        if tunnel {
            self.arm_due(None, timers);
        } else if request_complete {
            self.request_completed(timers);
        } else {
            self.arm_due(self.request, timers);
        }
    }

    /// The request is complete: from now on the route's timeout counts.
    pub(super) fn request_completed(&self, timers: &mut Timers) {
        self.arm_due(self.route.map(|max| time::now() + max), timers);
    }

    fn arm_due(&self, due: Option<Instant>, timers: &mut Timers) {
        self.due.set(due);
        let first = match (due, self.end) {
            (Some(due), Some(end)) => Some(due.min(end)),
            (due, end) => due.or(end),
        };
        arm(&mut timers.route, first);
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
            let is_due = self.due.get().is_some_and(|due| self.end.is_none_or(|end| due <= end));
            return Poll::Ready(match (is_due, request_complete) {
                (false, _) => Expired::Duration,
                (true, true) => Expired::Route,
                (true, false) => Expired::Request,
            });
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

/// How long the request with its response may take.
fn duration(action: &RouteAction, manager: &HttpConnectionManager, headers: &Headers) -> Option<Duration> {
    let route = action.max_stream_duration.unwrap_or_default();
    let asked = route.grpc_timeout_max.and_then(|max| Some((max, grpc::timeout(headers)?)));
    let limit = match asked {
        Some((max, asked)) => {
            let asked = if max.is_zero() { asked } else { asked.min(max) };
            Some(asked.checked_sub(route.grpc_timeout_offset).unwrap_or(asked))
        }
        None => route.max.or(manager.max_stream_duration),
    };
    limit.filter(|limit| !limit.is_zero())
}

fn arm(timer: &mut Timer, deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => timer.set(deadline),
        None => timer.clear(),
    }
}
