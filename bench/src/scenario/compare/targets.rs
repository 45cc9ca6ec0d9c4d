//! What Culvert is to reach, and whether it does.
//!
//! A target is met when the interval of the median reaches it and the control, a thing against itself measured in the same
//! rounds, contains 1.00: else the machine was too noisy for a claim. Memory has no control: it does not depend on noise.

use serde::Serialize;

use super::contender::Contender;
use super::metric::Metric;
use super::results::{Results, Row, ScenarioResults, ratio};
use super::workload::Scenario;
use crate::report::Summary;

/// A figure that is not to be exceeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    /// What is compared.
    pub what: &'static str,
    /// With what.
    pub against: &'static str,
    /// What the figure is.
    pub claim: Claim,
    /// The most it may be.
    pub at_most: f64,
    /// Unit of the figure; empty for a ratio.
    pub unit: &'static str,
}

/// What the figure of a target is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Claim {
    /// Culvert's figure by that of another row.
    Ratio(Scenario, Metric, Contender),
    /// The figure of the uring driver by that of the epoll driver.
    Drivers(Scenario, Metric),
    /// The bare forwarder's figure by HAProxy's.
    Floor(Scenario, Metric),
    /// Culvert's own figure.
    Own(Scenario, Metric),
    /// Not one of this command's figures; where it comes from instead.
    Elsewhere(&'static str),
}

/// A target with what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// What is compared.
    pub what: &'static str,
    /// With what.
    pub against: &'static str,
    /// The most it may be.
    pub at_most: f64,
    /// Unit of the figures; empty for ratios.
    pub unit: &'static str,
    /// Median and interval of the figure.
    pub measured: Option<Summary>,
    /// Median and interval of the control.
    pub control: Option<Summary>,
    /// Whether the target is met.
    pub verdict: Verdict,
    /// Why it is not, or was not measured; may be empty.
    pub reason: String,
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    NotMet,
    /// Nothing is known about it.
    NotMeasured,
}

const CAPTURE: &str = "culvert-bench capture measures captured traffic";
const SCALE: &str = "needs a large configuration";

const fn target(what: &'static str, against: &'static str, claim: Claim, at_most: f64) -> Target {
    Target { what, against, claim, at_most, unit: "" }
}

const fn memory(what: &'static str, metric: Metric, at_most: f64, unit: &'static str) -> Target {
    Target { what, against: "", claim: Own(Scenario::Connections, metric), at_most, unit }
}

use Claim::{Drivers, Elsewhere, Floor, Own, Ratio};
use Contender::{Envoy, Forwarder, Haproxy};
use Metric::{ManyCpu, RequestCpu};
use Scenario::{Bodies, Grpc, Http1, Http2, Tls};

/// All targets. CPU is that of the proxy per request: one worker, 64 connections, 1 KB, unless it says otherwise.
pub(super) const TARGETS: [Target; 23] = [
    target("HTTP/1.1, no splice", "HAProxy", Ratio(Http1, RequestCpu, Haproxy), 0.85),
    target("HTTP/1.1, no splice", "Envoy", Ratio(Http1, RequestCpu, Envoy), 0.40),
    target("HTTP/1.1, no splice", "bare forwarder", Ratio(Http1, RequestCpu, Forwarder), 1.15),
    target("HTTP/1.1, splice on", "HAProxy", Elsewhere(CAPTURE), 0.55),
    target("HTTP/1.1, splice on", "Envoy with iptables", Elsewhere(CAPTURE), 0.22),
    target("uring driver, 64 connections", "own epoll driver", Drivers(Http1, RequestCpu), 1.00),
    target("uring driver, 1,000 connections", "own epoll driver", Drivers(Http1, ManyCpu), 1.00),
    target("HTTP/2 to HTTP/2", "Envoy", Ratio(Http2, RequestCpu, Envoy), 0.45),
    target("gRPC unary", "Envoy", Ratio(Grpc, RequestCpu, Envoy), 0.45),
    target("TLS 1.3 HTTP/1.1", "HAProxy", Ratio(Tls, RequestCpu, Haproxy), 0.90),
    target("TLS 1.3 HTTP/1.1", "Envoy", Ratio(Tls, RequestCpu, Envoy), 0.50),
    target("1 MB bodies", "Envoy", Ratio(Bodies, RequestCpu, Envoy), 0.75),
    target("1 MB bodies", "bare forwarder, 64 KB", Ratio(Bodies, RequestCpu, Forwarder), 1.10),
    target("new connection, captured", "iptables, 1,000 rules", Elsewhere(CAPTURE), 0.85),
    target("added p50 at 1 connection", "Envoy with iptables", Elsewhere(CAPTURE), 0.40),
    target("p99 at 1,000 requests/s", "Envoy with iptables", Elsewhere(CAPTURE), 0.40),
    memory("memory per idle connection", Metric::RssEach, 1.0, "KB"),
    memory("memory at 500 connections", Metric::Rss500, 15.0, "MB"),
    memory("memory at 9,000 connections", Metric::Rss9000, 25.0, "MB"),
    target("memory, 5,000 clusters loaded", "Envoy", Elsewhere(SCALE), 0.15),
    target("memory, 5,000 clusters used", "Envoy", Elsewhere(SCALE), 0.25),
    target("last of 5,000 routes", "first", Elsewhere(SCALE), 1.3),
    // The forwarder counts as a floor only when it is one.
    target("bare forwarder, to be a floor", "HAProxy", Floor(Http1, RequestCpu), 0.82),
];

