//! Who accepts what comes to a pod.

mod support;

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use culvert_bpf::{
    Capture, InboundListener, NetnsState, PROXY_MARK, PodCounters, PodSpec, TRANSPARENT_MARK,
    TRANSPARENT_PORTS, prepare_netns, restore_netns,
};
use socket2::{Domain, SockRef, Socket, Type};
use support::{App, Pod, Proxy, World, abort, accept, assert_joined, canonical, connect, ip, nobody_waits};

/// A pod that is captured and serves, and one that dials it.
struct Setup {
    _world: World,
    capture: Capture,
    server: Pod,
    proxy: Proxy,
    client: Pod,
}

fn setup() -> Setup {
    let mut world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let proxy = server.proxy();
    let mut capture = world.capture();
    capture.enrol(&server.spec(&proxy, true)).unwrap();
    Setup { _world: world, capture, server, proxy, client }
}

impl Setup {
    fn counters(&self) -> PodCounters {
        self.capture.counters(self.server.cookie).unwrap()
    }
}

#[test]
fn both_families_reach_the_listener_with_their_addresses() {
    let s = setup();
    let app = s.server.app();
    for (to, source, listener) in [(app.v4, s.client.v4, &s.proxy.in4), (app.v6, s.client.v6, &s.proxy.in6)] {
        let stream = s.client.connect(to);
        let (accepted, peer) = accept(listener);
        assert_joined(&stream, &accepted);
        assert_eq!(peer, stream.local_addr().unwrap());
        assert_eq!(peer.ip(), source);
        assert_eq!(accepted.local_addr().unwrap(), to, "getsockname is the original destination");
    }
    assert!(nobody_waits(&app.listener));
    assert_eq!(s.counters(), PodCounters { captured_in: 2, ..PodCounters::default() });
}

#[test]
fn accepted_sockets_are_plain_tcp() {
    // The listener is in a sockmap, whose members some kernels give a wrong FIONREAD; what it accepts must not be.
    let s = setup();
    let mut stream = s.client.connect(SocketAddr::new(s.server.v4, 80));
    let (accepted, _) = accept(&s.proxy.in4);
    std::io::Write::write_all(&mut stream, b"12345").unwrap();
    let mut buffer = [0; 5];
    assert_eq!(accepted.peek(&mut buffer[..1]).unwrap(), 1);
    assert_eq!(rustix::io::ioctl_fionread(&accepted).unwrap(), 5);
}

#[test]
fn ports_where_nobody_listens_are_captured_too() {
    let s = setup();
    let to = SocketAddr::new(s.server.v4, 7);
    let stream = s.client.connect(to);
    let (accepted, _) = accept(&s.proxy.in4);
    assert_joined(&stream, &accepted);
    assert_eq!(accepted.local_addr().unwrap(), to);
}

#[test]
fn one_dual_stack_listener_serves_both_families() {
    let mut s = setup();
    let dual = s.server.listen("[::]:0");
    let port = dual.local_addr().unwrap().port();
    let inbound_listener = InboundListener { v4: None, v6: Some(dual.as_fd()) };
    let spec = s.server.spec(&s.proxy, true);
    s.capture.enrol(&PodSpec { inbound_port: Some(port), inbound_listener, ..spec }).unwrap();
    let app = s.server.app();
    for to in [app.v4, app.v6] {
        let stream = s.client.connect(to);
        let (accepted, _) = accept(&dual);
        assert_joined(&stream, &accepted);
        assert_eq!(canonical(accepted.local_addr().unwrap()), to);
    }
}

#[test]
fn a_reuseport_group_shares_the_connections() {
    let mut s = setup();
    let group: Vec<Socket> = s.server.run(|| {
        let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let member = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(64).unwrap();
            socket.set_nonblocking(true).unwrap();
            address = socket.local_addr().unwrap().as_socket().unwrap();
            socket
        };
        (0..4).map(member).collect()
    });
    let port = group[0].local_addr().unwrap().as_socket().unwrap().port();
    let inbound_listener = InboundListener { v4: Some(group[2].as_fd()), v6: None };
    let spec = s.server.spec(&s.proxy, true);
    s.capture.enrol(&PodSpec { inbound_port: Some(port), inbound_listener, ..spec }).unwrap();
    let to = SocketAddr::new(s.server.v4, 80);
    let streams: Vec<_> = (0..64).map(|_| s.client.connect(to)).collect();
    let accepted: Vec<usize> =
        group.iter().map(|member| std::iter::from_fn(|| member.accept().ok()).count()).collect();
    assert_eq!(accepted.iter().sum::<usize>(), streams.len());
    // 64 connections all on one of four members: 4^-63.
    assert!(accepted.iter().filter(|n| **n > 0).count() > 1, "{accepted:?}");
}

