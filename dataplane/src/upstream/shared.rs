//! Connections that many requests share: HTTP/2 and HTTP/3.
//!
//! A connection is a task of its own, from connecting to its end. Requests find it in the list of its host; those that
//! come while it connects wait for it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Instant,
};

use culvert_model::{RoutePriority, UpstreamProtocol};
use culvert_ring::{task, time};

use crate::{
    http::codec::{
        ClientStream, h1,
        h2::{self, ClientConn, Owner, Wire},
        h3,
    },
    upstream::{
        AcquireError, Cluster, Host, Lent, PoolKey, Via,
        limit::Credit,
        pool::{Credits, Guard, Hold, PendingRequest, evict_idle, is_old},
        queue::{Freed, Takes, wait_turn},
        quic,
    },
    worker::Worker,
};

/// A connection in the list of its host.
pub(super) struct SharedConn {
    key: PoolKey,
    cluster: Rc<Cluster>,
    host: Rc<Host>,
    state: RefCell<State>,
    /// Streams that are open.
    active: Cell<u32>,
    /// Since when it is being made, or is there.
    born: Instant,
    /// Requests that wait for it to be connected.
    waiting: Cell<u32>,
    /// Streams that were opened.
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    /// When it was connected.
    opened: Cell<Instant>,
    wakers: RefCell<Vec<Waker>>,
}

pub(super) enum State {
    /// No streams are opened any more.
    Closed,
    Connecting,
    Failed(AcquireError),
    Open(Opener),
    /// The handshake agreed on HTTP/1: one of those who waited gets it.
    Plain(Option<Box<(h1::ClientConn, Guard)>>),
}

/// What opens streams on a connection.
pub(super) enum Opener {
    H2(h2::Opener),
    H3(h3::Opener),
}

impl Opener {
    fn is_going(&self) -> bool {
        match self {
            Self::H2(opener) => opener.is_going(),
            Self::H3(opener) => opener.is_going(),
        }
    }

    /// Whether something seems to have come that the connection's task has not seen.
    fn has_arrived(&self) -> bool {
        match self {
            Self::H2(opener) => opener.has_arrived(),
            // What has come was seen: all connections have one socket.
            Self::H3(_) => false,
        }
    }

    fn stream(&mut self, cx: &mut Context<'_>) -> Option<ClientStream> {
        match self {
            Self::H2(opener) => opener.stream(cx).map(ClientStream::H2),
            Self::H3(opener) => opener.stream().map(ClientStream::H3),
        }
    }
}

/// A stream's place on its connection.
pub(super) struct Slot(Rc<SharedConn>);

impl Drop for Slot {
    fn drop(&mut self) {
        let conn = &self.0;
        conn.active.set(conn.active.get() - 1);
        conn.idle_since.set(time::now());
        conn.count_bytes();
        conn.notice_goaway();
        let priority = conn.key.priority;
        // Those of other pools have something of it only when it may be closed for them.
        if !conn.host.wake_for(Freed::Stream, priority, Some(&conn.key)) && conn.is_idle() {
            conn.host.wake_for(Freed::Place, priority, None);
        }
    }
}

impl Slot {
    pub(super) fn cluster(&self) -> &Rc<Cluster> {
        &self.0.cluster
    }
}

