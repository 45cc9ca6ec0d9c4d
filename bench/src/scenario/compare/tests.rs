use std::collections::BTreeMap;

use super::metric::{Metric, Sample, record};
use super::results::{Row, ScenarioResults};
use super::targets::{Claim, TARGETS, Target, Verdict, judge, judge_one};
use super::workload::Measurement;
use super::*;
use crate::load::{CURVE, Outcome, Quantiles};

fn outcome(requests: u64, cpu_us: Option<u64>) -> Outcome {
    let latency_us =
        Quantiles { count: requests, p50: 80.0, p99: 200.0, p99_9: 900.0, ..Quantiles::default() };
    Outcome {
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
        process_cpu_us: cpu_us.into_iter().collect(),
        curve_us: vec![],
    }
}

/// A row whose rounds have these figures of one metric.
fn row(contender: Contender, metric: Metric, values: &[f64]) -> Row {
    let mut row = Row::new(contender);
    row.samples = values.iter().map(|value| Sample::from([(metric, *value)])).collect();
    row
}

/// One scenario with these rows, by round.
fn results(scenario: Scenario, metric: Metric, rows: &[(Contender, [f64; 5])]) -> Results {
    let mut of_scenario = ScenarioResults::new(scenario);
    of_scenario.rows = rows.iter().map(|(contender, values)| row(*contender, metric, values)).collect();
    Results { scenarios: vec![of_scenario] }
}

fn report(results: Results) -> Report {
    let args =
        <Args as clap::Args>::augment_args(clap::Command::new("compare")).get_matches_from(["compare"]);
    let args = <Args as clap::FromArgMatches>::from_arg_matches(&args).expect("arguments");
    Report {
        machine: Machine::probe(),
        culvert: "/opt/<culvert> & co".to_owned(),
        settings: args.settings(),
        targets: judge(&results),
        results,
    }
}

const STEADY: [f64; 5] = [10.0, 12.0, 11.0, 13.0, 9.0];

fn times(factor: f64) -> [f64; 5] {
    STEADY.map(|value| value * factor)
}

fn http1(control: [f64; 5]) -> Results {
    let rows = [
        (Contender::Haproxy, times(1.25)),
        (Contender::Envoy, times(2.0)),
        (Contender::CulvertUring, STEADY),
        (Contender::Control, control),
    ];
    results(Scenario::Http1, Metric::RequestCpu, &rows)
}

/// The target that compares Culvert with a row in HTTP/1.1.
fn target(of: Contender) -> &'static Target {
    let claim = Claim::Ratio(Scenario::Http1, Metric::RequestCpu, of);
    TARGETS.iter().find(|target| target.claim == claim).expect("target")
}

#[test]
fn figures_come_from_the_runs_they_belong_to() {
    let mut sample = Sample::new();
    record(&mut sample, Measurement::Saturation, &outcome(1000, Some(20_000)), 1 << 20);
    record(&mut sample, Measurement::ManyConnections, &outcome(500, Some(20_000)), 1 << 20);
    record(&mut sample, Measurement::FixedRate, &outcome(1000, Some(1)), 1 << 20);
    record(&mut sample, Measurement::NewConnections, &outcome(200, Some(20_000)), 1 << 20);
    assert_eq!(sample[&Metric::RequestCpu], 20.0);
    assert_eq!(sample[&Metric::ManyCpu], 40.0);
    assert_eq!(sample[&Metric::ConnectionCpu], 100.0);
    assert_eq!(sample[&Metric::ConnectionRate], 200.0);
    assert_eq!((sample[&Metric::RateP50], sample[&Metric::RateP999]), (80.0, 900.0));
    assert!((sample[&Metric::Throughput] - 1048.576).abs() < 1e-6);
    assert_eq!(sample.get(&Metric::SingleP50), None);

    let mut nothing = Sample::new();
    record(&mut nothing, Measurement::Saturation, &outcome(0, Some(5)), 1024);
    record(&mut nothing, Measurement::OneConnection, &outcome(0, None), 1024);
    assert_eq!(nothing.get(&Metric::RequestCpu), None);
    assert_eq!(nothing.get(&Metric::SingleP50), None);
}

#[test]
fn a_target_is_met_when_the_interval_reaches_it_and_the_control_contains_one() {
    // 1 / 1.25 = 0.80 in every round, against at most 0.85.
    let calm = [10.1, 11.9, 11.0, 13.1, 8.9];
    let met = judge_one(target(Contender::Haproxy), &http1(calm));
    assert_eq!(met.verdict, Verdict::Met, "{met:?}");
    assert!((met.measured.as_ref().expect("measured").median - 0.8).abs() < 1e-9);
    assert!(met.control.is_some());

    // 0.50 against at most 0.40.
    let missed = judge_one(target(Contender::Envoy), &http1(calm));
    assert_eq!((missed.verdict, missed.reason.as_str()), (Verdict::NotMet, ""));

    // A control at 1.10 in every round: the same figure is no claim.
    let noisy = judge_one(target(Contender::Haproxy), &http1(times(1.1)));
    assert_eq!(noisy.verdict, Verdict::NotMet);
    assert!(noisy.reason.contains("control"), "{noisy:?}");
}

