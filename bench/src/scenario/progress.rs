//! What runs of all comparisons have in common on the command line.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal; elsewhere nothing; who measures says then how far it is.
pub(super) fn progress(steps: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    let template = "{bar:30} {pos}/{len}  {elapsed} of about {duration}  {msg}";
    // The template is a constant; without it the bar only looks different.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("##-"));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// The length of a measurement on the command line, in seconds.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.05..=60.0).contains(&value) => Ok(value),
        _ => Err("must be a number from 0.05 to 60".to_owned()),
    }
}
