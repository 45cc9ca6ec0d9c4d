//! Checks files: `cargo run -p culvert-xds --example validate FILE...`.

use std::{path::PathBuf, process::ExitCode};

use culvert_xds::{CheckOptions, check};

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut code = ExitCode::SUCCESS;
    for checked in check(&paths, CheckOptions::default()) {
        println!("{}: {}: {:?}", checked.file.display(), checked.title(), checked.verdict());
        checked.notes.iter().for_each(|note| println!("  {note}"));
        for error in &checked.errors {
            code = ExitCode::FAILURE;
            println!("  {error}");
        }
    }
    code
}
