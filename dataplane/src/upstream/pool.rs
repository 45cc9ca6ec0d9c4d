//! Connections to upstream hosts: opened when needed, parked when idle, never shared between pods.

use std::{
    cell::{Cell, RefCell},
    ffi::OsStr,
    future::poll_fn,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use culvert_model::Address;
use culvert_ring::{Stream, net, time};
use socket2::SockAddr;

use crate::{
    capture,
    http::codec::h1::ClientConn,
    upstream::{
        Cluster, Host, PoolKey, Via,
        limit::{Credit, Limit},
    },
    worker::Worker,
};

/// An idle connection in [`Host::idle`]; the connection itself is in the worker's [`IdleSet`].
#[derive(Clone, Copy)]
pub(super) struct Parked {
    key: PoolKey,
    tag: u64,
}

/// Why there is no connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AcquireError {
    /// Refused, unreachable, no address left: the reason as the kernel gives it.
    Connect(String),
    /// A circuit breaker is open.
    Overflow,
    /// `connect_timeout` passed.
    Timeout,
}

/// An upstream connection in use by one request.
pub struct Lent {
    /// The connection.
    pub conn: ClientConn,
    /// Where it goes.
    pub host: Rc<Host>,
    /// Whether an earlier request used it.
    pub reused: bool,
    key: PoolKey,
    requests: u32,
    guard: Guard,
}

/// An upstream connection that became a tunnel.
pub struct TunnelConn {
    /// The connection.
    pub conn: ClientConn,
    _guard: Guard,
}

impl TunnelConn {
    /// The connection, and what keeps it counted until it is dropped.
    pub fn into_parts(self) -> (ClientConn, impl Sized) {
        (self.conn, self._guard)
    }
}

/// An upstream connection for opaque bytes.
pub struct TcpConn {
    /// The connection.
    pub stream: Stream,
    _guard: Guard,
}

/// Accounting of one open connection: everything that has to be undone when it closes, however it closes.
struct Guard {
    cluster: Rc<Cluster>,
    host: Rc<Host>,
    opened: Instant,
    _credit: Credit,
}

impl Guard {
    fn new(cluster: Rc<Cluster>, host: Rc<Host>, credit: Credit) -> Self {
        host.open.set(host.open.get() + 1);
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.stats(|s| {
            s.cx_total.inc();
            s.cx_active.inc();
        });
        Self { cluster, host, opened: time::now(), _credit: credit }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.host.open.set(self.host.open.get() - 1);
        self.cluster.stats.upstream_cx_active.dec();
        self.cluster.stats.upstream_cx_destroy.inc();
        self.cluster.stats.upstream_cx_length_ms.record(millis(time::now() - self.opened));
        self.host.stats(|s| s.cx_active.dec());
        // Whoever waits may open a connection of its own now.
        if let Some(waiter) = self.host.waiters.borrow_mut().pop_front() {
            waiter.give(Given::Permission);
        }
    }
}

/// A request that waits for a connection to a host.
pub(super) struct Waiter {
    key: PoolKey,
    given: RefCell<Given>,
    waker: RefCell<Option<Waker>>,
    abandoned: Cell<bool>,
}

enum Given {
    Connection(Box<Lent>),
    Nothing,
    Permission,
}

impl Waiter {
    fn give(&self, given: Given) {
        *self.given.borrow_mut() = given;
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// All idle upstream connections of a worker.
#[derive(Default)]
pub struct IdleSet {
    entries: slab::Slab<Idle>,
    generation: u32,
}

struct Idle {
    lent: Lent,
    generation: u32,
    since: Instant,
}

impl IdleSet {
    fn insert(&mut self, lent: Lent) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.entries.insert(Idle { lent, generation, since: time::now() });
        (u64::from(generation) << 32) | index as u64
    }

    fn remove(&mut self, tag: u64) -> Option<Lent> {
        let index = (tag & 0xffff_ffff) as usize;
        let entry = self.entries.get(index)?;
        (u64::from(entry.generation) == tag >> 32).then(|| self.entries.remove(index).lent)
    }
}

impl Cluster {
    /// A connection to `host` for one request: an idle one that is still open, else a new one.
    ///
    /// # Errors
    /// See [`AcquireError`]; the counters are already advanced.
    pub async fn acquire(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        via: &Via,
    ) -> Result<Lent, AcquireError> {
        let key = via.key();
        if let Some(lent) = take_idle(worker, host, key) {
            return Ok(lent);
        }
        let breakers = self.config().circuit_breakers;
        let Some(_pending) = Credit::take(&self.limits, Limit::Pending, breakers.max_pending_requests) else {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(AcquireError::Overflow);
        };
        self.stats.upstream_rq_pending_total.inc();
        self.stats.upstream_rq_pending_active.inc();
        let result = self.open_or_wait(host, key, via, breakers.max_connections).await;
        self.stats.upstream_rq_pending_active.dec();
        result
    }

