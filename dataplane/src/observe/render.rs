//! Statistics as text and as JSON, in the shapes of Envoy's `/stats`.

use std::fmt::Write;

use regex::Regex;
use serde_json::{Value, json};

use crate::observe::histogram::Merged;
use crate::observe::registry::{HistogramStat, Kind, Snapshot};
use crate::observe::view::View;

/// Quantiles of the summary, in percent.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// Envoy's default bucket bounds, in the histogram's own unit.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Which statistics a reader asks for.
#[derive(Debug, Default)]
pub struct Select {
    /// Only what was ever written (`usedonly`).
    pub used_only: bool,
    /// Only names in which this is found (`filter`); turned around by `invert_filter`.
    pub filter: Option<Regex>,
    /// Only names in which `filter` is not found.
    pub invert_filter: bool,
    /// Only one kind (`type`).
    pub kind: SelectKind,
}

/// The `type` parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SelectKind {
    /// Everything.
    #[default]
    All,
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
    /// Text readouts, of which there are none.
    TextReadouts,
}

impl Select {
    /// Removes what was not asked for.
    pub fn apply(&self, snapshot: &mut Snapshot) {
        snapshot.stats.retain(|stat| {
            let kind = match stat.kind {
                Kind::Counter => SelectKind::Counters,
                Kind::Gauge => SelectKind::Gauges,
            };
            self.kind_matches(kind) && (stat.used || !self.used_only) && self.name_matches(&stat.name)
        });
        snapshot.histograms.retain(|histogram| {
            let used = histogram.cumulative.count() > 0;
            self.kind_matches(SelectKind::Histograms)
                && (used || !self.used_only)
                && self.name_matches(&histogram.name)
        });
    }

    fn kind_matches(&self, kind: SelectKind) -> bool {
        self.kind == SelectKind::All || self.kind == kind
    }

    fn name_matches(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert_filter)
    }
}

/// How histograms are shown (`histogram_buckets`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HistogramForm {
    /// Quantiles.
    #[default]
    Summary,
    /// How many samples are at most each bound.
    Cumulative,
    /// How many samples lie between each bound and the one before.
    Disjoint,
}

/// `name: value` lines; counters and gauges first, then histograms.
pub fn text(snapshot: &Snapshot, form: HistogramForm) -> String {
    let mut out = String::with_capacity(64 * (snapshot.stats.len() + snapshot.histograms.len()));
    for stat in &snapshot.stats {
        let _ = writeln!(out, "{}: {}", stat.name, stat.value);
    }
    for histogram in &snapshot.histograms {
        let _ = writeln!(
            out,
            "{}: {}",
            histogram.name,
            histogram_text(histogram, snapshot.view.bounds(&histogram.name), form)
        );
    }
    out
}

/// `{"stats": [...]}`: counters and gauges as name and value, then one object with all histograms.
pub fn json(snapshot: &Snapshot, form: HistogramForm) -> Value {
    let mut stats: Vec<Value> =
        snapshot.stats.iter().map(|stat| json!({"name": stat.name, "value": stat.value})).collect();
    if !snapshot.histograms.is_empty() {
        stats.push(json!({"histograms": histograms_json(&snapshot.histograms, &snapshot.view, form)}));
    }
    json!({ "stats": stats })
}

fn histogram_text(histogram: &HistogramStat, bounds: &[f64], form: HistogramForm) -> String {
    let parts: Vec<String> = match form {
        HistogramForm::Summary if histogram.cumulative.count() == 0 => {
            return "No recorded values".to_owned();
        }
        HistogramForm::Summary => QUANTILES
            .iter()
            .map(|percent| {
                let show = |merged: &Merged| {
                    merged
                        .quantile(percent / 100.0)
                        .map_or_else(|| "nan".to_owned(), |value| value.to_string())
                };
                format!("P{percent}({},{})", show(&histogram.interval), show(&histogram.cumulative))
            })
            .collect(),
        HistogramForm::Cumulative | HistogramForm::Disjoint => {
            let interval = bucket_counts(&histogram.interval, bounds, form);
            let cumulative = bucket_counts(&histogram.cumulative, bounds, form);
            let counts = interval.iter().zip(&cumulative);
            bounds
                .iter()
                .zip(counts)
                .map(|(bound, (interval, all))| format!("B{}({interval},{all})", short(*bound)))
                .collect()
        }
    };
    parts.join(" ")
}

fn histograms_json(histograms: &[HistogramStat], view: &View, form: HistogramForm) -> Value {
    if form == HistogramForm::Summary {
        let quantile = |merged: &Merged, percent: f64| merged.quantile(percent / 100.0);
        let computed: Vec<Value> = histograms
            .iter()
            .map(|histogram| {
                let values = QUANTILES.map(|percent| {
                    json!({
                        "cumulative": quantile(&histogram.cumulative, percent),
                        "interval": quantile(&histogram.interval, percent),
                    })
                });
                json!({"name": histogram.name, "values": values})
            })
            .collect();
        return json!({"supported_quantiles": QUANTILES.map(number), "computed_quantiles": computed});
    }
    histograms
        .iter()
        .map(|histogram| {
            let bounds = view.bounds(&histogram.name);
            let interval = bucket_counts(&histogram.interval, bounds, form);
            let cumulative = bucket_counts(&histogram.cumulative, bounds, form);
            let counts = interval.iter().zip(&cumulative);
            let buckets: Vec<Value> = bounds
                .iter()
                .zip(counts)
                .map(|(bound, (interval, all))| {
                    json!({"upper_bound": number(*bound), "interval": interval, "cumulative": all})
                })
                .collect();
            json!({"name": histogram.name, "buckets": buckets})
        })
        .collect()
}