#[test]
fn excluded_ports_pass_by() {
    let mut s = setup();
    let (open, captured) = (s.server.app(), s.server.app());
    s.capture.set_exclusions(&[], &[captured.port], &[open.port]).unwrap();
    for to in [open.v4, open.v6] {
        assert_joined(&s.client.connect(to), &open.accept().0);
    }
    let stream = s.client.connect(captured.v4);
    assert_joined(&stream, &accept(&s.proxy.in4).0);
    assert_eq!(
        s.counters(),
        PodCounters { captured_in: 1, bypassed_in_excluded: 2, ..PodCounters::default() }
    );
}

#[test]
fn what_the_pod_sends_to_itself_is_not_captured() {
    let s = setup();
    let app = s.server.app();
    ip(&format!("-n {} addr add 10.77.1.9/32 dev eth0", s.server.name));
    let loopback = SocketAddr::new("127.0.0.1".parse().unwrap(), app.port);
    for to in [app.v4, app.v6, loopback] {
        assert_joined(&s.server.connect(to), &app.accept().0);
    }
    // From one of its addresses to another; the second is not known to be the pod's.
    let socket = s.server.socket(Domain::IPV4);
    socket.bind(&SocketAddr::new(s.server.v4, 0).into()).unwrap();
    socket.set_mark(PROXY_MARK).unwrap();
    let stream = connect(socket, SocketAddr::new("10.77.1.9".parse().unwrap(), app.port)).unwrap();
    assert_joined(&stream, &app.accept().0);
    assert_eq!(s.counters(), PodCounters { bypassed_out_marked: 1, ..PodCounters::default() });
}

#[test]
fn the_listener_cannot_be_dialled_from_outside() {
    let s = setup();
    for port in [s.proxy.inbound_port, s.proxy.outbound_port] {
        let refused = s.client.try_connect(SocketAddr::new(s.server.v4, port)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert!(nobody_waits(&s.proxy.in4) && nobody_waits(&s.proxy.out4));
}

#[test]
fn without_an_inbound_port_nothing_inbound_changes() {
    let mut s = setup();
    let app = s.server.app();
    let spec = s.server.spec(&s.proxy, true);
    let outbound_only =
        PodSpec { inbound_port: None, inbound_listener: InboundListener::default(), ..spec.clone() };
    s.capture.enrol(&outbound_only).unwrap();
    assert_joined(&s.client.connect(app.v4), &app.accept().0);
    s.capture.enrol(&spec).unwrap();
    assert_joined(&s.client.connect(app.v4), &accept(&s.proxy.in4).0);
}

/// A socket of the proxy in the pod, speaking with a foreign address.
fn transparent(pod: &Pod, source: SocketAddr) -> Socket {
    let socket = pod.socket(Domain::for_address(source));
    match source {
        SocketAddr::V4(_) => SockRef::from(&socket).set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => set_transparent_v6(&socket),
    }
    socket.set_mark(TRANSPARENT_MARK).unwrap();
    let mut ports = TRANSPARENT_PORTS.0..=TRANSPARENT_PORTS.1;
    let bound = ports.any(|port| socket.bind(&SocketAddr::new(source.ip(), port).into()).is_ok());
    assert!(bound, "no port is free");
    socket
}

fn set_transparent_v6(socket: &Socket) {
    let on: libc::c_int = 1;
    let (level, name, len) = (libc::SOL_IPV6, libc::IPV6_TRANSPARENT, size_of_val(&on) as libc::socklen_t);
    // SAFETY: passes a pointer to an integer that outlives the call, with its size.
    let ret = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) };
    assert_eq!(ret, 0, "{}", std::io::Error::last_os_error());
}

impl Setup {
    /// Client to proxy, captured; proxy to application, with the client's address.
    fn assert_source_kept(&self, app: &App, to: SocketAddr) {
        let client = self.client.connect(to);
        let (downstream, peer) = accept(if to.is_ipv4() { &self.proxy.in4 } else { &self.proxy.in6 });
        let upstream = connect(transparent(&self.server, peer), to).unwrap();
        let (served, seen) = app.accept();
        assert_eq!(seen.ip(), peer.ip(), "the application sees the client");
        assert!((TRANSPARENT_PORTS.0..=TRANSPARENT_PORTS.1).contains(&seen.port()), "{seen}");
        assert_joined(&upstream, &served);
        assert_joined(&client, &downstream);
    }
}

#[test]
fn the_application_sees_the_client() {
    let s = setup();
    let app = s.server.app();
    prepare_netns(s.server.netns.as_fd()).unwrap();
    for to in [app.v4, app.v6] {
        s.assert_source_kept(&app, to);
    }
    assert_eq!(
        s.counters(),
        PodCounters {
            captured_in: 2,
            bypassed_in_proxy: 2,
            bypassed_out_marked: 0,
            ..PodCounters::default()
        }
    );
}