impl Cluster {
    /// A stream to `host`: on a connection that has room, else on a new one. Where the handshake may agree on HTTP/1, it
    /// may be a connection. `fresh`: connections from before will not do, unless nothing else is to be had and others use
    /// them.
    pub(super) async fn acquire_shared(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        via: &Via,
        fresh: bool,
    ) -> Result<Lent, AcquireError> {
        let mut pending = None;
        let mut queued = None;
        let mut since = fresh.then(time::now);
        if has_news(host) {
            // The end of an idle connection, perhaps: its task sees to that first.
            task::yield_now().await;
        }
        loop {
            // It may be another one than when the request began to wait.
            let key = PoolKey::new(host, via);
            if let Some(lent) = poll_fn(|cx| Poll::Ready(lend(host, &key, since, cx))).await? {
                return Ok(lent);
            }
            if pending.is_none() {
                let Some(credit) = Credit::take_pending(self, via.priority) else {
                    self.stats.upstream_rq_pending_overflow.inc();
                    return Err(AcquireError::Overflow);
                };
                self.stats.upstream_rq_pending_total.inc();
                pending = Some((credit, PendingRequest::new(self)));
            }
            let conn = match self.joinable(host, &key) {
                Some(conn) => conn,
                // A server that takes no streams for now would take none on another connection either.
                None if host.max_streams.get() == 0 && has_shared(host, &key) => {
                    let takes = Takes { used: false, stream: true, place: false };
                    if let Some(lent) = wait_turn(&mut queued, host, &key, takes).await {
                        return Ok(*lent);
                    }
                    continue;
                }
                None => match Credits::take(self, host, via.priority) {
                    Some(credits) => self.connect_shared(worker, host, via, credits),
                    None if host.open(via.priority).get() == 0 => {
                        self.connect_shared(worker, host, via, Credits::force(self, host, via.priority))
                    }
                    None => {
                        if queued.is_none() {
                            self.stats.upstream_cx_overflow.inc();
                        }
                        if evict_idle(worker, host, via.priority) {
                            continue;
                        }
                        if !retire_idle(host, via.priority) && since.take().is_some() {
                            continue;
                        }
                        let used = self.config().protocol == UpstreamProtocol::Auto && since.is_none();
                        let takes = Takes { used, stream: true, place: true };
                        if let Some(lent) = wait_turn(&mut queued, host, &key, takes).await {
                            return Ok(*lent);
                        }
                        continue;
                    }
                },
            };
            // Who waits for this one is given nothing else.
            queued = None;
            if let Some(plain) = conn.ready().await? {
                let (conn, guard) = *plain;
                return Ok(Lent::own(ClientStream::H1(conn), host.clone(), key, guard));
            }
        }
    }

    /// A connection that is being made and will have room.
    fn joinable(&self, host: &Host, key: &PoolKey) -> Option<Rc<SharedConn>> {
        let config = self.config();
        if config.protocol == UpstreamProtocol::Auto && host.speaks_http2.get() == Some(false) {
            return None;
        }
        let max = match config.quic {
            Some(quic) => quic.max_concurrent_streams,
            None => config.http2.unwrap_or_default().max_concurrent_streams,
        };
        let max = max.min(host.max_streams.get()).min(config.max_requests_per_connection.unwrap_or(u32::MAX));
        let fits = |conn: &&Rc<SharedConn>| {
            conn.key == *key && matches!(*conn.state.borrow(), State::Connecting) && conn.waiting.get() < max
        };
        host.shared.borrow().iter().find(fits).cloned()
    }

    fn connect_shared(
        self: &Rc<Self>,
        worker: &Worker,
        host: &Rc<Host>,
        via: &Via,
        credits: Credits,
    ) -> Rc<SharedConn> {
        let conn = Rc::new(SharedConn {
            key: PoolKey::new(host, via),
            cluster: self.clone(),
            host: host.clone(),
            state: RefCell::new(State::Connecting),
            active: Cell::new(0),
            born: time::now(),
            waiting: Cell::new(0),
            requests: Cell::new(0),
            idle_since: Cell::new(time::now()),
            opened: Cell::new(time::now()),
            wakers: RefCell::default(),
        });
        host.shared.borrow_mut().push(conn.clone());
        worker.idle.borrow_mut().watch(Rc::downgrade(&conn));
        let guard = Guard::new(self.clone(), host.clone(), credits);
        if self.config().quic.is_some() {
            task::spawn(quic::drive(worker.handle(), conn.clone(), via.clone(), guard));
        } else {
            task::spawn(drive(conn.clone(), via.clone(), guard));
        }
        conn
    }
}

