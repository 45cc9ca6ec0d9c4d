//! What a run counted, and the numbers it comes down to.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::meter::Usage;

/// Why a request got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The connection ended before the response was complete.
    Closed,
    /// The connection could not be made, for another reason than the two below.
    Connect,
    /// Nobody listens at the target.
    ConnectRefused,
    /// The connection was not made in time.
    ConnectTimeout,
    /// The call was answered with another `grpc-status` than 0, or with none.
    Grpc,
    /// The response is no valid HTTP.
    Malformed,
    /// The connection was reset.
    Reset,
    /// No complete response in time.
    Timeout,
    /// Still waiting when the run ended; its age so far is in the latencies.
    Unfinished,
}

/// Histograms and counters while a run goes on.
#[derive(Debug)]
pub(crate) struct Tally {
    /// From when a request was due (open loop) or sent (closed loop) to its last byte, nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// From when a request was sent, or its connection begun, to its last byte, nanoseconds.
    pub(crate) service: Histogram<u64>,
    /// Duration of connects, nanoseconds.
    pub(crate) connect: Histogram<u64>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) failures: BTreeMap<Failure, u64>,
    /// Responses complete within the window.
    pub(crate) in_window: u64,
    pub(crate) bytes_received: u64,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Length of the measured window, seconds.
    pub seconds: f64,
    /// Responses completed within the window.
    pub requests: u64,
    /// `requests` per second.
    pub requests_per_second: f64,
    /// Latency from due time to last byte, microseconds. Requests that timed out or were unanswered at the end are
    /// in it with the time they waited.
    pub latency_us: Quantiles,
    /// Latency from the moment of sending to last byte, microseconds: not corrected for coordinated omission.
    pub service_us: Quantiles,
    /// Duration of connects, microseconds; all zero without new connections in the window.
    pub connect_us: Quantiles,
    /// Responses by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Responses whose status is not 2xx.
    pub non_2xx: u64,
    /// Requests without a response, by cause.
    pub failures: BTreeMap<Failure, u64>,
    /// Bytes read since the window opened, heads and framing included.
    pub bytes_received: u64,
    /// CPU time the generator itself spent per request, microseconds.
    pub generator_cpu_us: f64,
    /// CPU time spent in the window by each cgroup asked for, microseconds, in the order given.
    pub cgroup_cpu_us: Vec<u64>,
    /// CPU time spent in the window by each process asked for and its descendants, microseconds, in the order given.
    pub process_cpu_us: Vec<u64>,
    /// Latency from due time at each of [`CURVE`], microseconds; empty without samples.
    pub curve_us: Vec<f64>,
}

/// Shares of requests at which [`Outcome::curve_us`] tells the latency.
pub const CURVE: [f64; 12] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0];

/// A latency distribution in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Largest sample.
    pub max: f64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: histogram(),
            service: histogram(),
            connect: histogram(),
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            in_window: 0,
            bytes_received: 0,
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// The numbers, with what was used meanwhile.
    pub(super) fn outcome(self, usage: Usage) -> Outcome {
        let seconds = usage.wall.as_secs_f64();
        let at = |share| self.latency.value_at_quantile(share) as f64 / 1e3;
        let curve_us = if self.latency.is_empty() { Vec::new() } else { CURVE.map(at).to_vec() };
        Outcome {
            seconds,
            requests: self.in_window,
            requests_per_second: if seconds > 0.0 { self.in_window as f64 / seconds } else { 0.0 },
            latency_us: Quantiles::of(&self.latency),
            service_us: Quantiles::of(&self.service),
            connect_us: Quantiles::of(&self.connect),
            non_2xx: self
                .statuses
                .iter()
                .filter(|(status, _)| !(200..300).contains(*status))
                .map(|(_, n)| n)
                .sum(),
            statuses: self.statuses,
            failures: self.failures,
            bytes_received: self.bytes_received,
            generator_cpu_us: usage.own_cpu.as_secs_f64() * 1e6 / self.in_window.max(1) as f64,
            cgroup_cpu_us: usage.cgroup_cpu_us,
            process_cpu_us: usage.process_cpu_us,
            curve_us,
        }
    }
}

impl Outcome {
    /// Requests without a response, whatever the cause.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

impl Failure {
    /// The cause in plain words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Closed => "closed before the response was complete",
            Self::Connect => "connect failed",
            Self::ConnectRefused => "connect refused",
            Self::ConnectTimeout => "connect timed out",
            Self::Grpc => "grpc-status is not 0",
            Self::Malformed => "malformed response",
            Self::Reset => "connection reset",
            Self::Timeout => "response timed out",
            Self::Unfinished => "unanswered at the end",
        }
    }
}

impl Quantiles {
    fn of(nanoseconds: &Histogram<u64>) -> Self {
        if nanoseconds.is_empty() {
            return Self::default();
        }
        let at = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: nanoseconds.len(),
            mean: nanoseconds.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: nanoseconds.max() as f64 / 1e3,
        }
    }
}

/// A duration as histograms hold it.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// 100 ns to 10 minutes at three digits; longer samples count as 10 minutes.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 600_000_000_000, 3).expect("constant bounds are valid: 2 * low <= high")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_keeps_three_digits_and_sums_what_is_not_2xx() {
        let mut tally = Tally::new();
        for microseconds in 1..=1000_u64 {
            tally.latency.saturating_record(microseconds * 1000);
        }
        tally.in_window = 1000;
        tally.statuses = BTreeMap::from([(200, 990), (404, 7), (503, 3)]);
        tally.failed(Failure::Reset);
        let usage = Usage {
            wall: Duration::from_millis(500),
            own_cpu: Duration::from_millis(4),
            cgroup_cpu_us: vec![],
            process_cpu_us: vec![9],
        };
        let outcome = tally.outcome(usage);

        assert!((outcome.latency_us.p50 - 500.0).abs() < 1.0, "{:?}", outcome.latency_us);
        assert!((outcome.latency_us.p99 - 990.0).abs() < 1.0);
        assert_eq!((outcome.non_2xx, outcome.failed()), (10, 1));
        assert!((outcome.requests_per_second - 2000.0).abs() < 1e-6);
        assert!((outcome.generator_cpu_us - 4.0).abs() < 1e-6);
        assert_eq!(outcome.connect_us.count, 0);
        assert_eq!((outcome.curve_us.len(), outcome.process_cpu_us[0]), (CURVE.len(), 9));
        assert!((outcome.curve_us[2] - 500.0).abs() < 1.0 && outcome.curve_us.is_sorted());
    }
}
