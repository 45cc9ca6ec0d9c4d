//! Starting: from the bootstrap to the moment listeners are open.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use culvert_model::Listener;
use culvert_xds::{Begun, ConfigStream, Loaded, Update};
use tokio::sync::mpsc;

use super::{
    Ask, Control, REAP_EVERY, ServeError, ServeOptions, Shared,
    admin::{Admin, Listen, ServerInfo},
    backend::AdminBackend,
    collectors::Collectors,
    dialer::ClusterDialer,
    direct::Direct,
    dns::Dns,
    events::Events,
    health::HealthChecks,
    otlp_logs::OtlpLogs,
    outlier::Outliers,
    port,
    snapshot::{Builder, Resolved},
    sockets::Sockets,
    sources::Sources,
    spans::Spans,
    tls::TlsControl,
};
use crate::{
    capture::{
        self, Call, CaptureConfig, CaptureManager, CaptureMode, ControlSocket, pods,
        splice::{self, Decision},
    },
    observe::{
        access::pipe::Pipes,
        access_log::AccessLogs,
        stats::{ListenerManagerStats, Registry, ServerStats},
        trace::pipe::SpanPipes,
        view::View,
    },
    tls::Contexts,
    worker::{Process, WorkerConfig, Workers},
};

/// How long start-up waits for the first addresses of DNS clusters before it serves without them.
const DNS_PATIENCE: Duration = Duration::from_secs(5);

/// A secret that lasts as long as the process.
fn quic_secret() -> Result<culvert_quic::Secret, ServeError> {
    culvert_quic::Secret::random().map_err(|_| ServeError::Io {
        doing: "asking for random bytes",
        error: std::io::ErrorKind::Unsupported.into(),
    })
}

