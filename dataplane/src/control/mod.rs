//! The control thread: configuration, snapshots, DNS, listener sockets, pods, admin. Never on the path of a request.

pub mod admin;
mod backend;
mod collectors;
mod dialer;
mod dns;
mod health;
mod options;
mod outlier;
mod port;
mod snapshot;
mod sockets;
mod sources;
mod tls;

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use culvert_model::Config;
use culvert_xds::{Changes, ConfigStream, ConfigView, Loaded, Update};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

pub use options::ServeOptions;
pub use sockets::BindError;

use crate::{
    capture::{
        self, Call, CaptureConfig, CaptureError, CaptureManager, CaptureMode, ControlSocket,
        ControlSocketError, Response, pods,
    },
    control::{
        admin::{Admin, AdminError, DrainRequest, DrainScope, Listen, ServerInfo, ServerState},
        backend::AdminBackend,
        collectors::Collectors,
        dialer::ClusterDialer,
        dns::{Dns, Resolution},
        health::{HealthChecks, HealthEvent},
        outlier::Outliers,
        snapshot::{Builder, Resolved},
        sockets::Sockets,
        sources::Sources,
        tls::TlsControl,
    },
    observe::{
        access::pipe::Pipes,
        access_log::{AccessLogError, AccessLogs},
        stats::{ListenerManagerStats, Registry, ServerStats},
        view::View,
    },
    snapshot::Snapshot,
    tls::Contexts,
    upstream::Tripped,
    worker::{self, Command, Process, StartError, WorkerConfig, Workers},
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

/// How long start-up waits for the first addresses of DNS clusters before it serves without them.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// How often the manager looks for pods that are gone, and certificate files are looked at.
const REAP_EVERY: Duration = Duration::from_secs(1);

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
    stream: ConfigStream,
    builder: Builder,
    dialer: Arc<ClusterDialer>,
    sockets: Sockets,
    dns: Dns,
    resolutions: mpsc::Receiver<Resolution>,
    resolved: Resolved,
    unresolved: HashSet<Arc<str>>,
    health: HealthChecks,
    health_events: mpsc::UnboundedReceiver<HealthEvent>,
    outliers: Outliers,
    tripped: mpsc::UnboundedReceiver<Tripped>,
    sweeps: mpsc::UnboundedReceiver<Arc<str>>,
    manager: Option<CaptureManager>,
    calls: mpsc::Receiver<Call>,
    listener_stats: Arc<ListenerManagerStats>,
    sources: Sources,
    /// Whether a listener could not be bound.
    unbound: bool,
    tls: TlsControl,
    flush_interval: Duration,
}

impl Control {
    async fn start(
        loaded: &Loaded,
        options: ServeOptions,
        info: ServerInfo,
        asks: mpsc::UnboundedSender<Ask>,
    ) -> Result<Self, ServeError> {
        let registry = Registry::new();
        registry.set_view(View::new(loaded.bootstrap.stats.clone()));
        let probe = culvert_ring::probe(options.io)?;
        log::info!(target: "worker", "{probe}");
        let contexts = Arc::new(Contexts::default());
        let process = Arc::new(Process {
            tls: contexts.clone(),
            access_logs: AccessLogs::new(options.access_log, &registry)?,
            log_pipes: Pipes::new(&registry),
            registry: registry.clone(),
            downstream_connections: AtomicU64::new(0),
            downstream_connections_max: AtomicU64::new(
                loaded.bootstrap.max_downstream_connections.unwrap_or(u64::MAX),
            ),
            connection_ids: AtomicU64::new(0),
            drain: options.drain,
            service_cluster: loaded.bootstrap.node_cluster.clone(),
            fails_health_checks: AtomicBool::new(false),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        });
        let config = WorkerConfig { count: options.concurrency, driver: probe.driver };
        let workers = Arc::new(Workers::start(config, &process)?);
        let server = Arc::new(ServerStats::default());
        registry.register("server", server.clone());
        server.concurrency.set(options.concurrency as u64);
        let listener_stats = Arc::new(ListenerManagerStats::default());
        registry.register("listener_manager", listener_stats.clone());
        let marked = options.capture != CaptureMode::None;
        let mut tls = TlsControl::new(contexts.clone(), registry.clone());
        // Control planes may be among its clusters.
        tls.apply(&loaded.bootstrap.config);
        let config = Arc::new(loaded.bootstrap.config.clone());
        let dialer =
            Arc::new(ClusterDialer::new(config, contexts.clone(), loaded.bootstrap.resolver.clone(), marked));
        let stream =
            ConfigStream::new(loaded).map_err(|error| ServeError::Io { doing: "watching files", error })?;
        let stream = stream.with_dialer(loaded, dialer.clone());
        let pipes = process.log_pipes.clone();
        tokio::task::spawn_local(Collectors::new(pipes, dialer.clone(), loaded.node(), &registry).run());
        let shared = Rc::new(Shared {
            process,
            config: RefCell::new(Arc::default()),
            snapshot: RefCell::new(Arc::default()),
            view: stream.view(),
            certificates: RefCell::default(),
            server,
            info,
            started: Instant::now(),
            live: Cell::new(false),
            failing: Cell::new(false),
            asks,
            workers,
        });
        if let Some(address) = &loaded.bootstrap.admin {
            start_admin(address, &options, &shared).await?;
        }
        let (manager, calls) = start_capture(loaded, &options, &shared)?;
        let (sender, resolutions) = mpsc::channel(64);
        let (health, health_events) = HealthChecks::new(contexts.clone(), registry.clone(), marked);
        let (outliers, sweeps) = Outliers::new(registry.clone());
        let (trips, tripped) = mpsc::unbounded_channel();
        Ok(Self {
            health,
            health_events,
            outliers,
            tripped,
            sweeps,
            dialer,
            tls,
            builder: Builder::new(options.concurrency, registry, contexts, trips),
            sockets: Sockets::default(),
            dns: Dns::new(sender, loaded.bootstrap.resolver.clone()),
            resolutions,
            resolved: Resolved::new(),
            unresolved: HashSet::new(),
            manager,
            calls,
            listener_stats,
            sources: Sources::new(&shared.view, &shared.process.registry),
            unbound: false,
            flush_interval: loaded.bootstrap.stats.flush_interval,
            shared,
            stream,
            options,
        })
    }

