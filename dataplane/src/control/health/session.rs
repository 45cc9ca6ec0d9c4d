//! The checks of one host, one after the other.

use std::{cell::Cell, rc::Rc, sync::Arc};

use culvert_model::{Cluster, HealthCheck, HealthChecker};
use culvert_proto::health::{Checked, Failure, Outcome, Thresholds, Transition, next_check};

use super::{
    Context, HealthEvent, Traffic,
    events::{Before, EventLog},
    grpc, http, tcp,
};
use crate::{
    observe::stats::HealthCheckStats,
    snapshot::{HealthFlag, HostSpec},
};

/// What is checked, and who wants to know.
pub(super) struct Session {
    pub(super) context: Rc<Context>,
    pub(super) config: Arc<Cluster>,
    pub(super) host: Arc<HostSpec>,
    pub(super) stats: Arc<HealthCheckStats>,
    pub(super) traffic: Rc<Traffic>,
    pub(super) log: Rc<EventLog>,
    pub(super) checked: Rc<Cell<bool>>,
}

/// What came of one check.
pub(super) struct Report {
    pub(super) outcome: Outcome,
    /// Whether the host asked to be left out.
    pub(super) excluded: bool,
    /// Of the answer; 0 without one, or where it is not HTTP's.
    pub(super) status: u16,
    /// For the log.
    pub(super) reason: String,
}

impl Report {
    pub(super) fn success() -> Self {
        Self {
            outcome: Outcome::Success { degraded: false },
            excluded: false,
            status: 0,
            reason: String::new(),
        }
    }

    pub(super) fn failure(failure: Failure, reason: impl ToString) -> Self {
        Self { outcome: Outcome::Failure(failure), excluded: false, status: 0, reason: reason.to_string() }
    }
}

/// The connection that the next check uses again.
#[derive(Default)]
pub(super) enum Kept {
    #[default]
    None,
    Http(http::Connection),
    Tcp(tcp::Connection),
}

impl Session {
    /// Checks until the task is aborted.
    pub(super) async fn run(self) {
        let Some(check) = self.config.health_check.clone() else { return };
        let word = self.host.state.clone();
        let mut state = Checked::new(word.has(HealthFlag::FailedActive));
        let thresholds =
            Thresholds { healthy: check.healthy_threshold, unhealthy: check.unhealthy_threshold };
        let mut kept = Kept::None;
        let mut rng = fastrand::Rng::new();
        if !check.initial_jitter.is_zero() {
            tokio::time::sleep(check.initial_jitter.mul_f64(rng.f64())).await;
        }
        loop {
            self.stats.attempt.inc();
            let timed = tokio::time::timeout(check.timeout, self.check(&check, &mut kept)).await;
            let timed_out = timed.is_err();
            let report = timed.unwrap_or_else(|_| {
                kept = Kept::None;
                Report::failure(Failure::Network, format!("no answer within {:?}", check.timeout))
            });
            if !check.reuse_connection {
                kept = Kept::None;
            }
            self.count(&report);
            let before = Before::of(&state);
            let transition = state.record(report.outcome, thresholds);
            self.log.record(&self.host.endpoint, &before, &state, transition, &report, timed_out);
            let changed = self.mark(&state, &report, timed_out) || transition == Transition::Changed;
            if transition == Transition::Changed {
                self.log(&state, &report);
            }
            let first = !self.checked.replace(true);
            let ejected = !state.is_failed() && word.has(HealthFlag::FailedOutlier);
            let passed = (ejected && matches!(report.outcome, Outcome::Success { .. })).then(|| word.clone());
            if changed || first || passed.is_some() {
                // The loop only ends with the process.
                let cluster = self.config.name.clone();
                let _ = self.context.events.send(HealthEvent { cluster, changed, passed });
            }
            let wait = next_check(&check, report.outcome, transition, self.traffic.is_seen(), &mut rng);
            tokio::time::sleep(wait).await;
        }
    }

    async fn check(&self, check: &HealthCheck, kept: &mut Kept) -> Report {
        match &check.checker {
            HealthChecker::Http(http) => http::check(self, check, http, kept).await,
            HealthChecker::Tcp(tcp) => tcp::check(self, check, tcp, kept).await,
            HealthChecker::Grpc(grpc) => grpc::check(self, check, grpc, kept).await,
        }
    }

    fn count(&self, report: &Report) {
        match report.outcome {
            Outcome::Success { .. } => self.stats.success.inc(),
            Outcome::Failure(failure) => {
                self.stats.failure.inc();
                if failure == Failure::Network {
                    self.stats.network_failure.inc();
                }
            }
        }
    }

    /// Puts down what is known now. Whether that concerns the choice of hosts.
    fn mark(&self, state: &Checked, report: &Report, timed_out: bool) -> bool {
        let word = &self.host.state;
        let excluded = state.is_failed() && (report.excluded || word.has(HealthFlag::Excluded));
        word.set(HealthFlag::Unchecked, false);
        word.set(HealthFlag::ActiveTimeout, state.is_failed() && timed_out);
        let changes = [
            word.set(HealthFlag::FailedActive, state.is_failed()),
            word.set(HealthFlag::DegradedActive, state.is_degraded()),
            word.set(HealthFlag::PendingActive, false),
            word.set(HealthFlag::Excluded, excluded),
        ];
        changes.contains(&true)
    }

    fn log(&self, state: &Checked, report: &Report) {
        let (name, address) = (&self.config.name, &self.host.endpoint.address);
        match (state.is_failed(), state.is_degraded()) {
            (true, _) => {
                log::warn!(target: "health", "cluster {name}: {address} is unhealthy: {}", report.reason);
            }
            (false, true) => log::info!(target: "health", "cluster {name}: {address} is degraded"),
            (false, false) => log::info!(target: "health", "cluster {name}: {address} is healthy"),
        }
    }
}
