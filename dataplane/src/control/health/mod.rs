//! Active health checks: one task on the control thread for each endpoint that is checked.
//!
//! A task writes what it finds out into the host's [`HostState`] and tells the control loop,
//! which publishes a snapshot whose hosts are arranged anew. Checks are made from the network namespace that Culvert runs
//! in, also those of clusters that pods use.

mod connect;
mod events;
mod grpc;
mod http;
mod session;
mod tcp;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use culvert_model::{Cluster, HealthCheck};
use tokio::{sync::mpsc, task::AbortHandle};

use self::{events::EventLog, session::Session};
use super::snapshot::is_checked;
use crate::{
    observe::{
        access_log::AccessLogs,
        stats::{HealthCheckStats, Registry},
    },
    snapshot::{ClusterSpec, HealthFlag, HostSpec, HostState, Snapshot},
    tls::Contexts,
};

/// A check was made that somebody waits for.
pub(super) struct HealthEvent {
    /// Whose endpoint was checked.
    pub(super) cluster: Arc<str>,
    /// Whether its health is not what it was.
    pub(super) changed: bool,
    /// A host that passed although it was ejected as an outlier.
    pub(super) passed: Option<Arc<HostState>>,
}

/// The checks of all clusters.
pub(super) struct HealthChecks {
    context: Rc<Context>,
    registry: Registry,
    clusters: HashMap<Arc<str>, ClusterChecks>,
    /// Those of versions that wait for the first checks of their hosts.
    warming: HashMap<Arc<str>, ClusterChecks>,
}

/// What all sessions need.
struct Context {
    contexts: Arc<Contexts>,
    /// Whether sockets carry the mark that keeps them from being captured.
    marked: bool,
    events: mpsc::UnboundedSender<HealthEvent>,
    logs: AccessLogs,
}

/// The checks of one cluster.
struct ClusterChecks {
    config: Arc<Cluster>,
    stats: Arc<HealthCheckStats>,
    traffic: Rc<Traffic>,
    log: Rc<EventLog>,
    running: Vec<Running>,
}

impl ClusterChecks {
    /// Shows how the hosts are.
    fn show(&self) {
        let with = |flag| self.running.iter().filter(|it| it.host.state.has(flag)).count() as u64;
        self.stats.healthy.set(self.running.len() as u64 - with(HealthFlag::FailedActive));
        self.stats.degraded.set(with(HealthFlag::DegradedActive));
    }
}

/// A task that checks a host. Ends with this.
struct Running {
    host: Arc<HostSpec>,
    /// Whether it has made its first check.
    checked: Rc<Cell<bool>>,
    /// Whether it is one of the hosts with which its cluster began.
    first: bool,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a cluster has ever had a connection.
#[derive(Default)]
struct Traffic {
    seen: Cell<bool>,
    hosts: RefCell<Arc<[Arc<HostSpec>]>>,
}

impl Traffic {
    fn is_seen(&self) -> bool {
        if !self.seen.get() {
            let hosts = self.hosts.borrow();
            let mut stats = hosts.iter().flat_map(|host| host.state.counters.iter());
            self.seen.set(stats.any(|stats| stats.cx_total.value() > 0));
        }
        self.seen.get()
    }
}

impl HealthChecks {
    /// No checks yet. What comes of them is received from the other half; events are written to files by `logs`. `marked`
    /// when connections are captured.
    pub(super) fn new(
        contexts: Arc<Contexts>,
        registry: Registry,
        logs: AccessLogs,
        marked: bool,
    ) -> (Self, mpsc::UnboundedReceiver<HealthEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let context = Rc::new(Context { contexts, marked, events, logs });
        (Self { context, registry, clusters: HashMap::new(), warming: HashMap::new() }, receiver)
    }