/// Judges all targets.
pub(super) fn judge(results: &Results) -> Vec<Judged> {
    TARGETS.iter().map(|target| judge_one(target, results)).collect()
}

/// Judges one target.
pub(super) fn judge_one(target: &Target, results: &Results) -> Judged {
    let (measured, control) = match measure(target.claim, results) {
        Ok(measured) => measured,
        Err(reason) => return judged(target, None, None, Verdict::NotMeasured, reason),
    };
    let [low, _] = measured.interval;
    let (verdict, reason) = match &control {
        _ if low > target.at_most => (Verdict::NotMet, String::new()),
        Some(Control::Missing) => (Verdict::NotMeasured, "no control row".to_owned()),
        Some(Control::Measured(control)) if !(control.interval[0]..=control.interval[1]).contains(&1.0) => {
            (Verdict::NotMet, "too noisy: the control misses 1.00".to_owned())
        }
        _ => (Verdict::Met, String::new()),
    };
    let control = match control {
        Some(Control::Measured(control)) => Some(control),
        _ => None,
    };
    judged(target, Some(measured), control, verdict, reason)
}

fn judged(
    target: &Target,
    measured: Option<Summary>,
    control: Option<Summary>,
    verdict: Verdict,
    reason: String,
) -> Judged {
    let Target { what, against, at_most, unit, .. } = *target;
    Judged { what, against, at_most, unit, measured, control, verdict, reason }
}

/// A thing against itself, in the rounds of a target.
enum Control {
    Measured(Summary),
    Missing,
}

/// The figure, and its control where it needs one; or why there is none.
fn measure(claim: Claim, results: &Results) -> Result<(Summary, Option<Control>), String> {
    let (scenario, metric) = match claim {
        Ratio(scenario, metric, _)
        | Drivers(scenario, metric)
        | Floor(scenario, metric)
        | Own(scenario, metric) => (scenario, metric),
        Elsewhere(why) => return Err(why.to_owned()),
    };
    let of_scenario =
        results.scenario(scenario).ok_or_else(|| format!("scenario {} was not run", scenario.name()))?;
    let row = |contender| sound(of_scenario, contender);
    let culvert = || match of_scenario.culvert() {
        Some(found) => row(found.contender),
        None => row(Contender::CulvertUring),
    };
    let nothing = || "no figure".to_owned();
    let (of, to) = match claim {
        Own(..) => {
            let summary = culvert()?.summary(metric).ok_or_else(nothing)?;
            return Ok((summary, None));
        }
        Drivers(..) => (row(Contender::CulvertUring)?, row(Contender::CulvertEpoll)?),
        Floor(..) => (row(Forwarder)?, row(Haproxy)?),
        Ratio(_, _, to) => (culvert()?, row(to)?),
        Elsewhere(why) => return Err(why.to_owned()),
    };
    let measured = ratio(of, to, metric).ok_or_else(nothing)?;
    let control = match (sound(of_scenario, Contender::Control), culvert()) {
        (Ok(control), Ok(culvert)) => {
            ratio(control, culvert, metric).map_or(Control::Missing, Control::Measured)
        }
        _ => Control::Missing,
    };
    Ok((measured, Some(control)))
}

/// A row whose every request was answered well; a figure over errors is none.
fn sound(results: &ScenarioResults, contender: Contender) -> Result<&Row, String> {
    match results.row(contender) {
        Some(row) if row.failed > 0 => Err(format!("{}: {} requests failed", contender.label(), row.failed)),
        Some(row) => Ok(row),
        None => Err(format!("{} was not measured", contender.label())),
    }
}

impl Verdict {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::NotMeasured => "not measured",
        }
    }
}
