//! What a pod dials, and who answers.

mod support;

use std::net::{SocketAddr, TcpStream, UdpSocket};

use culvert_bpf::{Capture, PROXY_MARK, PodSpec};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use support::{Pod, Proxy, World, accept, assert_joined, canonical, close, connect, nobody_waits};

/// A pod that is captured, and one that serves.
struct Setup {
    world: World,
    capture: Capture,
    client: Pod,
    proxy: Proxy,
    server: Pod,
}

fn setup() -> Setup {
    let mut world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let proxy = client.proxy();
    let mut capture = world.capture();
    capture.enrol(&client.spec(&proxy, false)).unwrap();
    Setup { world, capture, client, proxy, server }
}

impl Setup {
    /// The connection was captured: the proxy has it, with its original destination, and the client sees no proxy.
    fn assert_captured(&self, client: &TcpStream, to: SocketAddr) {
        let listener = if canonical(to).is_ipv4() { &self.proxy.out4 } else { &self.proxy.out6 };
        let (accepted, peer) = accept(listener);
        assert_joined(client, &accepted);
        let taken = self.capture.orig_dst().take(self.client.cookie, peer);
        assert_eq!(taken, Some(canonical(to)));
        assert_eq!(self.capture.orig_dst().take(self.client.cookie, peer), None, "served twice");
        assert_eq!(client.peer_addr().unwrap(), to, "getpeername");
    }
}

#[test]
fn ipv4_is_captured() {
    let s = setup();
    let app = s.server.app();
    let stream = s.client.connect(app.v4);
    s.assert_captured(&stream, app.v4);
    assert!(nobody_waits(&app.listener));
    assert_eq!(s.capture.counters(s.client.cookie).unwrap().captured_out, 1);
}

#[test]
fn ipv6_is_captured() {
    let s = setup();
    let app = s.server.app();
    let stream = s.client.connect(app.v6);
    s.assert_captured(&stream, app.v6);
    assert!(nobody_waits(&app.listener));
}

#[test]
fn ipv4_from_an_ipv6_socket_is_captured() {
    let s = setup();
    let app = s.server.app();
    let std::net::IpAddr::V4(v4) = s.server.v4 else { unreachable!() };
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), app.port);
    let stream = connect(s.client.socket(Domain::IPV6), mapped).unwrap();
    s.assert_captured(&stream, mapped);
}