#[test]
fn the_application_sees_the_client_under_strict_reverse_path_filtering() {
    let s = setup();
    let app = s.server.app();
    for device in ["all", "lo", "eth0"] {
        let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
        s.server.run(|| std::fs::write(path, "1").unwrap());
    }
    prepare_netns(s.server.netns.as_fd()).unwrap();
    for to in [app.v4, app.v6] {
        s.assert_source_kept(&app, to);
    }
}

#[test]
fn the_way_around_is_closed_with_the_connection() {
    let mut s = setup();
    let app = s.server.app();
    prepare_netns(s.server.netns.as_fd()).unwrap();
    for removed_meanwhile in [false, true] {
        let socket = transparent(&s.server, SocketAddr::new(s.client.v4, 0));
        let source = socket.local_addr().unwrap().as_socket().unwrap();
        let upstream = connect(socket, app.v4).unwrap();
        let (served, _) = app.accept();
        if removed_meanwhile {
            s.capture.remove(s.server.cookie).unwrap();
        }
        abort(upstream);
        abort(served);
        s.capture.enrol(&s.server.spec(&s.proxy, true)).unwrap();

        // The client comes from the very port that the proxy spoke from.
        let socket = s.client.socket(Domain::IPV4);
        socket.bind(&source.into()).unwrap();
        let stream = connect(socket, app.v4).unwrap();
        let (accepted, _) = accept(&s.proxy.in4);
        assert_joined(&stream, &accepted);
        assert!(nobody_waits(&app.listener));
        abort(stream);
        abort(accepted);
    }
}

#[test]
fn an_application_on_loopback_alone_sees_the_client_too() {
    let s = setup();
    prepare_netns(s.server.netns.as_fd()).unwrap();
    for (loopback, own, listener) in
        [("127.0.0.1:0", s.server.v4, &s.proxy.in4), ("[::1]:0", s.server.v6, &s.proxy.in6)]
    {
        let app = s.server.listen(loopback);
        let address = app.local_addr().unwrap();
        let client = s.client.connect(SocketAddr::new(own, address.port()));
        let (downstream, peer) = accept(listener);
        let upstream = connect(transparent(&s.server, peer), address).unwrap();
        let (served, seen) = accept(&app);
        assert_eq!(seen.ip(), peer.ip());
        assert_joined(&upstream, &served);
        assert_joined(&client, &downstream);
    }
}

#[test]
fn ordinary_proxy_sockets_leave_a_prepared_pod() {
    let s = setup();
    let app = s.client.app();
    prepare_netns(s.server.netns.as_fd()).unwrap();
    for to in [app.v4, app.v6] {
        let socket = s.server.socket(Domain::for_address(to));
        socket.set_mark(PROXY_MARK).unwrap();
        assert_joined(&connect(socket, to).unwrap(), &app.accept().0);
    }
}

#[test]
fn an_unprepared_pod_cannot_answer_a_foreign_address() {
    let s = setup();
    let app = s.server.app();
    let socket = transparent(&s.server, SocketAddr::new(s.client.v4, 0));
    socket.set_nonblocking(true).unwrap();
    let started = socket.connect(&app.v4.into()).unwrap_err();
    assert_eq!(started.raw_os_error(), Some(libc::EINPROGRESS));
    // The answer has gone to the client, which knows of no such connection.
    app.listener.set_nonblocking(true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(app.listener.accept().is_err());
}

#[test]
fn what_was_prepared_is_restored_without_traces() {
    let mut world = World::new();
    let pod = world.pod();
    let look = || {
        let of = |what: &str| ip(&format!("-n {} {what}", pod.name));
        let accept = pod.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept").unwrap());
        [of("rule"), of("-6 rule"), of("route show table all"), of("-6 route show table all"), accept]
    };
    let before = look();
    let netns = pod.netns.as_fd();
    let state = prepare_netns(netns).unwrap();
    assert_eq!(state, NetnsState { fwmark_accept: false });
    let prepared = look();
    assert!(prepared[0].contains("fwmark 0x1539/0x1fff lookup 100"), "{}", prepared[0]);
    assert!(prepared[1].contains("fwmark 0x1539/0x1fff lookup 100"), "{}", prepared[1]);
    assert!(prepared[2].contains("local default dev lo table 100"), "{}", prepared[2]);
    assert!(prepared[3].contains("local default dev lo table 100"), "{}", prepared[3]);
    assert_eq!(prepared[4], "1\n");

    assert_eq!(prepare_netns(netns).unwrap(), NetnsState { fwmark_accept: true });
    assert_eq!(look(), prepared, "twice is once");
    restore_netns(netns, state).unwrap();
    assert_eq!(look(), before);
    restore_netns(netns, state).unwrap();
    assert_eq!(look(), before);
}
