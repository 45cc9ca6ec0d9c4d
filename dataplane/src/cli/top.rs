//! `culvert top`.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// `culvert top`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Top {
    /// Seconds between two looks (0.1 to 3600)
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub interval: Duration,
    /// End after so many looks; 1 prints totals and leaves them on the screen [default: until Ctrl-C]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Which pod comes first
    #[arg(long, value_name = "ORDER", default_value = "busiest")]
    pub sort: Sort,
}

/// `--sort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The one with the most new connections in the last interval.
    Busiest,
    /// By name.
    Name,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err(format!("{text} s is not between 0.1 and 3600"));
    }
    Ok(Duration::from_secs_f64(seconds))
}
