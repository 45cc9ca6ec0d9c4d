//! What is measured, and the values of one row in one round.

use crate::load::Outcome;

/// A column of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    ConnectionCpu,
    ConnectionRate,
    LatencyP50,
    LatencyP99,
    RequestCpu,
}

impl Metric {
    /// In the order of the columns.
    pub(super) const ALL: [Self; 5] =
        [Self::LatencyP50, Self::LatencyP99, Self::RequestCpu, Self::ConnectionRate, Self::ConnectionCpu];

    /// Head of its column.
    pub(super) fn head(self) -> &'static str {
        match self {
            Self::ConnectionCpu => "CPU us/new conn",
            Self::ConnectionRate => "new conn/s",
            Self::LatencyP50 => "p50 us",
            Self::LatencyP99 => "p99 us",
            Self::RequestCpu => "CPU us/request",
        }
    }

    /// Name in the JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::ConnectionCpu => "connection_cpu_us",
            Self::ConnectionRate => "connections_per_second",
            Self::LatencyP50 => "latency_p50_us",
            Self::LatencyP99 => "latency_p99_us",
            Self::RequestCpu => "request_cpu_us",
        }
    }

    /// Digits after the point that mean something.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::ConnectionRate | Self::LatencyP99 => 0,
            Self::ConnectionCpu | Self::LatencyP50 | Self::RequestCpu => 1,
        }
    }

    pub(super) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::ConnectionCpu => sample.connecting.cpu_us(),
            Self::ConnectionRate => sample.connecting.outcome.requests_per_second,
            Self::LatencyP50 => sample.steady.outcome.latency_us.p50,
            Self::LatencyP99 => sample.steady.outcome.latency_us.p99,
            Self::RequestCpu => sample.steady.cpu_us(),
        }
    }
}

/// One row in one round.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Kept-alive connections at a fixed rate.
    pub(super) steady: Run,
    /// One connection per request, as many as it takes.
    pub(super) connecting: Run,
}

/// A run of the load generator with the CPU time of those involved.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) outcome: Outcome,
    /// Of the client pod's cgroup, microseconds.
    pub(super) client_cpu_us: u64,
    /// Of the server pod's cgroup.
    pub(super) server_cpu_us: u64,
    /// Of culvert's cgroup; zero without mesh.
    pub(super) proxy_cpu_us: u64,
}

impl Run {
    /// CPU time of client and proxy together per request, microseconds.
    fn cpu_us(&self) -> f64 {
        self.per_request(self.client_cpu_us + self.proxy_cpu_us)
    }

    /// A total, per request; not a number when there were none.
    pub(super) fn per_request(&self, total_us: u64) -> f64 {
        if self.outcome.requests == 0 { f64::NAN } else { total_us as f64 / self.outcome.requests as f64 }
    }

    /// Requests that failed or were answered with something else than 2xx.
    pub(super) fn bad(&self) -> u64 {
        self.outcome.failed() + self.outcome.non_2xx
    }
}
