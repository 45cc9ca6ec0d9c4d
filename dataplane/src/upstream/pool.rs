//! Connections to upstream hosts: opened when needed, parked when idle, never shared between pods.

use std::{
    future::poll_fn,
    rc::{Rc, Weak},
    task::Poll,
    time::{Duration, Instant},
};

use culvert_model::{Discovery, RoutePriority, UpstreamProtocol};
use culvert_proto::{Version, detect::write_proxy};
use culvert_ring::time;

use crate::{
    http::codec::{ClientStream, h1::ClientConn},
    tls::{self, HandshakeError, Transport},
    upstream::{
        Cluster, Host, PoolKey, Via,
        connect::connect,
        limit::{Credit, Limit},
        queue::{Freed, Given, Takes, wait_turn},
        shared::{SharedConn, Slot, Watched, retire_idle},
        version_of,
    },
    worker::Worker,
};

/// An idle connection in [`Host::idle`]; the connection itself is in the worker's [`IdleSet`].
pub(super) struct Parked {
    key: PoolKey,
    tag: u64,
}

/// Why there is no connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AcquireError {
    /// Refused, unreachable, no address left: the reason as the kernel gives it.
    Connect(String),
    /// A circuit breaker is open: there may be no further connection, or nobody more may wait for one.
    Overflow,
    /// A circuit breaker is open: there is a connection, and `max_requests` of the cluster are under way.
    Requests,
    /// `connect_timeout` passed.
    Timeout,
}

impl AcquireError {
    /// Whether the limits of the cluster refuse it, which is not the host's fault.
    pub fn is_overflow(&self) -> bool {
        matches!(self, Self::Overflow | Self::Requests)
    }
}

/// An upstream connection in use by one request.
pub struct Lent {
    /// The connection.
    pub conn: ClientStream,
    /// Where it goes.
    pub host: Rc<Host>,
    /// Whether an earlier request used it.
    pub reused: bool,
    pub(super) key: PoolKey,
    pub(super) requests: u32,
    /// Bytes sent before the present request.
    pub(super) sent_before: u64,
    pub(super) guard: Hold,
    /// The place of its request among `max_requests`.
    pub(super) request: Option<Credit>,
}

/// An upstream connection for opaque bytes.
pub struct TcpConn {
    /// The connection.
    pub stream: Transport,
    _guard: Guard,
}

/// What keeps a request's connection counted.
pub(super) enum Hold {
    /// A connection of its own.
    Own(Guard),
    /// A place on one that is shared.
    Shared(Slot),
}

impl Hold {
    fn cluster(&self) -> &Rc<Cluster> {
        match self {
            Self::Own(guard) => &guard.cluster,
            Self::Shared(slot) => slot.cluster(),
        }
    }

    /// Counts that the connection is to be closed for its age, if it is.
    fn ages(&self) -> bool {
        let Self::Own(guard) = self else { return false };
        let old = guard.is_old();
        if old {
            guard.cluster.stats.upstream_cx_max_duration_reached.inc();
            guard.cluster.stats.upstream_cx_destroy_local.inc();
        }
        old
    }
}

/// Accounting of one open connection: everything that has to be undone when it closes, however it closes.
pub(super) struct Guard {
    cluster: Rc<Cluster>,
    host: Rc<Host>,
    priority: RoutePriority,
    opened: Instant,
    _credit: Credits,
}

/// A connection's place under the limits of its cluster, and of its host if that has its own.
pub(super) struct Credits {
    priority: RoutePriority,
    _cluster: Credit,
    _host: Option<Credit>,
}

impl Credits {
    /// Endpoints limit connections of priority DEFAULT alone.
    pub(super) fn take(cluster: &Cluster, host: &Host, priority: RoutePriority) -> Option<Self> {
        let (breakers, limits) = cluster.breakers(priority);
        // The cluster's first: who is refused by it has kept nobody from the endpoint meanwhile.
        let credit = Credit::take(limits, Limit::Connections, breakers.max_connections)?;
        let max = cluster.config().max_connections_per_host;
        let own = match (&host.spec().limits, max) {
            (Some(limits), Some(max)) if priority == RoutePriority::Default => {
                Some(Credit::take(limits, Limit::Connections, max)?)
            }
            _ => None,
        };
        Some(Self { priority, _cluster: credit, _host: own })
    }

    pub(super) fn force(cluster: &Cluster, host: &Host, priority: RoutePriority) -> Self {
        let spec = host.spec();
        let own = spec.limits.as_ref().filter(|_| priority == RoutePriority::Default);
        let own = own.map(|limits| Credit::force(limits, Limit::Connections));
        let (_, limits) = cluster.breakers(priority);
        Self { priority, _cluster: Credit::force(limits, Limit::Connections), _host: own }
    }
}