    async fn open_or_wait(
        self: &Rc<Self>,
        host: &Rc<Host>,
        key: PoolKey,
        via: &Via,
        max_connections: u32,
    ) -> Result<Lent, AcquireError> {
        loop {
            let credit = match Credit::take(&self.limits, Limit::Connections, max_connections) {
                Some(credit) => credit,
                None if host.open.get() == 0 => Credit::force(&self.limits, Limit::Connections),
                None => {
                    self.stats.upstream_cx_overflow.inc();
                    match wait_turn(host, key).await {
                        Given::Connection(lent) => return Ok(*lent),
                        Given::Permission | Given::Nothing => continue,
                    }
                }
            };
            return self.open(host, key, via, credit).await;
        }
    }

    async fn open(
        self: &Rc<Self>,
        host: &Rc<Host>,
        key: PoolKey,
        via: &Via,
        credit: Credit,
    ) -> Result<Lent, AcquireError> {
        let guard = Guard::new(self.clone(), host.clone(), credit);
        self.stats.upstream_cx_http1_total.inc();
        match self.connect_counted(host, via).await {
            Ok(stream) => {
                let conn = ClientConn::new(stream, self.clone());
                Ok(Lent { conn, host: host.clone(), reused: false, key, requests: 0, guard })
            }
            Err(error) => {
                self.stats.upstream_rq_pending_failure_eject.inc();
                Err(error)
            }
        }
    }

    /// A connection to `host` for opaque bytes; never pooled.
    ///
    /// # Errors
    /// See [`AcquireError`]; the counters are already advanced.
    pub async fn open_tcp(self: &Rc<Self>, host: &Rc<Host>, via: &Via) -> Result<TcpConn, AcquireError> {
        let max = self.config().circuit_breakers.max_connections;
        let Some(credit) = Credit::take(&self.limits, Limit::Connections, max) else {
            self.stats.upstream_cx_overflow.inc();
            return Err(AcquireError::Overflow);
        };
        let guard = Guard::new(self.clone(), host.clone(), credit);
        let stream = self.connect_counted(host, via).await?;
        Ok(TcpConn { stream, _guard: guard })
    }

    async fn connect_counted(&self, host: &Host, via: &Via) -> Result<Stream, AcquireError> {
        let started = time::now();
        match self.connect(host, via).await {
            Ok(stream) => {
                self.stats.upstream_cx_connect_ms.record(millis(time::now() - started));
                Ok(stream)
            }
            Err(error) => {
                self.stats.upstream_cx_connect_fail.inc();
                if error == AcquireError::Timeout {
                    self.stats.upstream_cx_connect_timeout.inc();
                }
                host.stats(|s| s.cx_connect_fail.inc());
                Err(error)
            }
        }
    }

    /// Connects one stream to `host`, in the network namespace and from the address that `via` asks for.
    ///
    /// # Errors
    /// The kernel's reason, or the cluster's `connect_timeout` passed.
    pub async fn connect(&self, host: &Host, via: &Via) -> Result<Stream, AcquireError> {
        let address = host.spec().endpoint.address.clone();
        let (socket, address) =
            socket_for(&address, via).map_err(|error| AcquireError::Connect(error.to_string()))?;
        let mut deadline = time::Timer::new();
        deadline.set(time::now() + self.config().connect_timeout);
        let mut connecting = std::pin::pin!(Stream::connect(socket, &address));
        poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| AcquireError::Connect(error.to_string())));
            }
            deadline.poll_expired(cx).map(|()| Err(AcquireError::Timeout))
        })
        .await
    }
}

fn socket_for(address: &Address, via: &Via) -> std::io::Result<(std::os::fd::OwnedFd, SockAddr)> {
    match address {
        Address::Ip(ip) => {
            let socket = match &via.pod {
                Some(pod) => capture::upstream_socket(pod, ip, via.source)?,
                None => net::tcp_socket(ip)?,
            };
            Ok((socket, (*ip).into()))
        }
        Address::Pipe { path, .. } => Ok((net::unix_socket()?, unix_address(path)?)),
    }
}

/// A leading `@` names an abstract socket, as in Envoy's `Pipe.path`.
fn unix_address(path: &Path) -> std::io::Result<SockAddr> {
    match path.as_os_str().as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => {
            let mut text = vec![0];
            text.extend_from_slice(name);
            SockAddr::unix(OsStr::from_bytes(&text))
        }
        None => SockAddr::unix(path),
    }
}

/// The youngest idle connection of that key that nothing arrived on.
fn take_idle(worker: &Worker, host: &Host, key: PoolKey) -> Option<Lent> {
    loop {
        let parked = {
            let mut idle = host.idle.borrow_mut();
            let at = idle.iter().rposition(|parked| parked.key == key)?;
            idle.remove(at)
        };
        let Some(mut lent) = worker.idle.borrow_mut().remove(parked.tag) else { continue };
        // A FIN or a stray byte that came while it was parked: not usable, and seen before a request was written.
        if lent.conn.unpark() {
            lent.reused = true;
            return Some(lent);
        }
        lent.guard.cluster.stats.upstream_cx_destroy_remote.inc();
    }
}