    /// Checks the hosts that there are now, and those of versions that are `warming`: once such a version serves, its
    /// checks go on. Has to run inside a `LocalSet`.
    pub(super) fn follow<'s>(
        &mut self,
        snapshot: &Snapshot,
        warming: impl Iterator<Item = &'s Arc<ClusterSpec>>,
    ) {
        let warming: HashMap<_, _> = warming.map(|spec| (spec.config.name.clone(), spec)).collect();
        for name in &snapshot.changed_clusters {
            let is_warming = warming.contains_key(name);
            let warmed = if is_warming { None } else { self.warming.remove(name) };
            let serving = self.clusters.remove(name);
            let Some(spec) = snapshot.clusters.get(name) else { continue };
            let Some(check) = &spec.config.health_check else { continue };
            let checks = self.follow_cluster(spec, check, warmed.or(serving));
            checks.show();
            self.clusters.insert(name.clone(), checks);
        }
        self.warming.retain(|name, _| warming.contains_key(name));
        for (name, spec) in warming {
            let Some(check) = &spec.config.health_check else { continue };
            let known = self.warming.remove(&name);
            let checks = self.follow_cluster(spec, check, known);
            self.warming.insert(name, checks);
        }
    }

    /// Whether a cluster that the start waits for has hosts that were never checked. Those that came after its first
    /// ones are not waited for: there may always be another.
    pub(super) fn is_warming(&self) -> bool {
        let mut waiting = self.clusters.values().filter(|checks| checks.config.wait_for_warm);
        waiting.any(|checks| checks.running.iter().any(|host| host.first && !host.checked.get()))
    }

    fn follow_cluster(
        &self,
        spec: &ClusterSpec,
        check: &HealthCheck,
        known: Option<ClusterChecks>,
    ) -> ClusterChecks {
        let config = &spec.config;
        let same = known.as_ref().is_none_or(|known| Arc::ptr_eq(&known.config, config));
        let log = match known.as_ref().filter(|_| same) {
            Some(known) => known.log.clone(),
            None => Rc::new(EventLog::open(&config.name, check, &self.context.logs)),
        };
        let (mut before, stats, traffic) = match known {
            Some(known) => (known.running, known.stats, known.traffic),
            None => {
                // The version that serves has them already.
                let stats = self.clusters.get(&config.name).map(|serving| serving.stats.clone());
                (Vec::new(), stats.unwrap_or_else(|| self.new_stats(config)), Rc::default())
            }
        };
        *traffic.hosts.borrow_mut() = spec.hosts.clone();
        let first = before.is_empty();
        let mut running = Vec::with_capacity(before.len());
        for host in spec.hosts.iter().filter(|host| is_checked(config, &host.endpoint)) {
            let goes_on = |known: &Running| same && is_checked_alike(&known.host, host);
            // Hosts are mostly in the order they were in.
            let place = match before.last().is_some_and(goes_on) {
                true => Some(before.len() - 1),
                false => before.iter().position(goes_on),
            };
            running.push(match place {
                Some(place) => before.swap_remove(place),
                None => self.start(spec, host, &stats, &traffic, &log, first),
            });
        }
        running.reverse();
        ClusterChecks { config: config.clone(), stats, traffic, log, running }
    }

    fn new_stats(&self, config: &Cluster) -> Arc<HealthCheckStats> {
        let stats = Arc::new(HealthCheckStats::default());
        self.registry.register(format!("cluster.{}.health_check", config.stat_name), stats.clone());
        stats
    }

    fn start(
        &self,
        spec: &ClusterSpec,
        host: &Arc<HostSpec>,
        stats: &Arc<HealthCheckStats>,
        traffic: &Rc<Traffic>,
        log: &Rc<EventLog>,
        first: bool,
    ) -> Running {
        let checked = Rc::new(Cell::new(false));
        let session = Session {
            context: self.context.clone(),
            config: spec.config.clone(),
            host: host.clone(),
            stats: stats.clone(),
            traffic: traffic.clone(),
            log: log.clone(),
            checked: checked.clone(),
        };
        let task = tokio::task::spawn_local(session.run()).abort_handle();
        Running { host: host.clone(), checked, first, task }
    }
}

/// Whether the checks of `a` are those of `b`, a later version of the same address.
fn is_checked_alike(a: &HostSpec, b: &HostSpec) -> bool {
    Arc::ptr_eq(&a.state, &b.state)
        && a.endpoint.check == b.endpoint.check
        && a.endpoint.address == b.endpoint.address
        && a.is_reached_like(b)
}
