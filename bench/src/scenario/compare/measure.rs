//! The rounds: every row in each of them, in changing order.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::contender::Contender;
use super::memory;
use super::metric::{self, Sample};
use super::results::{Results, Row, ScenarioResults};
use super::stage::{Running, Site, Stage};
use super::workload::{MANY, Measurement, Scenario};
use super::{Budget, Settings};
use crate::lab::{Process, interrupt};
use crate::load::Outcome;
use crate::scenario::rounds::order;

/// Longest wait for an answer; what takes longer is a failed request.
const TIMEOUT_SECONDS: f64 = 2.0;

/// What a run may take beyond its own time, before it is given up.
const SLACK: Duration = Duration::from_secs(30);

/// Connections of the run at a fixed rate.
const RATE_CONNECTIONS: u32 = 16;

/// Measures all scenarios.
pub(super) fn run(
    site: &Site,
    scenarios: &[Scenario],
    contenders: &[Contender],
    settings: &Settings,
    progress: &ProgressBar,
) -> anyhow::Result<Results> {
    let mut results = Results::default();
    let mut budget = Budget::new(settings, scenarios.len());
    for &scenario in scenarios {
        budget.begin_scenario();
        let scenario = measure_scenario(site, scenario, contenders, settings, &budget, progress)
            .with_context(|| format!("scenario {}", scenario.name()))?;
        results.scenarios.push(scenario);
    }
    Ok(results)
}

fn measure_scenario(
    site: &Site,
    scenario: Scenario,
    contenders: &[Contender],
    settings: &Settings,
    budget: &Budget,
    progress: &ProgressBar,
) -> anyhow::Result<ScenarioResults> {
    let stage = Stage::build(site, scenario)?;
    let mut results = ScenarioResults::new(scenario);
    let mut running = Vec::new();
    for &contender in contenders {
        interrupt::check()?;
        if let Some(reason) = scenario.refuses(contender) {
            results.absent.push((contender, reason.to_owned()));
            continue;
        }
        progress.set_message(format!("{}: starting {}", scenario.name(), contender.name()));
        match stage.start(contender) {
            Ok(started) => {
                running.push(started);
                results.rows.push(Row::new(contender));
            }
            Err(error) => {
                interrupt::check()?;
                results.absent.push((contender, format!("{error:#}")));
            }
        }
    }
    let mut longest = Duration::ZERO;
    for round in 0..settings.rounds {
        if round > 0 && !budget.has_room_for(longest) {
            results.notes.push(format!("{round} of {} rounds: the time was up", settings.rounds));
            progress.inc(u64::from(settings.rounds - round) * contenders.len() as u64);
            break;
        }
        if progress.is_hidden() {
            eprintln!("{}: round {} of {}", scenario.name(), round + 1, settings.rounds);
        }
        let began = Instant::now();
        for index in order(round as usize, running.len()) {
            progress.set_message(format!("{}: {}", scenario.name(), running[index].contender.name()));
            let row = &mut results.rows[index];
            let sample = measure_row(&stage, &running[index], settings, row)?;
            row.samples.push(sample);
            progress.inc(1);
        }
        progress.inc(contenders.len() as u64 - running.len() as u64);
        longest = longest.max(began.elapsed());
    }
    drop(running);
    if scenario == Scenario::Connections {
        memory::run(&stage, settings, budget, &mut results, progress)?;
    }
    Ok(results)
}

fn measure_row(
    stage: &Stage<'_>,
    running: &Running,
    settings: &Settings,
    row: &mut Row,
) -> anyhow::Result<Sample> {
    let mut sample = Sample::new();
    for &measurement in stage.scenario().measurements() {
        if measurement == Measurement::ManyConnections && running.contender == Contender::None {
            continue;
        }
        let outcome = load(stage, running, settings, measurement)
            .with_context(|| format!("measuring {}", running.contender.name()))?;
        row.failed += outcome.failed() + outcome.non_2xx;
        if measurement == Measurement::FixedRate && !outcome.curve_us.is_empty() {
            row.curves.push(outcome.curve_us.clone());
        }
        metric::record(&mut sample, measurement, &outcome, stage.scenario().body_bytes());
    }
    Ok(sample)
}

/// Runs the load generator on its CPU.
fn load(
    stage: &Stage<'_>,
    running: &Running,
    settings: &Settings,
    measurement: Measurement,
) -> anyhow::Result<Outcome> {
    interrupt::check()?;
    let seconds = settings.seconds;
    let (connections, more) = match measurement {
        Measurement::Saturation => (stage.scenario().connections(), None),
        Measurement::ManyConnections => (MANY, None),
        Measurement::FixedRate => (RATE_CONNECTIONS, Some(format!("--rate={}", settings.rate))),
        Measurement::OneConnection => (1, None),
        Measurement::NewConnections => (stage.scenario().connections(), Some("--new-connections".to_owned())),
    };
    let mut arguments = stage.target(running);
    arguments.extend([
        "--json".to_owned(),
        format!("--connections={connections}"),
        format!("--duration={seconds}"),
        format!("--warm-up={}", settings.warm_up(connections)),
        format!("--timeout={TIMEOUT_SECONDS}"),
    ]);
    arguments.extend(more);
    arguments.extend(running.pid().map(|pid| format!("--cpu-of-process={pid}")));
    let mut command: Vec<OsString> = vec![std::env::current_exe()?.into_os_string(), "load".into()];
    command.extend(arguments.into_iter().map(OsString::from));
    let site = stage.site();
    let process = Process::start("load", &site.client(), command, site.directory())?;
    let limit = Duration::from_secs_f64(seconds + settings.warm_up(connections) + TIMEOUT_SECONDS);
    let text = process.output(limit + SLACK)?;
    serde_json::from_str(&text).context("result of the load generator")
}
