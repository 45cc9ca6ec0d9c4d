//! What goes to an endpoint without the proxy, what is counted of it, and how it is ended.

mod support;

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use culvert_bpf::{
    Capture, DiagSocket, DirectEndpoint, DirectFlow, DirectRule, DirectTally, InboundListener, PodCounters,
    PodSpec,
};
use socket2::{Domain, Socket};
use support::{
    App, HANG_GUARD, Pod, Proxy, World, abort, accept, assert_joined, canonical, close, connect, nobody_waits,
};

const TALLY: u64 = 0x7a11;

/// Two captured pods, of which one dials the other.
struct Setup {
    capture: Capture,
    client: Pod,
    proxy: Proxy,
    server: Pod,
    server_proxy: Proxy,
    world: World,
}

fn setup() -> Setup {
    let mut world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let (proxy, server_proxy) = (client.proxy(), server.proxy());
    let mut capture = world.capture();
    capture.enrol(&client.spec(&proxy, true)).unwrap();
    capture.enrol(&server.spec(&server_proxy, true)).unwrap();
    Setup { capture, client, proxy, server, server_proxy, world }
}

fn service(v6: bool) -> SocketAddr {
    if v6 { "[2001:db8::9]:81" } else { "203.0.113.9:81" }.parse().unwrap()
}

fn rule(client: &Pod, port: u16, prefix: &str, endpoints: &[(&Pod, SocketAddr, u32, u64)]) -> DirectRule {
    let endpoints = endpoints
        .iter()
        .map(|(pod, address, weight, tally)| DirectEndpoint {
            address: *address,
            netns: pod.cookie,
            weight: *weight,
            tally: *tally,
        })
        .collect();
    DirectRule { netns: client.cookie, port, prefix: prefix.parse().unwrap(), endpoints }
}

impl Setup {
    /// Both services lead to the application.
    fn rules(&self, app: &App) -> [DirectRule; 2] {
        [("203.0.113.9/32", app.v4), ("2001:db8::9/128", app.v6)]
            .map(|(prefix, to)| rule(&self.client, 81, prefix, &[(&self.server, to, 1, TALLY)]))
    }

    fn tally(&mut self, tally: u64) -> DirectTally {
        self.capture.direct().tallies().unwrap()[&tally]
    }

    /// Waits for the counts of connections that end.
    fn assert_tally(&mut self, expected: DirectTally) {
        let until = Instant::now() + HANG_GUARD;
        while self.tally(TALLY) != expected && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.tally(TALLY), expected);
    }

    fn flows(&mut self) -> Vec<DirectFlow> {
        self.capture.direct().flows().unwrap()
    }

    fn assert_no_flows(&mut self) {
        let until = Instant::now() + HANG_GUARD;
        while !self.flows().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.flows(), []);
    }

    fn nobody_else_has_any(&self) -> bool {
        let Proxy { out4, out6, .. } = &self.proxy;
        let Proxy { in4, in6, .. } = &self.server_proxy;
        [out4, out6, in4, in6].into_iter().all(nobody_waits)
    }

    /// The connection goes through the client's proxy.
    fn assert_captured(&self, to: SocketAddr) {
        let stream = self.client.connect(to);
        let (accepted, peer) =
            accept(if canonical(to).is_ipv4() { &self.proxy.out4 } else { &self.proxy.out6 });
        assert_joined(&stream, &accepted);
        assert_eq!(self.capture.orig_dst().take(self.client.cookie, peer), Some(canonical(to)));
        abort(stream);
        abort(accepted);
    }
}

/// Reads to the end what the peer sends.
fn drain(mut stream: &TcpStream) -> usize {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all.len()
}

