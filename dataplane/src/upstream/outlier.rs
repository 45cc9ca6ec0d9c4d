//! What workers tell outlier detection of a host. A success writes nothing that others read, unless it ends a row of
//! failures.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use culvert_model::OutlierDetection;
use culvert_proto::outlier::{Cause, Rate, Streak};
use tokio::sync::mpsc::UnboundedSender;

use crate::observe::stats::Counter;

/// How a request, or a connection, failed before there was an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LocalFailure {
    /// No connection, or it was lost.
    Connection,
    /// It took too long.
    Timeout,
}

impl LocalFailure {
    /// The status it counts as where local failures are not told from others.
    fn status(self) -> u16 {
        match self {
            Self::Connection => 503,
            Self::Timeout => 504,
        }
    }
}

/// One worker's share of the requests of a host.
#[derive(Default)]
struct Counts {
    total: Counter,
    successes: Counter,
    local_total: Counter,
    local_successes: Counter,
}

/// A host has failed too often in a row.
pub struct Tripped {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// The host.
    pub monitor: Arc<Monitor>,
}

/// What is known of the requests of a host, over all workers.
pub struct Monitor {
    /// As configured.
    pub config: Arc<OutlierDetection>,
    cluster: Arc<str>,
    /// A [`Streak`].
    streak: AtomicU64,
    /// Local failures in a row.
    local: AtomicU32,
    /// Bits of the causes that control has not been seen to yet.
    tripped: AtomicU32,
    counts: Box<[Counts]>,
    control: UnboundedSender<Tripped>,
    /// Success rates of the last interval, for those who look: bits of an `f64`.
    shown: [AtomicU64; 2],
}

impl Monitor {
    /// One for a host of `cluster` that nothing is known of.
    pub fn new(
        config: Arc<OutlierDetection>,
        cluster: Arc<str>,
        workers: usize,
        control: UnboundedSender<Tripped>,
    ) -> Self {
        Self {
            config,
            cluster,
            streak: AtomicU64::new(0),
            local: AtomicU32::new(0),
            tripped: AtomicU32::new(0),
            counts: (0..workers).map(|_| Counts::default()).collect(),
            control,
            shown: [const { AtomicU64::new(NO_RATE) }; 2],
        }
    }

    /// There was a response with this status.
    pub fn answered(self: &Arc<Self>, worker: usize, status: u16) {
        let counts = &self.counts[worker];
        counts.total.inc();
        if !(500..=599).contains(&status) {
            counts.successes.inc();
            if self.streak.load(Relaxed) != 0 {
                self.streak.store(0, Relaxed);
            }
            return;
        }
        let after = |word| Some(Streak::of_word(word).after(status).word());
        // The closure always has an answer.
        let before = self.streak.fetch_update(Relaxed, Relaxed, after).unwrap_or_else(|word| word);
        let streak = Streak::of_word(before).after(status);
        if streak.gateway > 0 && streak.gateway == self.config.consecutive_gateway {
            self.trip(Cause::ConsecutiveGateway);
        }
        if streak.errors == self.config.consecutive_5xx {
            self.trip(Cause::Consecutive5xx);
        }
    }

    /// There was none.
    pub fn failed(self: &Arc<Self>, worker: usize, failure: LocalFailure) {
        if !self.config.split {
            return self.answered(worker, failure.status());
        }
        self.counts[worker].local_total.inc();
        let row = self.local.fetch_add(1, Relaxed).saturating_add(1);
        if row == self.config.consecutive_local {
            self.trip(Cause::ConsecutiveLocal);
        }
    }

    /// The host was reached. `last`: it is a connection of opaque bytes, of which no more will be heard.
    pub fn reached(self: &Arc<Self>, worker: usize, last: bool) {
        if !self.config.split {
            if last {
                self.answered(worker, 200);
            }
            return;
        }
        let counts = &self.counts[worker];
        counts.local_total.inc();
        counts.local_successes.inc();
        if self.local.load(Relaxed) != 0 {
            self.local.store(0, Relaxed);
        }
    }

    fn trip(self: &Arc<Self>, cause: Cause) {
        let bit = 1 << cause as u32;
        if self.tripped.fetch_or(bit, Relaxed) & bit == 0 {
            // Without control the process ends.
            let _ = self.control.send(Tripped { cluster: self.cluster.clone(), monitor: self.clone() });
        }
    }

    /// What it tripped on since this was asked last.
    pub fn take_tripped(&self) -> Vec<Cause> {
        let bits = self.tripped.swap(0, Relaxed);
        Cause::ALL.into_iter().filter(|cause| bits & 1 << *cause as u32 != 0).collect()
    }

    /// Starts the row of this cause anew.
    pub fn reset(&self, cause: Cause) {
        match cause {
            Cause::Consecutive5xx => {
                let keep = |word| Some(Streak { errors: 0, ..Streak::of_word(word) }.word());
                let _ = self.streak.fetch_update(Relaxed, Relaxed, keep);
            }
            Cause::ConsecutiveGateway => {
                let keep = |word| Some(Streak { gateway: 0, ..Streak::of_word(word) }.word());
                let _ = self.streak.fetch_update(Relaxed, Relaxed, keep);
            }
            Cause::ConsecutiveLocal => self.local.store(0, Relaxed),
            Cause::SuccessRate
            | Cause::LocalSuccessRate
            | Cause::FailurePercentage
            | Cause::LocalFailurePercentage => {}
        }
    }

    /// Requests so far: those that reached the host, and attempts to.
    pub fn rates(&self) -> [Rate; 2] {
        let mut rates = [Rate::default(); 2];
        for counts in &self.counts {
            rates[0].total += counts.total.value();
            rates[0].successes += counts.successes.value();
            rates[1].total += counts.local_total.value();
            rates[1].successes += counts.local_successes.value();
        }
        rates
    }

    /// Success rates of the last interval in percent, -1 when there were too few requests: of answers, and of reaching it.
    pub fn shown(&self) -> [f64; 2] {
        [0, 1].map(|index| f64::from_bits(self.shown[index].load(Relaxed)))
    }

    /// Sets what [`Monitor::shown`] says.
    pub fn show(&self, rates: [f64; 2]) {
        for (shown, rate) in self.shown.iter().zip(rates) {
            shown.store(rate.to_bits(), Relaxed);
        }
    }
}

const NO_RATE: u64 = (-1.0_f64).to_bits();