#[test]
fn data_sent_while_connecting_is_no_way_around() {
    let s = setup();
    let to: SocketAddr = "203.0.113.9:81".parse().unwrap();
    let socket = s.client.socket(Domain::IPV4);
    // TCP Fast Open connects without a call to connect.
    socket.send_to_with_flags(b"ping", &to.into(), libc::MSG_FASTOPEN).unwrap();
    let (mut accepted, peer) = accept(&s.proxy.out4);
    let mut buffer = [0; 4];
    std::io::Read::read_exact(&mut accepted, &mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    assert_eq!(s.capture.orig_dst().take(s.client.cookie, peer), Some(to));
}

#[test]
fn multipath_tcp_is_captured() {
    let s = setup();
    let to: SocketAddr = "203.0.113.9:81".parse().unwrap();
    let mptcp = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    // A kernel without it has nothing to get around with.
    let Ok(socket) = s.client.run(mptcp) else { return };
    let stream = connect(socket, to).unwrap();
    let (accepted, peer) = accept(&s.proxy.out4);
    assert_joined(&stream, &accepted);
    assert_eq!(s.capture.orig_dst().take(s.client.cookie, peer), Some(to));
}

#[test]
fn a_destination_that_does_not_exist_is_captured_too() {
    let s = setup();
    for to in ["203.0.113.9:81", "[2001:db8::9]:81"] {
        let to = to.parse().unwrap();
        let stream = s.client.connect(to);
        s.assert_captured(&stream, to);
    }
}

#[test]
fn a_bound_source_address_and_port_are_kept() {
    let s = setup();
    let socket = s.client.socket(Domain::IPV4);
    socket.bind(&SocketAddr::new(s.client.v4, 0).into()).unwrap();
    let bound = socket.local_addr().unwrap().as_socket().unwrap();
    let to = "203.0.113.9:81".parse().unwrap();
    let stream = connect(socket, to).unwrap();
    assert_eq!(stream.local_addr().unwrap(), bound);
    s.assert_captured(&stream, to);
}

#[test]
fn other_namespaces_are_left_alone() {
    let s = setup();
    let app = s.client.listen("0.0.0.0:0");
    // The server's pod is in the same cgroup, under the same programs, but not enrolled. (Its connection is captured
    // by the client's pod: inbound.)
    let to = SocketAddr::new(s.client.v4, app.local_addr().unwrap().port());
    let stream = s.server.connect(to);
    let (accepted, _) = accept(&s.proxy.in4);
    assert_joined(&stream, &accepted);
    assert_eq!(stream.peer_addr().unwrap(), to);
}

#[test]
fn the_pod_talks_to_itself_directly() {
    let s = setup();
    let app = s.client.app();
    let loopback4 = format!("127.0.0.1:{}", app.port).parse().unwrap();
    let loopback6 = format!("[::1]:{}", app.port).parse().unwrap();
    let unspecified = format!("0.0.0.0:{}", app.port).parse().unwrap();
    for to in [loopback4, loopback6, unspecified, app.v4, app.v6] {
        let stream = s.client.connect(to);
        let (accepted, _) = app.accept();
        assert_joined(&stream, &accepted);
    }
    let counters = s.capture.counters(s.client.cookie).unwrap();
    assert_eq!(counters, culvert_bpf::PodCounters::default());
}

#[test]
fn outbound_connections_can_be_left_alone_even_by_a_strict_pod() {
    let mut s = setup();
    let app = s.server.app();
    s.capture.enrol(&PodSpec { outbound_port: 0, ..s.client.spec(&s.proxy, true) }).unwrap();
    let stream = s.client.connect(app.v4);
    let (accepted, _) = app.accept();
    assert_joined(&stream, &accepted);
    assert!(nobody_waits(&s.proxy.out4));
}

#[test]
fn the_proxy_dials_out_directly() {
    let s = setup();
    let app = s.server.app();
    for to in [app.v4, app.v6] {
        let socket = s.client.socket(Domain::for_address(to));
        socket.set_mark(PROXY_MARK | 0x7000).unwrap();
        let stream = connect(socket, to).unwrap();
        let (accepted, peer) = app.accept();
        assert_joined(&stream, &accepted);
        assert_eq!(peer.ip(), if to.is_ipv4() { s.client.v4 } else { s.client.v6 });
    }
    assert_eq!(s.capture.counters(s.client.cookie).unwrap().bypassed_out_marked, 2);
}

#[test]
fn exclusions_pass_by_and_can_be_taken_back() {
    let mut s = setup();
    let (one, two) = (s.server.app(), s.server.app());
    let to = [one.v4, one.v6, two.v4, two.v6];

    s.capture.set_exclusions(&[], &[one.port], &[]).unwrap();
    let direct = [s.client.connect(to[0]), s.client.connect(to[1])];
    for stream in &direct {
        assert_joined(stream, &one.accept().0);
    }
    for to in &to[2..] {
        s.assert_captured(&s.client.connect(*to), *to);
    }

    let server4 = format!("{}/32", s.server.v4).parse().unwrap();
    s.capture.set_exclusions(&[server4, "fd77::/96".parse().unwrap()], &[], &[]).unwrap();
    for to in [two.v4, two.v6] {
        assert_joined(&s.client.connect(to), &two.accept().0);
    }
    let elsewhere = "10.77.0.200:80".parse().unwrap();
    s.assert_captured(&s.client.connect(elsewhere), elsewhere);
    assert_eq!(s.capture.counters(s.client.cookie).unwrap().bypassed_out_excluded, 4);

    s.capture.set_exclusions(&[], &[], &[]).unwrap();
    for to in to {
        s.assert_captured(&s.client.connect(to), to);
    }
}

#[test]
fn everything_ipv4_can_be_excluded_without_ipv6() {
    let mut s = setup();
    let app = s.server.app();
    s.capture.set_exclusions(&["0.0.0.0/0".parse().unwrap()], &[], &[]).unwrap();
    assert_joined(&s.client.connect(app.v4), &app.accept().0);
    s.assert_captured(&s.client.connect(app.v6), app.v6);
}

#[test]
fn who_dials_the_listener_itself_has_no_destination() {
    let s = setup();
    // A record that nobody took, under the tuple that the direct dial is going to use.
    let socket = s.client.socket(Domain::IPV4);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let source = socket.local_addr().unwrap().as_socket().unwrap();
    let captured = connect(socket, "203.0.113.9:81".parse().unwrap()).unwrap();
    let (accepted, _) = accept(&s.proxy.out4);
    support::abort(captured);
    support::abort(accepted);

    let socket = s.client.socket(Domain::IPV4);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&source.into()).unwrap();
    let listener = s.proxy.out4.local_addr().unwrap();
    let _direct = connect(socket, listener).unwrap();
    let (_accepted, peer) = accept(&s.proxy.out4);
    assert_eq!(peer, source);
    assert_eq!(s.capture.orig_dst().take(s.client.cookie, peer), None);

    let _direct6 = s.client.connect(s.proxy.out6.local_addr().unwrap());
    let (_accepted, peer) = accept(&s.proxy.out6);
    assert_eq!(s.capture.orig_dst().take(s.client.cookie, peer), None);
}

