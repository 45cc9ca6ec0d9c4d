//! Which Culvert is measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The culvert binary: the one given, else the one beside this program, else the one in PATH.
pub(super) fn find_culvert(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        anyhow::ensure!(path.is_file(), "{}: no such file", path.display());
        return Ok(fs::canonicalize(path)?);
    }
    let beside = std::env::current_exe()?.with_file_name("culvert");
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates =
        std::iter::once(beside).chain(std::env::split_paths(&in_path).map(|path| path.join("culvert")));
    candidates.into_iter().find(|path| path.is_file()).context(
        "culvert is neither beside this program nor in PATH: build it (cargo build --release) or give --culvert PATH",
    )
}