impl Guard {
    pub(super) fn new(cluster: Rc<Cluster>, host: Rc<Host>, credit: Credits) -> Self {
        let priority = credit.priority;
        host.open(priority).set(host.open(priority).get() + 1);
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.stats(|s| {
            s.cx_total.inc();
            s.cx_active.inc();
        });
        Self { cluster, host, priority, opened: time::now(), _credit: credit }
    }

    /// Whether it has been open for as long as its cluster allows.
    fn is_old(&self) -> bool {
        is_old(&self.cluster, self.opened)
    }
}

/// Whether a connection of the cluster that was opened then has reached `max_connection_duration`.
pub(super) fn is_old(cluster: &Cluster, opened: Instant) -> bool {
    cluster.config().max_connection_duration.is_some_and(|max| time::now() - opened >= max)
}

impl Drop for Guard {
    fn drop(&mut self) {
        let open = self.host.open(self.priority);
        open.set(open.get() - 1);
        self.cluster.stats.upstream_cx_active.dec();
        self.cluster.stats.upstream_cx_destroy.inc();
        self.cluster.stats.upstream_cx_length_ms.record(millis(time::now() - self.opened));
        self.host.stats(|s| s.cx_active.dec());
        // Whoever waits may open a connection of its own now.
        self.host.wake_for(Freed::Place, self.priority, None);
    }
}

/// Keeps `upstream_rq_pending_active`.
pub(super) struct PendingRequest<'c>(&'c Cluster);

impl<'c> PendingRequest<'c> {
    pub(super) fn new(cluster: &'c Cluster) -> Self {
        cluster.stats.upstream_rq_pending_active.inc();
        Self(cluster)
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_pending_active.dec();
    }
}

/// All idle upstream connections of a worker.
#[derive(Default)]
pub struct IdleSet {
    entries: slab::Slab<Idle>,
    shared: Watched,
    generation: u32,
}

struct Idle {
    lent: Lent,
    generation: u32,
    since: Instant,
}

impl IdleSet {
    /// Looks after a shared connection too.
    pub(super) fn watch(&mut self, conn: Weak<SharedConn>) {
        self.shared.push(conn);
    }

    fn insert(&mut self, lent: Lent) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.entries.insert(Idle { lent, generation, since: time::now() });
        (u64::from(generation) << 32) | index as u64
    }

    /// A connection, and since when it was idle.
    fn remove(&mut self, tag: u64) -> Option<(Lent, Instant)> {
        let index = (tag & 0xffff_ffff) as usize;
        let entry = self.entries.get(index)?;
        (u64::from(entry.generation) == tag >> 32).then(|| {
            let entry = self.entries.remove(index);
            (entry.lent, entry.since)
        })
    }
}

impl Cluster {
    /// A connection to `host` for one request that came over `downstream`: an idle one that is still open or one that
    /// is shared and has room, else a new one. `fresh`: it has to be a new one. Only who has a connection counts against
    /// `max_requests`; where that refuses, the connection stays in the pool.
    ///
    /// # Errors
    /// See [`AcquireError`]; the counters are already advanced.
    pub async fn acquire(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        via: &Via,
        downstream: Version,
        fresh: bool,
    ) -> Result<Lent, AcquireError> {
        let mut lent = self.connection(worker, host, via, downstream, fresh).await?;
        // Who has a stream has it already: one that is not used would count on its connection.
        if lent.request.is_none() {
            match self.take_request(via.priority) {
                Ok(credit) => lent.request = Some(credit),
                Err(error) => {
                    lent.release(worker);
                    return Err(error);
                }
            }
        }
        Ok(lent)
    }

    /// A request's place among `max_requests`.
    pub(super) fn take_request(&self, priority: RoutePriority) -> Result<Credit, AcquireError> {
        Credit::take_request(self, priority).ok_or_else(|| {
            self.stats.upstream_rq_active_overflow.inc();
            AcquireError::Requests
        })
    }

