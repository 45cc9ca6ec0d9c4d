//! `culvert-bench capture`: what taking over a pod's traffic costs, by iptables and by eBPF, against no mesh at all.
//!
//! One server pod, and for each row of the result a client pod of its own, linked to the server alike. Captured pods
//! reach the server through one culvert per means of capture. All rows are measured in every round, in changing order,
//! so that the drift of the machine meets them all; a second pod without mesh is the control, whose ratios show how
//! much of a difference is noise.

mod culvert;
mod measure;
mod metric;
mod report;
#[cfg(test)]
mod tests;
mod variant;
mod world;

use std::fs;
use std::path::PathBuf;

use self::culvert::Proxies;
use self::measure::Results;
use self::variant::Variant;
use self::world::World;
use crate::lab::{self, interrupt};
use crate::report::Machine;
use crate::scenario::{find_culvert, progress};
use anyhow::Context;

/// Compares no mesh, capture by iptables and capture by eBPF, in pods that it makes and removes.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Fewer and shorter rounds: under a minute
    #[arg(long)]
    quick: bool,
    /// Also write the result as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The culvert binary [default: beside this one, else from PATH]
    #[arg(long, value_name = "PATH")]
    culvert: Option<PathBuf>,
    /// Rounds to measure; the interval of the median needs nine or more [default: 21, or 7 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Length of each measurement in seconds, two to a row and round [default: 1, or 0.4 with --quick]
    #[arg(long, value_parser = super::seconds)]
    seconds: Option<f64>,
    /// Requests per second of the latency measurement
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Connections of each measurement
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Also measure capture behind this many unrelated iptables rules in the client pod; 0 leaves these rows out
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    rules: u32,
    /// Means of capture to compare with no mesh
    #[arg(long, value_delimiter = ',', default_value = "iptables,ebpf")]
    modes: Vec<Mode>,
    /// Driver of culvert's workers
    #[arg(long, default_value = "auto")]
    io: String,
}

/// How traffic is taken over, as `culvert --capture` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Mode {
    /// eBPF programs.
    Ebpf,
    /// REDIRECT rules.
    Iptables,
    /// Not at all: only the rows without mesh.
    None,
}

/// How one measurement is made.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Settings {
    rounds: u32,
    /// Length of a measurement.
    seconds: f64,
    /// Load before it.
    warm_up_seconds: f64,
    /// Requests per second of the latency measurement.
    rate: u32,
    connections: u32,
    /// Body of the server's answers.
    response_body_bytes: usize,
}

/// Runs `culvert-bench capture`, prints the comparison, and removes everything it made, also after a failure.
///
/// # Errors
/// When it is not run by root, a tool is missing, culvert does not start or does not capture, or a signal came.
pub fn command(args: &Args) -> anyhow::Result<()> {
    lab::require_root()?;
    interrupt::watch()?;
    lab::sweep();
    let machine = Machine::probe();
    let settings = args.settings();
    let modes: Vec<Mode> = args.modes.iter().copied().filter(|mode| *mode != Mode::None).collect();
    let variants = Variant::all(&modes, args.rules);
    let binary = if modes.is_empty() { None } else { Some(find_culvert(args.culvert.as_deref())?) };

    let results = {
        let progress = progress(u64::from(settings.rounds) * variants.len() as u64);
        progress.set_message("making pods");
        let world = World::build(&variants, settings.response_body_bytes)?;
        let proxies = match binary {
            Some(binary) => Proxies::start(&binary, &args.io, &world, &progress)?,
            None => Proxies::default(),
        };
        let results = measure::run(&world, &proxies, &settings, &progress)?;
        progress.finish_and_clear();
        results
    };
    publish(args, &machine, &settings, &results)
}

fn publish(args: &Args, machine: &Machine, settings: &Settings, results: &Results) -> anyhow::Result<()> {
    print!("{}", report::text(machine, settings, results));
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report::json(machine, settings, results))?;
        fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Args {
    fn settings(&self) -> Settings {
        let (rounds, seconds) = if self.quick { (7, 0.4) } else { (21, 1.0) };
        Settings {
            rounds: self.rounds.unwrap_or(rounds),
            seconds: self.seconds.unwrap_or(seconds),
            warm_up_seconds: 0.1,
            rate: self.rate,
            connections: self.connections,
            response_body_bytes: 1024,
        }
    }
}

impl Mode {
    /// The word `culvert --capture` takes.
    fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::None => "none",
        }
    }
}
