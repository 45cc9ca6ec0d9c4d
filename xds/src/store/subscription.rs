//! What one subscription is doing.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use culvert_model::{ConfigSource, SourceSpecifier};

use crate::{SourceCounters, clock};

/// How long a changed cluster waits for its endpoints to be sent again where its source waits for ever: there are some
/// that serve, and a control plane that thinks nothing has changed must not hold it up.
const AGAIN: Duration = Duration::from_secs(15);

/// A subscription to one resource, or to all of a type.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) config: ConfigSource,
    pub(crate) counters: Arc<SourceCounters>,
    /// Names under which the counters are shown, and how many users ask for each.
    pub(crate) prefixes: BTreeMap<String, u32>,
    /// `version_info` of what was accepted last.
    pub(crate) version: Arc<str>,
    /// How many wait for it; the others have something that serves until it comes.
    pub(super) waiters: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It waits for others to be done.
    Idle,
    /// It waits for an answer, for ever without a deadline. `read`: the file was looked for.
    Started { deadline: Option<Instant>, read: bool },
    /// It was answered, or given up waiting for.
    Done,
}

impl Subscription {
    pub(super) fn new(config: ConfigSource) -> Self {
        Self {
            config,
            counters: Arc::default(),
            prefixes: BTreeMap::new(),
            version: Arc::default(),
            waiters: 0,
            state: State::Idle,
        }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.config.specifier, SourceSpecifier::File { .. })
    }

    /// Begins to read and to wait. Returns whether it has not before.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        let idle = matches!(self.state, State::Idle);
        if idle {
            let deadline = self.config.initial_fetch_timeout.map(|timeout| now + timeout);
            self.state = State::Started { deadline, read: false };
            if !self.is_file() {
                SourceCounters::add(&self.counters.update_attempt);
            }
        }
        idle
    }

    /// Waits again for what was there before. Waiting already, it does not wait longer.
    pub(super) fn renew(&mut self, now: Instant) -> bool {
        let done = self.is_done();
        if done {
            let timeout = self.config.initial_fetch_timeout.unwrap_or(AGAIN);
            self.state = State::Started { deadline: Some(now + timeout), read: true };
        }
        done
    }

    pub(crate) fn is_started(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether the file has to be read although nothing was seen to change in it.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self.state, State::Started { read: false, .. }) && self.is_file()
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
        SourceCounters::add(&self.counters.init_fetch_timeout);
        self.state = State::Done;
    }

    /// The file could not be read or parsed. `answered` when it was there.
    pub(super) fn failed(&mut self, answered: bool) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_failure);
        self.looked(answered);
    }

    /// There is no connection to the control plane, or none any more. Waiting goes on.
    pub(super) fn disconnected(&self) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_failure);
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
            (State::Done, false) => {}
            _ => self.state = State::Done,
        }
    }

    /// The control plane says that there is no such resource.
    pub(super) fn answered(&mut self) {
        self.state = State::Done;
    }

    /// What it brought was accepted; `changed` when it was news.
    pub(super) fn accepted(&mut self, version: &Arc<str>, changed: bool, time: SystemTime) {
        SourceCounters::add(&self.counters.update_attempt);
        SourceCounters::add(&self.counters.update_success);
        if *self.version != **version || self.counters.version.load(Ordering::Relaxed) == 0 {
            SourceCounters::set(&self.counters.version, culvert_model::xxh64(version.as_bytes(), 0));
        }
        SourceCounters::set(&self.counters.update_time_ms, clock::unix_millis(time));
        if changed {
            SourceCounters::add(&self.counters.config_reload);
            SourceCounters::set(&self.counters.config_reload_time_ms, clock::unix_millis(time));
        }
        self.version = version.clone();
        self.state = State::Done;
    }

    pub(super) fn add_prefix(&mut self, prefix: String) {
        *self.prefixes.entry(prefix).or_default() += 1;
    }

    pub(super) fn remove_prefix(&mut self, prefix: &str) {
        if let Some(count) = self.prefixes.get_mut(prefix) {
            *count -= 1;
            if *count == 0 {
                self.prefixes.remove(prefix);
            }
        }
    }
}
