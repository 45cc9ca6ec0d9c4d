//! What the driver shares with the handles of its endpoint and connections.

use std::{
    cell::{Cell, Ref, RefCell, RefMut},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt, io, mem,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use culvert_ring::UdpSocket;
use quinn_proto::{ConnectionHandle, ServerConfig, VarInt};

use crate::{
    Accept, Config, Connection, EndpointStats,
    connection::{Conn, wait},
};

pub(crate) struct Shared {
    pub(crate) config: Config,
    proto: RefCell<quinn_proto::Endpoint>,
    socket: RefCell<UdpSocket>,
    /// By the number that the protocol gives them.
    connections: RefCell<Vec<Option<Rc<Conn>>>>,
    count: Cell<usize>,
    /// Connections that may have something to send.
    touched: RefCell<Vec<Rc<Conn>>>,
    /// Deadlines and connections. A connection whose deadline has moved to later stays where it is; where it has moved to
    /// earlier there are two, of which only the one that it knows counts.
    deadlines: RefCell<BinaryHeap<Reverse<(Instant, usize)>>>,
    /// Clients that nobody has asked for yet.
    clients: RefCell<VecDeque<Connection>>,
    accepting: RefCell<Vec<Waker>>,
    idle: RefCell<Vec<Waker>>,
    driver: RefCell<Option<Waker>>,
    /// The driver is going to run.
    woken: Cell<bool>,
    /// The endpoint was dropped.
    shut: Cell<bool>,
    /// The driver has ended.
    over: Cell<bool>,
    stats: RefCell<EndpointStats>,
    acceptor: RefCell<Option<Acceptor>>,
}

/// See [`crate::Endpoint::set_acceptor`].
pub(crate) type Acceptor = Rc<dyn Fn(SocketAddr, Option<IpAddr>) -> Option<Accept>>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", self.count.get())
    }
}

impl Shared {
    pub(crate) fn new(socket: UdpSocket, config: Config, server: Option<Arc<ServerConfig>>) -> Rc<Self> {
        // The ring's sockets do not fragment.
        let proto = quinn_proto::Endpoint::new(Arc::new(config.endpoint()), server, true, None);
        Rc::new(Self {
            config,
            proto: RefCell::new(proto),
            socket: RefCell::new(socket),
            connections: RefCell::default(),
            count: Cell::new(0),
            touched: RefCell::default(),
            deadlines: RefCell::default(),
            clients: RefCell::default(),
            accepting: RefCell::default(),
            idle: RefCell::default(),
            driver: RefCell::default(),
            woken: Cell::new(true),
            shut: Cell::new(false),
            over: Cell::new(false),
            stats: RefCell::default(),
            acceptor: RefCell::default(),
        })
    }