#[test]
fn two_pods_with_the_same_tuple_do_not_mix() {
    let mut s = setup();
    let other = s.world.pod();
    let other_proxy = other.proxy();
    s.capture.enrol(&other.spec(&other_proxy, false)).unwrap();

    // Same source address and port, to the same listener address (but for its port) in both.
    let source: SocketAddr = "127.0.0.1:40404".parse().unwrap();
    let mut streams = Vec::new();
    for (pod, to) in [(&s.client, "203.0.113.1:81"), (&other, "203.0.113.2:82")] {
        let socket = pod.socket(Domain::IPV4);
        socket.set_reuse_address(true).unwrap();
        socket.bind(&source.into()).unwrap();
        streams.push(connect(socket, to.parse().unwrap()).unwrap());
    }
    let table = s.capture.orig_dst();
    for (pod, proxy, to) in
        [(&other, &other_proxy, "203.0.113.2:82"), (&s.client, &s.proxy, "203.0.113.1:81")]
    {
        let (_, peer) = accept(&proxy.out4);
        assert_eq!(peer, source);
        assert_eq!(table.take(pod.cookie, peer), Some(to.parse().unwrap()));
    }
    assert_eq!(streams[0].peer_addr().unwrap(), "203.0.113.1:81".parse().unwrap());
    assert_eq!(streams[1].peer_addr().unwrap(), "203.0.113.2:82".parse().unwrap());
}

#[test]
fn a_client_that_is_gone_before_the_accept_keeps_its_record() {
    let s = setup();
    let to: SocketAddr = "203.0.113.9:81".parse().unwrap();
    let mut stream = s.client.connect(to);
    std::io::Write::write_all(&mut stream, b"fire and forget").unwrap();
    drop(stream);
    let (mut accepted, peer) = accept(&s.proxy.out4);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut accepted, &mut text).unwrap();
    assert_eq!(text, "fire and forget");
    assert_eq!(s.capture.orig_dst().take(s.client.cookie, peer), Some(to));
}

#[test]
fn a_socket_used_again_forgets_its_first_destination() {
    let mut s = setup();
    let proxy = s.proxy;
    // Strict, so that the first connect is turned to a listener that is not there, and fails.
    s.capture.enrol(&s.client.spec(&proxy, true)).unwrap();
    close((proxy.out4, proxy.out6));
    let app = s.client.app();
    let socket = s.client.socket(Domain::IPV4);
    let refused = socket.connect(&"203.0.113.9:81".parse::<SocketAddr>().unwrap().into()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let to: SocketAddr = format!("127.0.0.1:{}", app.port).parse().unwrap();
    let stream = connect(socket, to).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), to);
    assert_joined(&stream, &app.accept().0);
}

#[test]
fn udp_is_left_alone() {
    let s = setup();
    let server = s.server.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let to = SocketAddr::new(s.server.v4, server.local_addr().unwrap().port());
    let client = s.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    server.set_read_timeout(Some(support::HANG_GUARD)).unwrap();
    client.connect(to).unwrap();
    client.send(b"ping").unwrap();
    let mut buffer = [0; 8];
    let (len, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], client.peer_addr().unwrap()), (&b"ping"[..], to));
}

#[test]
fn a_socket_tied_to_a_device_cannot_get_around_a_strict_pod() {
    let mut s = setup();
    let app = s.server.app();
    let tied = || {
        let socket = s.client.socket(Domain::IPV4);
        SockRef::from(&socket).bind_device(Some(b"eth0")).unwrap();
        connect(socket, app.v4)
    };
    assert_joined(&tied().unwrap(), &app.accept().0);
    s.capture.enrol(&s.client.spec(&s.proxy, true)).unwrap();
    assert_eq!(tied().unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    let counters = s.capture.counters(s.client.cookie).unwrap();
    assert_eq!((counters.bypassed_out_excluded, counters.refused_out), (1, 1));
}

#[test]
fn a_thousand_connections_keep_their_own_destinations() {
    let s = setup();
    let table = s.capture.orig_dst();
    let (threads, each) = (4_u8, 250_u8);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let client = &s.client;
            scope.spawn(move || {
                client.run(|| {
                    for n in 0..each {
                        // The client says where it meant to go.
                        let to = SocketAddr::from(([203, 0, 113, n], 1000 + u16::from(thread)));
                        let mut stream = TcpStream::connect(to).unwrap();
                        std::io::Write::write_all(&mut stream, to.to_string().as_bytes()).unwrap();
                    }
                });
            });
        }
        for _ in 0..u16::from(threads) * u16::from(each) {
            let (mut accepted, peer) = accept(&s.proxy.out4);
            let mut said = String::new();
            std::io::Read::read_to_string(&mut accepted, &mut said).unwrap();
            assert_eq!(table.take(s.client.cookie, peer), Some(said.parse().unwrap()));
        }
    });
    let captured = s.capture.counters(s.client.cookie).unwrap().captured_out;
    assert_eq!(captured, u64::from(threads) * u64::from(each));
}