#[test]
fn a_connection_goes_to_the_endpoint_itself() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    for v6 in [false, true] {
        let stream = s.client.connect(service(v6));
        let (served, peer) = app.accept();
        assert_joined(&stream, &served);
        assert_eq!(peer.ip(), if v6 { s.client.v6 } else { s.client.v4 }, "the application sees the client");
        assert_eq!(peer, stream.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), service(v6), "getpeername");
        let [flow] = s.flows()[..] else { panic!("one flow: {:?}", s.flows()) };
        assert_eq!((flow.client, flow.endpoint), (peer, if v6 { app.v6 } else { app.v4 }));
        assert_eq!((flow.netns, flow.peer), (s.client.cookie, s.server.cookie));
        assert_eq!((flow.meant, flow.tally), (service(v6), TALLY));
        abort(stream);
        abort(served);
        s.assert_no_flows();
    }
    assert!(s.nobody_else_has_any());
    assert_eq!(
        s.capture.counters(s.client.cookie).unwrap(),
        PodCounters { direct_out: 2, ..PodCounters::default() }
    );
    assert_eq!(
        s.capture.counters(s.server.cookie).unwrap(),
        PodCounters { direct_in: 2, ..PodCounters::default() }
    );
}

#[test]
fn ipv4_from_an_ipv6_socket_goes_directly_too() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let mapped: SocketAddr = "[::ffff:203.0.113.9]:81".parse().unwrap();
    let stream = connect(s.client.socket(Domain::IPV6), mapped).unwrap();
    let (served, peer) = app.accept();
    assert_joined(&stream, &served);
    assert_eq!(peer.ip(), s.client.v4);
    assert_eq!(stream.peer_addr().unwrap(), mapped, "getpeername");
    assert_eq!(s.flows()[0].endpoint, app.v4);
    assert!(s.nobody_else_has_any());
}

#[test]
fn what_is_not_allowed_goes_through_the_proxy() {
    let mut s = setup();
    let app = s.server.app();
    s.assert_captured(service(false));
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    for to in ["203.0.113.9:82", "203.0.113.10:81", "[2001:db8::9]:82", "[2001:db8::8]:81"] {
        s.assert_captured(to.parse().unwrap());
    }
    // Somebody else's rule is no rule.
    let other = rule(&s.server, 81, "203.0.113.9/32", &[(&s.server, app.v4, 1, TALLY)]);
    s.capture.direct().apply(&[other]).unwrap();
    s.assert_captured(service(false));
    // An endpoint of the other family cannot be dialled from the socket.
    let crossed = rule(&s.client, 81, "203.0.113.9/32", &[(&s.server, app.v6, 1, TALLY)]);
    s.capture.direct().apply(&[crossed]).unwrap();
    s.assert_captured(service(false));
    // An endpoint without weight gets nothing.
    let unweighted = rule(&s.client, 81, "203.0.113.9/32", &[(&s.server, app.v4, 0, TALLY)]);
    s.capture.direct().apply(&[unweighted]).unwrap();
    s.assert_captured(service(false));
    assert!(s.flows().is_empty() && nobody_waits(&app.listener));
}

#[test]
fn the_rule_of_the_port_goes_first_and_then_the_longer_prefix() {
    let mut s = setup();
    let apps: Vec<App> = (0..3).map(|_| s.server.app()).collect();
    let to = |at: usize| (&s.server, apps[at].v4, 1, TALLY);
    let rules = [
        rule(&s.client, 0, "0.0.0.0/0", &[to(0)]),
        rule(&s.client, 0, "203.0.113.0/24", &[]),
        rule(&s.client, 0, "203.0.113.9/32", &[to(1)]),
        rule(&s.client, 81, "203.0.0.0/16", &[to(2)]),
    ];
    s.capture.direct().apply(&rules).unwrap();
    let went = |s: &Setup, to: &str, app: &App| {
        let stream = s.client.connect(to.parse().unwrap());
        let (served, _) = app.accept();
        assert_joined(&stream, &served);
    };
    went(&s, "198.51.100.1:5", &apps[0]);
    went(&s, "203.0.113.9:5", &apps[1]);
    went(&s, "203.0.113.9:81", &apps[2]);
    went(&s, "203.0.113.8:81", &apps[2]);
    s.assert_captured("203.0.113.8:5".parse().unwrap());
    s.assert_captured("[2001:db8::9]:5".parse().unwrap());
    // What is replaced leaves nothing behind.
    s.capture.direct().apply(&rules[3..]).unwrap();
    for to in ["198.51.100.1:5", "203.0.113.9:5"] {
        s.assert_captured(to.parse().unwrap());
    }
    went(&s, "203.0.113.9:81", &apps[2]);
}

