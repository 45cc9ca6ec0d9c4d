//! Validates bootstraps: `cargo run -p culvert-xds --example validate FILE...`.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut code = ExitCode::SUCCESS;
    for (path, outcome) in culvert_xds::check(&paths) {
        match outcome {
            Ok(notes) => {
                println!("{}: OK", path.display());
                notes.iter().for_each(|note| println!("  {note}"));
            }
            Err(errors) => {
                code = ExitCode::FAILURE;
                println!("{}: refused", path.display());
                errors.as_slice().iter().for_each(|error| println!("  {error}"));
            }
        }
    }
    code
}
