//! What one source is doing.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use culvert_model::ConfigSource;

use crate::{SourceCounters, clock, convert::Localities, hash};

/// What a subscription brings, in the order in which changes are applied.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Source {
    /// All clusters.
    Cds,
    /// The load assignment of that service name.
    Eds(String),
    /// All listeners.
    Lds,
    /// The route configuration of that name.
    Rds(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cds => f.write_str("cds"),
            Self::Eds(name) => write!(f, "eds {name:?}"),
            Self::Lds => f.write_str("lds"),
            Self::Rds(name) => write!(f, "rds {name:?}"),
        }
    }
}

/// A subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) config: ConfigSource,
    pub(crate) counters: Arc<SourceCounters>,
    /// Names under which the counters are shown.
    pub(crate) prefixes: BTreeSet<String>,
    /// For EDS: what the weights of localities mean to the clusters that use it.
    pub(crate) localities: Localities,
    /// `version_info` of what was accepted last.
    pub(crate) version: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It waits for others to be done.
    Idle,
    /// It waits for its first answer, for ever without a deadline. `read`: the file was looked for.
    Started { deadline: Option<Instant>, read: bool },
    /// It was answered, or given up waiting for.
    Done,
}

impl Subscription {
    pub(crate) fn new(config: ConfigSource) -> Self {
        Self {
            config,
            counters: Arc::default(),
            prefixes: BTreeSet::new(),
            localities: Localities::default(),
            version: String::new(),
            state: State::Idle,
        }
    }

    /// Begins to read and to wait.
    pub(super) fn start(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            let deadline = self.config.initial_fetch_timeout.map(|timeout| now + timeout);
            self.state = State::Started { deadline, read: false };
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether the file has to be read although nothing was seen to change in it.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self.state, State::Started { read: false, .. })
    }

    /// Whether nobody has to wait for it any more.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Started { deadline, .. } => deadline,
            State::Done | State::Idle => None,
        }
    }

    pub(super) fn time_out(&mut self) {
        self.counters.init_fetch_timeout.store(1, Ordering::Relaxed);
        self.state = State::Done;
    }

    /// The file could not be read or parsed. `answered` when it was there.
    pub(super) fn failed(&mut self, answered: bool) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_failure);
        self.looked(answered);
    }

    /// What it brought was refused, or a part of it. Not `answered` when it may bring what it should later.
    pub(super) fn rejected(&mut self, answered: bool) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_rejected);
        self.looked(answered);
    }

    fn looked(&mut self, answered: bool) {
        match (&mut self.state, answered) {
            (State::Started { read, .. }, false) => *read = true,
            _ => self.state = State::Done,
        }
    }

    /// What it brought was accepted; `changed` when it was news.
    pub(super) fn accepted(&mut self, version: &str, changed: bool, time: SystemTime) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_success);
        SourceCounters::set(&self.counters.version, hash::xxh64(version.as_bytes()));
        SourceCounters::set(&self.counters.update_time_ms, clock::unix_millis(time));
        if changed {
            SourceCounters::add(&self.counters.config_reload);
            SourceCounters::set(&self.counters.config_reload_time_ms, clock::unix_millis(time));
        }
        version.clone_into(&mut self.version);
        self.state = State::Done;
    }
}
