//! Which requests are due, and which of them are measured.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::plan::{Pacing, Plan};

/// Which requests are due.
#[derive(Debug)]
pub(super) struct Schedule {
    pacing: Pacing,
    pub(super) start: Instant,
    /// What is measured, once the warm-up is over.
    pub(super) window: Option<Range<Instant>>,
    /// Requests due so far, warm-up included.
    issued: u64,
    /// Of these, how many belong to the window.
    issued_in_window: u64,
    in_window_max: u64,
}

impl Schedule {
    pub(super) fn new(plan: &Plan, start: Instant) -> Self {
        Self {
            pacing: plan.pacing,
            start,
            window: None,
            issued: 0,
            issued_in_window: 0,
            in_window_max: plan.requests_max.unwrap_or(u64::MAX),
        }
    }

    /// Whether as many requests were given out as are wanted.
    pub(super) fn is_exhausted(&self) -> bool {
        self.issued_in_window >= self.in_window_max
    }

    /// When the next request is or was due, if that is not after `now` and before the end.
    pub(super) fn peek(&self, now: Instant) -> Option<Instant> {
        let due = match self.pacing {
            Pacing::Closed => now,
            Pacing::Open { .. } => self.upcoming()?,
        };
        let is_over = self.window.as_ref().is_some_and(|window| due >= window.end);
        (due <= now && !is_over && !self.is_exhausted()).then_some(due)
    }

    /// Takes the next request that is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        let due = self.peek(now)?;
        self.issued += 1;
        self.issued_in_window += u64::from(self.is_measured(due));
        Some(due)
    }

    /// When the next request of an open loop is due, past or future.
    pub(super) fn upcoming(&self) -> Option<Instant> {
        match self.pacing {
            Pacing::Closed => None,
            Pacing::Open { rate } => Some(self.start + Duration::from_secs_f64(self.issued as f64 / rate)),
        }
    }

    pub(super) fn is_measured(&self, due: Instant) -> bool {
        self.window.as_ref().is_some_and(|window| window.contains(&due))
    }
}