/// Whether something has come over an idle connection that its task has not seen yet.
fn has_news(host: &Host) -> bool {
    let arrived = |conn: &Rc<SharedConn>| match &*conn.state.borrow() {
        State::Open(opener) => conn.active.get() == 0 && opener.has_arrived(),
        _ => false,
    };
    host.shared.borrow().iter().any(arrived)
}

/// A stream on the first connection of that key that has room, and is there since `since`; with the place of its request
/// among `max_requests`.
fn lend(
    host: &Rc<Host>,
    key: &PoolKey,
    since: Option<Instant>,
    cx: &mut Context<'_>,
) -> Result<Option<Lent>, AcquireError> {
    loop {
        let fits = |conn: &&Rc<SharedConn>| {
            conn.key == *key && since.is_none_or(|since| conn.born >= since) && conn.has_room()
        };
        let found = host.shared.borrow().iter().find(fits).cloned();
        let Some(conn) = found else { return Ok(None) };
        if conn.retire_old() {
            continue;
        }
        let credit = conn.cluster.take_request(key.priority)?;
        let stream = match &mut *conn.state.borrow_mut() {
            State::Open(opener) => opener.stream(cx),
            _ => None,
        };
        let Some(stream) = stream else {
            conn.retire();
            continue;
        };
        conn.active.set(conn.active.get() + 1);
        let reused = conn.requests.get() > 0;
        conn.requests.set(conn.requests.get() + 1);
        let slot = Slot(conn.clone());
        let lent = Lent::shared(stream, host.clone(), key.clone(), slot, credit, reused);
        let max = conn.cluster.config().max_requests_per_connection;
        if max.is_some_and(|max| conn.requests.get() >= max) {
            conn.cluster.stats.upstream_cx_max_requests.inc();
            conn.retire();
        }
        return Ok(Some(lent));
    }
}

fn has_shared(host: &Host, key: &PoolKey) -> bool {
    host.shared.borrow().iter().any(|conn| conn.key == *key)
}

/// Lets a connection go that nobody uses: its place is needed. Whether there was one.
pub(super) fn retire_idle(host: &Host, priority: RoutePriority) -> bool {
    let is_idle = |conn: &&Rc<SharedConn>| conn.key.priority == priority && conn.is_idle();
    let idle = host.shared.borrow().iter().find(is_idle).cloned();
    if let Some(conn) = &idle {
        conn.retire();
    }
    idle.is_some()
}

