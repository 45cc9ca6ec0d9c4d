//! `culvert-bench`: see the library for what it does.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use culvert_bench::lab::exec;
use culvert_bench::scenario::{capture, compare};
use culvert_bench::{forwarder, load, upstream};

/// Load generator, upstreams and comparisons for Culvert.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Capture(capture::Args),
    Compare(compare::Args),
    Exec(exec::Args),
    Forwarder(forwarder::Args),
    Load(load::Args),
    Upstream(upstream::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Capture(args) => capture::command(&args),
        Command::Compare(args) => compare::command(&args),
        Command::Exec(args) => exec::command(&args),
        Command::Forwarder(args) => forwarder::command(&args),
        Command::Load(args) => load::command(&args),
        Command::Upstream(args) => upstream::command(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
