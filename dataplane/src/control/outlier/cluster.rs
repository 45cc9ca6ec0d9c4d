//! The outlier detection of one cluster.

use std::{sync::Arc, time::Duration};

use culvert_model::{Cluster, OutlierDetection};
use culvert_proto::outlier::{Cause, Ejectable, Rate, failing, may_eject, success_rate_outliers};
use tokio::{sync::mpsc, task::AbortHandle};

use crate::{
    observe::stats::{OutlierStats, Registry},
    snapshot::{HealthFlag, HostSpec, HostState},
    upstream::Monitor,
};

/// One cluster's hosts, and which of them are ejected.
pub(super) struct ClusterOutliers {
    name: Arc<str>,
    config: Arc<OutlierDetection>,
    stats: Arc<OutlierStats>,
    hosts: Vec<Watched>,
    rng: fastrand::Rng,
    ticks: AbortHandle,
}

/// A host.
struct Watched {
    spec: Arc<HostSpec>,
    monitor: Arc<Monitor>,
    state: Ejectable,
    /// What its counts were at the end of the last interval.
    counted: [Rate; 2],
}

impl Drop for ClusterOutliers {
    fn drop(&mut self) {
        self.ticks.abort();
    }
}

impl ClusterOutliers {
    /// Of a cluster without hosts. `sweeps` gets its name whenever an interval has passed.
    pub(super) fn new(
        cluster: &Cluster,
        config: &Arc<OutlierDetection>,
        registry: &Registry,
        sweeps: &mpsc::UnboundedSender<Arc<str>>,
    ) -> Self {
        let stats = Arc::new(OutlierStats::default());
        registry.register(format!("cluster.{}.outlier_detection", cluster.stat_name), stats.clone());
        let (name, interval, sweeps) = (cluster.name.clone(), config.interval, sweeps.clone());
        let ticking = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(interval.max(Duration::from_millis(1))).await;
                if sweeps.send(name.clone()).is_err() {
                    return;
                }
            }
        });
        Self {
            name: cluster.name.clone(),
            config: config.clone(),
            stats,
            hosts: Vec::new(),
            rng: fastrand::Rng::new(),
            ticks: ticking.abort_handle(),
        }
    }

    /// Whether it does what `config` says.
    pub(super) fn is_of(&self, config: &OutlierDetection) -> bool {
        *self.config == *config
    }

    /// Watches these hosts from now on. Those that stayed keep what they are known for.
    pub(super) fn follow(&mut self, hosts: &[Arc<HostSpec>]) {
        let mut before = std::mem::take(&mut self.hosts);
        before.reverse();
        for spec in hosts {
            let Some(monitor) = &spec.outlier else { continue };
            let same = |known: &Watched| Arc::ptr_eq(&known.monitor, monitor);
            // Hosts are mostly in the order they were in.
            let place = match before.last().is_some_and(same) {
                true => Some(before.len() - 1),
                false => before.iter().position(same),
            };
            self.hosts.push(match place {
                Some(place) => Watched { spec: spec.clone(), ..before.swap_remove(place) },
                None => Watched {
                    spec: spec.clone(),
                    monitor: monitor.clone(),
                    state: Ejectable::default(),
                    counted: monitor.rates(),
                },
            });
        }
        self.count_active();
    }

    fn count_active(&self) {
        let active = self.hosts.iter().filter(|host| host.state.is_ejected()).count();
        self.stats.ejections_active.set(active as u64);
    }

    /// A host tripped on rows of failures. Whether it was ejected.
    pub(super) fn take(&mut self, monitor: &Arc<Monitor>, now: Duration) -> bool {
        let causes = monitor.take_tripped();
        let Some(at) = self.hosts.iter().position(|host| Arc::ptr_eq(&host.monitor, monitor)) else {
            return false;
        };
        let mut changed = false;
        for cause in causes {
            if !self.hosts[at].state.is_ejected() {
                changed |= self.detected(at, cause, now);
                monitor.reset(cause);
            }
        }
        changed
    }

    /// Ejects a host, if it may be. Whether it was.
    fn detected(&mut self, at: usize, cause: Cause, now: Duration) -> bool {
        self.stats.detected(cause);
        let active = self.hosts.iter().filter(|host| host.state.is_ejected()).count();
        if !may_eject(&self.config, active, self.hosts.len()) {
            self.stats.ejections_overflow.inc();
            return false;
        }
        self.stats.admitted(cause);
        let enforced = self.rng.u32(..100) < cause.enforcing(&self.config);
        let host = &mut self.hosts[at];
        if enforced {
            host.state.eject(&self.config, now, self.config.jitter.mul_f64(self.rng.f64()));
            host.spec.state.set(HealthFlag::FailedOutlier, true);
            self.stats.enforced(cause);
            log::warn!(target: "upstream", "cluster {}: {} is ejected: {cause:?}", self.name, host.spec.endpoint.address);
        }
        self.count_active();
        enforced
    }

    /// An interval has passed. Whether hosts were ejected or taken back.
    pub(super) fn sweep(&mut self, now: Duration) -> bool {
        let mut changed = false;
        let mut rates = [Vec::with_capacity(self.hosts.len()), Vec::with_capacity(self.hosts.len())];
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            if host.state.sweep(&self.config, now) {
                self.uneject(at);
                changed = true;
            }
            let host = &mut self.hosts[at];
            let counts = host.monitor.rates();
            for (kind, count) in counts.iter().enumerate() {
                let before = host.counted[kind];
                let rate = Rate {
                    total: count.total - before.total,
                    successes: count.successes.saturating_sub(before.successes),
                };
                rates[kind].push((!host.state.is_ejected()).then_some(rate));
            }
            host.counted = counts;
            let enough = self.config.success_rate_volume.min(self.config.failure_percentage_volume);
            let shown = [0, 1].map(|kind: usize| {
                let rate = rates[kind].last().copied().flatten().unwrap_or_default();
                rate.percent().filter(|_| rate.total >= u64::from(enough)).unwrap_or(-1.0)
            });
            host.monitor.show(shown);
        }
        let causes = [
            (Cause::SuccessRate, Cause::FailurePercentage),
            (Cause::LocalSuccessRate, Cause::LocalFailurePercentage),
        ];
        for ((by_rate, by_share), rates) in causes.into_iter().zip(rates) {
            let outliers = success_rate_outliers(&self.config, &rates).into_iter().map(|at| (at, by_rate));
            let failing = failing(&self.config, &rates).into_iter().map(|at| (at, by_share));
            for (at, cause) in outliers.chain(failing).collect::<Vec<_>>() {
                if !self.hosts[at].state.is_ejected() {
                    changed |= self.detected(at, cause, now);
                }
            }
        }
        changed
    }

    /// A host has passed its active health check. Whether it was taken back for that.
    pub(super) fn passed(&mut self, word: &Arc<HostState>) -> bool {
        let ejected = |host: &Watched| host.state.is_ejected() && Arc::ptr_eq(&host.spec.state, word);
        match self.hosts.iter().position(ejected).filter(|_| self.config.check_unejects) {
            Some(at) => {
                self.uneject(at);
                true
            }
            None => false,
        }
    }

    fn uneject(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.state.uneject();
        host.spec.state.set(HealthFlag::FailedOutlier, false);
        // What it failed while others were ejected too does not count.
        host.monitor.take_tripped();
        for cause in Cause::ALL {
            host.monitor.reset(cause);
        }
        log::info!(target: "upstream", "cluster {}: {} is back", self.name, host.spec.endpoint.address);
        self.count_active();
    }
}
