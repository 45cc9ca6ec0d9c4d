//! The figures, and how they come out of a run.

use std::collections::BTreeMap;

use super::workload::Measurement;
use crate::load::Outcome;

/// One figure of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// CPU time of the proxy per request at saturation, microseconds.
    RequestCpu,
    /// Requests per second at saturation.
    RequestRate,
    /// Median latency at the fixed rate, microseconds.
    RateP50,
    /// 99th percentile of the latency at the fixed rate, microseconds.
    RateP99,
    /// 99.9th percentile of the latency at the fixed rate, microseconds.
    RateP999,
    /// Median latency of one connection, microseconds.
    SingleP50,
    /// 99th percentile of the latency of one connection, microseconds.
    SingleP99,
    /// CPU time of the proxy per request on 1,000 connections, microseconds.
    ManyCpu,
    /// Body bytes per second, MB (10^6).
    Throughput,
    /// CPU time of the proxy per request with a connection of its own, microseconds.
    ConnectionCpu,
    /// Requests per second with a connection for each.
    ConnectionRate,
    /// Resident memory before the first of many connections, MB (2^20).
    RssStart,
    /// Resident memory at 500 idle connections, MB.
    Rss500,
    /// Resident memory at 4,000 idle connections, MB.
    Rss4000,
    /// Resident memory at 9,000 idle connections, MB.
    Rss9000,
    /// Growth from start to the most connections, divided by these, KB.
    RssEach,
}

/// The figures of one row in one round.
pub(super) type Sample = BTreeMap<Metric, f64>;

impl Metric {
    /// Head of its column.
    pub fn head(self) -> &'static str {
        match self {
            Self::RequestCpu => "CPU us/req",
            Self::RequestRate => "req/s",
            Self::RateP50 => "p50 us",
            Self::RateP99 => "p99 us",
            Self::RateP999 => "p99.9 us",
            Self::SingleP50 => "1 conn p50",
            Self::SingleP99 => "1 conn p99",
            Self::ManyCpu => "CPU us at 1000",
            Self::Throughput => "MB/s",
            Self::ConnectionCpu => "CPU us/conn",
            Self::ConnectionRate => "new conn/s",
            Self::RssStart => "MB start",
            Self::Rss500 => "MB at 500",
            Self::Rss4000 => "MB at 4000",
            Self::Rss9000 => "MB at 9000",
            Self::RssEach => "KB each",
        }
    }

    /// Name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::RequestCpu => "request_cpu_us",
            Self::RequestRate => "requests_per_second",
            Self::RateP50 => "rate_latency_p50_us",
            Self::RateP99 => "rate_latency_p99_us",
            Self::RateP999 => "rate_latency_p99_9_us",
            Self::SingleP50 => "single_latency_p50_us",
            Self::SingleP99 => "single_latency_p99_us",
            Self::ManyCpu => "request_cpu_us_at_1000_connections",
            Self::Throughput => "megabytes_per_second",
            Self::ConnectionCpu => "connection_cpu_us",
            Self::ConnectionRate => "connections_per_second",
            Self::RssStart => "rss_start_mb",
            Self::Rss500 => "rss_500_mb",
            Self::Rss4000 => "rss_4000_mb",
            Self::Rss9000 => "rss_9000_mb",
            Self::RssEach => "rss_per_connection_kb",
        }
    }

    /// Digits after the point that mean something.
    pub fn digits(self) -> usize {
        match self {
            Self::RequestRate | Self::ConnectionRate | Self::Throughput => 0,
            Self::RateP50 | Self::RateP99 | Self::RateP999 | Self::SingleP50 | Self::SingleP99 => 0,
            Self::RssEach => 2,
            _ => 1,
        }
    }

    /// The memory at so many idle connections, where there is such a figure.
    pub fn rss_at(connections: u32) -> Option<Self> {
        match connections {
            500 => Some(Self::Rss500),
            4000 => Some(Self::Rss4000),
            9000 => Some(Self::Rss9000),
            _ => None,
        }
    }
}

/// Adds what a run says to a sample. Without a proxy there is no CPU time of one.
pub(super) fn record(sample: &mut Sample, measurement: Measurement, outcome: &Outcome, body_bytes: usize) {
    let cpu = outcome.process_cpu_us.first().filter(|_| outcome.requests > 0);
    let cpu = cpu.map(|spent| *spent as f64 / outcome.requests as f64);
    let latency = &outcome.latency_us;
    let mut put = |metric, value: Option<f64>| value.map(|value| sample.insert(metric, value));
    match measurement {
        Measurement::Saturation => {
            put(Metric::RequestCpu, cpu);
            put(Metric::RequestRate, Some(outcome.requests_per_second));
            put(Metric::Throughput, Some(outcome.requests_per_second * body_bytes as f64 / 1e6));
        }
        Measurement::ManyConnections => {
            put(Metric::ManyCpu, cpu);
        }
        Measurement::FixedRate if latency.count > 0 => {
            put(Metric::RateP50, Some(latency.p50));
            put(Metric::RateP99, Some(latency.p99));
            put(Metric::RateP999, Some(latency.p99_9));
        }
        Measurement::OneConnection if latency.count > 0 => {
            put(Metric::SingleP50, Some(latency.p50));
            put(Metric::SingleP99, Some(latency.p99));
        }
        Measurement::FixedRate | Measurement::OneConnection => {}
        Measurement::NewConnections => {
            put(Metric::ConnectionCpu, cpu);
            put(Metric::ConnectionRate, Some(outcome.requests_per_second));
        }
    }
}
