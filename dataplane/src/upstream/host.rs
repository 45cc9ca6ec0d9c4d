//! One endpoint as a worker sees it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_model::{Address, LbPolicy, RoutePriority, Value};

use crate::{
    http::codec::h2::STREAMS_UNTIL_SETTINGS,
    snapshot::{HostSpec, HostStats},
    upstream::{
        Ends, LocalFailure, ServerNames, Via, latency::Latency, pool::Parked, queue::Queue,
        shared::SharedConn,
    },
    worker::{Local, Worker},
};

/// An endpoint with this worker's connections to it.
pub struct Host {
    spec: RefCell<Rc<Local<HostSpec>>>,
    worker: usize,
    /// Requests this worker has in flight to it.
    active: Cell<u32>,
    /// Connections this worker has open to it, idle or not: of each priority, as these have limits of their own.
    open: [Cell<u32>; 2],
    /// Idle connections, the most recently used last.
    pub(super) idle: RefCell<Vec<Parked>>,
    /// Connections that requests share, those that are being made included.
    pub(super) shared: RefCell<Vec<Rc<SharedConn>>>,
    /// How many streams of a connection it takes, as it said last.
    pub(super) max_streams: Cell<u32>,
    /// What the last handshake agreed on, where that decides.
    pub(super) speaks_http2: Cell<Option<bool>>,
    /// Requests that wait for a connection because the cluster's connection limit is reached.
    pub(super) waiters: Queue,
    /// No longer part of the cluster: connections close when they become idle.
    pub(super) removed: Cell<bool>,
    /// Increases when it is to be reached in another way, or failed: connections from before are not used any more.
    epoch: Cell<u32>,
    /// Whether it was seen to fail its checks, or to be ejected.
    failed: Cell<bool>,
    /// Where the cluster balances by it.
    latency: OnceCell<Box<Latency>>,
}

/// Whose connection it is. Requests of different pods, with different preserved source addresses, or for servers of
/// different names never share one.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Pod id; 0 is the namespace culvert runs in.
    pub pod: u32,
    /// The address the connection is made from, when the client's is preserved.
    pub source: Option<IpAddr>,
    /// What the request calls the server.
    pub names: Option<Rc<ServerNames>>,
    /// The ends of the client's connection, where the host is told of them.
    pub ends: Option<Rc<Ends>>,
    /// Whose circuit breakers count it.
    pub priority: RoutePriority,
    epoch: u32,
}

impl PoolKey {
    /// What connections to `host` that are made this way are pooled under.
    pub fn new(host: &Host, via: &Via) -> Self {
        let pod = via.pod.as_ref().map_or(0, |pod| pod.id);
        Self {
            pod,
            source: via.source,
            names: via.names.clone(),
            ends: via.ends.clone().filter(|_| host.spec.borrow().proxy.is_some()),
            priority: via.priority,
            epoch: host.epoch.get(),
        }
    }

    /// Whether `host` is reached in another way by now.
    pub fn is_outdated(&self, host: &Host) -> bool {
        self.epoch != host.epoch.get()
    }

    /// Whether nobody asks for connections to `host` of this key any more: it left its cluster, or the pod is gone.
    pub(super) fn leads_nowhere(&self, host: &Host, worker: &Worker) -> bool {
        host.removed.get() || self.pod != 0 && !worker.has_pod(self.pod)
    }
}

