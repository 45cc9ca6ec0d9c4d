//! A connection.

use std::{
    any::Any,
    cell::{Cell, Ref, RefCell, RefMut},
    collections::HashMap,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use culvert_ring::time;
use quinn_proto::{
    ConnectionError, ConnectionHandle, Dir, Event, Side, StreamEvent, StreamId, VarInt,
    crypto::rustls::HandshakeData,
};
use rustls::pki_types::CertificateDer;

use crate::{
    driver::Shared,
    stats::ConnectionStats,
    stream::{RecvStream, SendStream},
};

/// What the handshake told about the peer.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The application protocol (ALPN).
    pub protocol: Option<Vec<u8>>,
    /// The server name that the client asked for (SNI); on the accepting side only.
    pub server_name: Option<String>,
    /// The certificate chain, end entity first, as the caller's TLS configuration has verified it.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A connection of the current worker. Clones are the same connection; when the last one and the last stream are gone, it
/// is closed with code 0.
#[derive(Debug)]
pub struct Connection(pub(crate) Rc<Conn>);

/// What the handles of a connection and the driver share.
pub(crate) struct Conn {
    pub(crate) shared: Rc<Shared>,
    pub(crate) state: RefCell<State>,
    /// Connections and streams in the hands of tasks.
    pub(crate) handles: Cell<usize>,
    /// In the driver's list of what to send for.
    pub(crate) dirty: Cell<bool>,
    /// The deadline that the driver's queue of timers knows.
    pub(crate) scheduled: Cell<Option<Instant>>,
    /// What the acceptor has noted.
    pub(crate) note: RefCell<Option<Rc<dyn Any>>>,
}

pub(crate) struct State {
    pub(crate) proto: quinn_proto::Connection,
    pub(crate) handle: ConnectionHandle,
    pub(crate) established: bool,
    /// Why it has ended.
    pub(crate) error: Option<ConnectionError>,
    /// The endpoint has forgotten it.
    pub(crate) drained: bool,
    pub(crate) waiting: Waiting,
}

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Waiting {
    established: Vec<Waker>,
    closed: Vec<Waker>,
    accepting: [Vec<Waker>; 2],
    opening: [Vec<Waker>; 2],
    pub(crate) readers: HashMap<StreamId, Waker>,
    pub(crate) writers: HashMap<StreamId, Waker>,
    pub(crate) finishing: HashMap<StreamId, Waker>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.state.borrow().handle)
    }
}

impl Connection {
    pub(crate) fn new(conn: &Rc<Conn>) -> Self {
        conn.handles.set(conn.handles.get() + 1);
        Self(Rc::clone(conn))
    }

    /// Waits for the end of the handshake.
    ///
    /// # Errors
    /// Why it failed: the peer's certificate was not accepted, or ours was not, nobody answered.
    pub async fn established(&self) -> Result<(), ConnectionError> {
        poll_fn(|cx| {
            let mut state = self.0.state.borrow_mut();
            match (&state.error, state.established) {
                (_, true) => Poll::Ready(Ok(())),
                (Some(error), false) => Poll::Ready(Err(error.clone())),
                (None, false) => wait(&mut state.waiting.established, cx),
            }
        })
        .await
    }

