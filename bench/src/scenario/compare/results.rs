//! All that was measured.

use serde::Serialize;

use super::contender::Contender;
use super::metric::{Metric, Sample};
use super::workload::Scenario;
use crate::report::Summary;

/// Everything, scenario by scenario.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// In the order in which they were run.
    pub scenarios: Vec<ScenarioResults>,
}

/// The rows of a scenario.
#[derive(Clone, Debug)]
pub struct ScenarioResults {
    /// Which.
    pub scenario: Scenario,
    /// In the order in which they are shown.
    pub rows: Vec<Row>,
    /// Who has no row, and why.
    pub absent: Vec<(Contender, String)>,
    /// What else a reader must know.
    pub notes: Vec<String>,
}

/// A contender's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who.
    pub contender: Contender,
    /// By round.
    #[serde(skip)]
    pub samples: Vec<Sample>,
    /// Latencies at the fixed rate at each of [`crate::load::CURVE`], by round.
    #[serde(skip)]
    pub curves: Vec<Vec<f64>>,
    /// Requests without an answer, or with another than 2xx.
    pub failed: u64,
}

impl Row {
    /// A row without figures.
    pub fn new(contender: Contender) -> Self {
        Self { contender, samples: Vec::new(), curves: Vec::new(), failed: 0 }
    }

    /// A figure by round; not a number where it was not measured.
    pub fn values(&self, metric: Metric) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.get(&metric).copied().unwrap_or(f64::NAN)).collect()
    }

    /// Median and interval of a figure over the rounds in which it was measured.
    pub fn summary(&self, metric: Metric) -> Option<Summary> {
        let mut values = self.values(metric);
        values.retain(|value| value.is_finite());
        Summary::of(&values)
    }

    /// Median over the rounds of each point of the latency curve.
    pub fn curve(&self) -> Vec<f64> {
        let points = self.curves.iter().map(Vec::len).max().unwrap_or(0);
        let at = |point: usize| {
            let values: Vec<f64> = self.curves.iter().filter_map(|curve| curve.get(point).copied()).collect();
            Summary::of(&values).map_or(f64::NAN, |summary| summary.median)
        };
        (0..points).map(at).collect()
    }
}

impl ScenarioResults {
    /// Without rows.
    pub fn new(scenario: Scenario) -> Self {
        Self { scenario, rows: Vec::new(), absent: Vec::new(), notes: Vec::new() }
    }

    /// The row of a contender.
    pub fn row(&self, contender: Contender) -> Option<&Row> {
        self.rows.iter().find(|row| row.contender == contender)
    }

    /// The driver whose rows stand for Culvert: uring, or epoll where io_uring is not to be had.
    pub fn culvert(&self) -> Option<&Row> {
        self.row(Contender::CulvertUring).or_else(|| self.row(Contender::CulvertEpoll))
    }

    /// How many rounds were measured.
    pub fn rounds(&self) -> usize {
        self.rows.iter().map(|row| row.samples.len()).max().unwrap_or(0)
    }
}

impl Results {
    /// The rows of a scenario, if it was run.
    pub fn scenario(&self, scenario: Scenario) -> Option<&ScenarioResults> {
        self.scenarios.iter().find(|results| results.scenario == scenario)
    }
}

/// Per-round ratios of two rows.
pub(super) fn ratio(of: &Row, to: &Row, metric: Metric) -> Option<Summary> {
    Summary::of_ratios(&of.values(metric), &to.values(metric))
}
