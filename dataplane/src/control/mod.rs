//! The control thread: configuration, snapshots, DNS, listener sockets, pods, admin. Never on the path of a request.

pub mod admin;
mod backend;
mod collectors;
mod dialer;
mod direct;
mod dns;
mod events;
mod health;
mod listeners;
mod options;
mod otlp;
mod otlp_logs;
mod outlier;
mod port;
mod snapshot;
mod sockets;
mod sources;
mod spans;
mod start;
mod tls;

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use culvert_model::Config;
use culvert_xds::{Changes, ConfigView, Loaded, Update};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

pub use options::ServeOptions;
pub use sockets::BindError;

use crate::{
    capture::{Call, CaptureError, CaptureManager, ControlSocketError, Response, pods},
    control::{
        admin::{AdminError, DrainRequest, DrainScope, ServerInfo, ServerState},
        dialer::ClusterDialer,
        direct::Direct,
        dns::{Dns, Resolution},
        events::{Events, Happening, arrived},
        health::{HealthChecks, HealthEvent},
        outlier::Outliers,
        snapshot::{Builder, Resolved},
        sockets::Sockets,
        sources::Sources,
        tls::TlsControl,
    },
    observe::{
        access_log::AccessLogError,
        stats::{ListenerManagerStats, ServerStats},
    },
    snapshot::Snapshot,
    worker::{self, Command, Process, StartError, Workers},
};

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The access log writer.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The admin server.
    #[error("admin: {0}")]
    Admin(#[from] AdminError),
    /// A listener's address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Capture.
    #[error("capture: {0}")]
    Capture(#[from] CaptureError),
    /// The control socket.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// A resource of the operating system.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The I/O driver that was asked for.
    #[error(transparent)]
    Probe(#[from] culvert_ring::ProbeError),
    /// The pods file.
    #[error(transparent)]
    Pods(#[from] pods::PodError),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] StartError),
}

/// How often the manager looks for pods that are gone, and certificate files are looked at.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// How often direct connections are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the control thread and its admin server share.
pub(crate) struct Shared {
    pub(crate) process: Arc<Process>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) config: RefCell<Arc<Config>>,
    pub(crate) snapshot: RefCell<Arc<Snapshot>>,
    pub(crate) view: ConfigView,
    pub(crate) certificates: RefCell<Vec<crate::tls::Certificates>>,
    pub(crate) server: Arc<ServerStats>,
    pub(crate) info: ServerInfo,
    pub(crate) started: Instant,
    pub(crate) live: Cell<bool>,
    pub(crate) failing: Cell<bool>,
    pub(crate) asks: mpsc::UnboundedSender<Ask>,
}

impl Shared {
    pub(crate) fn state(&self) -> ServerState {
        match (self.live.get(), self.failing.get()) {
            (false, _) => ServerState::Initializing,
            (true, true) => ServerState::Draining,
            (true, false) => ServerState::Live,
        }
    }
}

/// What the admin server asks of the control loop.
pub(crate) enum Ask {
    Drain(DrainRequest),
    Quit,
}

/// Serves until it is told to stop. Runs inside a `LocalSet` on a current-thread runtime.
///
/// # Errors
/// Whatever keeps it from starting; once it serves, nothing ends it but a signal or `/quitquitquit`.
pub async fn serve(loaded: Loaded, options: ServeOptions, info: ServerInfo) -> Result<(), ServeError> {
    let (asks, inbox) = mpsc::unbounded_channel();
    let mut control = Control::start(&loaded, options, info, asks).await?;
    control.run(inbox).await
}

struct Control {
    options: ServeOptions,
    shared: Rc<Shared>,
    events: Events,
    builder: Builder,
    dialer: Arc<ClusterDialer>,
    sockets: Sockets,
    dns: Dns,
    resolved: Resolved,
    unresolved: HashSet<Arc<str>>,
    health: HealthChecks,
    outliers: Outliers,
    direct: Direct,
    manager: Option<CaptureManager>,
    calls: mpsc::Receiver<Call>,
    listener_stats: Arc<ListenerManagerStats>,
    sources: Sources,
    /// Names of the listeners of the bootstrap.
    fixed: HashSet<String>,
    /// Whether a listener could not be bound.
    unbound: bool,
    /// Whether a configuration was taken over of which memory may be left.
    parsed: bool,
    tls: TlsControl,
    /// Snapshots that workers may still run on.
    former: Vec<Arc<Snapshot>>,
    flush_interval: Duration,
}

impl Control {
    async fn run(&mut self, mut inbox: mpsc::UnboundedReceiver<Ask>) -> Result<(), ServeError> {
        let listen = |kind| signal(kind).map_err(|error| ServeError::Io { doing: "watching signals", error });
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let mut reopen = listen(SignalKind::user_defined1())?;
        let serves = tokio::select! {
            result = self.bring_up(&mut inbox) => result?,
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
        };
        if !serves || self.options.init_only {
            self.stop();
            return Ok(());
        }
        let mut flush = tokio::time::interval(self.flush_interval);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reap = tokio::time::interval(REAP_EVERY);
        reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                happened = self.events.next() => self.take(happened),
                Some(call) = self.calls.recv() => self.answer(call),
                Some(ask) = inbox.recv() => match ask {
                    Ask::Drain(request) => self.drain(request),
                    Ask::Quit => break,
                },
                _ = flush.tick() => {
                    self.shared.process.registry.flush();
                    culvert_xds::release_unused();
                    if std::mem::take(&mut self.parsed) {
                        culvert_ring::heap::give_back();
                    }
                }
                _ = reap.tick() => {
                    self.reap();
                    self.look_at_certificates();
                    self.bind_again();
                    self.shared.view.retry_unbound();
                    self.forget_former();
                }
                _ = look.tick() => self.look_at_direct(),
                _ = hangup.recv() => self.reload_pods(),
                _ = reopen.recv() => self.shared.process.access_logs.reopen(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.stop();
        Ok(())
    }

    /// Publishes what comes of it, and binds what it wants bound. Before the start is over nothing is bound.
    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Update(update) => {
                let changed = self.take_over(update);
                if self.shared.live.get() {
                    let failed = self.bind(Some(&changed.listeners));
                    self.report(&failed);
                }
            }
            Happening::Resolved(resolution) => self.resolve(resolution),
            Happening::Checked(event) => self.take_health(event),
            Happening::Tripped(tripped) => {
                // Where many hosts fail at a time they make one snapshot.
                let all = arrived(tripped, &mut self.events.tripped);
                let changed = all.filter(|tripped| self.outliers.take(tripped));
                let changed = changed.map(|tripped| tripped.cluster).collect();
                self.refresh(changed);
            }
            Happening::Sweep(cluster) => {
                let all = arrived(cluster, &mut self.events.sweeps);
                let changed = all.filter(|cluster| self.outliers.sweep(cluster)).collect();
                self.refresh(changed);
            }
        }
    }

    /// Publishes a configuration.
    fn take_over(&mut self, update: Update) -> Changes {
        let Update { config, changed, arrived } = update;
        #[cfg(feature = "seeded-faults")]
        let config = Arc::new(crate::faults::seeded(&config));
        self.sources.follow(&self.shared.view, &self.shared.process.registry);
        if !changed.clusters.is_empty() {
            let started = self.dns.apply(&config.clusters);
            let present: HashSet<_> = config.clusters.iter().map(|cluster| &cluster.name).collect();
            self.resolved.retain(|name, _| present.contains(name));
            if !self.shared.live.get() {
                let waited_for = started.iter().filter(|cluster| cluster.wait_for_warm);
                self.unresolved.extend(waited_for.map(|cluster| cluster.name.clone()));
                self.unresolved.retain(|name| present.contains(name));
            }
            self.builder.hold(&changed.clusters, started.iter().map(|cluster| &cluster.name));
        }
        if !changed.listeners.is_empty() {
            self.count_listeners(&config);
        }
        if self.tls.apply(&config) {
            self.show_certificates();
        }
        self.dialer.update(&config, &self.resolved, !changed.clusters.is_empty());
        let snapshot = self.builder.build(&config, &changed, &self.resolved, arrived);
        self.publish(snapshot);
        *self.shared.config.borrow_mut() = config;
        // What comes with endpoints is small, and comes often.
        self.parsed |=
            !(changed.clusters.is_empty() && changed.listeners.is_empty() && changed.routes.is_empty());
        changed
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        log::debug!(target: "config", "generation {}", snapshot.generation);
        self.health.follow(&snapshot, self.builder.warming());
        self.outliers.follow(&snapshot);
        self.shared.workers.tell_all(|| Command::Publish(snapshot.clone()));
        let before = self.shared.snapshot.replace(snapshot);
        self.former.push(before);
        self.forget_former();
        // Before the start is over no pod is captured.
        if self.shared.live.get() {
            self.follow_pods();
        }
    }

    /// What goes past the proxy is what the configuration in force allows the pods that there are.
    fn follow_pods(&mut self) {
        if let Some(manager) = &mut self.manager {
            let snapshot = self.shared.snapshot.borrow().clone();
            self.direct.follow(&snapshot, manager);
        }
    }

    fn look_at_direct(&mut self) {
        if let Some(manager) = &mut self.manager
            && self.direct.look(manager)
        {
            self.follow_pods();
        }
    }

    /// Frees the snapshots that no worker runs on any more: a large one takes its time, which a worker does not have.
    fn forget_former(&mut self) {
        self.former.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// Certificate files that were replaced take effect on new connections; nothing is published.
    fn look_at_certificates(&mut self) {
        if self.tls.look_at_files() {
            self.show_certificates();
        }
    }

    fn show_certificates(&self) {
        let days = self.tls.days_until_expiry().unwrap_or_else(|| u64::from(u32::MAX));
        self.shared.server.days_until_first_cert_expiring.set(days);
        *self.shared.certificates.borrow_mut() = self.tls.certificates();
    }

    fn resolve(&mut self, resolution: Resolution) {
        let mut affected = Vec::new();
        let mut next = Some(resolution);
        while let Some(resolution) = next {
            next = self.events.resolutions.try_recv().ok();
            if !self.dns.is_current(&resolution) {
                continue;
            }
            let Resolution { cluster, endpoints } = resolution;
            let cluster = cluster.name.clone();
            self.unresolved.remove(&cluster);
            let is_new = endpoints.is_some();
            // Where nothing was ever resolved, what an earlier version of the cluster resolved to serves on.
            if let Some(endpoints) = endpoints {
                self.resolved.insert(cluster.clone(), endpoints);
            }
            if is_new || self.builder.holds(&cluster) {
                affected.push(cluster);
            }
        }
        if affected.is_empty() {
            return;
        }
        let config = self.shared.config.borrow().clone();
        self.dialer.update(&config, &self.resolved, true);
        let snapshot = self.builder.resolve(&config, affected, &self.resolved);
        self.publish(snapshot);
    }

    /// Publishes clusters whose hosts' health changed.
    fn refresh(&mut self, changed: HashSet<Arc<str>>) {
        if !changed.is_empty() {
            let snapshot = self.builder.refresh(changed.into_iter().collect());
            self.publish(snapshot);
        }
    }

    /// Publishes what checks found out, as far as it is known by now.
    fn take_health(&mut self, event: HealthEvent) {
        let mut changed = HashSet::new();
        for event in arrived(event, &mut self.events.checks) {
            let back = event.passed.as_ref().is_some_and(|host| self.outliers.passed(&event.cluster, host));
            if event.changed || back {
                changed.insert(event.cluster);
            }
        }
        self.refresh(changed);
        if let Some(snapshot) = self.builder.warmed() {
            self.publish(snapshot);
        }
    }

    fn answer(&mut self, call: Call) {
        let response = match &mut self.manager {
            Some(manager) => manager.handle(call.request),
            None => Response::error("capture is off: start culvert with --capture ebpf or iptables"),
        };
        self.follow_pods();
        // Whoever asked may have gone.
        let _ = call.reply.send(response);
    }

    fn reload_pods(&mut self) {
        let (Some(manager), Some(path)) = (&mut self.manager, &self.options.pods) else { return };
        match pods::load(path) {
            Ok(pods) => manager.reload(pods),
            Err(error) => log::error!(target: "capture", "{error}; the pods stay as they are"),
        }
        self.follow_pods();
    }

    fn reap(&mut self) {
        let gone: Vec<_> = self.manager.iter_mut().flat_map(CaptureManager::reap).collect();
        for line in &gone {
            log::info!(target: "capture", "{line}");
        }
        if !gone.is_empty() {
            self.follow_pods();
        }
    }

    /// `/drain_listeners`.
    fn drain(&mut self, request: DrainRequest) {
        let inbound = request.scope == DrainScope::Inbound;
        let scope = if inbound { worker::DrainScope::Inbound } else { worker::DrainScope::All };
        self.shared.workers.tell_all(|| Command::Drain(scope));
        if request.skip_exit {
            return;
        }
        let config = self.shared.config.borrow().clone();
        let is_meant = move |name: &str| {
            let direction = config.listeners.iter().find(|l| l.name == name).map(|l| l.direction);
            !inbound || direction == Some(culvert_model::TrafficDirection::Inbound)
        };
        if request.graceful {
            let (asks, wait) = (self.shared.asks.clone(), self.options.drain.time);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(wait).await;
                // The loop may have ended.
                let _ = asks.send(Ask::Drain(DrainRequest { graceful: false, ..request }));
            });
            return;
        }
        self.listener_stats.listener_stopped.inc();
        self.sockets.close(&self.shared.workers, is_meant);
    }

    fn stop(&mut self) {
        log::info!(target: "main", "stopping");
        self.shared.live.set(false);
        self.shared.server.live.set(0);
        if let Some(manager) = &mut self.manager {
            manager.shutdown();
        }
        self.shared.workers.stop();
        self.shared.process.access_logs.flush();
    }
}

/// Used by the admin server's view of the connection count.
pub(crate) fn total_connections(process: &Process) -> u64 {
    process.downstream_connections.load(Ordering::Relaxed)
}
