//! The comparison as text and as JSON.

use serde_json::{Map, Value, json};

use super::measure::Results;
use super::metric::{Metric, Run, Sample};
use super::variant::Variant;
use super::{Mode, Settings};
use crate::report::table::{Align, Table};
use crate::report::{Machine, Summary};

/// Tables of values and of ratios, with what is needed to read them.
pub(super) fn text(machine: &Machine, settings: &Settings, results: &Results) -> String {
    let mut text = format!(
        "Captured traffic: {} requests/s on {} kept connections, then new connections as fast as they go\n\
         {} rounds of {} s, median [95 % bootstrap interval]; {} B responses; CPU is client and proxy together\n\
         {}, {} x {}, {}\n\n",
        settings.rate,
        settings.connections,
        settings.rounds,
        settings.seconds,
        settings.response_body_bytes,
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.date,
    );
    text.push_str(&values(results).render());
    text.push_str("\nRatios within a round; a control whose interval misses 1.00 means that the machine was too noisy\n\n");
    text.push_str(&ratios(results).render());
    for (variant, samples) in &results.rows {
        let bad = bad(samples);
        if bad > 0 {
            text.push_str(&format!(
                "\n{}: {bad} requests failed or were not answered with 2xx\n",
                variant.label()
            ));
        }
    }
    text
}

/// Everything, for machines.
pub(super) fn json(machine: &Machine, settings: &Settings, results: &Results) -> Value {
    let rows: Vec<Value> =
        results.rows.iter().map(|(variant, samples)| row(*variant, samples, results)).collect();
    let pairs: Vec<Value> = pairs(results)
        .into_iter()
        .map(|(of, to)| json!({"of": of.label(), "to": to.label(), "ratios": summaries(|m| ratio(results, of, to, m))}))
        .collect();
    json!({
        "comparison": "capture",
        "machine": machine,
        "settings": settings,
        "notes": [
            "median with quartiles and 95 % bootstrap interval of per-round values; ratios are taken within rounds",
            "CPU is cpu.stat usage_usec of the client pod's and the proxy's cgroups over the measured window",
            "latency counts from when a request was due (open loop)",
            "nf_conntrack_tcp_timeout_time_wait is 10 s in client pods",
        ],
        "rows": rows,
        "ratios": pairs,
    })
}

fn values(results: &Results) -> Table {
    let mut table = table_with("");
    for (variant, _) in &results.rows {
        let mut cells = vec![variant.label()];
        cells.extend(Metric::ALL.map(|metric| {
            let summary = Summary::of(&finite(results.values(*variant, metric)));
            cell(summary.as_ref(), metric.digits())
        }));
        table.row(cells);
    }
    table
}

fn ratios(results: &Results) -> Table {
    let mut table = table_with("ratio");
    for (of, to) in pairs(results) {
        let mut cells = vec![format!("{} / {}", of.label(), to.label())];
        cells.extend(Metric::ALL.map(|metric| cell(ratio(results, of, to, metric).as_ref(), 2)));
        table.row(cells);
    }
    table
}

fn table_with(first: &str) -> Table {
    let mut columns = vec![(first, Align::Left)];
    columns.extend(Metric::ALL.map(|metric| (metric.head(), Align::Right)));
    Table::new(&columns)
}

/// The comparisons that mean something: everything with no mesh, and eBPF with iptables behind as many rules.
fn pairs(results: &Results) -> Vec<(Variant, Variant)> {
    let rows: Vec<Variant> = results.rows.iter().map(|(variant, _)| *variant).collect();
    let with_no_mesh = rows.iter().filter(|row| **row != Variant::NoMesh).map(|row| (*row, Variant::NoMesh));
    let with_iptables = rows.iter().filter_map(|row| match row {
        Variant::Captured { mode: Mode::Ebpf, rules } => {
            let iptables = Variant::Captured { mode: Mode::Iptables, rules: *rules };
            rows.contains(&iptables).then_some((*row, iptables))
        }
        _ => None,
    });
    with_no_mesh.chain(with_iptables).collect()
}

fn ratio(results: &Results, of: Variant, to: Variant, metric: Metric) -> Option<Summary> {
    Summary::of_ratios(&results.values(of, metric), &results.values(to, metric))
}

fn cell(summary: Option<&Summary>, digits: usize) -> String {
    let Some(summary) = summary else { return "-".to_owned() };
    let [low, high] = summary.interval;
    format!("{:.digits$} [{low:.digits$}, {high:.digits$}]", summary.median)
}

fn row(variant: Variant, samples: &[Sample], results: &Results) -> Value {
    let per_round: Map<String, Value> = Metric::ALL
        .iter()
        .map(|metric| (metric.key().to_owned(), json!(results.values(variant, *metric))))
        .collect();
    json!({
        "name": variant.label(),
        "capture": variant.mode().map_or("none", Mode::name),
        "iptables_rules": variant.rules(),
        "failed": bad(samples),
        "values": summaries(|metric| Summary::of(&finite(results.values(variant, metric)))),
        "split": {
            "request_client_cpu_us": spent(samples, |sample| &sample.steady, |run| run.client_cpu_us),
            "request_proxy_cpu_us": spent(samples, |sample| &sample.steady, |run| run.proxy_cpu_us),
            "request_server_cpu_us": spent(samples, |sample| &sample.steady, |run| run.server_cpu_us),
            "connection_client_cpu_us": spent(samples, |sample| &sample.connecting, |run| run.client_cpu_us),
            "connection_proxy_cpu_us": spent(samples, |sample| &sample.connecting, |run| run.proxy_cpu_us),
            "connection_server_cpu_us": spent(samples, |sample| &sample.connecting, |run| run.server_cpu_us),
        },
        "rounds": per_round,
    })
}

fn summaries(of: impl Fn(Metric) -> Option<Summary>) -> Value {
    Metric::ALL
        .iter()
        .map(|metric| (metric.key().to_owned(), json!(of(*metric))))
        .collect::<Map<_, _>>()
        .into()
}

/// Median over the rounds of what one party spent per request.
fn spent(samples: &[Sample], run: impl Fn(&Sample) -> &Run, total_us: impl Fn(&Run) -> u64) -> Option<f64> {
    let values = samples.iter().map(&run).map(|run| run.per_request(total_us(run))).collect();
    Summary::of(&finite(values)).map(|summary| summary.median)
}

fn finite(mut values: Vec<f64>) -> Vec<f64> {
    values.retain(|value| value.is_finite());
    values
}

fn bad(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.steady.bad() + sample.connecting.bad()).sum()
}