    /// Opens a stream in both directions, as soon as the peer allows one more.
    ///
    /// # Errors
    /// Why the connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        poll_fn(|cx| self.poll_open_bi(cx)).await
    }

    /// Opens a stream, like [`Connection::open_bi`].
    ///
    /// # Errors
    /// Why the connection has ended.
    pub fn poll_open_bi(&self, cx: &Context<'_>) -> Poll<Result<(SendStream, RecvStream), ConnectionError>> {
        self.poll_open(Dir::Bi, cx).map_ok(|id| (SendStream::new(&self.0, id), RecvStream::new(&self.0, id)))
    }

    /// Opens a stream to the peer, as soon as it allows one more.
    ///
    /// # Errors
    /// Why the connection has ended.
    pub async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        poll_fn(|cx| self.poll_open_uni(cx)).await
    }

    /// Opens a stream, like [`Connection::open_uni`].
    ///
    /// # Errors
    /// Why the connection has ended.
    pub fn poll_open_uni(&self, cx: &Context<'_>) -> Poll<Result<SendStream, ConnectionError>> {
        self.poll_open(Dir::Uni, cx).map_ok(|id| SendStream::new(&self.0, id))
    }

    /// The next stream in both directions that the peer has opened.
    ///
    /// # Errors
    /// Why the connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        poll_fn(|cx| self.poll_accept_bi(cx)).await
    }

    /// The next stream, like [`Connection::accept_bi`].
    ///
    /// # Errors
    /// Why the connection has ended.
    pub fn poll_accept_bi(
        &self,
        cx: &Context<'_>,
    ) -> Poll<Result<(SendStream, RecvStream), ConnectionError>> {
        self.poll_accept(Dir::Bi, cx)
            .map_ok(|id| (SendStream::new(&self.0, id), RecvStream::new(&self.0, id)))
    }

    /// The next stream from the peer.
    ///
    /// # Errors
    /// Why the connection has ended.
    pub async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        poll_fn(|cx| self.poll_accept_uni(cx)).await
    }

    /// The next stream, like [`Connection::accept_uni`].
    ///
    /// # Errors
    /// Why the connection has ended.
    pub fn poll_accept_uni(&self, cx: &Context<'_>) -> Poll<Result<RecvStream, ConnectionError>> {
        self.poll_accept(Dir::Uni, cx).map_ok(|id| RecvStream::new(&self.0, id))
    }

    fn poll_open(&self, dir: Dir, cx: &Context<'_>) -> Poll<Result<StreamId, ConnectionError>> {
        let mut state = self.0.state.borrow_mut();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone()));
        }
        match state.established.then(|| state.proto.streams().open(dir)).flatten() {
            Some(id) => Poll::Ready(Ok(id)),
            None => wait(&mut state.waiting.opening[dir as usize], cx),
        }
    }

    fn poll_accept(&self, dir: Dir, cx: &Context<'_>) -> Poll<Result<StreamId, ConnectionError>> {
        let mut state = self.0.state.borrow_mut();
        match state.proto.streams().accept(dir) {
            Some(id) => {
                drop(state);
                // The peer is told that it may open another one.
                self.0.touch();
                Poll::Ready(Ok(id))
            }
            None => match &state.error {
                Some(error) => Poll::Ready(Err(error.clone())),
                None => wait(&mut state.waiting.accepting[dir as usize], cx),
            },
        }
    }

    /// Ends the connection: the peer is told `code` and `reason`, what is on the way is lost.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        self.0.close(code, Bytes::copy_from_slice(reason));
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> ConnectionError {
        poll_fn(|cx| self.poll_closed(cx)).await
    }

    /// Waits for the end of the connection.
    pub fn poll_closed(&self, cx: &Context<'_>) -> Poll<ConnectionError> {
        let mut state = self.0.state.borrow_mut();
        match &state.error {
            Some(error) => Poll::Ready(error.clone()),
            None => wait(&mut state.waiting.closed, cx),
        }
    }

    /// How many streams have something that the peer has not acknowledged, or are not finished.
    pub fn sending_streams(&self) -> usize {
        self.0.state.borrow_mut().proto.streams().send_streams()
    }

    /// What the endpoint's acceptor has noted of it; see [`crate::Accept::note`].
    pub fn note(&self) -> Option<Rc<dyn Any>> {
        self.0.note.borrow().clone()
    }

    /// Why the connection has ended, if it has.
    pub fn error(&self) -> Option<ConnectionError> {
        self.0.state.borrow().error.clone()
    }

    /// What the handshake told about the peer. Nothing before its end.
    pub fn peer(&self) -> Peer {
        let state = self.0.state.borrow();
        let session = state.proto.crypto_session();
        let data = session.handshake_data().and_then(|it| it.downcast::<HandshakeData>().ok());
        let certificates =
            session.peer_identity().and_then(|it| it.downcast::<Vec<CertificateDer<'static>>>().ok());
        let (protocol, server_name) = data.map_or((None, None), |it| (it.protocol, it.server_name));
        Peer { protocol, server_name, certificates: certificates.map(|it| *it).unwrap_or_default() }
    }

    /// Where the peer is now; it may move.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.state.borrow().proto.remote_address()
    }

    /// The own address that the peer speaks to, where the kernel tells.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.0.state.borrow().proto.local_ip()
    }

    /// This end of the connection, where the kernel tells. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let bound = self.0.shared.local_addr().ok()?;
        Some(SocketAddr::new(self.local_ip().unwrap_or_else(|| bound.ip()), bound.port()))
    }

    /// Whether this side has accepted the connection.
    pub fn is_accepted(&self) -> bool {
        self.0.state.borrow().proto.side() == Side::Server
    }

    /// Whether anything was exchanged as early data (0-RTT), which may be replayed.
    pub fn has_early_data(&self) -> bool {
        let state = self.0.state.borrow();
        state.proto.has_0rtt() || state.proto.accepted_0rtt()
    }

    /// What is known of the path and of what was moved.
    pub fn stats(&self) -> ConnectionStats {
        self.0.state.borrow().proto.stats().into()
    }

    /// How many streams the peer may have open at once from now on.
    pub fn set_max_streams(&self, dir: Dir, count: VarInt) {
        self.0.state.borrow_mut().proto.set_max_concurrent_streams(dir, count);
        self.0.touch();
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Conn {
    pub(crate) fn new(
        shared: &Rc<Shared>,
        handle: ConnectionHandle,
        proto: quinn_proto::Connection,
    ) -> Rc<Self> {
        let state = State {
            proto,
            handle,
            established: false,
            error: None,
            drained: false,
            waiting: Waiting::default(),
        };
        Rc::new(Self {
            shared: Rc::clone(shared),
            state: RefCell::new(state),
            handles: Cell::new(0),
            dirty: Cell::new(false),
            scheduled: Cell::new(None),
            note: RefCell::default(),
        })
    }

    pub(crate) fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    pub(crate) fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// There may be something to send.
    pub(crate) fn touch(self: &Rc<Self>) {
        self.shared.touch(self);
    }

    pub(crate) fn release(self: &Rc<Self>) {
        self.handles.set(self.handles.get() - 1);
        if self.handles.get() == 0 {
            self.close(VarInt::from_u32(0), Bytes::new());
        }
    }

    pub(crate) fn close(self: &Rc<Self>, code: VarInt, reason: Bytes) {
        let mut state = self.state.borrow_mut();
        if state.error.is_some() {
            return;
        }
        state.proto.close(time::now(), code, reason);
        self.lost(&mut state, ConnectionError::LocallyClosed);
        drop(state);
        self.touch();
    }

    /// Takes note of what the protocol has to tell and wakes those concerned.
    pub(crate) fn take_events(self: &Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        while let Some(event) = state.proto.poll() {
            match event {
                Event::HandshakeDataReady | Event::DatagramReceived | Event::DatagramsUnblocked => {}
                Event::Connected => self.connected(state),
                Event::ConnectionLost { reason } => self.lost(state, reason),
                Event::Stream(event) => state.waiting.stream(event),
            }
        }
    }

    fn connected(&self, state: &mut State) {
        state.established = true;
        let accepted = state.proto.side() == Side::Server;
        self.shared.count(|it| {
            it.established += 1;
            it.handshaking -= u64::from(accepted);
        });
        let waiting = &mut state.waiting;
        waiting.established.drain(..).for_each(Waker::wake);
        waiting.opening.iter_mut().flat_map(|it| it.drain(..)).for_each(Waker::wake);
    }

    fn lost(&self, state: &mut State, error: ConnectionError) {
        if state.error.is_some() {
            return;
        }
        let accepted = state.proto.side() == Side::Server;
        self.shared.count(|it| {
            it.timed_out += u64::from(error == ConnectionError::TimedOut);
            if !state.established {
                it.handshakes_failed += 1;
                it.handshaking -= u64::from(accepted);
            }
        });
        state.error = Some(error);
        let waiting = &mut state.waiting;
        waiting.established.drain(..).chain(waiting.closed.drain(..)).for_each(Waker::wake);
        let queues = waiting.opening.iter_mut().chain(&mut waiting.accepting);
        queues.flat_map(|it| it.drain(..)).for_each(Waker::wake);
        let maps = [&mut waiting.readers, &mut waiting.writers, &mut waiting.finishing];
        maps.into_iter().flat_map(|it| it.drain()).for_each(|(_, waker)| waker.wake());
    }
}

impl Waiting {
    fn stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Opened { dir } => self.accepting[dir as usize].drain(..).for_each(Waker::wake),
            StreamEvent::Available { dir } => self.opening[dir as usize].drain(..).for_each(Waker::wake),
            StreamEvent::Readable { id } => wake(&mut self.readers, id),
            StreamEvent::Writable { id } => wake(&mut self.writers, id),
            StreamEvent::Finished { id } => wake(&mut self.finishing, id),
            StreamEvent::Stopped { id, .. } => {
                wake(&mut self.finishing, id);
                wake(&mut self.writers, id);
            }
        }
    }
}

fn wake(wakers: &mut HashMap<StreamId, Waker>, id: StreamId) {
    if let Some(waker) = wakers.remove(&id) {
        waker.wake();
    }
}

pub(crate) fn wait<T>(wakers: &mut Vec<Waker>, cx: &Context<'_>) -> Poll<T> {
    if !wakers.iter().any(|it| it.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
    Poll::Pending
}
