//! An application and a proxy with a connection between them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use culvert_bpf::{
    Capture, Diag, EnterError, Leg, LegSpec, PROXY_MARK, SlotPool, Splice, SpliceConfig, SplicedPod,
    TRANSPARENT_MARK, prepare_netns,
};
use socket2::{Domain, Socket};

use crate::support::{HANG_GUARD, Pod, Proxy, World, accept, can_splice, connect};

/// Small, so that tests reach it soon.
pub const LIMIT: u64 = 64 * 1024;

/// A pod that is captured, and one that serves behind its proxy.
pub struct Setup {
    pub splice: Splice,
    pub pool: SlotPool,
    pub capture: Capture,
    pub client: Pod,
    pub proxy: Proxy,
    pub server: Pod,
    pub server_proxy: Proxy,
    pub world: World,
}

/// A further captured pod.
pub struct Twin {
    pod: Pod,
    proxy: Proxy,
}

/// One end of the proxy's.
pub struct ProxySocket {
    pub stream: TcpStream,
    leg: Option<Leg>,
    spec: LegSpec,
    pool: SlotPool,
    diag: Diag,
    pub read: u64,
    pub sent: u64,
    confirmed: u64,
    /// Sends since it was last asked what was read of them.
    sends: u32,
}

impl Setup {
    /// `None`, and the test is skipped, on kernels that have no splicing.
    pub fn new() -> Option<Self> {
        Self::with(SpliceConfig { limit: LIMIT, blocking: true, ..SpliceConfig::default() })
    }

    pub fn with(config: SpliceConfig) -> Option<Self> {
        if !can_splice() {
            return None;
        }
        let mut world = World::new();
        let (client, server) = (world.pod(), world.pod());
        let (proxy, server_proxy) = (client.proxy(), server.proxy());
        let mut capture = world.capture();
        capture.enrol(&client.spec(&proxy, false)).unwrap();
        capture.enrol(&server.spec(&server_proxy, false)).unwrap();
        prepare_netns(server.netns.as_fd()).unwrap();
        let splice = capture.splice(config).unwrap();
        for pod in [&client, &server] {
            splice.add_pod(pod.cookie).unwrap();
        }
        let pool = splice.slots();
        Some(Self { splice, pool, capture, client, proxy, server, server_proxy, world })
    }

    pub fn pod(&self, pod: &Pod) -> SplicedPod {
        self.splice.pod(pod.cookie).unwrap().unwrap()
    }

    /// An application's connection, and the proxy's end of it, which has not entered.
    pub fn connect(&self) -> (TcpStream, TcpStream) {
        self.connect_with(|_| ())
    }

    pub fn connect_with(&self, prepare: impl FnOnce(&Socket)) -> (TcpStream, TcpStream) {
        let socket = self.client.socket(Domain::IPV4);
        prepare(&socket);
        let app = connect(socket, "203.0.113.9:80".parse().unwrap()).unwrap();
        app.set_nodelay(true).unwrap();
        (app, accept(&self.proxy.out4).0)
    }

    /// A spliced connection that the application has made.
    pub fn captured(&self) -> (TcpStream, ProxySocket) {
        let (app, accepted) = self.connect();
        let mut proxy = proxied(self, accepted);
        proxy.enter().unwrap();
        (app, proxy)
    }

    /// A server that the client's connections reach without a proxy: in the client's own pod.
    pub fn server_without_proxy(&self) -> TcpListener {
        self.client.listen("127.0.0.1:0")
    }

    pub fn twin(&mut self) -> Twin {
        let pod = self.world.pod();
        let listen = |address: &str| pod.listen(address);
        let proxy = Proxy {
            out4: listen("127.0.0.1:15001"),
            out6: listen("[::1]:15001"),
            in4: listen("127.0.0.1:15006"),
            in6: listen("[::1]:15006"),
            outbound_port: 15001,
            inbound_port: 15006,
        };
        self.capture.enrol(&pod.spec(&proxy, false)).unwrap();
        self.splice.add_pod(pod.cookie).unwrap();
        Twin { pod, proxy }
    }

    pub fn captured_from(&self, twin: &Twin, from: SocketAddr) -> (TcpStream, ProxySocket) {
        let socket = twin.pod.socket(Domain::IPV4);
        socket.bind(&from.into()).unwrap();
        let app = connect(socket, "203.0.113.9:80".parse().unwrap()).unwrap();
        let accepted = accept(&twin.proxy.out4).0;
        let mut proxy = ProxySocket::new(self, &twin.pod, accepted, twin.pod.cookie, false);
        proxy.enter().unwrap();
        (app, proxy)
    }

