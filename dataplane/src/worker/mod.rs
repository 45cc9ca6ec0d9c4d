//! Workers: one pinned thread each, with its own driver, listeners, connection pools, timers and counters.
//!
//! A connection lives and dies on one worker, and nothing on the way of a request waits for another thread. Control
//! publishes immutable snapshots through a bounded lock-free queue; the worker takes them over between requests.

mod apply;
mod command;
mod pool;
mod table;

use std::{
    cell::{Cell, OnceCell, Ref, RefCell},
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use culvert_model::AccessLog;
use culvert_proto::{
    RequestHead, ResponseHead,
    route::{RequestView, Scopes, Table},
};
use culvert_quic::Endpoint;
use culvert_ring::{
    net,
    task::{self, TaskId},
    time,
};

pub use command::{BoundListener, Command, DrainScope, Origin};
pub use pool::{StartError, WorkerConfig, Workers};
pub use table::{LocalTable, RequestCounters};

use crate::{
    capture::{Direction, splice::WorkerSplice},
    http::date::Date,
    listener::{InspectorStats, ListenerRuntime, ProxyCounters, accept, accept_quic},
    observe::{
        access::{Loggers, Runtime, pipe::Pipes},
        access_log::AccessLogs,
        stats::{CaptureStats, ConfigStats, HeapStats, Http2Stats, Http3Stats, Registry},
        trace::pipe::SpanPipes,
    },
    snapshot::{Extension, RouteSpec, Snapshot},
    tls::Contexts,
    upstream::{Cluster, IdleSet},
};

/// What all workers and control share.
pub struct Process {
    /// Where counters are read from.
    pub registry: Registry,
    /// TLS contexts.
    pub tls: Arc<Contexts>,
    /// Access log files.
    pub access_logs: AccessLogs,
    /// Access logs of collectors.
    pub log_pipes: Pipes,
    /// Spans for collectors.
    pub span_pipes: SpanPipes,
    /// Open downstream connections over all workers, for `global_downstream_max_connections`.
    pub downstream_connections: AtomicU64,
    /// `overload.global_downstream_max_connections`; `u64::MAX` when not set.
    pub downstream_connections_max: AtomicU64,
    /// How many downstream connections were accepted; each is called by its number.
    pub connection_ids: AtomicU64,
    /// `node.cluster`
    pub service_cluster: String,
    /// `node.id`
    pub node_id: String,
    /// `node.locality.zone`
    pub node_zone: String,
    /// Whether health checks of this server are to fail.
    pub fails_health_checks: AtomicBool,
    /// `%HOSTNAME%`
    pub hostname: String,
    /// What stateless resets and Retry tokens of QUIC are made with.
    pub quic_secret: culvert_quic::Secret,
    /// How connections of listeners and chains that are no longer configured end.
    pub drain: DrainPolicy,
}

/// `--drain-time-s` and `--drain-strategy`.
#[derive(Clone, Copy, Debug)]
pub struct DrainPolicy {
    /// How long connections may take; what is left then is cut.
    pub time: Duration,
    /// Whether they are asked to end one after the other over that time, or all at its beginning.
    pub gradual: bool,
}

/// The state of one worker. Shared by its tasks, never by threads.
pub struct Worker {
    this: Weak<Self>,
    /// 0-based.
    pub index: usize,
    /// What all workers share.
    pub process: Arc<Process>,
    /// Idle upstream connections.
    pub idle: RefCell<IdleSet>,
    /// For balancing, fractions and request ids.
    pub rng: RefCell<fastrand::Rng>,
    /// The current HTTP date.
    pub date: Date,
    /// Captured connections that had no recorded destination, and the like.
    pub capture_stats: Arc<CaptureStats>,
    /// Connections whose bytes skip TCP.
    pub splice: Rc<WorkerSplice>,
    config_stats: Arc<ConfigStats>,
    /// Held for the registry, which forgets what nobody holds.
    _heap_stats: Arc<HeapStats>,
    http2_stats: OnceCell<Arc<Http2Stats>>,
    http3_stats: OnceCell<Arc<Http3Stats>>,
    /// Counters of listener filters.
    pub inspectors: InspectorStats,
    proxy_counters: RefCell<HashMap<String, Rc<ProxyCounters>>>,
    /// Of virtual clusters and routes.
    request_counters: table::KnownCounters,
    snapshot: RefCell<Arc<Snapshot>>,
    clusters: RefCell<HashMap<Arc<str>, Rc<Cluster>>>,
    tables: RefCell<HashMap<Arc<str>, Rc<LocalTable>>>,
    scopes: RefCell<HashMap<Arc<str>, Rc<LocalScopes>>>,
    listeners: RefCell<HashMap<Arc<str>, Rc<ListenerRuntime>>>,
    /// Listeners that are no longer configured, for connections that were made before.
    leaving: RefCell<HashMap<Arc<str>, Rc<ListenerRuntime>>>,
    by_address: RefCell<HashMap<SocketAddr, Rc<ListenerRuntime>>>,
    sockets: RefCell<Vec<Accepting>>,
    endpoints: RefCell<Vec<Listening>>,
    /// Where connections of QUIC to upstreams leave from, by IP version; made for the first of them.
    dialing: [OnceCell<Endpoint>; 2],
    /// Pods whose connections are accepted.
    pods: RefCell<HashSet<u32>>,
    draining: Cell<Option<DrainScope>>,
    heads: RefCell<Heads>,
}

/// What workers share, as one of them holds it. A request clones this worker's `Rc` of it, not the `Arc`, whose count all
/// workers would write to.
pub struct Local<T>(pub Arc<T>);

impl<T> Deref for Local<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Scopes as one worker holds them.
pub struct LocalScopes {
    scopes: Arc<Scopes<RouteSpec>>,
    /// Tables of scopes that bring their own, by where these are in memory.
    inline: HashMap<*const Table, Rc<LocalTable>>,
}

impl LocalScopes {
    fn new(scopes: Arc<Scopes<RouteSpec>>, worker: &Worker) -> Self {
        let local = |table: &Arc<Table>| Rc::new(LocalTable::new(table.clone(), worker));
        let tables = scopes.values().filter_map(|scope| match scope {
            RouteSpec::Inline(table) => Some((Arc::as_ptr(table), local(table))),
            RouteSpec::Rds(_) | RouteSpec::Scoped(_) => None,
        });
        let inline = tables.collect();
        Self { scopes, inline }
    }

    /// The routes of a request; `None` when it has no scope, or the scope no routes yet.
    pub fn table(&self, worker: &Worker, request: &RequestView<'_>) -> Option<Rc<LocalTable>> {
        match self.scopes.find(request)? {
            RouteSpec::Inline(table) => self.inline.get(&Arc::as_ptr(table)).cloned(),
            RouteSpec::Rds(name) => worker.table(name),
            // A scope leads to routes.
            RouteSpec::Scoped(_) => None,
        }
    }
}

/// A socket that is being accepted on.
struct Accepting {
    socket: Rc<culvert_ring::Listener>,
    number: u64,
    listener: Rc<RefCell<Arc<str>>>,
    pod: Option<(u32, Direction)>,
    task: TaskId,
}

/// A UDP socket that connections of QUIC are accepted on. Dropped, it goes on for those that are there.
struct Listening {
    _endpoint: Rc<Endpoint>,
    number: u64,
    listener: Rc<RefCell<Arc<str>>>,
    task: TaskId,
}

impl Drop for Listening {
    fn drop(&mut self) {
        task::abort(self.task);
    }
}

/// Message heads not in use. Their buffers are kept, so that a request in the steady state allocates none.
///
/// Boxed, because they move in and out with every request and are larger than a pointer by far.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "boxes are what is handed out and taken back")]
struct Heads {
    requests: Vec<Box<RequestHead>>,
    responses: Vec<Box<ResponseHead>>,
    buffers: Vec<Vec<u8>>,
}

/// How long a socket that is to be closed still accepts: a close resets whatever the kernel has queued.
const ACCEPT_GRACE: Duration = Duration::from_millis(50);

/// Long enough for a turn of the worker's loop in between.
const ACCEPT_TURN: Duration = Duration::from_millis(1);

/// How long a listener is remembered after its removal: longer than [`ACCEPT_GRACE`], and than control takes to tell.
const LEAVING: Duration = Duration::from_secs(5);

/// Bytes that the kernel may keep for a UDP socket in each direction, for bursts.
pub const UDP_BUFFER: usize = 4 << 20;

/// How many unused heads a worker keeps: enough for a burst, little enough to forget one.
const HEADS_KEPT: usize = 256;

/// How many unused buffers a worker keeps, and up to which size, in bytes.
const BUFFERS_KEPT: usize = 64;
const BUFFER_BYTES_KEPT: usize = 64 * 1024;

impl Worker {
    fn new(index: usize, process: Arc<Process>) -> Rc<Self> {
        let capture_stats = Arc::new(CaptureStats::default());
        process.registry.register("culvert.capture", capture_stats.clone());
        let config_stats = Arc::new(ConfigStats::default());
        process.registry.register("culvert.config", config_stats.clone());
        let heap_stats = Arc::new(HeapStats::of_this_thread());
        process.registry.register(format!("culvert.worker_{index}"), heap_stats.clone());
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            index,
            _heap_stats: heap_stats,
            idle: RefCell::default(),
            rng: RefCell::new(fastrand::Rng::new()),
            date: Date::default(),
            capture_stats,
            splice: WorkerSplice::new(&process.registry),
            config_stats,
            http2_stats: OnceCell::new(),
            http3_stats: OnceCell::new(),
            inspectors: InspectorStats::new(&process.registry),
            proxy_counters: RefCell::default(),
            request_counters: table::KnownCounters::default(),
            process,
            snapshot: RefCell::default(),
            clusters: RefCell::default(),
            tables: RefCell::default(),
            scopes: RefCell::default(),
            listeners: RefCell::default(),
            leaving: RefCell::default(),
            by_address: RefCell::default(),
            sockets: RefCell::default(),
            endpoints: RefCell::default(),
            dialing: Default::default(),
            pods: RefCell::default(),
            draining: Cell::new(None),
            heads: RefCell::default(),
        })
    }

    /// Refers to the worker without keeping it.
    pub fn handle(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// The cluster of that name; for an aggregate cluster the one of those it stands for that serves this request.
    pub fn cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        let cluster = self.own_cluster(name)?;
        let child = cluster.child(&mut self.rng.borrow_mut());
        match child {
            Some(child) => self.own_cluster(&child),
            None => Some(cluster),
        }
    }

    /// The aggregate cluster of that name.
    pub fn aggregate(&self, name: &str) -> Option<Rc<Cluster>> {
        self.own_cluster(name).filter(|cluster| cluster.children().is_some())
    }

    /// The cluster of that name itself. Its state on this worker is made when it is first asked for.
    fn own_cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        if let Some(cluster) = self.clusters.borrow().get(name) {
            return Some(cluster.clone());
        }
        let spec = self.snapshot.borrow().clusters.get(name)?.clone();
        let key = spec.config.name.clone();
        let cluster = Rc::new(Cluster::new(spec, self.index, &self.process.registry, self.splice.clone()));
        self.clusters.borrow_mut().insert(key, cluster.clone());
        Some(cluster)
    }

    /// The access logs that are configured somewhere.
    pub fn loggers(&self, configured: &[AccessLog]) -> Loggers {
        Loggers::new(configured, &self.process.access_logs, &self.process.log_pipes)
    }

    /// Runtime values, for what a key may override.
    pub fn runtime(&self) -> Ref<'_, Runtime> {
        Ref::map(self.snapshot.borrow(), |snapshot| &*snapshot.runtime)
    }

    /// Counters of HTTP/2 connections of clients; registered with the first.
    pub fn http2_stats(&self) -> Arc<Http2Stats> {
        let made = self.http2_stats.get_or_init(|| {
            let stats = Arc::new(Http2Stats::default());
            self.process.registry.register("http2", stats.clone());
            stats
        });
        made.clone()
    }

    /// Counters of HTTP/3 connections of clients; registered with the first.
    pub fn http3_stats(&self) -> Arc<Http3Stats> {
        let made = self.http3_stats.get_or_init(|| {
            let stats = Arc::new(Http3Stats::default());
            self.process.registry.register("http3", stats.clone());
            stats
        });
        made.clone()
    }

    /// Calls `f` with every cluster that has state on this worker.
    pub fn each_cluster(&self, f: impl FnMut(&Rc<Cluster>)) {
        self.clusters.borrow().values().for_each(f);
    }

    /// The route table of that name (RDS).
    pub fn table(&self, name: &str) -> Option<Rc<LocalTable>> {
        self.tables.borrow().get(name).cloned()
    }

    /// The scopes of a connection manager.
    pub fn scopes(&self, name: &str) -> Option<Rc<LocalScopes>> {
        self.scopes.borrow().get(name).cloned()
    }

    /// What is known of the HTTP filter from ECDS of that name.
    pub fn extension(&self, name: &str) -> Option<Extension> {
        self.snapshot.borrow().extensions.get(name).cloned()
    }

    /// The configured listener of that name.
    pub fn listener(&self, name: &str) -> Option<Rc<ListenerRuntime>> {
        self.listeners.borrow().get(name).cloned()
    }

    /// The listener of that name, also if it has just been removed: a connection that was made before is served.
    pub fn listener_or_leaving(&self, name: &str) -> Option<Rc<ListenerRuntime>> {
        self.listener(name).or_else(|| self.leaving.borrow().get(name).cloned())
    }

    /// Keeps a listener that was removed until its sockets are closed.
    fn see_off(&self, name: &Arc<str>, runtime: &Rc<ListenerRuntime>) {
        self.leaving.borrow_mut().insert(name.clone(), runtime.clone());
        let (worker, name, runtime) = (self.handle(), name.clone(), runtime.clone());
        task::spawn(async move {
            time::sleep(LEAVING).await;
            let Some(worker) = worker.upgrade() else { return };
            let mut leaving = worker.leaving.borrow_mut();
            if leaving.get(&name).is_some_and(|known| Rc::ptr_eq(known, &runtime)) {
                leaving.remove(&name);
            }
        });
    }

    /// The listener at the original destination of a connection: that of the address itself, else that of all addresses.
    pub fn listener_at(&self, destination: SocketAddr) -> Option<Rc<ListenerRuntime>> {
        let listeners = self.by_address.borrow();
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let exact = SocketAddr::new(destination.ip(), destination.port());
        listeners.get(&exact).or_else(|| listeners.get(&SocketAddr::new(any, destination.port()))).cloned()
    }

    /// Counters of the PROXY protocol filters with this `stat_prefix`.
    pub fn proxy_counters(&self, prefix: &str) -> Rc<ProxyCounters> {
        if let Some(known) = self.proxy_counters.borrow().get(prefix) {
            return known.clone();
        }
        let counters = Rc::new(ProxyCounters::new(prefix, &self.process.registry));
        self.proxy_counters.borrow_mut().insert(prefix.to_owned(), counters.clone());
        counters
    }

    /// Whether connections of listeners with that direction should close after their current request.
    pub fn is_draining(&self, inbound: bool) -> bool {
        match self.draining.get() {
            Some(DrainScope::All) => true,
            Some(DrainScope::Inbound) => inbound,
            None => false,
        }
    }

    /// Takes a place under the process-wide connection limit; `None` when it is full.
    pub fn admit(&self) -> Option<Admission> {
        let count = &self.process.downstream_connections;
        let max = self.process.downstream_connections_max.load(Ordering::Relaxed);
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Admission(self.process.clone()))
    }

    /// A cleared request head.
    pub fn request_head(&self) -> Box<RequestHead> {
        self.heads.borrow_mut().requests.pop().unwrap_or_default()
    }

    /// A cleared response head.
    pub fn response_head(&self) -> Box<ResponseHead> {
        self.heads.borrow_mut().responses.pop().unwrap_or_default()
    }

    /// Takes the head of a response back that nobody gets.
    pub fn recycle_response(&self, mut head: Box<ResponseHead>) {
        let mut heads = self.heads.borrow_mut();
        if heads.responses.len() < HEADS_KEPT {
            head.clear();
            heads.responses.push(head);
        }
    }

    /// Empty memory, for what a request needs until it is over.
    pub fn buffer(&self) -> Vec<u8> {
        self.heads.borrow_mut().buffers.pop().unwrap_or_default()
    }

    /// Takes memory back from [`Worker::buffer`].
    pub fn recycle_buffer(&self, mut buffer: Vec<u8>) {
        let mut heads = self.heads.borrow_mut();
        if (1..=BUFFER_BYTES_KEPT).contains(&buffer.capacity()) && heads.buffers.len() < BUFFERS_KEPT {
            buffer.clear();
            heads.buffers.push(buffer);
        }
    }

    /// Takes heads back.
    pub fn recycle(&self, mut request: Box<RequestHead>, response: Option<Box<ResponseHead>>) {
        let mut heads = self.heads.borrow_mut();
        if heads.requests.len() < HEADS_KEPT {
            request.clear();
            heads.requests.push(request);
        }
        if let Some(mut response) = response.filter(|_| heads.responses.len() < HEADS_KEPT) {
            response.clear();
            heads.responses.push(response);
        }
    }

    /// Whether connections of a pod are accepted: it was not removed.
    pub fn has_pod(&self, pod: u32) -> bool {
        self.pods.borrow().contains(&pod)
    }

    fn add_listener(self: &Rc<Self>, bound: BoundListener) {
        let listener = Rc::new(RefCell::new(bound.listener.clone()));
        let pod = match &bound.origin {
            Origin::Direct => None,
            Origin::Pod(pod, direction) => {
                self.splice.add_pod(pod);
                Some((pod.id, *direction))
            }
        };
        self.pods.borrow_mut().extend(pod.map(|(id, _)| id));
        if bound.quic {
            match accept_quic(self, bound.socket, &listener) {
                Ok((endpoint, task)) => self.endpoints.borrow_mut().push(Listening {
                    _endpoint: endpoint,
                    number: bound.number,
                    listener,
                    task,
                }),
                Err(error) => {
                    log::error!(target: "worker", "listener {}: cannot accept: {error}", bound.listener);
                }
            }
            return;
        }
        match culvert_ring::Listener::new(bound.socket) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let task = task::spawn(accept(self.clone(), socket.clone(), listener.clone(), bound.origin));
                let number = bound.number;
                self.sockets.borrow_mut().push(Accepting { socket, number, listener, pod, task });
            }
            Err(error) => {
                log::error!(target: "worker", "listener {}: cannot accept: {error}", bound.listener);
            }
        }
    }

    /// Accepts what is queued on these sockets, then closes them.
    fn stop_accepting(&self, refuse: bool, which: impl Fn(&Accepting) -> bool) {
        self.sockets.borrow_mut().retain(|accepting| {
            if which(accepting) {
                if refuse && let Err(error) = accepting.socket.refuse_new() {
                    log::debug!(target: "worker", "listener {}: {error}", accepting.listener.borrow());
                }
                let (task, socket) = (accepting.task, accepting.socket.clone());
                task::spawn(async move {
                    time::sleep(ACCEPT_GRACE).await;
                    // A worker that was held up for so long has not yet seen who came: its next turns do.
                    for _ in 0..2 {
                        time::sleep(ACCEPT_TURN).await;
                    }
                    task::abort(task);
                    drop(socket);
                });
                return false;
            }
            true
        });
    }

    /// Takes no more clients on the UDP sockets of that number.
    fn close_endpoints(&self, number: u64) {
        self.endpoints.borrow_mut().retain(|listening| listening.number != number);
    }

    fn rename_endpoints(&self, listener: &Arc<str>, number: u64) {
        for known in self.endpoints.borrow().iter().filter(|known| known.number == number) {
            *known.listener.borrow_mut() = listener.clone();
        }
    }

    /// Where connections of QUIC to an upstream of that address leave from.
    ///
    /// # Errors
    /// Those of the kernel for the first of them.
    pub fn dialing(&self, to: &SocketAddr) -> io::Result<&Endpoint> {
        let (place, any): (_, IpAddr) = match to {
            SocketAddr::V4(_) => (&self.dialing[0], Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (&self.dialing[1], Ipv6Addr::UNSPECIFIED.into()),
        };
        if place.get().is_none() {
            let options = net::UdpOptions {
                receive_buffer: Some(UDP_BUFFER),
                send_buffer: Some(UDP_BUFFER),
                v6only: true,
                ..net::UdpOptions::default()
            };
            let socket = net::udp_socket(&SocketAddr::new(any, 0), &options)?;
            let config = culvert_quic::Config::new(self.number(), self.process.quic_secret.clone());
            let _ = place.set(Endpoint::bind(socket, config, None)?);
        }
        place.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What connection ids call it.
    pub fn number(&self) -> u16 {
        u16::try_from(self.index).unwrap_or(u16::MAX)
    }

    fn rename(&self, listener: &Arc<str>, which: impl Fn(&Accepting) -> bool) {
        for accepting in self.sockets.borrow().iter().filter(|known| which(known)) {
            *accepting.listener.borrow_mut() = listener.clone();
        }
    }
}

/// A place under the process-wide connection limit, given back when dropped.
pub struct Admission(Arc<Process>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.downstream_connections.fetch_sub(1, Ordering::Relaxed);
    }
}
