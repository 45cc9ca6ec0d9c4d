//! `PeakEwma`: of two, the one that is likely to answer sooner.

use std::time::Duration;

use crate::balance::{Load, hosts::Pool};

/// How long an endpoint takes to answer: a moving average that follows a rise at once and a fall slowly, so that one slow
/// answer is not forgotten before it could hurt again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ewma {
    seconds: f64,
    /// When it was updated last, on any clock.
    at: Duration,
}

impl Ewma {
    /// An answer took so long. `decay`: after this time without another one about a third of it is left.
    pub fn observe(&mut self, now: Duration, took: Duration, decay: Duration) {
        let took = took.as_secs_f64();
        let kept = self.kept(now, decay);
        self.seconds = if took > self.seconds { took } else { self.seconds * kept + took * (1.0 - kept) };
        self.at = now;
    }

    /// How long it takes now, in seconds. It falls while nothing is heard: an endpoint that was slow is tried again.
    #[must_use]
    pub fn read(&self, now: Duration, decay: Duration) -> f64 {
        self.seconds * self.kept(now, decay)
    }

    /// How long it takes times the requests that wait for it; the unknown ones are tried one request at a time.
    #[must_use]
    pub fn cost(&self, now: Duration, decay: Duration, active: u32) -> f64 {
        let seconds = self.read(now, decay);
        if seconds == 0.0 && active > 0 {
            UNKNOWN + f64::from(active)
        } else {
            seconds * (f64::from(active) + 1.0)
        }
    }

    fn kept(&self, now: Duration, decay: Duration) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        (-passed / decay.as_secs_f64().max(0.001)).exp()
    }
}

/// More than anything that is known: an endpoint that has a request and has never answered.
const UNKNOWN: f64 = 1e9;

/// The index of the better of two endpoints. One of twice the weight may cost twice as much.
pub(super) fn pick(pool: &Pool, load: &dyn Load, rng: &mut fastrand::Rng) -> usize {
    let members = &pool.members;
    let first = rng.usize(..members.len());
    if members.len() == 1 {
        return members[first].endpoint;
    }
    let mut second = rng.usize(..members.len() - 1);
    if second >= first {
        second += 1;
    }
    let [first, second] = [members[first], members[second]];
    let cost = |endpoint: usize, weight: u32| load.cost(endpoint) / f64::from(weight);
    if cost(second.endpoint, second.weight) < cost(first.endpoint, first.weight) {
        second.endpoint
    } else {
        first.endpoint
    }
}
