//! How long a host takes to answer, for clusters that balance by it.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use culvert_proto::balance::Ewma;
use culvert_ring::time;

/// What a request that got no answer counts as, at least.
const FAILURE: Duration = Duration::from_secs(1);

/// The response times of a host, as one worker sees them.
pub(super) struct Latency {
    average: Cell<Ewma>,
    decay: Duration,
    since: Instant,
}

impl Latency {
    /// Nothing is known yet.
    pub(super) fn new(decay: Duration) -> Self {
        Self { average: Cell::default(), decay, since: time::now() }
    }

    fn now(&self) -> Duration {
        time::now().saturating_duration_since(self.since)
    }

    /// A request that was sent at `begun` is over.
    pub(super) fn observe(&self, begun: Instant) {
        self.put(time::now().saturating_duration_since(begun));
    }

    /// A request got no answer: a host that fails at once must not pass for a fast one.
    pub(super) fn fail(&self) {
        let known = Duration::try_from_secs_f64(self.average.get().read(self.now(), self.decay));
        self.put(known.unwrap_or_default().saturating_mul(2).clamp(FAILURE, FAILURE * 60));
    }

    fn put(&self, took: Duration) {
        let mut average = self.average.get();
        average.observe(self.now(), took, self.decay);
        self.average.set(average);
    }

    /// See [`Ewma::cost`].
    pub(super) fn cost(&self, active: u32) -> f64 {
        self.average.get().cost(self.now(), self.decay, active)
    }
}