    pub(crate) fn proto(&self) -> RefMut<'_, quinn_proto::Endpoint> {
        self.proto.borrow_mut()
    }

    pub(super) fn socket(&self) -> Ref<'_, UdpSocket> {
        self.socket.borrow()
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut EndpointStats)) {
        change(&mut self.stats.borrow_mut());
    }

    pub(crate) fn stats(&self) -> EndpointStats {
        EndpointStats { connections: self.count.get() as u64, ..*self.stats.borrow() }
    }

    pub(crate) fn set_server(&self, server: Option<Arc<ServerConfig>>) {
        self.proto().set_server_config(server);
    }

    pub(crate) fn set_acceptor(&self, acceptor: Acceptor) {
        *self.acceptor.borrow_mut() = Some(acceptor);
    }

    pub(super) fn acceptor(&self) -> Option<Acceptor> {
        self.acceptor.borrow().clone()
    }

    pub(crate) fn rebind(&self, socket: UdpSocket) {
        drop(self.socket.replace(socket));
        for conn in self.connections() {
            conn.state_mut().proto.local_address_changed();
            conn.touch();
        }
        self.wake();
    }

    pub(crate) fn insert(&self, handle: ConnectionHandle, conn: &Rc<Conn>) {
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= handle.0 {
            connections.resize(handle.0 + 1, None);
        }
        connections[handle.0] = Some(Rc::clone(conn));
        self.count.set(self.count.get() + 1);
        self.touch(conn);
    }

    pub(super) fn connection(&self, handle: ConnectionHandle) -> Option<Rc<Conn>> {
        self.connections.borrow().get(handle.0).cloned().flatten()
    }

    pub(crate) fn connections(&self) -> Vec<Rc<Conn>> {
        self.connections.borrow().iter().flatten().cloned().collect()
    }

    /// The connection may have something to send.
    pub(crate) fn touch(&self, conn: &Rc<Conn>) {
        if !self.over.get() && !conn.dirty.replace(true) {
            self.touched.borrow_mut().push(Rc::clone(conn));
            self.wake();
        }
    }

    fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = &*self.driver.borrow()
        {
            waker.wake_by_ref();
        }
    }

    pub(super) fn begin_turn(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|it| it.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        self.woken.set(false);
    }

    pub(super) fn has_touched(&self) -> bool {
        !self.touched.borrow().is_empty()
    }

    pub(super) fn take_touched(&self, batch: &mut Vec<Rc<Conn>>) {
        mem::swap(batch, &mut self.touched.borrow_mut());
        batch.iter().for_each(|it| it.dirty.set(false));
    }

    /// Tells the tasks what has happened on the connections that are to be sent for next.
    pub(super) fn take_events(&self) {
        for conn in self.touched.borrow().iter() {
            conn.take_events();
        }
    }

    /// What follows once a connection has sent: the endpoint hears of it, tasks too, its deadline is set. One that is over
    /// is forgotten.
    pub(super) fn settle(&self, conn: &Rc<Conn>) {
        let mut state = conn.state_mut();
        while let Some(event) = state.proto.poll_endpoint_events() {
            let drained = event.is_drained();
            if state.drained {
                continue;
            }
            let handle = state.handle;
            if let Some(answer) = self.proto().handle_event(handle, event) {
                state.proto.handle_event(answer);
                conn.touch();
            }
            if drained {
                state.drained = true;
                self.connections.borrow_mut()[handle.0] = None;
                self.count.set(self.count.get() - 1);
                if self.count.get() == 0 {
                    self.idle.borrow_mut().drain(..).for_each(Waker::wake);
                }
            }
        }
        let deadline = if state.drained { None } else { state.proto.poll_timeout() };
        drop(state);
        conn.take_events();
        self.schedule(conn, deadline);
    }

    pub(super) fn schedule(&self, conn: &Conn, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if conn.scheduled.get().is_none_or(|it| deadline < it) {
            conn.scheduled.set(Some(deadline));
            self.deadlines.borrow_mut().push(Reverse((deadline, conn.state().handle.0)));
        }
    }

    /// The next connection whose deadline has passed.
    pub(super) fn expired(&self, now: Instant) -> Option<Rc<Conn>> {
        let mut deadlines = self.deadlines.borrow_mut();
        while let Some(&Reverse((deadline, handle))) = deadlines.peek() {
            if deadline > now {
                return None;
            }
            deadlines.pop();
            if let Some(conn) = self.connection(ConnectionHandle(handle))
                && conn.scheduled.get() == Some(deadline)
            {
                conn.scheduled.set(None);
                return Some(conn);
            }
        }
        None
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.borrow().peek().map(|it| it.0.0)
    }

    pub(super) fn waiting_clients(&self) -> usize {
        self.clients.borrow().len()
    }

    pub(super) fn offer(&self, client: Connection) {
        self.clients.borrow_mut().push_back(client);
        self.accepting.borrow_mut().drain(..).for_each(Waker::wake);
    }

    pub(crate) fn poll_accept(&self, cx: &Context<'_>) -> Poll<Connection> {
        if let Some(client) = self.clients.borrow_mut().pop_front() {
            return Poll::Ready(client);
        }
        wait(&mut self.accepting.borrow_mut(), cx)
    }

    pub(crate) fn poll_idle(&self, cx: &Context<'_>) -> Poll<()> {
        if self.count.get() == 0 {
            return Poll::Ready(());
        }
        wait(&mut self.idle.borrow_mut(), cx)
    }

    /// The endpoint was dropped: no new clients, and those that nobody has asked for are closed.
    pub(crate) fn shut(&self) {
        self.shut.set(true);
        self.set_server(None);
        // It may refer to what refers to the endpoint.
        drop(self.acceptor.take());
        // Outside of the borrow, as closing comes back here.
        let clients = mem::take(&mut *self.clients.borrow_mut());
        drop(clients);
        self.wake();
    }

    pub(super) fn is_over(&self) -> bool {
        self.shut.get() && self.count.get() == 0
    }

    /// The driver has ended, with its runtime or because nothing is left.
    pub(super) fn dissolve(&self) {
        self.over.set(true);
        let connections = mem::take(&mut *self.connections.borrow_mut());
        let clients = mem::take(&mut *self.clients.borrow_mut());
        let touched = mem::take(&mut *self.touched.borrow_mut());
        // Nobody waits for what cannot come any more.
        for conn in connections.iter().flatten() {
            conn.close(VarInt::from_u32(0), Bytes::new());
        }
        drop((clients, connections, touched));
    }
}
