//! A relay between clients of one address and a server, which does to datagrams what networks do.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
};

use culvert_ring::{
    Received, Transmit, UdpSocket,
    task::{self, TaskId},
};
use fastrand::Rng;

/// What happens on the way, in both directions.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    /// Of a hundred datagrams.
    pub lost: u8,
    /// Of a hundred datagrams, how many arrive behind the next one.
    pub late: u8,
    /// Of a hundred datagrams, how many arrive twice.
    pub doubled: u8,
}

pub struct Relay {
    front: UdpSocket,
    back: RefCell<Rc<UdpSocket>>,
    server: Cell<SocketAddr>,
    client: Cell<Option<SocketAddr>>,
    listener: Cell<Option<TaskId>>,
    pub weather: Cell<Weather>,
    rng: RefCell<Rng>,
    late: RefCell<[Option<Vec<u8>>; 2]>,
    /// What went to the server.
    pub seen: RefCell<Vec<Vec<u8>>>,
    pub lost: Cell<usize>,
}

impl Relay {
    pub fn start(server: SocketAddr, seed: u64) -> (Rc<Self>, SocketAddr) {
        let relay = Rc::new(Self {
            front: UdpSocket::from_fd(super::socket()).unwrap(),
            back: RefCell::new(Rc::new(UdpSocket::from_fd(super::socket()).unwrap())),
            server: Cell::new(server),
            client: Cell::new(None),
            listener: Cell::default(),
            weather: Cell::default(),
            rng: RefCell::new(Rng::with_seed(seed)),
            late: RefCell::default(),
            seen: RefCell::default(),
            lost: Cell::new(0),
        });
        let addr = relay.front.local_addr().unwrap();
        let to_server = Rc::clone(&relay);
        task::spawn(async move {
            loop {
                let received = to_server.front.receive().await.unwrap();
                to_server.client.set(Some(received.peer));
                to_server.pass(true, &received).await;
            }
        });
        relay.listen();
        (relay, addr)
    }

    /// Takes what the server sends to the client's present address.
    fn listen(self: &Rc<Self>) {
        let to_client = Rc::clone(self);
        let back = Rc::clone(&self.back.borrow());
        let listener = task::spawn(async move {
            loop {
                let received = back.receive().await.unwrap();
                to_client.pass(false, &received).await;
            }
        });
        if let Some(before) = self.listener.replace(Some(listener)) {
            task::abort(before);
        }
    }

    /// From now on the server sees the client at another address.
    pub fn move_client(self: &Rc<Self>) -> SocketAddr {
        *self.back.borrow_mut() = Rc::new(UdpSocket::from_fd(super::socket()).unwrap());
        self.listen();
        self.back.borrow().local_addr().unwrap()
    }

    pub fn server(&self) -> SocketAddr {
        self.server.get()
    }

    /// From now on another server answers.
    pub fn set_server(&self, server: SocketAddr) {
        self.server.set(server);
    }

    async fn pass(&self, to_server: bool, received: &Received) {
        for datagram in received.data.chunks(received.segment.max(1)) {
            self.one(to_server, datagram).await;
        }
    }

    async fn one(&self, to_server: bool, datagram: &[u8]) {
        let (weather, dice) = (self.weather.get(), || self.rng.borrow_mut().u8(0..100));
        if dice() < weather.lost {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        let before = self.late.borrow_mut()[usize::from(to_server)].take();
        if before.is_none() && dice() < weather.late {
            self.late.borrow_mut()[usize::from(to_server)] = Some(datagram.to_vec());
            return;
        }
        self.send(to_server, datagram).await;
        if dice() < weather.doubled {
            self.send(to_server, datagram).await;
        }
        if let Some(before) = before {
            self.send(to_server, &before).await;
        }
    }

    async fn send(&self, to_server: bool, datagram: &[u8]) {
        let peer = if to_server { Some(self.server.get()) } else { self.client.get() };
        let message = Transmit { contents: datagram, segment: None, peer, source: None, ecn: None };
        if to_server {
            self.seen.borrow_mut().push(datagram.to_vec());
            let back = Rc::clone(&self.back.borrow());
            back.transmit(&message).await.unwrap();
        } else {
            self.front.transmit(&message).await.unwrap();
        }
    }
}