    async fn run(&mut self, mut inbox: mpsc::UnboundedReceiver<Ask>) -> Result<(), ServeError> {
        let listen = |kind| signal(kind).map_err(|error| ServeError::Io { doing: "watching signals", error });
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let mut reopen = listen(SignalKind::user_defined1())?;
        tokio::select! {
            result = self.bring_up() => result?,
            _ = terminate.recv() => {
                self.stop();
                return Ok(());
            }
            _ = interrupt.recv() => {
                self.stop();
                return Ok(());
            }
        }
        if self.options.init_only {
            self.stop();
            return Ok(());
        }
        let mut flush = tokio::time::interval(self.flush_interval);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reap = tokio::time::interval(REAP_EVERY);
        reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                update = self.stream.next() => {
                    let failed = self.apply(update);
                    self.report(&failed);
                }
                Some(resolution) = self.resolutions.recv() => self.resolve(resolution),
                Some(event) = self.health_events.recv() => self.take_health(event),
                Some(tripped) = self.tripped.recv() => {
                    let changed = self.outliers.take(&tripped);
                    self.refresh(tripped.cluster, changed);
                }
                Some(cluster) = self.sweeps.recv() => {
                    let changed = self.outliers.sweep(&cluster);
                    self.refresh(cluster, changed);
                }
                Some(call) = self.calls.recv() => self.answer(call),
                Some(ask) = inbox.recv() => match ask {
                    Ask::Drain(request) => self.drain(request),
                    Ask::Quit => break,
                },
                _ = flush.tick() => {
                    self.shared.process.registry.flush();
                    culvert_xds::release_unused();
                }
                _ = reap.tick() => {
                    self.reap();
                    self.look_at_certificates();
                    self.bind_again();
                }
                _ = hangup.recv() => self.reload_pods(),
                _ = reopen.recv() => self.shared.process.access_logs.reopen(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.stop();
        Ok(())
    }

    /// Applies the first configuration. A listener that cannot be bound now ends the start, as in Envoy.
    async fn bring_up(&mut self) -> Result<(), ServeError> {
        let update = self.stream.next().await;
        let clusters = &update.config.clusters;
        self.unresolved.extend(self.dns.apply(clusters));
        let waiting = !self.unresolved.is_empty();
        let patience = tokio::time::sleep(if waiting { DNS_PATIENCE } else { Duration::ZERO });
        tokio::pin!(patience);
        while !self.unresolved.is_empty() {
            tokio::select! {
                Some(resolution) = self.resolutions.recv() => {
                    self.unresolved.remove(&resolution.cluster);
                    if let Some(endpoints) = resolution.endpoints {
                        self.resolved.insert(resolution.cluster, endpoints);
                    }
                }
                () = &mut patience => {
                    log::warn!(target: "dns", "no address yet for: {}", self.unresolved.iter().map(|n| &**n).collect::<Vec<_>>().join(", "));
                    break;
                }
            }
        }
        let (config, changed) = self.take_over(update);
        // Listeners come when the first round of checks is through.
        while self.health.is_warming()
            && let Some(event) = self.health_events.recv().await
        {
            self.take_health(event);
        }
        if let Some(error) = self.bind(config, &changed).into_iter().next() {
            return Err(error.into());
        }
        self.start_pods()?;
        self.listener_stats.workers_started.set(1);
        self.shared.live.set(true);
        self.shared.server.live.set(1);
        self.shared.server.initialization_time_ms.record(elapsed_ms(self.shared.started));
        culvert_xds::release();
        log::info!(target: "main", "serving with {} worker(s)", self.options.concurrency);
        Ok(())
    }

    /// Publishes a configuration and binds what it wants bound.
    fn apply(&mut self, update: Update) -> Vec<BindError> {
        let (config, changed) = self.take_over(update);
        self.bind(config, &changed)
    }

    /// Publishes a configuration.
    fn take_over(&mut self, update: Update) -> (Arc<Config>, Changes) {
        let Update { config, changed, arrived } = update;
        self.sources.follow(&self.shared.view, &self.shared.process.registry);
        if !changed.clusters.is_empty() {
            self.dns.apply(&config.clusters);
            let present: HashSet<_> = config.clusters.iter().map(|cluster| &cluster.name).collect();
            self.resolved.retain(|name, _| present.contains(name));
        }
        if !changed.listeners.is_empty() {
            self.count_listeners(&config);
        }
        if self.tls.apply(&config) {
            self.show_certificates();
        }
        self.dialer.update(&config, &self.resolved);
        let snapshot = self.builder.build(&config, &changed, &self.resolved, arrived);
        self.publish(snapshot);
        (config, changed)
    }

    /// Binds what a configuration that was published wants bound.
    fn bind(&mut self, config: Arc<Config>, changed: &Changes) -> Vec<BindError> {
        let listeners_changed = !changed.listeners.is_empty();
        let mut failed = Vec::new();
        // Listeners that could not be bound are tried again.
        if listeners_changed || self.unbound {
            failed = self.sockets.apply(&config, &self.shared.workers);
            self.unbound = !failed.is_empty();
            let bound = config.listeners.len() - failed.len();
            // Counted by worker, as in Envoy.
            let gone = |name: &String| config.listeners.iter().all(|listener| listener.name != *name);
            let made =
                changed.listeners.iter().filter(|name| !gone(name)).count().saturating_sub(failed.len());
            self.listener_stats.listener_create_success.add((made * self.shared.workers.len()) as u64);
            self.listener_stats.total_listeners_active.set(bound as u64);
            if let Some(manager) = &mut self.manager {
                manager.set_listeners(config.listeners.iter().map(|l| (l.name.as_str().into(), l.direction)));
            }
        }
        *self.shared.config.borrow_mut() = config;
        failed
    }

    /// Tries again to bind what could not be bound: whoever has the address may have given it up.
    fn bind_again(&mut self) {
        if self.unbound {
            let config = self.shared.config.borrow().clone();
            let failed = self.sockets.apply(&config, &self.shared.workers);
            self.unbound = !failed.is_empty();
            let bound = config.listeners.len() - failed.len();
            self.listener_stats.total_listeners_active.set(bound as u64);
        }
    }

    /// Counts what an update adds, changes and removes, and what drains for it.
    fn count_listeners(&self, next: &Config) {
        let stats = &self.listener_stats;
        let current = self.shared.config.borrow();
        let (mut listeners, mut chains) = (0, 0);
        for listener in next.listeners.iter() {
            match current.listeners.iter().find(|known| known.name == listener.name) {
                Some(known) if Arc::ptr_eq(known, listener) => {}
                Some(known) if known.fingerprint == listener.fingerprint => {
                    stats.listener_modified.inc();
                    stats.listener_in_place_updated.inc();
                    let kept: HashSet<u64> = listener.chains().map(|chain| chain.fingerprint).collect();
                    chains += known.chains().filter(|chain| !kept.contains(&chain.fingerprint)).count();
                }
                Some(_) => {
                    stats.listener_modified.inc();
                    listeners += 1;
                }
                None => stats.listener_added.inc(),
            }
        }
        let gone =
            |known: &&Arc<culvert_model::Listener>| next.listeners.iter().all(|l| l.name != known.name);
        let removed = current.listeners.iter().filter(gone).count();
        stats.listener_removed.add(removed as u64);
        self.count_draining((listeners + removed) as u64, chains as u64);
    }

    /// Shows so many listeners and filter chains as draining for the drain time.
    fn count_draining(&self, listeners: u64, chains: u64) {
        if listeners + chains == 0 {
            return;
        }
        let (stats, wait) = (self.listener_stats.clone(), self.options.drain.time);
        stats.total_listeners_draining.add(listeners);
        stats.total_filter_chains_draining.add(chains);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            stats.total_listeners_draining.sub(listeners);
            stats.total_filter_chains_draining.sub(chains);
        });
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        log::debug!(target: "config", "generation {}", snapshot.generation);
        self.health.follow(&snapshot);
        self.outliers.follow(&snapshot);
        self.shared.workers.tell_all(|| Command::Publish(snapshot.clone()));
        *self.shared.snapshot.borrow_mut() = snapshot;
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