impl Control {
    pub(super) async fn start(
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
            span_pipes: SpanPipes::new(&registry),
            registry: registry.clone(),
            downstream_connections: AtomicU64::new(0),
            downstream_connections_max: AtomicU64::new(
                loaded.bootstrap.max_downstream_connections.unwrap_or(u64::MAX),
            ),
            connection_ids: AtomicU64::new(0),
            quic_secret: quic_secret()?,
            drain: options.drain,
            service_cluster: loaded.bootstrap.node_cluster.clone(),
            node_id: loaded.node().id,
            node_zone: loaded.node().locality.unwrap_or_default().zone,
            fails_health_checks: AtomicBool::new(false),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        });
        let config = WorkerConfig { count: options.concurrency, driver: probe.driver };
        let workers = Arc::new(Workers::start(config, &process)?);
        culvert_ring::sched::give_way_or_warn("control");
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
        let sockets = Sockets::default();
        let (held, stats) = (sockets.held(), listener_stats.clone());
        let bindable = move |listener: &Listener, again: bool| {
            // Not a failure of its own every time.
            held.check(listener).inspect_err(|_| stats.listener_create_failure.add(u64::from(!again)))
        };
        let stream = stream.with_dialer(loaded, dialer.clone()).with_bind_check(bindable);
        let pipes = process.log_pipes.clone();
        let otlp = OtlpLogs::new(pipes.clone(), dialer.clone(), loaded.node(), &registry);
        tokio::task::spawn_local(otlp.run());
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
        let spans = Spans::new(shared.process.span_pipes.clone(), dialer.clone(), shared.clone());
        tokio::task::spawn_local(spans.run());
        if let Some(address) = &loaded.bootstrap.admin {
            start_admin(address, &options, &shared).await?;
        }
        let (manager, calls) = start_capture(loaded, &options, &shared)?;
        let (sender, resolutions) = mpsc::channel(64);
        let (health, checks) =
            HealthChecks::new(contexts.clone(), registry.clone(), shared.process.access_logs.clone(), marked);
        let (outliers, sweeps) = Outliers::new(registry.clone());
        let (trips, tripped) = mpsc::unbounded_channel();
        let builder = Builder::new(options.concurrency, registry.clone(), contexts, trips)
            .among(loaded.bootstrap.local_cluster.clone(), loaded.bootstrap.locality.clone());
        Ok(Self {
            events: Events { stream, resolutions, checks, tripped, sweeps },
            health,
            outliers,
            dialer,
            tls,
            sockets,
            dns: Dns::new(sender, loaded.bootstrap.resolver.clone()),
            resolved: Resolved::new(),
            unresolved: HashSet::new(),
            direct: Direct::new(registry, loaded.bootstrap.max_downstream_connections.is_some()),
            manager,
            calls,
            listener_stats,
            sources: Sources::new(&shared.view, &shared.process.registry, builder.unchecked()),
            builder,
            unbound: false,
            parsed: false,
            former: Vec::new(),
            fixed: loaded.bootstrap.config.listeners.iter().map(|listener| listener.name.clone()).collect(),
            flush_interval: loaded.bootstrap.stats.flush_interval,
            shared,
            options,
        })
    }

    /// Makes ready what the first configuration needs, then opens its listeners; one of the bootstrap that cannot be bound
    /// now ends the start, as in Envoy. What happens meanwhile takes effect: a cluster that never gets warm can be taken back. `false`
    /// when it was told to end.
    pub(super) async fn bring_up(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Ask>,
    ) -> Result<bool, ServeError> {
        let Some(update) = self.first_update(inbox).await else { return Ok(false) };
        self.take_over(update);
        let mut reap = tokio::time::interval(REAP_EVERY);
        let patience = tokio::time::sleep(DNS_PATIENCE);
        tokio::pin!(patience);
        // Listeners come when names are resolved and the first round of checks is through.
        while !self.unresolved.is_empty() || self.health.is_warming() {
            tokio::select! {
                happened = self.events.next() => self.take(happened),
                Some(ask) = inbox.recv() => match ask {
                    Ask::Drain(request) => self.drain(request),
                    Ask::Quit => return Ok(false),
                },
                _ = reap.tick() => self.look_at_certificates(),
                () = &mut patience, if !self.unresolved.is_empty() => {
                    let names: Vec<_> = self.unresolved.drain().collect();
                    log::warn!(target: "dns", "no address yet for: {}", names.join(", "));
                }
            }
        }
        let (fatal, failed): (Vec<_>, Vec<_>) =
            self.bind(None).into_iter().partition(|error| self.fixed.contains(&error.listener));
        if let Some(error) = fatal.into_iter().next() {
            return Err(error.into());
        }
        self.report(&failed);
        self.start_pods()?;
        self.listener_stats.workers_started.set(1);
        self.builder.warm_from_now_on();
        self.shared.live.set(true);
        self.shared.server.live.set(1);
        self.shared.server.initialization_time_ms.record(elapsed_ms(self.shared.started));
        culvert_xds::release();
        culvert_ring::heap::give_back();
        log::info!(target: "main", "serving with {} worker(s)", self.options.concurrency);
        Ok(true)
    }

    /// Waits for the first configuration. What is known before it takes effect on how control planes are reached: their
    /// clusters may need secrets, or endpoints, that come from files. `None` when it was told to end.
    async fn first_update(&mut self, inbox: &mut mpsc::UnboundedReceiver<Ask>) -> Option<Update> {
        let mut reap = tokio::time::interval(REAP_EVERY);
        loop {
            tokio::select! {
                begun = self.events.stream.begin() => match begun {
                    Begun::Early(config) => {
                        if self.tls.apply(&config) {
                            self.show_certificates();
                        }
                        self.dialer.update(&config, &self.resolved, true);
                    }
                    Begun::First(update) => return Some(update),
                },
                Some(ask) = inbox.recv() => match ask {
                    Ask::Drain(request) => self.drain(request),
                    Ask::Quit => return None,
                },
                _ = reap.tick() => self.look_at_certificates(),
            }
        }
    }

    fn start_pods(&mut self) -> Result<(), ServeError> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        let pods = match &self.options.pods {
            Some(path) => pods::load(path)?,
            None => Vec::new(),
        };
        manager.start(pods)?;
        self.follow_pods();
        Ok(())
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
    if options.direct && options.capture != CaptureMode::Ebpf {
        log::warn!(target: "capture", "--direct needs --capture ebpf: every connection goes through the proxy");
    }
    if options.capture == CaptureMode::None {
        capture::clear_leftovers(&options.control_socket);
        return Ok((None, calls));
    }
    let socket = ControlSocket::bind(&options.control_socket)?;
    let splice = Arc::new(match options.capture {
        CaptureMode::Ebpf => splice::decide(&options.splice, options.cgroup.as_deref()),
        _ => Decision::off("only with --capture ebpf"),
    });
    shared.process.registry.register("culvert.splice", splice.clone());
    let config = CaptureConfig {
        mode: options.capture,
        state_dir: capture::state_dir(&options.control_socket),
        pin_dir: options.bpf_dir.clone(),
        cgroup_root: options.cgroup.clone(),
        direct: options.direct,
        settings: loaded.bootstrap.capture.clone(),
        splice,
        ..CaptureConfig::default()
    };
    let manager = CaptureManager::new(config, Box::new(port::Port(shared.workers.clone())))?;
    tokio::task::spawn_local(socket.serve(sender));
    Ok((Some(manager), calls))
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