#[test]
fn what_was_not_measured_is_not_met_by_silence() {
    let reasons = |results: &Results| judge_one(target(Contender::Haproxy), results);
    let nothing = reasons(&Results::default());
    assert_eq!(
        (nothing.verdict, nothing.reason.as_str()),
        (Verdict::NotMeasured, "scenario http1 was not run")
    );

    let mut without_control = http1(STEADY);
    without_control.scenarios[0].rows.retain(|row| row.contender != Contender::Control);
    let judged = reasons(&without_control);
    assert_eq!((judged.verdict, judged.reason.as_str()), (Verdict::NotMeasured, "no control row"));

    let mut without_peer = http1(STEADY);
    without_peer.scenarios[0].rows.retain(|row| row.contender != Contender::Haproxy);
    assert_eq!(reasons(&without_peer).reason, "HAProxy was not measured");

    let mut with_errors = http1(STEADY);
    with_errors.scenarios[0].rows[2].failed = 3;
    let judged = reasons(&with_errors);
    assert_eq!(judged.verdict, Verdict::NotMeasured);
    assert!(judged.reason.contains("3 requests failed"), "{judged:?}");
}

#[test]
fn drivers_are_compared_with_each_other_and_memory_with_a_number() {
    let rows = [
        (Contender::CulvertUring, STEADY),
        (Contender::CulvertEpoll, times(0.9)),
        (Contender::Control, STEADY),
    ];
    let of_drivers = |metric| results(Scenario::Http1, metric, &rows);
    let find = |claim| TARGETS.iter().find(|target| target.claim == claim).expect("target");
    let slower = find(Claim::Drivers(Scenario::Http1, Metric::ManyCpu));
    let judged = judge_one(slower, &of_drivers(Metric::ManyCpu));
    assert_eq!(judged.verdict, Verdict::NotMet, "{judged:?}");
    assert!((judged.measured.expect("measured").median - 1.0 / 0.9).abs() < 1e-9);

    let memory = find(Claim::Own(Scenario::Connections, Metric::Rss500));
    for (megabytes, verdict) in [(14.0, Verdict::Met), (16.0, Verdict::NotMet)] {
        let rows = [(Contender::CulvertEpoll, [megabytes; 5])];
        let judged = judge_one(memory, &results(Scenario::Connections, Metric::Rss500, &rows));
        assert_eq!(judged.verdict, verdict, "{judged:?}");
    }
}

#[test]
fn tables_have_rows_ratios_targets_and_what_went_wrong() {
    let mut results = http1([10.1, 11.9, 11.0, 13.1, 8.9]);
    results.scenarios[0]
        .absent
        .push((Contender::Nginx, "not installed: apt-get install nginx-light".to_owned()));
    results.scenarios[0].rows[0].failed = 7;
    let text = text::render(&report(results));
    let line = |start: &str| {
        text.lines()
            .find(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(start))
            .unwrap_or_else(|| panic!("no {start} in\n{text}"))
    };
    assert!(text.is_ascii(), "{text}");
    assert!(line("Culvert, uring 1").contains("11.0 +-"), "{text}");
    assert!(line("Culvert, uring / Envoy").contains("0.50 [0.50, 0.50]"), "{text}");
    assert!(line("Culvert again (control) / Culvert, uring").contains("1.00 ["), "{text}");
    assert!(line("nginx:").contains("apt-get install nginx-light"));
    assert!(line("HAProxy: 7 requests failed").contains("2xx"));
    assert!(line("HTTP/1.1, no splice Envoy").ends_with("not met"), "{text}");
    assert!(line("HTTP/1.1, no splice HAProxy").contains("not measured: HAProxy: 7 requests"), "{text}");
    assert!(text.contains("0 met, 1 not met, 22 not measured"), "{text}");
}