impl Host {
    pub(super) fn new(spec: Arc<HostSpec>, worker: usize) -> Self {
        Self {
            failed: Cell::new(spec.state.is_failed()),
            spec: RefCell::new(Rc::new(Local(spec))),
            worker,
            active: Cell::new(0),
            open: Default::default(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            max_streams: Cell::new(STREAMS_UNTIL_SETTINGS),
            speaks_http2: Cell::new(None),
            waiters: Queue::default(),
            removed: Cell::new(false),
            epoch: Cell::new(0),
            latency: OnceCell::new(),
        }
    }

    /// Takes over a newer version of the same address. Whether connections from before are not used any more.
    pub(super) fn update(&self, spec: &Arc<HostSpec>) -> bool {
        let mut outdated = false;
        if !Arc::ptr_eq(&self.spec.borrow().0, spec) {
            outdated = !self.spec.borrow().is_reached_like(spec);
            if outdated {
                self.epoch.set(self.epoch.get().wrapping_add(1));
            }
            *self.spec.borrow_mut() = Rc::new(Local(spec.clone()));
        }
        self.removed.set(false);
        self.notice_failure() || outdated
    }

    /// Gives up the connections from before when it has failed since it was looked at last: those that carry a request
    /// end after it. Whether that is so.
    pub(super) fn notice_failure(&self) -> bool {
        let failed = self.spec.borrow().state.is_failed();
        let newly = failed && !self.failed.get();
        if newly {
            self.epoch.set(self.epoch.get().wrapping_add(1));
        }
        self.failed.set(failed);
        newly
    }

    /// Whether this is its address.
    pub(super) fn is_at(&self, address: &Address) -> bool {
        self.spec.borrow().endpoint.address == *address
    }

    /// The endpoint as configured.
    pub fn spec(&self) -> Rc<Local<HostSpec>> {
        self.spec.borrow().clone()
    }

    /// Whether it is on trial, as its metadata says (`envoy.lb`, `canary`).
    pub fn is_canary(&self) -> bool {
        let spec = self.spec.borrow();
        let labels = spec.endpoint.metadata.as_ref().and_then(|metadata| metadata.0.get("envoy.lb"));
        labels.and_then(|labels| labels.get("canary")) == Some(&Value::Bool(true))
    }

    /// Calls `f` with this worker's counters.
    pub fn stats<R>(&self, f: impl FnOnce(&HostStats) -> R) -> R {
        f(self.spec.borrow().state.counters.of(self.worker))
    }

    /// Tells outlier detection that it answered with this status.
    pub fn answered(&self, status: u16) {
        if let Some(monitor) = &self.spec.borrow().outlier {
            monitor.answered(self.worker, status);
        }
    }

    /// Keeps what `policy` goes by.
    pub(super) fn follow(&self, policy: &LbPolicy) {
        if let LbPolicy::PeakEwma { decay } = policy {
            self.latency.get_or_init(|| Box::new(Latency::new(*decay)));
        }
    }

    /// What a further request would cost: requests in flight where nothing else is known.
    pub(super) fn cost(&self) -> f64 {
        let active = self.active.get();
        self.latency.get().map_or_else(|| f64::from(active), |latency| latency.cost(active))
    }

    /// For how long it has been healthy.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.spec.borrow().state.age(now)
    }

    /// Tells outlier detection that there was no answer.
    pub fn failed(&self, failure: LocalFailure) {
        if let Some(latency) = self.latency.get() {
            latency.fail();
        }
        if let Some(monitor) = &self.spec.borrow().outlier {
            monitor.failed(self.worker, failure);
        }
    }

    /// A request that was sent at `begun` has got the head of its answer. How long the rest takes says nothing about the
    /// host: a stream may be open for hours.
    pub fn answers_since(&self, begun: Instant) {
        if let Some(latency) = self.latency.get() {
            latency.observe(begun);
        }
    }

    /// Tells outlier detection that there is a connection. `last`: no more will be heard of what it carries.
    pub fn reached(&self, last: bool) {
        if let Some(monitor) = &self.spec.borrow().outlier {
            monitor.reached(self.worker, last);
        }
    }

    /// Connections of a priority that this worker has open to it.
    pub(super) fn open(&self, priority: RoutePriority) -> &Cell<u32> {
        match priority {
            RoutePriority::Default => &self.open[0],
            RoutePriority::High => &self.open[1],
        }
    }

    /// Whether this worker has a connection to it.
    pub(super) fn is_connected(&self) -> bool {
        self.open.iter().any(|open| open.get() > 0)
    }

    /// Whether it is no longer part of its cluster.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Requests this worker has in flight to it.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// Counts a request in; it is counted out when the guard is dropped.
    pub fn begin(self: &Rc<Self>) -> ActiveRequest {
        self.active.set(self.active.get() + 1);
        self.stats(|s| {
            s.rq_total.inc();
            s.rq_active.inc();
        });
        ActiveRequest { host: self.clone() }
    }
}

/// A request in flight to a [`Host`].
pub struct ActiveRequest {
    host: Rc<Host>,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get() - 1);
        self.host.stats(|s| s.rq_active.dec());
    }
}