    async fn connection(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        via: &Via,
        downstream: Version,
        fresh: bool,
    ) -> Result<Lent, AcquireError> {
        let config = self.config();
        match config.protocol {
            UpstreamProtocol::Http2 | UpstreamProtocol::Http3 => {
                return Box::pin(self.acquire_shared(worker, host, via, fresh)).await;
            }
            UpstreamProtocol::Downstream if downstream.is_multiplexed() => {
                return Box::pin(self.acquire_shared(worker, host, via, fresh)).await;
            }
            UpstreamProtocol::Auto | UpstreamProtocol::Downstream | UpstreamProtocol::Http1 => {}
        }
        let key = PoolKey::new(host, via);
        if !fresh && let Some(lent) = take_idle(worker, host, &key) {
            return Ok(lent);
        }
        if config.protocol == UpstreamProtocol::Auto {
            return Box::pin(self.acquire_shared(worker, host, via, fresh)).await;
        }
        let Some(_pending) = Credit::take_pending(self, via.priority) else {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(AcquireError::Overflow);
        };
        self.stats.upstream_rq_pending_total.inc();
        let _active = PendingRequest::new(self);
        self.open_or_wait(worker, host, &key, via, fresh).await
    }

    async fn open_or_wait(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        key: &PoolKey,
        via: &Via,
        fresh: bool,
    ) -> Result<Lent, AcquireError> {
        let mut queued = None;
        loop {
            let credit = match Credits::take(self, host, via.priority) {
                Some(credit) => credit,
                None if host.open(via.priority).get() == 0 => Credits::force(self, host, via.priority),
                None => {
                    if queued.is_none() {
                        self.stats.upstream_cx_overflow.inc();
                    }
                    if evict_idle(worker, host, via.priority) {
                        continue;
                    }
                    // One of HTTP/2 may go for it too; who waits is told of its end.
                    retire_idle(host, via.priority);
                    let takes = Takes { used: !fresh, stream: false, place: true };
                    match wait_turn(&mut queued, host, key, takes).await {
                        Some(lent) => return Ok(*lent),
                        None => continue,
                    }
                }
            };
            // Who connects is given nothing else.
            drop(queued);
            return self.open(host, via, credit).await;
        }
    }

