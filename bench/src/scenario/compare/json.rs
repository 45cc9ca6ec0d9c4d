//! The comparison for machines.

use serde_json::{Map, Value, json};

use super::Report;
use super::results::{Results, Row, ScenarioResults};
use super::text::{method, ratios};

/// Everything, for machines.
pub(super) fn render(report: &Report) -> Value {
    let scenario = |results: &ScenarioResults| {
        let metrics = results.scenario.metrics();
        let row = |row: &Row| {
            let values: Map<String, Value> =
                metrics.iter().map(|metric| (metric.key().to_owned(), json!(row.summary(*metric)))).collect();
            let rounds: Map<String, Value> =
                metrics.iter().map(|metric| (metric.key().to_owned(), json!(row.values(*metric)))).collect();
            json!({
                "name": row.contender, "failed": row.failed, "values": values, "rounds": rounds,
                "latency_curve_us": row.curve(),
            })
        };
        let ratios: Map<String, Value> =
            ratios(results).into_iter().map(|(name, summary)| (name, json!(summary))).collect();
        let absent: Map<String, Value> =
            results.absent.iter().map(|(contender, why)| (contender.name().to_owned(), json!(why))).collect();
        json!({
            "scenario": results.scenario,
            "title": results.scenario.title(),
            "rows": results.rows.iter().map(row).collect::<Vec<_>>(),
            "ratio_of": metrics[0].key(),
            "ratios": ratios,
            "absent": absent,
            "notes": results.notes,
        })
    };
    let all = |results: &Results| results.scenarios.iter().map(scenario).collect::<Vec<_>>();
    json!({
        "comparison": "compare",
        "machine": report.machine,
        "culvert": report.culvert,
        "settings": report.settings,
        "method": method(&report.settings),
        "latency_curve_quantiles": crate::load::CURVE,
        "scenarios": all(&report.results),
        "targets": report.targets,
    })
}