#[test]
fn json_has_everything() {
    let json = json::render(&report(http1(STEADY)));
    let scenario = &json["scenarios"][0];
    assert_eq!(scenario["scenario"], "http1");
    assert_eq!(scenario["rows"][2]["name"], "culvert-uring");
    assert_eq!(scenario["rows"][2]["values"]["request_cpu_us"]["median"], 11.0);
    assert_eq!(scenario["rows"][2]["rounds"]["request_cpu_us"][4], 9.0);
    assert!(
        (scenario["ratios"]["Culvert, uring / HAProxy"]["median"].as_f64().expect("ratio") - 0.8).abs()
            < 1e-9
    );
    assert_eq!(json["targets"].as_array().map(Vec::len), Some(TARGETS.len()));
    assert_eq!(json["targets"][0]["verdict"], "met");
    assert_eq!(json["settings"]["rounds"], 31);
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let mut results = http1(STEADY);
    for row in &mut results.scenarios[0].rows {
        row.curves = vec![(0..CURVE.len()).map(|index| 40.0 + index as f64 * 10.0).collect()];
    }
    results.scenarios[0].absent.push((Contender::Nginx, "<script>alert(\"&\")</script>".to_owned()));
    let page = html::render(&report(results));
    if let Err(problem) = well_formed(&page) {
        panic!("{problem}\n{page}");
    }
    for foreign in ["http://", "https://", "<script", "<link", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign} in\n{page}");
    }
    assert!(page.contains("&lt;script&gt;alert(&quot;&amp;&quot;)"));
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("<polyline").count(), 4);
    assert!(page.contains("class=\"bar own\"") && page.contains("class=\"words met\""));
}

#[test]
fn well_formed_notices_what_is_not() {
    assert_eq!(well_formed("<!DOCTYPE html><a b=\"c\"><d/>x &amp; y</a>"), Ok(()));
    for bad in ["<a><b></a></b>", "<a>", "</a>", "<a b=c></a>", "a & b", "<a>1 > 2 <</a>", "<a b=\"<\"></a>"]
    {
        assert!(well_formed(bad).is_err(), "{bad}");
    }
}

/// A check as strict as XML's, of what a page may get wrong: nesting, attributes without quotes, bare `<` and `&`.
fn well_formed(page: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap_or(page);
    loop {
        let Some(at) = rest.find('<') else {
            text_is_escaped(rest)?;
            return if open.is_empty() { Ok(()) } else { Err(format!("{open:?} not closed")) };
        };
        text_is_escaped(&rest[..at])?;
        let end = rest[at..].find('>').ok_or("a tag does not end")? + at;
        let tag = &rest[at + 1..end];
        if tag.contains('<') {
            return Err(format!("'<' within {tag}"));
        }
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes nothing"));
            }
            continue;
        }
        let (tag, is_closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        attributes_are_quoted(attributes)?;
        if name == "style" {
            rest = &rest[rest.find("</style>").ok_or("style does not end")?..];
        }
        if !is_closed {
            open.push(name);
        }
    }
}

fn text_is_escaped(text: &str) -> Result<(), String> {
    let bare = text
        .split('&')
        .skip(1)
        .find(|rest| !["amp;", "lt;", "gt;", "quot;"].iter().any(|entity| rest.starts_with(entity)));
    bare.map_or(Ok(()), |rest| Err(format!("bare & before {rest}")))
}

fn attributes_are_quoted(mut attributes: &str) -> Result<(), String> {
    while !attributes.trim().is_empty() {
        let (_, value) = attributes.split_once("=\"").ok_or_else(|| format!("attribute {attributes}"))?;
        let (value, rest) = value.split_once('"').ok_or_else(|| format!("attribute {attributes}"))?;
        text_is_escaped(value)?;
        attributes = rest;
    }
    Ok(())
}

#[test]
fn only_chooses_scenarios_and_rows() {
    let (scenarios, rows) = choose(&[]);
    assert_eq!(scenarios, Scenario::ALL);
    assert!(rows.contains(&Contender::Envoy) && !rows.contains(&Contender::EnvoySockmap));
    let only: Vec<Choice> =
        ["tls", "envoy-sockmap", "none"].iter().map(|name| choice(name).expect("choice")).collect();
    let (scenarios, rows) = choose(&only);
    assert_eq!(scenarios, [Scenario::Tls]);
    assert_eq!(rows, [Contender::None, Contender::EnvoySockmap]);
    assert!(choice("caddy").is_err_and(|error| error.contains("http2") && error.contains("haproxy")));
}

#[test]
fn time_is_shared_out_among_scenarios() {
    let mut settings = report(Results::default()).settings;
    let mut unlimited = Budget::new(&settings, 2);
    unlimited.begin_scenario();
    assert!(unlimited.has_room_for(Duration::from_secs(1_000_000)));

    settings.seconds_max = Some(100.0);
    let mut budget = Budget::new(&settings, 2);
    budget.begin_scenario();
    assert!(budget.has_room_for(Duration::from_secs(45)) && !budget.has_room_for(Duration::from_secs(55)));
    // What the first did not use is the second's.
    budget.begin_scenario();
    assert!(budget.has_room_for(Duration::from_secs(95)) && !budget.has_room_for(Duration::from_secs(105)));
}
