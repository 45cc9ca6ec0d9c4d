//! When an endpoint is checked again.

use std::time::Duration;

use culvert_model::HealthCheck;

use super::{Outcome, Transition};

/// A wait of nothing would be a busy loop.
const SHORTEST: Duration = Duration::from_millis(1);

/// Time from the end of a check to the next one. `traffic`: whether the cluster has ever had a connection.
#[must_use]
pub fn next_check(
    check: &HealthCheck,
    outcome: Outcome,
    transition: Transition,
    traffic: bool,
    rng: &mut fastrand::Rng,
) -> Duration {
    let intervals = &check.intervals;
    let pending = transition == Transition::Pending;
    let base = match (outcome, pending, traffic) {
        (Outcome::Success { .. }, false, true) => intervals.healthy,
        (Outcome::Success { .. }, true, true) => intervals.healthy_edge,
        (Outcome::Failure(_), false, true) => intervals.unhealthy,
        (Outcome::Failure(_), true, true) => intervals.unhealthy_edge,
        (Outcome::Success { .. }, false, false) => intervals.no_traffic_healthy,
        (_, _, false) => intervals.no_traffic,
    };
    let share = base.mul_f64(f64::from(check.interval_jitter_percent) / 100.0);
    let wait = base + share.mul_f64(rng.f64()) + check.interval_jitter.mul_f64(rng.f64());
    wait.max(SHORTEST)
}