    fn report(&self, failed: &[BindError]) {
        for error in failed {
            self.listener_stats.listener_create_failure.inc();
            log::error!(target: "config", "{error}");
        }
    }

    fn resolve(&mut self, resolution: Resolution) {
        // Nothing was ever resolved: what an earlier version of the cluster resolved to serves on.
        let Some(endpoints) = resolution.endpoints else { return };
        self.resolved.insert(resolution.cluster.clone(), endpoints);
        let config = self.shared.config.borrow().clone();
        self.dialer.update(&config, &self.resolved);
        let snapshot = self.builder.resolve(&config, &resolution.cluster, &self.resolved);
        self.publish(snapshot);
    }

    /// Publishes a cluster whose hosts' health changed.
    fn refresh(&mut self, cluster: Arc<str>, changed: bool) {
        if changed {
            let snapshot = self.builder.refresh(vec![cluster]);
            self.publish(snapshot);
        }
    }

    /// Publishes what checks found out, as far as it is known by now.
    fn take_health(&mut self, event: HealthEvent) {
        let mut changed = Vec::new();
        let mut next = Some(event);
        while let Some(event) = next {
            let back = event.passed.as_ref().is_some_and(|host| self.outliers.passed(&event.cluster, host));
            if (event.changed || back) && !changed.contains(&event.cluster) {
                changed.push(event.cluster);
            }
            next = self.health_events.try_recv().ok();
        }
        if !changed.is_empty() {
            let snapshot = self.builder.refresh(changed);
            self.publish(snapshot);
        }
    }

