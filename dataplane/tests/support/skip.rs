//! Tests that are nothing for the machine they run on.

use std::{env, fmt::Display, fs::OpenOptions, io::Write as _, thread};

/// Says why the running test is skipped, where those who count tests look for it.
pub fn skip(reason: impl Display) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{test}: skipped: {reason}");
    let Some(path) = env::var_os("CULVERT_SKIP_LOG") else { return };
    let mut log = OpenOptions::new().append(true).create(true).open(path).expect("the log of skipped tests");
    // In one piece: other tests write to it too.
    log.write_all(format!("{test}: {reason}\n").as_bytes()).expect("written");
}