#[test]
fn without_a_proxy_nothing_goes_directly() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let Setup { proxy, .. } = s;
    close(proxy);
    for v6 in [false, true] {
        assert_eq!(s.client.try_connect(service(v6)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(nobody_waits(&app.listener));
}

#[test]
fn a_source_that_cannot_leave_the_pod_reaches_the_proxy() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let socket = s.client.socket(Domain::IPV4);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let stream = connect(socket, service(false)).unwrap();
    assert_joined(&stream, &accept(&s.proxy.out4).0);
}

fn wait_until_acknowledged(stream: &TcpStream) {
    let until = Instant::now() + HANG_GUARD;
    let mut waiting = 1;
    while waiting > 0 {
        assert!(Instant::now() < until, "{waiting} bytes are not acknowledged");
        thread::sleep(Duration::from_millis(5));
        // SAFETY: the kernel writes one integer.
        assert_eq!(unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) }, 0);
    }
}

#[test]
fn bytes_are_counted_exactly_however_a_connection_ends() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let mut expected = DirectTally::default();
    let (up, down) = (vec![1; 300_000], vec![2; 700_001]);
    let mut round = |v6: bool, end: &dyn Fn(TcpStream, TcpStream)| {
        let stream = s.client.connect(service(v6));
        let (served, _) = app.accept();
        thread::scope(|scope| {
            scope.spawn(|| (&stream).write_all(&up).unwrap());
            scope.spawn(|| (&served).write_all(&down).unwrap());
            scope.spawn(|| (&stream).read_exact(&mut vec![0; down.len()]).unwrap());
            (&served).read_exact(&mut vec![0; up.len()]).unwrap();
        });
        end(stream, served);
        expected += DirectTally {
            opened: 1,
            closed: 1,
            failed: 0,
            sent: up.len() as u64,
            received: down.len() as u64,
        };
        s.assert_tally(expected);
    };
    for v6 in [false, true] {
        round(v6, &|client, server| {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(drain(&server), 0);
            close(server);
            assert_eq!(drain(&client), 0);
            close(client);
        });
        round(v6, &|client, server| {
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(drain(&client), 0);
            close(client);
            assert_eq!(drain(&server), 0);
        });
        round(v6, &|client, server| {
            close(client);
            assert_eq!(drain(&server), 0);
            close(server);
        });
        // A reset may overtake the acknowledgement of what was read before it, and then nobody knows of that.
        round(v6, &|client, server| {
            wait_until_acknowledged(&client);
            abort(client);
            assert_eq!((&server).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        });
        round(v6, &|client, server| {
            wait_until_acknowledged(&client);
            abort(server);
            assert_eq!((&client).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        });
    }
    s.assert_no_flows();
}

#[test]
fn a_failed_connect_is_counted_and_leaves_nothing() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let again = s.client.socket(Domain::IPV4);
    close(app);
    for v6 in [false, true] {
        assert_eq!(s.client.try_connect(service(v6)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(again.connect(&service(false).into()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    s.assert_tally(DirectTally { failed: 3, ..DirectTally::default() });
    s.assert_no_flows();
    // The socket is used again, for something that is not direct.
    let other: SocketAddr = "203.0.113.9:82".parse().unwrap();
    let stream = connect(again, other).unwrap();
    assert_joined(&stream, &accept(&s.proxy.out4).0);
    assert_eq!(stream.peer_addr().unwrap(), other);
    assert_eq!(s.tally(TALLY), DirectTally { failed: 3, ..DirectTally::default() });
}

#[test]
fn weights_are_kept() {
    const ROUNDS: u32 = 1_200;
    let mut s = setup();
    let weights = [1_u32, 3, 8];
    let apps: Vec<App> = weights.iter().map(|_| s.server.app()).collect();
    let endpoints: Vec<_> = apps
        .iter()
        .zip(weights)
        .zip(1..)
        .map(|((app, weight), tally)| (&s.server, app.v4, weight, tally))
        .collect();
    let rules = [rule(&s.client, 81, "203.0.113.9/32", &endpoints)];
    s.capture.direct().apply(&rules).unwrap();
    for _ in 0..ROUNDS {
        abort(s.client.connect(service(false)));
    }
    let tallies: HashMap<u64, DirectTally> = s.capture.direct().tallies().unwrap();
    let opened: Vec<u64> = (1..=3).map(|tally| tallies[&tally].opened).collect();
    assert_eq!(opened.iter().sum::<u64>(), u64::from(ROUNDS));
    let sum: u32 = weights.iter().sum();
    let chi_square: f64 = opened
        .iter()
        .zip(weights)
        .map(|(&seen, weight)| {
            let expected = f64::from(ROUNDS * weight) / f64::from(sum);
            (seen as f64 - expected).powi(2) / expected
        })
        .sum();
    // Two degrees of freedom: exceeded once in ten million runs.
    assert!(chi_square < 32.2, "{opened:?}: {chi_square}");
}

#[test]
fn the_same_ports_again_inherit_nothing() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    for removed_meanwhile in [false, true] {
        s.capture.direct().apply(&rules).unwrap();
        let first = s.client.socket(Domain::IPV4);
        first.bind(&SocketAddr::new(s.client.v4, 0).into()).unwrap();
        let source = first.local_addr().unwrap();
        let first = connect(first, service(false)).unwrap();
        let (served, _) = app.accept();
        if removed_meanwhile {
            s.capture.remove(s.client.cookie).unwrap();
        }
        abort(first);
        abort(served);
        s.capture.enrol(&s.client.spec(&s.proxy, true)).unwrap();
        s.assert_no_flows();
        // The very same addresses and ports, but nobody allows it now.
        s.capture.direct().apply(&[]).unwrap();
        let again: Socket = s.client.socket(Domain::IPV4);
        again.bind(&source).unwrap();
        again.set_mark(culvert_bpf::PROXY_MARK).unwrap();
        let stream = connect(again, app.v4).unwrap();
        let (accepted, _) = accept(&s.server_proxy.in4);
        assert_joined(&stream, &accepted);
        assert!(nobody_waits(&app.listener));
        abort(stream);
        abort(accepted);
    }
}

#[test]
fn a_record_of_another_socket_is_not_forgotten() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let _stream = s.client.connect(service(false));
    let [flow] = s.flows()[..] else { panic!("one flow") };
    let stale = DirectFlow { cookie: flow.cookie + 1, ..flow };
    s.capture.direct().forget(&stale).unwrap();
    assert_eq!(s.flows(), [flow]);
    s.capture.direct().forget(&flow).unwrap();
    s.capture.direct().forget(&flow).unwrap();
    assert_eq!(s.flows(), []);
}

#[test]
fn an_established_connection_can_be_closed() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let diag = DiagSocket::open(s.client.netns.as_fd()).unwrap();
    for v6 in [false, true] {
        let mut stream = s.client.connect(service(v6));
        let (mut served, _) = app.accept();
        stream.write_all(b"12345").unwrap();
        served.read_exact(&mut [0; 5]).unwrap();
        let [flow] = s.flows()[..] else { panic!("one flow") };
        let sockets = diag.sockets().unwrap();
        let open = sockets.iter().find(|socket| socket.cookie == flow.cookie).unwrap();
        assert_eq!((open.local, open.remote, open.sent, open.received), (flow.client, flow.endpoint, 5, 0));
        assert!(diag.destroy(flow.client, flow.endpoint, flow.cookie).unwrap());
        assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(served.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        s.assert_no_flows();
    }
    s.assert_tally(DirectTally { opened: 2, closed: 2, failed: 0, sent: 10, received: 0 });
}

#[test]
fn everything_outlives_the_process() {
    let mut s = setup();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let read = DirectTally { sent: 3, ..DirectTally::default() };
    s.capture.direct().set_read(TALLY, read).unwrap();
    let stream = s.client.connect(service(false));
    let (served, _) = app.accept();
    let before = s.flows();
    drop(std::mem::replace(&mut s.capture, s.world.capture()));
    assert_joined(&stream, &served);
    assert_eq!(s.flows(), before);
    assert_eq!(s.capture.direct().read(TALLY).unwrap(), read);
    let second = s.client.connect(service(false));
    assert_joined(&second, &app.accept().0);
    close((stream, second, served));
    s.assert_no_flows();
    let tally = s.tally(TALLY);
    assert_eq!((tally.opened, tally.closed, tally.sent, tally.received), (2, 2, 8, 8));
    s.capture.direct().apply(&[]).unwrap();
    s.capture.direct().remove_tally(TALLY).unwrap();
    assert!(s.capture.direct().tallies().unwrap().is_empty());
    assert_eq!(s.capture.direct().read(TALLY).unwrap(), DirectTally::default());
}

#[test]
fn pods_with_the_same_addresses_do_not_meet() {
    // Two worlds: the same addresses, the same ports, one set of programs.
    let mut s = setup();
    let mut elsewhere = World::new();
    let (client, server) = (elsewhere.pod(), elsewhere.pod());
    let (proxy, server_proxy) = (client.proxy(), server.proxy());
    s.capture.enrol(&client.spec(&proxy, true)).unwrap();
    s.capture.enrol(&server.spec(&server_proxy, true)).unwrap();
    assert_eq!((client.v4, server.v4), (s.client.v4, s.server.v4));
    let app = s.server.app();
    let listener = server.run(|| support::listen(&format!("[::]:{}", app.port)));
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    let bound = |pod: &Pod, port: u16| {
        let socket = pod.socket(Domain::IPV4);
        socket.bind(&SocketAddr::new(pod.v4, port).into()).unwrap();
        socket
    };
    let first = connect(bound(&s.client, 0), service(false)).unwrap();
    let port = first.local_addr().unwrap().port();
    assert_joined(&first, &app.accept().0);
    // Not allowed there, although the same is here.
    let socket = bound(&client, port);
    socket.set_mark(culvert_bpf::PROXY_MARK).unwrap();
    let second = connect(socket, app.v4).unwrap();
    assert_joined(&second, &accept(&server_proxy.in4).0);
    assert!(nobody_waits(&listener));
    abort(second);
    let here = rules[0].clone();
    let endpoints = here.endpoints.iter().map(|e| DirectEndpoint { netns: server.cookie, tally: 2, ..*e });
    let there =
        DirectRule { netns: client.cookie, endpoints: endpoints.collect::<Arc<[_]>>(), ..here.clone() };
    s.capture.direct().apply(&[here, there]).unwrap();
    let third = connect(bound(&client, port), service(false)).unwrap();
    assert_joined(&third, &accept(&listener).0);
    assert_eq!(third.local_addr().unwrap(), first.local_addr().unwrap());
    assert_eq!(s.flows().len(), 2);
    abort(third);
    let until = Instant::now() + HANG_GUARD;
    while s.flows().len() > 1 && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    let [left] = s.flows()[..] else { panic!("one is left: {:?}", s.flows()) };
    assert_eq!(left.netns, s.client.cookie);
}

#[test]
fn a_pod_whose_inbound_connections_are_not_captured_is_reached() {
    let mut s = setup();
    let spec = s.server.spec(&s.server_proxy, true);
    let outbound_only = PodSpec { inbound_port: None, inbound_listener: InboundListener::default(), ..spec };
    s.capture.enrol(&outbound_only).unwrap();
    let app = s.server.app();
    let rules = s.rules(&app);
    s.capture.direct().apply(&rules).unwrap();
    assert_joined(&s.client.connect(service(false)), &app.accept().0);
}