    fn answer(&mut self, call: Call) {
        let response = match &mut self.manager {
            Some(manager) => manager.handle(call.request),
            None => Response::error("capture is off: start culvert with --capture ebpf or iptables"),
        };
        // Whoever asked may have gone.
        let _ = call.reply.send(response);
    }

    fn start_pods(&mut self) -> Result<(), ServeError> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        let pods = match &self.options.pods {
            Some(path) => pods::load(path)?,
            None => Vec::new(),
        };
        manager.start(pods)?;
        Ok(())
    }

    fn reload_pods(&mut self) {
        let (Some(manager), Some(path)) = (&mut self.manager, &self.options.pods) else { return };
        match pods::load(path) {
            Ok(pods) => manager.reload(pods),
            Err(error) => log::error!(target: "capture", "{error}; the pods stay as they are"),
        }
    }

    fn reap(&mut self) {
        for line in self.manager.iter_mut().flat_map(CaptureManager::reap) {
            log::info!(target: "capture", "{line}");
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

async fn start_admin(
    address: &culvert_model::Address,
    options: &ServeOptions,
    shared: &Rc<Shared>,
) -> Result<(), ServeError> {
    let listen = match address {
        culvert_model::Address::Ip(address) => Listen::Ip(*address),
        culvert_model::Address::Pipe { path, mode } => Listen::Pipe { path: path.clone(), mode: *mode },
    };
    let admin = Admin::bind(&listen).await?;
    if let Some(path) = &options.admin_address_path {
        admin.write_address(path)?;
    }
    tokio::task::spawn_local(admin.run(Rc::new(AdminBackend(shared.clone()))));
    Ok(())
}

type Capture = (Option<CaptureManager>, mpsc::Receiver<Call>);

fn start_capture(loaded: &Loaded, options: &ServeOptions, shared: &Shared) -> Result<Capture, ServeError> {
    let (sender, calls) = mpsc::channel(16);
    if options.capture == CaptureMode::None {
        capture::clear_leftovers(&options.control_socket);
        return Ok((None, calls));
    }
    let socket = ControlSocket::bind(&options.control_socket)?;
    let config = CaptureConfig {
        mode: options.capture,
        state_dir: capture::state_dir(&options.control_socket),
        pin_dir: options.bpf_dir.clone(),
        cgroup_root: options.cgroup.clone(),
        settings: loaded.bootstrap.capture.clone(),
        ..CaptureConfig::default()
    };
    let manager = CaptureManager::new(config, Box::new(port::Port(shared.workers.clone())))?;
    tokio::task::spawn_local(socket.serve(sender));
    Ok((Some(manager), calls))
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Used by the admin server's view of the connection count.
pub(crate) fn total_connections(process: &Process) -> u64 {
    process.downstream_connections.load(Ordering::Relaxed)
}
