//! The application log: lines in Envoy's format, a level for each component, both changeable while running.
//!
//! A component is a room of the program and is found from the target of a record, which is the module's path. `/logging`
//! of the admin server and `--component-log-level` name components, `--log-level` sets all of them.

mod format;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

pub use format::{DEFAULT_FORMAT, Format, FormatError};

/// The components, sorted, and the module paths they stand for. A record belongs to the longest path that its target
/// begins with, unless the target is a component's name; `misc` is what belongs to none.
const COMPONENTS: [(&str, &str); 17] = [
    ("admin", "culvert::control::admin"),
    ("bpf", "culvert_bpf"),
    ("capture", "culvert::capture"),
    ("config", "culvert_xds"),
    ("control", "culvert::control"),
    ("dns", "culvert::control::dns"),
    ("file", "culvert::observe::access_log"),
    ("http", "culvert::http"),
    ("listener", "culvert::listener"),
    ("main", "culvert"),
    ("misc", ""),
    ("proto", "culvert_proto"),
    ("ring", "culvert_ring"),
    ("stats", "culvert::observe"),
    ("tcp", "culvert::tcp"),
    ("upstream", "culvert::upstream"),
    ("worker", "culvert::worker"),
];
const MISC: usize = 10;

static LEVELS: [AtomicU8; COMPONENTS.len()] = [const { AtomicU8::new(Level::Info as u8) }; COMPONENTS.len()];
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// How grave a line must be to be written, in Envoy's names. `Critical` lets the same lines through as `Error`: nothing
/// logs graver than an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What an operator should look at.
    Warning,
    /// What went wrong.
    Error,
    /// As `Error`.
    Critical,
    /// Nothing.
    Off,
}

impl Level {
    /// All of them, from most to least talkative.
    pub const ALL: [Self; 7] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];

    fn from_u8(value: u8) -> Self {
        Self::ALL.get(usize::from(value)).copied().unwrap_or(Self::Off)
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::Trace,
            Self::Debug => LevelFilter::Debug,
            Self::Info => LevelFilter::Info,
            Self::Warning => LevelFilter::Warn,
            Self::Error | Self::Critical => LevelFilter::Error,
            Self::Off => LevelFilter::Off,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        })
    }
}

impl FromStr for Level {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        let text = if text == "warn" { "warning" } else { text };
        let found = Self::ALL.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| LoggingError::UnknownLevel(text.to_owned()))
    }
}

/// Why a setting of the log is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `--log-format` has a flag that is not known.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// [`init`] was called before, or another logger is in place.
    #[error("logging is already set up")]
    AlreadySet,
    /// `--log-path` cannot be opened for appending.
    #[error("log file {}: {source}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not one of `component:level,component:level`.
    #[error("component log level '{0}' is not of the form component:level")]
    Syntax(String),
    /// No such level.
    #[error("log level '{0}' is not one of trace, debug, info, warning, error, critical, off")]
    UnknownLevel(String),
    /// No such component.
    #[error("no log component '{0}'")]
    UnknownComponent(String),
}

/// Where and how to write.
#[derive(Debug, Default)]
pub struct Options {
    /// Every component's level; `info` if not set.
    pub level: Option<Level>,
    /// In `--log-format`'s syntax; Envoy's default if not set.
    pub format: Option<String>,
    /// Write line breaks inside a message as `\n` (`--log-format-escaped`).
    pub escaped: bool,
    /// Append to this file instead of writing to standard error.
    pub path: Option<PathBuf>,
}

/// Makes this the process's logger. Can be done once.
pub fn init(options: &Options) -> Result<(), LoggingError> {
    let format = Format::parse(options.format.as_deref().unwrap_or(DEFAULT_FORMAT), options.escaped)?;
    let target = Target::open(options.path.as_deref())?;
    let logger = Logger { format, target: Mutex::new(target), path: options.path.clone() };
    let logger = install(logger)?;
    log::set_logger(logger).map_err(|_| LoggingError::AlreadySet)?;
    set_all(options.level.unwrap_or(Level::Info));
    Ok(())
}

/// Sets the level of every component.
pub fn set_all(level: Level) {
    for slot in &LEVELS {
        slot.store(level as u8, Relaxed);
    }
    update_max_level();
}

/// Sets the level of one component.
pub fn set_component(component: &str, level: Level) -> Result<(), LoggingError> {
    let index = index_of(component)?;
    LEVELS[index].store(level as u8, Relaxed);
    update_max_level();
    Ok(())
}

/// Reads `component:level,component:level` (`--component-log-level`, `/logging?paths=`) and applies it, or none of it.
pub fn set_components(list: &str) -> Result<(), LoggingError> {
    let parsed = list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
        let (component, level) = part.split_once(':').ok_or_else(|| LoggingError::Syntax(part.to_owned()))?;
        Ok((index_of(component)?, level.parse()?))
    });
    let parsed: Vec<(usize, Level)> = parsed.collect::<Result<_, LoggingError>>()?;
    for (index, level) in parsed {
        LEVELS[index].store(level as u8, Relaxed);
    }
    update_max_level();
    Ok(())
}

/// Every component and its level, sorted by name.
pub fn levels() -> Vec<(&'static str, Level)> {
    let levels = LEVELS.iter().map(|slot| Level::from_u8(slot.load(Relaxed)));
    COMPONENTS.iter().map(|(name, _)| *name).zip(levels).collect()
}

/// Opens `--log-path` anew, for log rotation. Nothing to do when logging to standard error.
pub fn reopen() -> Result<(), LoggingError> {
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    let target = Target::open(logger.path.as_deref())?;
    *logger.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    Ok(())
}