async fn wait_turn(host: &Rc<Host>, key: PoolKey) -> Given {
    struct Abandon<'a>(&'a Rc<Host>, Rc<Waiter>);
    impl Drop for Abandon<'_> {
        fn drop(&mut self) {
            self.1.abandoned.set(true);
            self.0.waiters.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.1));
        }
    }
    let waiter = Rc::new(Waiter {
        key,
        given: RefCell::new(Given::Nothing),
        waker: RefCell::new(None),
        abandoned: Cell::new(false),
    });
    host.waiters.borrow_mut().push_back(waiter.clone());
    let guard = Abandon(host, waiter);
    poll_fn(|cx| match guard.1.given.replace(Given::Nothing) {
        Given::Nothing => {
            *guard.1.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }
        given => Poll::Ready(given),
    })
    .await
}

impl Lent {
    /// Counts a request on this connection. Called once per request, before its head is written.
    pub fn begin_request(&mut self) {
        self.requests += 1;
    }

    /// The connection as a tunnel; its accounting lasts as long as the tunnel.
    pub fn into_tunnel(self) -> TunnelConn {
        TunnelConn { conn: self.conn, _guard: self.guard }
    }

    /// Gives the connection back after a complete exchange, to be used again. Drop it instead to close it.
    pub fn release(self, worker: &Worker) {
        let config = self.guard.cluster.config();
        if config.max_requests_per_connection.is_some_and(|max| self.requests >= max) {
            self.guard.cluster.stats.upstream_cx_max_requests.inc();
            return;
        }
        if self.host.removed.get() {
            return;
        }
        let host = self.host.clone();
        let waiter = {
            let mut waiters = host.waiters.borrow_mut();
            let at = waiters.iter().position(|waiter| waiter.key == self.key && !waiter.abandoned.get());
            at.and_then(|at| waiters.remove(at))
        };
        if let Some(waiter) = waiter {
            let lent = Self { reused: true, ..self };
            waiter.give(Given::Connection(Box::new(lent)));
            return;
        }
        let key = self.key;
        let mut idle = worker.idle.borrow_mut();
        let tag = idle.insert(self);
        if let Some(entry) = idle.entries.get((tag & 0xffff_ffff) as usize) {
            entry.lent.conn.park(tag);
        }
        host.idle.borrow_mut().push(Parked { key, tag });
    }
}

/// Closes idle connections that the peer closed, and those idle for longer than their cluster allows. Runs for ever.
pub async fn janitor(worker: Rc<Worker>) {
    let mut sweep = time::Timer::new();
    sweep.set(time::now() + SWEEP);
    loop {
        let tag = poll_fn(|cx| {
            if let Poll::Ready(tag) = culvert_ring::poll_parked_event(cx) {
                return Poll::Ready(Some(tag));
            }
            sweep.poll_expired(cx).map(|()| None)
        })
        .await;
        match tag {
            Some(tag) => discard(&worker, tag, true),
            None => {
                sweep_expired(&worker);
                sweep.set(time::now() + SWEEP);
            }
        }
    }
}

/// How often idle timeouts are looked at; they are minutes to hours.
const SWEEP: Duration = Duration::from_secs(1);

fn sweep_expired(worker: &Worker) {
    let now = time::now();
    let expired: Vec<u64> = {
        let idle = worker.idle.borrow();
        let over = |entry: &Idle| {
            entry.lent.host.removed.get()
                || entry.lent.guard.cluster.config().idle_timeout.is_some_and(|max| now - entry.since >= max)
        };
        let tag = |index: usize, entry: &Idle| (u64::from(entry.generation) << 32) | index as u64;
        idle.entries.iter().filter(|(_, entry)| over(entry)).map(|(index, entry)| tag(index, entry)).collect()
    };
    for tag in expired {
        discard(worker, tag, false);
    }
}

/// Closes every idle connection that `which` selects.
pub fn discard_where(worker: &Worker, which: impl Fn(&PoolKey, &Host) -> bool) {
    let tags: Vec<u64> = {
        let idle = worker.idle.borrow();
        let tag = |index: usize, entry: &Idle| (u64::from(entry.generation) << 32) | index as u64;
        idle.entries
            .iter()
            .filter(|(_, entry)| which(&entry.lent.key, &entry.lent.host))
            .map(|(index, entry)| tag(index, entry))
            .collect()
    };
    for tag in tags {
        discard(worker, tag, false);
    }
}

fn discard(worker: &Worker, tag: u64, by_peer: bool) {
    let Some(lent) = worker.idle.borrow_mut().remove(tag) else { return };
    lent.host.idle.borrow_mut().retain(|parked| parked.tag != tag);
    if by_peer {
        lent.guard.cluster.stats.upstream_cx_destroy_remote.inc();
    } else {
        lent.guard.cluster.stats.upstream_cx_idle_timeout.inc();
        lent.guard.cluster.stats.upstream_cx_destroy_local.inc();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