    async fn open(
        self: &Rc<Self>,
        host: &Rc<Host>,
        via: &Via,
        credit: Credits,
    ) -> Result<Lent, AcquireError> {
        // It may be another one than when the request began to wait.
        let key = PoolKey::new(host, via);
        let guard = Guard::new(self.clone(), host.clone(), credit);
        self.stats.upstream_cx_http1_total.inc();
        match self.connect_counted(host, via, &[b"http/1.1"]).await {
            Ok(stream) => {
                let conn = ClientConn::new(stream, self.clone());
                Ok(Lent::own(ClientStream::H1(conn), host.clone(), key, guard))
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
        let Some(credit) = Credits::take(self, host, via.priority) else {
            self.stats.upstream_cx_overflow.inc();
            return Err(AcquireError::Overflow);
        };
        let guard = Guard::new(self.clone(), host.clone(), credit);
        let stream = self.connect_counted(host, via, &[]).await?;
        Ok(TcpConn { stream, _guard: guard })
    }

    /// The same for the end of a tunnel, whose request has it like any other.
    ///
    /// # Errors
    /// See [`AcquireError`]; the counters are already advanced.
    pub async fn open_tunnel(self: &Rc<Self>, host: &Rc<Host>, via: &Via) -> Result<Lent, AcquireError> {
        let key = PoolKey::new(host, via);
        let Some(credit) = Credits::take(self, host, via.priority) else {
            self.stats.upstream_cx_overflow.inc();
            return Err(AcquireError::Overflow);
        };
        let request = self.take_request(via.priority)?;
        let guard = Guard::new(self.clone(), host.clone(), credit);
        let stream = self.connect_counted(host, via, &[]).await?;
        let conn = ClientStream::H1(ClientConn::tunnel(stream, self.clone()));
        Ok(Lent { request: Some(request), ..Lent::own(conn, host.clone(), key, guard) })
    }

    /// `offer`: protocols to agree on in a handshake, where the configuration names none.
    pub(super) async fn connect_counted(
        &self,
        host: &Host,
        via: &Via,
        offer: &[&[u8]],
    ) -> Result<Transport, AcquireError> {
        let started = time::now();
        match self.connect(host, via, offer).await {
            Ok(stream) => {
                self.count_connected(started);
                Ok(stream)
            }
            Err(error) => {
                self.count_failed(host, &error);
                Err(error)
            }
        }
    }

    pub(super) fn count_connected(&self, started: Instant) {
        self.stats.upstream_cx_connect_ms.record(millis(time::now() - started));
    }

    pub(super) fn count_failed(&self, host: &Host, error: &AcquireError) {
        self.stats.upstream_cx_connect_fail.inc();
        if *error == AcquireError::Timeout {
            self.stats.upstream_cx_connect_timeout.inc();
            self.stats.upstream_cx_destroy_local.inc();
        } else {
            self.stats.upstream_cx_destroy_remote.inc();
        }
        host.stats(|s| s.cx_connect_fail.inc());
    }

    /// Connects one stream to `host`, in the network namespace and from the address that `via` asks for.
    ///
    /// # Errors
    /// The kernel's reason, or the cluster's `connect_timeout` passed.
    async fn connect(&self, host: &Host, via: &Via, offer: &[&[u8]]) -> Result<Transport, AcquireError> {
        let (spec, config) = (host.spec(), self.config());
        if config.quic.is_some() {
            return Err(AcquireError::Connect("the cluster speaks HTTP/3 alone".to_owned()));
        }
        let until = time::now() + config.connect_timeout;
        let stream = connect(&spec.endpoint, &config, via).await?;
        if let Some(pod) = &via.pod {
            self.splice.follow_upstream(&stream, pod);
        }
        if let Some(version) = spec.proxy {
            stream.write_with(|out| write_proxy(version_of(version), via.ends.as_deref().copied(), out));
        }
        let Some(slot) = &spec.tls else { return Ok(stream.into()) };
        let names = via.names.as_deref();
        let server = tls::Server {
            sni: names.and_then(|names| names.sni.as_deref()),
            san: names.and_then(|names| names.san.as_deref()),
            alpn: offer,
            ..tls::Server::of(&spec.endpoint)
        };
        let shaking = tls::connect(stream, slot, &server, until, self.tls_stats());
        Box::pin(shaking).await.map_err(|error| match error {
            HandshakeError::Timeout => AcquireError::Timeout,
            error => AcquireError::Connect(format!("TLS: {error}")),
        })
    }
}

/// The youngest idle connection of that key that nothing arrived on.
fn take_idle(worker: &Worker, host: &Host, key: &PoolKey) -> Option<Lent> {
    loop {
        let parked = {
            let mut idle = host.idle.borrow_mut();
            let at = idle.iter().rposition(|parked| parked.key == *key)?;
            idle.remove(at)
        };
        let Some((mut lent, since)) = worker.idle.borrow_mut().remove(parked.tag) else { continue };
        let expired =
            lent.guard.cluster().config().idle_timeout.is_some_and(|max| time::now() - since >= max);
        if expired {
            let stats = &lent.guard.cluster().stats;
            stats.upstream_cx_idle_timeout.inc();
            stats.upstream_cx_destroy_local.inc();
            continue;
        }
        if lent.guard.ages() {
            continue;
        }
        // A FIN or a stray byte that came while it was parked: not usable, and seen before a request was written.
        if lent.conn.unpark() {
            lent.reused = true;
            return Some(lent);
        }
        lent.guard.cluster().stats.upstream_cx_destroy_remote.inc();
    }
}

/// Closes the idle connection of the host that was used longest ago, whichever pool of that priority it belongs to: its
/// place is needed.
pub(super) fn evict_idle(worker: &Worker, host: &Host, priority: RoutePriority) -> bool {
    let idle = host.idle.borrow();
    let oldest = idle.iter().find(|parked| parked.key.priority == priority).map(|parked| parked.tag);
    drop(idle);
    oldest.map(|tag| discard(worker, tag)).is_some()
}

impl Lent {
    pub(super) fn own(conn: ClientStream, host: Rc<Host>, key: PoolKey, guard: Guard) -> Self {
        let guard = Hold::Own(guard);
        Self { conn, host, reused: false, key, requests: 0, sent_before: 0, guard, request: None }
    }

    /// Counts a request on this connection. Called once per request, before its head is written.
    pub fn begin_request(&mut self) {
        self.requests += 1;
        if let Hold::Own(guard) = &self.guard
            && guard.cluster.config().max_requests_per_connection == Some(self.requests)
        {
            guard.cluster.stats.upstream_cx_max_requests.inc();
        }
        self.sent_before = self.conn.bytes_sent();
    }

    /// Whether the other end has acknowledged nothing of the present request, so that nobody can have read it.
    pub fn is_unread(&self) -> bool {
        // The connection's first segment (SYN) counts as one byte.
        self.conn.bytes_acknowledged().is_some_and(|bytes| bytes <= self.sent_before + 1)
    }

    /// Gives the connection back after a complete exchange, or before one, to be used again. Drop it instead to close it.
    pub fn release(mut self, worker: &Worker) {
        self.request = None;
        if matches!(self.guard, Hold::Shared(_)) {
            return;
        }
        let config = self.guard.cluster().config();
        if config.max_requests_per_connection.is_some_and(|max| self.requests >= max) {
            self.guard.cluster().stats.upstream_cx_destroy_local.inc();
            return;
        }
        if self.guard.ages() || self.key.is_outdated(&self.host) || self.key.leads_nowhere(&self.host, worker)
        {
            return;
        }
        let host = self.host.clone();
        let priority = self.key.priority;
        if let Some(waiter) = host.waiter_for(&self.key) {
            let lent = Self { reused: true, ..self };
            waiter.give(Given::Connection(Box::new(lent)));
            return;
        }
        if host.is_awaited(priority) {
            // Only those wait whom it is no use to: closing it makes room for one of them.
            return;
        }
        let key = self.key.clone();
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
            Some(tag) => {
                if let Some(cluster) = discard(&worker, tag) {
                    cluster.stats.upstream_cx_destroy_remote.inc();
                }
            }
            None => {
                sweep_expired(&worker);
                worker.each_cluster(|cluster| {
                    if let Discovery::OriginalDst(settings) = &cluster.config().discovery {
                        cluster.passing.borrow_mut().forget(settings.cleanup);
                    }
                });
                sweep.set(time::now() + SWEEP);
            }
        }
    }
}

/// How often idle timeouts are looked at; they are minutes to hours.
const SWEEP: Duration = Duration::from_secs(1);

fn sweep_expired(worker: &Worker) {
    let now = time::now();
    let shared = worker.idle.borrow_mut().shared.live();
    shared.iter().for_each(|conn| conn.sweep(now, worker));
    let expired: Vec<u64> = {
        let idle = worker.idle.borrow();
        let over = |entry: &Idle| {
            entry.lent.guard.cluster().config().idle_timeout.is_some_and(|max| now - entry.since >= max)
        };
        let tag = |index: usize, entry: &Idle| (u64::from(entry.generation) << 32) | index as u64;
        idle.entries.iter().filter(|(_, entry)| over(entry)).map(|(index, entry)| tag(index, entry)).collect()
    };
    for tag in expired {
        if let Some(cluster) = discard(worker, tag) {
            cluster.stats.upstream_cx_idle_timeout.inc();
            cluster.stats.upstream_cx_destroy_local.inc();
        }
    }
    let old: Vec<u64> = {
        let idle = worker.idle.borrow();
        let entries = idle.entries.iter();
        let old = entries.filter(|(_, entry)| entry.lent.guard.ages());
        old.map(|(index, entry)| (u64::from(entry.generation) << 32) | index as u64).collect()
    };
    for tag in old {
        discard(worker, tag);
    }
}

/// Closes the idle connections to a host that was removed, or is reached in another way by now.
pub fn discard_outdated(worker: &Worker, host: &Host) {
    let is_outdated = |key: &PoolKey, host: &Host| host.is_removed() || key.is_outdated(host);
    // Retiring one takes it from the list.
    let shared = host.shared.borrow().clone();
    shared.iter().for_each(|conn| conn.retire_if(is_outdated));
    let tags: Vec<u64> = {
        let idle = host.idle.borrow();
        idle.iter().filter(|parked| is_outdated(&parked.key, host)).map(|parked| parked.tag).collect()
    };
    discard_all(worker, &tags);
}

/// Closes every idle connection that `which` selects.
pub fn discard_where(worker: &Worker, which: impl Fn(&PoolKey, &Host) -> bool) {
    let shared = worker.idle.borrow_mut().shared.live();
    shared.iter().for_each(|conn| conn.retire_if(&which));
    let tags: Vec<u64> = {
        let idle = worker.idle.borrow();
        let tag = |index: usize, entry: &Idle| (u64::from(entry.generation) << 32) | index as u64;
        idle.entries
            .iter()
            .filter(|(_, entry)| which(&entry.lent.key, &entry.lent.host))
            .map(|(index, entry)| tag(index, entry))
            .collect()
    };
    discard_all(worker, &tags);
}

fn discard_all(worker: &Worker, tags: &[u64]) {
    for tag in tags {
        if let Some(cluster) = discard(worker, *tag) {
            cluster.stats.upstream_cx_destroy_local.inc();
        }
    }
}

/// Closes one idle connection. Its cluster, if it was still there.
fn discard(worker: &Worker, tag: u64) -> Option<Rc<Cluster>> {
    let (lent, _) = worker.idle.borrow_mut().remove(tag)?;
    lent.host.idle.borrow_mut().retain(|parked| parked.tag != tag);
    Some(lent.guard.cluster().clone())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
