//! `culvert-bench compare`: Culvert beside other proxies and none, for several kinds of traffic.
//!
//! All contenders of a scenario run at the same time, pinned to one CPU, and are measured one after another in short rounds
//! in changing order, so that the drift of the machine meets them all. What is compared are ratios within a round. A second
//! Culvert is the control, whose ratio to the first shows how much of a difference is noise.

mod contender;
mod html;
mod json;
mod measure;
mod memory;
mod metric;
mod peer;
mod plot;
mod results;
mod stage;
mod targets;
#[cfg(test)]
mod tests;
mod text;
mod workload;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};

use self::contender::Contender;
use self::peer::Binaries;
use self::results::Results;
use self::stage::Site;
use self::targets::Judged;
use self::workload::{IDLE_COUNTS, MANY, Scenario};
use crate::lab::interrupt;
use crate::report::Machine;
use crate::scenario::progress;

/// Compares Culvert with HAProxy, nginx, Envoy, a bare forwarder and no proxy, as far as they are installed.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Fewer and shorter rounds: ends within two minutes, and gives indications
    #[arg(long)]
    quick: bool,
    /// Rounds to measure; claims need 31 or more [default: 31, or 3 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Length of each measurement in seconds [default: 1, or 0.2 with --quick]
    #[arg(long, value_parser = super::seconds)]
    seconds: Option<f64>,
    /// Only these scenarios (http1, http2, grpc, tls, bodies, connections) and rows (none, forwarder, haproxy, nginx,
    /// envoy, envoy-uring, envoy-sockmap, culvert-uring, culvert-epoll, control), separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = choice)]
    only: Vec<Choice>,
    /// Requests per second of the latency measurements
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Most idle connections at which memory is read [default: 9000, or 500 with --quick]
    #[arg(long, value_name = "N")]
    idle_connections: Option<u32>,
    /// The culvert binary [default: beside this one, else from PATH]
    #[arg(long, value_name = "PATH")]
    culvert: Option<PathBuf>,
    /// Also write the result as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the result as one HTML page with charts, which needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Something `--only` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Row(Contender),
    Scenario(Scenario),
}

/// How measurements are made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Settings {
    /// Rounds of load.
    pub rounds: u32,
    /// Rounds of memory: each starts every contender anew.
    pub memory_rounds: u32,
    /// Length of a measurement.
    pub seconds: f64,
    /// Requests per second where the rate is fixed.
    pub rate: u32,
    /// Most idle connections at which memory is read.
    pub idle_connections_max: u32,
    /// No further round is begun that would end later than this, seconds from the start.
    pub seconds_max: Option<f64>,
}

/// A comparison, ready to be shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// The Culvert that was measured: its path.
    pub culvert: String,
    /// How.
    pub settings: Settings,
    /// What came of it.
    pub results: Results,
    /// What that means.
    pub targets: Vec<Judged>,
}

/// Time for rounds, shared out among the scenarios.
struct Budget {
    /// When everything is to be over.
    end: Option<Instant>,
    scenarios_left: usize,
    scenario_end: Option<Instant>,
}

/// When `--quick` begins no further round: starting and stopping takes its time too.
const QUICK_SECONDS: f64 = 95.0;

/// Runs `culvert-bench compare` and prints the comparison.
///
/// # Errors
/// When there is no culvert or it does not start, a backend or the load generator fails, or a signal came. Peers that are
/// missing or do not start are part of the result.
pub fn command(args: &Args) -> anyhow::Result<()> {
    interrupt::watch()?;
    raise_descriptors();
    let machine = Machine::probe();
    let settings = args.settings();
    let binaries = Binaries::find(args.culvert.as_deref())?;
    let culvert = binaries.culvert().display().to_string();
    let (scenarios, contenders) = choose(&args.only);

    let results = {
        let site = Site::new(binaries)?;
        if site.cpus().proxy.is_empty() {
            eprintln!("one CPU: proxy, backend and load generator share it");
        }
        let steps = scenarios.len() * contenders.len() * settings.rounds as usize;
        let progress = progress(steps as u64);
        let results = measure::run(&site, &scenarios, &contenders, &settings, &progress)?;
        progress.finish_and_clear();
        results
    };
    let report = Report { machine, culvert, settings, targets: targets::judge(&results), results };
    print!("{}", text::render(&report));
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&json::render(&report))? + "\n"))?;
    }
    if let Some(path) = &args.html {
        write(path, &html::render(&report))?;
    }
    failed_culverts(&report.results)
}