/// The samples at most each bound, or between the bounds.
fn bucket_counts(merged: &Merged, bounds: &[f64], form: HistogramForm) -> Vec<u64> {
    let mut below = 0;
    let count = |bound: &f64| {
        let at_most = merged.count_at_most(*bound);
        let count = if form == HistogramForm::Disjoint { at_most - below } else { at_most };
        below = at_most;
        count
    };
    bounds.iter().map(count).collect()
}

/// A whole number as an integer, anything else as it is: `25` and `99.5`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as u64) } else { json!(value) }
}

/// C's `%g`: `1.8e+06` from a million up.
fn short(bound: f64) -> String {
    if bound < 1e6 { bound.to_string() } else { format!("{}e+06", bound / 1e6) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::stats::{HttpStats, Registry};

    fn sample() -> (Registry, Arc<HttpStats>) {
        let registry = Registry::new();
        let http = Arc::new(HttpStats::default());
        registry.register("http.in", http.clone());
        http.downstream_rq_total.add(3);
        http.downstream_rq_active.inc();
        http.downstream_rq_active.dec();
        for value in [3, 3, 8] {
            http.downstream_rq_time.record(value);
        }
        (registry, http)
    }

    fn select(registry: &Registry, select: &Select) -> Snapshot {
        let mut snapshot = registry.snapshot();
        select.apply(&mut snapshot);
        snapshot
    }

    #[test]
    fn used_statistics_as_text() {
        let (registry, _http) = sample();
        let all = Select { used_only: true, ..Select::default() };
        assert_eq!(
            text(&select(&registry, &all), HistogramForm::Summary),
            "http.in.downstream_rq_active: 0\n\
             http.in.downstream_rq_total: 3\n\
             http.in.downstream_rq_time: P0(nan,3) P25(nan,3) P50(nan,3) P75(nan,8) P90(nan,8) P95(nan,8) \
             P99(nan,8) P99.5(nan,8) P99.9(nan,8) P100(nan,8)\n"
        );
    }

    #[test]
    fn an_empty_histogram_says_so() {
        let (registry, _http) = sample();
        let only = Select { filter: Some(Regex::new("cx_length").unwrap()), ..Select::default() };
        assert_eq!(
            text(&select(&registry, &only), HistogramForm::Summary),
            "http.in.downstream_cx_length_ms: No recorded values\n"
        );
    }

    #[test]
    fn buckets_as_text() {
        let (registry, _http) = sample();
        registry.flush();
        let only = Select { filter: Some(Regex::new("rq_time").unwrap()), ..Select::default() };
        let snapshot = select(&registry, &only);
        let cumulative = text(&snapshot, HistogramForm::Cumulative);
        assert!(cumulative.contains("B0.5(0,0) B1(0,0) B5(2,2) B10(3,3) B25(3,3)"), "{cumulative}");
        assert!(cumulative.ends_with("B600000(3,3) B1.8e+06(3,3) B3.6e+06(3,3)\n"), "{cumulative}");
        let disjoint = text(&snapshot, HistogramForm::Disjoint);
        assert!(disjoint.contains("B5(2,2) B10(1,1) B25(0,0)"), "{disjoint}");
    }

    #[test]
    fn filters_and_kinds() {
        let (registry, _http) = sample();
        let filter = || Some(Regex::new("rq_total$").unwrap());
        let found = select(&registry, &Select { filter: filter(), ..Select::default() });
        assert_eq!(found.stats.len(), 2);
        let other = select(&registry, &Select { filter: filter(), invert_filter: true, ..Select::default() });
        assert!(other.stats.len() > 10 && other.value("http.in.downstream_rq_total").is_none());
        let gauges = select(&registry, &Select { kind: SelectKind::Gauges, ..Select::default() });
        assert!(gauges.histograms.is_empty() && gauges.stats.iter().all(|stat| stat.kind == Kind::Gauge));
        let none = select(&registry, &Select { kind: SelectKind::TextReadouts, ..Select::default() });
        assert_eq!(none, Snapshot::default());
    }

    #[test]
    fn json_has_envoys_shape() {
        let (registry, _http) = sample();
        registry.flush();
        let only = Select { used_only: true, filter: Some(Regex::new("rq_t").unwrap()), ..Select::default() };
        let snapshot = select(&registry, &only);
        let value = json(&snapshot, HistogramForm::Summary);
        assert_eq!(value["stats"][0], json!({"name": "http.in.downstream_rq_total", "value": 3}));
        let histograms = &value["stats"][1]["histograms"];
        assert_eq!(histograms["supported_quantiles"], json!([0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100]));
        assert_eq!(histograms["computed_quantiles"][0]["name"], "http.in.downstream_rq_time");
        assert_eq!(histograms["computed_quantiles"][0]["values"][9], json!({"cumulative": 8, "interval": 8}));
        let buckets = json(&snapshot, HistogramForm::Cumulative);
        assert_eq!(
            buckets["stats"][1]["histograms"][0]["buckets"][2],
            json!({"upper_bound": 5, "interval": 2, "cumulative": 2})
        );
    }

    #[test]
    fn nothing_selected_is_an_empty_list() {
        assert_eq!(json(&Snapshot::default(), HistogramForm::Summary).to_string(), r#"{"stats":[]}"#);
        assert_eq!(text(&Snapshot::default(), HistogramForm::Summary), "");
    }
}