    /// A spliced connection that the proxy has made to an application of its pod.
    pub fn dialled(&self, transparent: bool) -> (TcpStream, ProxySocket) {
        let app = self.server.app();
        let socket = self.server.socket(Domain::IPV4);
        if transparent {
            socket.set_mark(TRANSPARENT_MARK).unwrap();
            socket.set_ip_transparent_v4(true).unwrap();
            socket.bind(&SocketAddr::new(self.client.v4, 0).into()).unwrap();
        } else {
            socket.set_mark(PROXY_MARK).unwrap();
        }
        let stream = connect(socket, app.v4).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut proxy = ProxySocket::new(self, &self.server, stream, self.server.cookie, true);
        proxy.enter().unwrap();
        (app.accept().0, proxy)
    }

    /// The connection between the proxies of two pods.
    pub fn hop(&self) -> (ProxySocket, ProxySocket) {
        let (mut here, mut there) = self.plain_hop();
        here.enter().unwrap();
        there.enter().unwrap();
        (here, there)
    }

    /// The same before anything has entered.
    pub fn plain_hop(&self) -> (ProxySocket, ProxySocket) {
        let socket = self.client.socket(Domain::IPV4);
        socket.set_mark(PROXY_MARK).unwrap();
        let stream = connect(socket, SocketAddr::new(self.server.v4, 80)).unwrap();
        let accepted = accept(&self.server_proxy.in4).0;
        let here = ProxySocket::new(self, &self.client, stream, self.server.cookie, true);
        (here, ProxySocket::new(self, &self.server, accepted, self.client.cookie, false))
    }
}

/// The client's proxy with a connection that it has accepted.
pub fn proxied(s: &Setup, stream: TcpStream) -> ProxySocket {
    ProxySocket::new(s, &s.client, stream, s.client.cookie, false)
}

impl ProxySocket {
    fn new(s: &Setup, pod: &Pod, stream: TcpStream, peer_netns: u64, active: bool) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(HANG_GUARD)).unwrap();
        let spec = LegSpec {
            netns: pod.cookie,
            local: stream.local_addr().unwrap(),
            peer: stream.peer_addr().unwrap(),
            peer_netns,
            active,
        };
        let diag = Diag::open(pod.netns.as_fd()).unwrap();
        Self { stream, leg: None, spec, pool: s.pool.clone(), diag, read: 0, sent: 0, confirmed: 0, sends: 0 }
    }

    pub fn enter(&mut self) -> Result<(), EnterError> {
        self.leg = Some(self.pool.enter(self.stream.as_fd(), &self.spec, self.read)?);
        Ok(())
    }

    /// Enters under the name of another socket.
    pub fn enter_as(&self, other: &Self) -> Leg {
        self.pool.enter(self.stream.as_fd(), &other.spec, 0).unwrap()
    }

    pub fn leave(&mut self) {
        self.leg = None;
    }

    pub fn leg(&self) -> &Leg {
        self.leg.as_ref().unwrap()
    }

    /// Receives once; how much.
    pub fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = (&self.stream).read(buffer)?;
        self.read += len as u64;
        if let Some(leg) = &self.leg {
            leg.publish_read(self.read);
            // An answer: a good moment to find out what was read.
            if self.sends >= 16 && self.spec.peer_netns == self.spec.netns {
                self.confirm();
            }
        }
        Ok(len)
    }

    pub fn read_exactly(&mut self, len: usize) -> Vec<u8> {
        let mut all = vec![0; len];
        let mut at = 0;
        while at < len {
            match self.receive(&mut all[at..]).unwrap() {
                0 => panic!("ended after {at} of {len} bytes"),
                count => at += count,
            }
        }
        all
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            match self.receive(&mut buffer).unwrap() {
                0 => return all,
                len => all.extend_from_slice(&buffer[..len]),
            }
        }
    }

    /// Sends all, and asks about the reader when the limit is near, as a worker does.
    pub fn send(&mut self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).unwrap();
        self.sent += bytes.len() as u64;
        self.sends += 1;
        if self.leg.is_some() && self.sent - self.confirmed >= LIMIT / 2 {
            self.confirm();
        }
    }

    pub fn confirm(&mut self) -> u64 {
        let leg = self.leg.as_ref().unwrap();
        self.sends = 0;
        self.confirmed = leg.confirm(&self.diag, self.stream.as_fd(), self.sent).unwrap();
        self.confirmed
    }

    pub fn diag(&self) -> &Diag {
        &self.diag
    }
}

/// Packets that a pod's loopback device has received.
pub fn loopback_packets(pod: &Pod) -> u64 {
    let text = pod.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The same bytes for the same seed.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes()).take(len).collect()
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