/// A connection from beginning to end.
async fn drive(conn: Rc<SharedConn>, via: Via, guard: Guard) {
    let (cluster, host) = (conn.cluster.clone(), conn.host.clone());
    let config = cluster.config();
    let auto = config.protocol == UpstreamProtocol::Auto;
    let offer: &[&[u8]] = if auto { &[b"h2", b"http/1.1"] } else { &[b"h2"] };
    let stream = match cluster.connect_counted(&host, &via, offer).await {
        Ok(stream) => stream,
        Err(error) => {
            cluster.stats.upstream_rq_pending_failure_eject.add(u64::from(conn.waiting.get()));
            if !auto {
                cluster.stats.upstream_cx_http2_total.inc();
            }
            return conn.settle(State::Failed(error));
        }
    };
    if !matches!(*conn.state.borrow(), State::Connecting) {
        // Nobody wants it any more.
        return cluster.stats.upstream_cx_destroy_local.inc();
    }
    host.speaks_http2.set(Some(!auto || stream.agreed_on_http2()));
    if auto && !stream.agreed_on_http2() {
        cluster.stats.upstream_cx_http1_total.inc();
        let plain = h1::ClientConn::new(stream, cluster.clone());
        return conn.settle(State::Plain(Some(Box::new((plain, guard)))));
    }
    cluster.stats.upstream_cx_http2_total.inc();
    let options = config.http2.unwrap_or_default();
    let (headers, limit) = (config.max_response_headers_bytes, config.buffer_limit_bytes);
    let owner = Owner::Client(cluster.clone());
    let wire = Wire::new(stream, owner, cluster.http2_stats(), &options, limit, headers);
    let (mut driven, opener) = match ClientConn::open(wire.clone(), &options, headers, limit).await {
        Ok(opened) => opened,
        Err(error) => return conn.settle(State::Failed(AcquireError::Connect(error.to_string()))),
    };
    conn.settle(State::Open(Opener::H2(opener)));
    let ended = poll_fn(|cx| driven.poll_end(cx)).await;
    conn.notice_goaway();
    conn.retire();
    if let Err(error) = ended {
        log::debug!(target: "upstream", "HTTP/2 connection: {error}");
        if !error.is_io() && !error.is_remote() {
            cluster.stats.upstream_cx_protocol_error.inc();
        }
    }
    if !wire.is_closed() {
        cluster.stats.upstream_cx_destroy_local.inc();
    } else if conn.active.get() > 0 {
        cluster.stats.upstream_cx_destroy_remote.inc();
        cluster.stats.upstream_cx_destroy_remote_with_active_rq.inc();
        cluster.stats.upstream_cx_destroy_with_active_rq.inc();
    } else {
        cluster.stats.upstream_cx_destroy_remote.inc();
    }
    drop(driven);
    drop(guard);
}

impl SharedConn {
    pub(super) fn cluster(&self) -> &Rc<Cluster> {
        &self.cluster
    }

    pub(super) fn host(&self) -> &Rc<Host> {
        &self.host
    }

