//! Active health checks: what the outcomes of an endpoint's checks make of it, and when the next one is due.

mod payload;
mod response;
mod schedule;

pub use payload::contains_in_order;
pub use response::{HttpAnswer, Judgement, grpc_serving, judge_http};
pub use schedule::next_check;

/// What came of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// As expected; `degraded` is what the endpoint says of itself.
    Success {
        /// `x-envoy-degraded`
        degraded: bool,
    },
    /// Not as expected.
    Failure(Failure),
}

/// How a check failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The endpoint answered, and with something else: it is unhealthy at once.
    Answer,
    /// No connection, no answer, or none in time: counts towards `unhealthy_threshold`.
    Network,
    /// The endpoint answered with one of `retriable_statuses`: counts towards `unhealthy_threshold`.
    Retriable,
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transition {
    /// Whether the endpoint is healthy, or degraded.
    Changed,
    /// Nothing yet: more outcomes like this one would.
    Pending,
    /// Nothing.
    Unchanged,
}

/// Outcomes in a row that change the health of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// `healthy_threshold`: at least 1.
    pub healthy: u32,
    /// `unhealthy_threshold`: at least 1.
    pub unhealthy: u32,
}

/// The health of one endpoint by its checks: Envoy's `ActiveHealthCheckSession`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checked {
    failed: bool,
    degraded: bool,
    successes: u32,
    failures: u32,
    first: bool,
}

impl Checked {
    /// An endpoint that has not been checked yet, and counts as failed or not until then.
    #[must_use]
    pub fn new(failed: bool) -> Self {
        Self { failed, degraded: false, successes: 0, failures: 0, first: true }
    }

    /// Whether it fails its checks.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Whether it says that it is degraded.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }

    /// Whether it has been checked.
    #[must_use]
    pub fn is_checked(&self) -> bool {
        !self.first
    }

    /// Takes in the outcome of a check. The first success makes healthy whatever the threshold is, and so does an
    /// unexpected answer make unhealthy.
    pub fn record(&mut self, outcome: Outcome, thresholds: Thresholds) -> Transition {
        let transition = match outcome {
            Outcome::Success { degraded } => {
                let transition = self.succeed(thresholds.healthy);
                if std::mem::replace(&mut self.degraded, degraded) != degraded && !self.failed {
                    Transition::Changed
                } else {
                    transition
                }
            }
            Outcome::Failure(failure) => self.fail(failure, thresholds.unhealthy),
        };
        self.first = false;
        transition
    }

    fn succeed(&mut self, threshold: u32) -> Transition {
        self.failures = 0;
        if !self.failed {
            return Transition::Unchanged;
        }
        self.successes += 1;
        if !self.first && self.successes < threshold {
            return Transition::Pending;
        }
        self.successes = 0;
        self.failed = false;
        Transition::Changed
    }

    fn fail(&mut self, failure: Failure, threshold: u32) -> Transition {
        self.successes = 0;
        if self.failed {
            return Transition::Unchanged;
        }
        self.failures += 1;
        if failure != Failure::Answer && self.failures < threshold {
            return Transition::Pending;
        }
        self.failures = 0;
        self.failed = true;
        Transition::Changed
    }
}