/// The component a target (a module path) belongs to.
pub fn component_of(target: &str) -> &'static str {
    COMPONENTS[index_of_target(target)].0
}

struct Logger {
    format: Format,
    target: Mutex<Target>,
    path: Option<PathBuf>,
}

enum Target {
    File(File),
    Stderr,
}

impl Target {
    fn open(path: Option<&Path>) -> Result<Self, LoggingError> {
        let Some(path) = path else { return Ok(Self::Stderr) };
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.map(Self::File).map_err(|source| LoggingError::Open { path: path.to_owned(), source })
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = Level::from_u8(LEVELS[index_of_target(metadata.target())].load(Relaxed));
        metadata.level() <= level.filter()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = self.format.line(record, component_of(record.target()));
        line.push('\n');
        // One write, so that lines of several threads do not mix. A log that cannot be written has nowhere to complain.
        let _ = match &mut *self.target.lock().unwrap_or_else(PoisonError::into_inner) {
            Target::File(file) => file.write_all(line.as_bytes()),
            Target::Stderr => io::stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

fn install(logger: Logger) -> Result<&'static Logger, LoggingError> {
    LOGGER.set(logger).map_err(|_| LoggingError::AlreadySet)?;
    LOGGER.get().ok_or(LoggingError::AlreadySet)
}

fn update_max_level() {
    let levels = LEVELS.iter().map(|slot| Level::from_u8(slot.load(Relaxed)).filter());
    log::set_max_level(levels.max().unwrap_or(LevelFilter::Off));
}

fn index_of(component: &str) -> Result<usize, LoggingError> {
    let found = COMPONENTS.iter().position(|(name, _)| *name == component);
    found.ok_or_else(|| LoggingError::UnknownComponent(component.to_owned()))
}

fn index_of_target(target: &str) -> usize {
    // `target: "admin"` names the component itself.
    if let Some(index) = COMPONENTS.iter().position(|(name, _)| *name == target) {
        return index;
    }
    let belongs =
        |path: &str| target.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let matching = COMPONENTS.iter().enumerate().filter(|(_, (_, path))| !path.is_empty() && belongs(path));
    matching.max_by_key(|(_, (_, path))| path.len()).map_or(MISC, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The levels are the process's, so that one test does all that changes them.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn targets_belong_to_the_longest_path() {
        for (target, component) in [
            ("culvert", "main"),
            ("culvert::cli", "main"),
            ("culvert::control", "control"),
            ("culvert::control::admin::server", "admin"),
            ("culvert::controller", "main"),
            ("culvert_xds::bootstrap", "config"),
            ("culvert_bpf", "bpf"),
            ("culvert::observe::access_log", "file"),
            ("hyper::proto", "misc"),
            ("admin", "admin"),
            ("misc", "misc"),
            ("", "misc"),
        ] {
            assert_eq!(component_of(target), component, "{target}");
        }
    }

    #[test]
    fn components_are_sorted_and_misc_is_where_it_should_be() {
        assert!(COMPONENTS.is_sorted());
        assert_eq!(COMPONENTS[MISC], ("misc", ""));
    }

    #[test]
    fn levels_are_spelled_as_envoy_spells_them() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse::<Level>().unwrap(), level);
        }
        assert_eq!("warn".parse::<Level>().unwrap(), Level::Warning);
        assert!(matches!("loud".parse::<Level>(), Err(LoggingError::UnknownLevel(name)) if name == "loud"));
    }

    #[test]
    fn levels_change_by_component_and_bad_lists_change_nothing() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_all(Level::Warning);
        assert!(levels().iter().all(|(_, level)| *level == Level::Warning));
        assert_eq!(log::max_level(), LevelFilter::Warn);
        set_components("http:trace, admin:off,").unwrap();
        let level = |name: &str| levels().into_iter().find(|(found, _)| *found == name).unwrap().1;
        assert_eq!(
            (level("http"), level("admin"), level("main")),
            (Level::Trace, Level::Off, Level::Warning)
        );
        assert_eq!(log::max_level(), LevelFilter::Trace);
        assert!(matches!(set_components("main:debug,nosuch:info"), Err(LoggingError::UnknownComponent(_))));
        assert!(matches!(set_components("main:debug,http"), Err(LoggingError::Syntax(_))));
        assert!(matches!(set_components("main:loud"), Err(LoggingError::UnknownLevel(_))));
        assert_eq!(level("main"), Level::Warning);
        set_component("http", Level::Error).unwrap();
        assert_eq!(log::max_level(), LevelFilter::Warn);
        set_all(Level::Info);
    }

    #[test]
    fn lines_go_to_the_file_as_their_component_allows() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("culvert.log");
        let logger = Logger {
            format: Format::parse("[%l][%n] %v", false).unwrap(),
            target: Mutex::new(Target::open(Some(&path)).unwrap()),
            path: Some(path.clone()),
        };
        set_all(Level::Info);
        set_component("http", Level::Debug).unwrap();
        let log = |level, target: &str, text: &str| {
            logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
        };
        log(log::Level::Debug, "culvert::http::codec", "seen");
        log(log::Level::Debug, "culvert::tcp", "hidden");
        log(log::Level::Warn, "culvert::tcp", "heard");
        set_all(Level::Off);
        log(log::Level::Error, "culvert::tcp", "too late");
        set_all(Level::Info);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[debug][http] seen\n[warning][tcp] heard\n");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let error = Target::open(Some(Path::new("/nonexistent/dir/log"))).err().unwrap();
        assert!(error.to_string().starts_with("log file /nonexistent/dir/log: "), "{error}");
    }
}
