use std::collections::BTreeMap;

use super::metric::{Metric, Run, Sample};
use super::*;
use crate::load::{Outcome, Quantiles};

fn run(requests: u64, p50: f64, client_cpu_us: u64, proxy_cpu_us: u64) -> Run {
    let latency_us = Quantiles { count: requests, p50, p99: p50 * 3.0, ..Quantiles::default() };
    let outcome = Outcome {
        seconds: 1.0,
        requests,
        requests_per_second: requests as f64,
        latency_us,
        service_us: latency_us,
        connect_us: latency_us,
        statuses: BTreeMap::from([(200, requests)]),
        non_2xx: 0,
        failures: BTreeMap::new(),
        bytes_received: 0,
        generator_cpu_us: 0.0,
        cgroup_cpu_us: vec![],
        process_cpu_us: vec![],
        curve_us: vec![],
    };
    Run { outcome, client_cpu_us, server_cpu_us: 1, proxy_cpu_us }
}

fn results() -> Results {
    let variants = Variant::all(&[Mode::Iptables, Mode::Ebpf], 1000);
    let row = |(index, variant): (usize, &Variant)| {
        let factor = 1.0 + index as f64;
        let proxy = if variant.mode().is_some() { 5000 } else { 0 };
        let sample = |round: u32| {
            let drift = 1.0 + f64::from(round);
            let steady = run(1000, 50.0 * factor * drift, (10_000.0 * factor * drift) as u64, proxy);
            Sample { steady, connecting: run(500, 100.0, 20_000, proxy) }
        };
        (*variant, (0..3).map(sample).collect())
    };
    Results { rows: variants.iter().enumerate().map(row).collect() }
}

fn settings() -> Settings {
    Settings {
        rounds: 3,
        seconds: 1.0,
        warm_up_seconds: 0.1,
        rate: 1000,
        connections: 16,
        response_body_bytes: 1024,
    }
}

#[test]
fn rows_come_with_and_without_rules() {
    let labels = |modes: &[Mode], rules| {
        Variant::all(modes, rules).into_iter().map(Variant::label).collect::<Vec<_>>()
    };
    assert_eq!(labels(&[], 1000)[..2], ["no mesh", "no mesh (control)"]);
    assert_eq!(
        labels(&[Mode::Iptables, Mode::Ebpf], 1000)[2..],
        ["iptables", "ebpf", "iptables, 1000 rules", "ebpf, 1000 rules"]
    );
    assert_eq!(labels(&[Mode::Ebpf], 0)[2..], ["ebpf"]);
}

#[test]
fn cpu_is_that_of_client_and_proxy_together() {
    let sample = Sample { steady: run(1000, 50.0, 30_000, 20_000), connecting: run(500, 90.0, 10_000, 5000) };
    assert_eq!(Metric::RequestCpu.of(&sample), 50.0);
    assert_eq!(Metric::ConnectionCpu.of(&sample), 30.0);
    assert_eq!(Metric::ConnectionRate.of(&sample), 500.0);
    let nothing = Sample { steady: run(0, 0.0, 1, 1), ..sample };
    assert!(Metric::RequestCpu.of(&nothing).is_nan());
}

#[test]
fn text_has_medians_and_ratios_within_rounds() {
    let text = report::text(&Machine::probe(), &settings(), &results());
    assert!(text.is_ascii(), "{text}");
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    // Rounds at 50, 100 and 150 us.
    assert!(line("no mesh  ").contains(" 100.0 [50.0, 150.0]"), "{text}");
    // The drift from round to round is the same for both, so the ratio has none.
    assert!(line("no mesh (control) / no mesh").contains(" 2.00 [2.00, 2.00]"), "{text}");
    assert!(line("ebpf, 1000 rules / iptables, 1000 rules").contains(" 1.20 [1.20, 1.20]"), "{text}");
    assert!(!text.contains("failed or"), "{text}");
}

#[test]
fn failed_requests_are_not_kept_quiet() {
    let mut results = results();
    results.rows[2].1[1].connecting.outcome.non_2xx = 7;
    let text = report::text(&Machine::probe(), &settings(), &results);
    assert!(text.contains("iptables: 7 requests failed"), "{text}");
    let json = report::json(&Machine::probe(), &settings(), &results);
    assert_eq!(json["rows"][2]["failed"], 7);
}

#[test]
fn json_has_machine_settings_values_ratios_and_rounds() {
    let json = report::json(&Machine::probe(), &settings(), &results());
    assert!(json["machine"]["kernel"].is_string() && json["machine"]["cpu"].is_string());
    assert_eq!(json["settings"]["rate"], 1000);
    let ebpf = &json["rows"][3];
    assert_eq!((ebpf["name"].as_str(), ebpf["capture"].as_str()), (Some("ebpf"), Some("ebpf")));
    assert_eq!(ebpf["values"]["request_cpu_us"]["rounds"], 3);
    assert_eq!(ebpf["rounds"]["latency_p50_us"].as_array().map(Vec::len), Some(3));
    assert_eq!(ebpf["split"]["request_proxy_cpu_us"], 5.0);
    let last = json["ratios"].as_array().and_then(|pairs| pairs.last()).expect("ratios");
    assert_eq!(
        (last["of"].as_str(), last["to"].as_str()),
        (Some("ebpf, 1000 rules"), Some("iptables, 1000 rules"))
    );
    assert!(last["ratios"]["connection_cpu_us"]["interval"].is_array());
}

#[test]
fn counters_are_found_in_stats_by_their_whole_name() {
    let stats = "a.http.outbound.downstream_rq_total: 1\nhttp.outbound.downstream_rq_total_x: 2\n\
        http.outbound.downstream_rq_total: 3\n";
    assert_eq!(culvert::stat(stats, "http.outbound.downstream_rq_total"), Some(3));
    assert_eq!(culvert::stat(stats, "http.none"), None);
}
