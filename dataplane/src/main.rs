//! The `culvert` binary: wiring only.
#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::Parser;
use culvert::cli::{Cli, Mode};

#[global_allocator]
static ALLOCATOR: culvert_ring::heap::Allocator = culvert_ring::heap::Allocator;

fn main() -> ExitCode {
    // A page of 2 MiB for every few kilobytes would be most of the memory that a start takes. Where the kernel refuses,
    // only memory is lost.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    culvert_ring::heap::configure();
    let cli = Cli::parse();
    if let Some(text) = cli.early_output() {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    let result = match &cli.command {
        Some(command) => commands::run(command, &cli),
        None => match cli.config.mode {
            Mode::Validate => commands::validate(&cli),
            Mode::Serve | Mode::InitOnly => commands::serve(&cli),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}