/// A Culvert that did not start is an error, not a gap in a table.
fn failed_culverts(results: &Results) -> anyhow::Result<()> {
    for scenario in &results.scenarios {
        if let Some((contender, why)) = scenario.absent.iter().find(|(contender, _)| contender.is_culvert()) {
            anyhow::bail!("{}: {}: {why}", scenario.scenario.name(), contender.label());
        }
    }
    Ok(())
}

fn write(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// The load generator and each proxy may need two descriptors for each connection.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Less does for most of it; where it does not, the result says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The scenarios and rows of `--only`; all of a kind of which none is named.
fn choose(only: &[Choice]) -> (Vec<Scenario>, Vec<Contender>) {
    let named = |choice: Choice| only.contains(&choice);
    let scenarios: Vec<Scenario> =
        Scenario::ALL.into_iter().filter(|scenario| named(Choice::Scenario(*scenario))).collect();
    let mut rows: Vec<Contender> =
        Contender::ALL.into_iter().filter(|row| named(Choice::Row(*row))).collect();
    // The control is a second Culvert on uring: beside epoll alone it would compare drivers.
    if !rows.contains(&Contender::CulvertUring) {
        rows.retain(|row| *row != Contender::Control);
    }
    let usual = || Contender::ALL.into_iter().filter(|row| !row.is_optional()).collect();
    (
        if scenarios.is_empty() { Scenario::ALL.to_vec() } else { scenarios },
        if rows.is_empty() { usual() } else { rows },
    )
}

fn choice(text: &str) -> Result<Choice, String> {
    let scenario = Scenario::ALL.into_iter().find(|scenario| scenario.name() == text).map(Choice::Scenario);
    let row = || Contender::ALL.into_iter().find(|row| row.name() == text).map(Choice::Row);
    scenario.or_else(row).ok_or_else(|| {
        let scenarios = Scenario::ALL.map(Scenario::name);
        let rows = Contender::ALL.map(Contender::name);
        format!("must be a scenario ({}) or a row ({})", scenarios.join(", "), rows.join(", "))
    })
}

impl Args {
    fn settings(&self) -> Settings {
        let rounds = self.rounds.unwrap_or(if self.quick { 3 } else { 31 });
        let idle = IDLE_COUNTS[if self.quick { 0 } else { IDLE_COUNTS.len() - 1 }];
        Settings {
            rounds,
            memory_rounds: rounds.min(if self.quick { 1 } else { 5 }),
            seconds: self.seconds.unwrap_or(if self.quick { 0.2 } else { 1.0 }),
            rate: self.rate,
            idle_connections_max: self.idle_connections.unwrap_or(idle),
            seconds_max: self.quick.then_some(QUICK_SECONDS),
        }
    }
}

impl Settings {
    /// Load before a measurement on so many connections: they are opened in it.
    fn warm_up(&self, connections: u32) -> f64 {
        let opening = if connections >= MANY { 0.3 } else { 0.05 };
        f64::max(opening, self.seconds / 10.0)
    }
}

impl Budget {
    fn new(settings: &Settings, scenarios: usize) -> Self {
        let end = settings.seconds_max.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
        Self { end, scenarios_left: scenarios, scenario_end: None }
    }

    /// Gives the next scenario its share of what is left.
    fn begin_scenario(&mut self) {
        let now = Instant::now();
        let left = u32::try_from(self.scenarios_left.max(1)).unwrap_or(u32::MAX);
        self.scenario_end = self.end.map(|end| now + end.saturating_duration_since(now) / left);
        self.scenarios_left = self.scenarios_left.saturating_sub(1);
    }

    /// Whether something that takes this long still ends in time.
    fn has_room_for(&self, duration: Duration) -> bool {
        self.scenario_end.is_none_or(|end| Instant::now() + duration <= end)
    }
}