    /// Whether it is still waited for.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.state.borrow(), State::Connecting)
    }

    /// Whether it has streams.
    pub(super) fn is_busy(&self) -> bool {
        self.active.get() > 0
    }

    /// It could not be connected.
    pub(super) fn fail(&self, error: AcquireError) {
        self.cluster.stats.upstream_rq_pending_failure_eject.add(u64::from(self.waiting.get()));
        self.settle(State::Failed(error));
    }

    /// It is over.
    pub(super) fn leave(&self) {
        self.notice_goaway();
        self.retire();
    }

    /// Counts the bytes of a connection that nobody else counts them of.
    fn count_bytes(&self) {
        if let State::Open(Opener::H3(opener)) = &*self.state.borrow() {
            let (received, sent) = opener.take_bytes();
            self.cluster.stats.upstream_cx_rx_bytes_total.add(received);
            self.cluster.stats.upstream_cx_tx_bytes_total.add(sent);
        }
    }

    /// Whether another stream can be opened. Changes nothing in the list, which is being looked through.
    fn has_room(&self) -> bool {
        let State::Open(opener) = &*self.state.borrow() else { return false };
        if opener.is_going() {
            return false;
        }
        let opener = match opener {
            Opener::H2(opener) => opener,
            Opener::H3(opener) => {
                let ours = self.cluster.config().quic.map_or(0, |quic| quic.max_concurrent_streams);
                return self.active.get() < ours && opener.has_room();
            }
        };
        if let Some(max) = opener.max_streams() {
            self.host.max_streams.set(max);
        }
        let ours = self.cluster.config().http2.unwrap_or_default().max_concurrent_streams;
        self.active.get() < ours.min(self.host.max_streams.get())
    }

    fn is_idle(&self) -> bool {
        self.active.get() == 0 && self.waiting.get() == 0 && matches!(*self.state.borrow(), State::Open(_))
    }

    /// Takes it out of the pool if it has been open for as long as its cluster allows. Whether it has.
    fn retire_old(&self) -> bool {
        let old = matches!(*self.state.borrow(), State::Open(_)) && is_old(&self.cluster, self.opened.get());
        if old {
            self.cluster.stats.upstream_cx_max_duration_reached.inc();
            self.retire();
        }
        old
    }

    /// Takes a connection out of the pool whose server said that it goes away.
    fn notice_goaway(&self) {
        let going = matches!(&*self.state.borrow(), State::Open(opener) if opener.is_going());
        if going {
            self.cluster.stats.upstream_cx_close_notify.inc();
            self.retire();
        }
    }

    /// Opens no more streams on it; it ends when the last one has.
    fn retire(&self) {
        // Dropped outside of the borrow, as it wakes the connection's task.
        let state = self.state.replace(State::Closed);
        drop(state);
        self.leave_list();
        self.wake();
    }

    /// Has those look again who wait for it to be connected.
    fn wake(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    fn leave_list(&self) {
        self.host.shared.borrow_mut().retain(|conn| !std::ptr::eq(&**conn, self));
    }

    pub(super) fn settle(&self, state: State) {
        if !matches!(*self.state.borrow(), State::Connecting) {
            // Nobody wants it any more.
            return;
        }
        if !matches!(state, State::Open(_)) {
            self.leave_list();
        }
        self.idle_since.set(time::now());
        self.opened.set(time::now());
        drop(self.state.replace(state));
        self.wake();
    }

    /// Waits until it is connected. A connection when it turned out to speak HTTP/1, for the first one that asks.
    async fn ready(self: &Rc<Self>) -> Result<Option<Box<(h1::ClientConn, Guard)>>, AcquireError> {
        let _waiting = Waiting::new(self);
        poll_fn(|cx| match &mut *self.state.borrow_mut() {
            State::Connecting => {
                let mut wakers = self.wakers.borrow_mut();
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Failed(error) => Poll::Ready(Err(error.clone())),
            State::Plain(plain) => Poll::Ready(Ok(plain.take())),
            State::Closed | State::Open(_) => Poll::Ready(Ok(None)),
        })
        .await
    }

    /// Ends the connection if it was idle for too long, or leads to where nothing is wanted any more.
    pub(super) fn sweep(&self, now: Instant, worker: &Worker) {
        self.notice_goaway();
        if self.retire_old() || !self.is_idle() {
            return;
        }
        let idle = self.cluster.config().idle_timeout;
        if idle.is_some_and(|max| now.saturating_duration_since(self.idle_since.get()) >= max) {
            self.cluster.stats.upstream_cx_idle_timeout.inc();
            self.retire();
        } else if self.key.is_outdated(&self.host) || self.key.leads_nowhere(&self.host, worker) {
            self.retire();
        }
    }

    /// Opens no more streams on it if `which` selects it.
    pub(super) fn retire_if(&self, which: impl Fn(&PoolKey, &Host) -> bool) {
        let is_there = matches!(*self.state.borrow(), State::Connecting | State::Open(_));
        if is_there && which(&self.key, &self.host) {
            self.retire();
        }
    }
}

/// Keeps count of the requests that wait for a connection.
struct Waiting<'c>(&'c SharedConn);

impl<'c> Waiting<'c> {
    fn new(conn: &'c SharedConn) -> Self {
        conn.waiting.set(conn.waiting.get() + 1);
        Self(conn)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// The shared connections of a worker, to look after them.
#[derive(Default)]
pub(super) struct Watched(Vec<Weak<SharedConn>>);

impl Watched {
    pub(super) fn push(&mut self, conn: Weak<SharedConn>) {
        self.0.push(conn);
    }

    /// Those that are still there.
    pub(super) fn live(&mut self) -> Vec<Rc<SharedConn>> {
        self.0.retain(|conn| conn.strong_count() > 0);
        self.0.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Lent {
    fn shared(
        conn: ClientStream,
        host: Rc<Host>,
        key: PoolKey,
        slot: Slot,
        request: Credit,
        reused: bool,
    ) -> Self {
        let (guard, request) = (Hold::Shared(slot), Some(request));
        Self { conn, host, reused, key, requests: 0, sent_before: 0, guard, request }
    }
}
