//! `culvert top`: what becomes of each pod's connections, as it happens.
//!
//! The figures are those of the control socket's pod list; what this adds is the difference between two of them. The
//! screen is drawn anew at every interval, in the terminal's alternate screen, so that what was there before comes back.

mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::capture::{PodReport, Request, Response, call};

pub use table::{Order, Sample};

/// What is shown, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the running culvert listens.
    pub control_socket: PathBuf,
    /// Between two looks.
    pub interval: Duration,
    /// How many times is looked; `None`: until interrupted.
    pub count: Option<u32>,
    /// Which pod comes first.
    pub order: Order,
}

/// Takes the whole screen, hides the cursor and cuts long lines; and gives it back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the first place; clears what was there below.
const HOME: &str = "\x1b[H\x1b[J";
/// Where the terminal does not tell its height.
const ROWS: usize = 50;

/// Shows until the count is reached, or until SIGINT or SIGTERM. Where the output is no terminal, one table follows the
/// other, without control sequences.
///
/// # Errors
/// When no culvert answers at first, or the output ends. One that stops answering later is waited for.
pub async fn run(options: &Options) -> io::Result<()> {
    let first = look(options).map_err(io::Error::other)?;
    // A single look is to be kept, not to vanish with the screen.
    let _screen = Screen::enter(io::stdout().is_terminal() && options.count != Some(1))?;
    let mut samples = (Sample::new(first), None);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut ticks = interval(options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut shown = 0_u32;
    let mut problem = None;
    loop {
        draw(&samples, problem.as_deref(), options)?;
        shown = shown.saturating_add(1);
        if options.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        tokio::select! {
            _ = ticks.tick() => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        match look(options) {
            Ok(pods) => {
                samples = (Sample::new(pods), Some(samples.0));
                problem = None;
            }
            Err(error) => problem = Some(error),
        }
    }
}

fn look(options: &Options) -> Result<Vec<PodReport>, String> {
    match call(&options.control_socket, &Request::List {}) {
        Ok(Response::Ok { pods, .. }) => Ok(pods),
        Ok(Response::Error { message }) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}

fn draw(samples: &(Sample, Option<Sample>), problem: Option<&str>, options: &Options) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let on_screen = out.is_terminal() && options.count != Some(1);
    let rows = if on_screen {
        out.write_all(HOME.as_bytes())?;
        terminal_size::terminal_size().map_or(ROWS, |(_, height)| usize::from(height.0))
    } else {
        usize::MAX
    };
    let mut text = table::render(&samples.0, samples.1.as_ref(), options.order, rows);
    if let Some(problem) = problem {
        text.push_str(&format!("not current: {problem}\n"));
    }
    // The last line must not scroll the first one away.
    out.write_all(if on_screen { text.trim_end().as_bytes() } else { text.as_bytes() })?;
    out.flush()
}

/// The alternate screen, until dropped.
struct Screen;

impl Screen {
    fn enter(is_terminal: bool) -> io::Result<Option<Self>> {
        if !is_terminal {
            return Ok(None);
        }
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Some(Self))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}

impl Sample {
    fn new(pods: Vec<PodReport>) -> Self {
        Self { at: Instant::now(), pods }
    }
}
