//! What happens while no listener is there, and that it is counted.

mod support;

use std::{io::ErrorKind, net::SocketAddr, sync::Mutex};

use culvert_bpf::{Capture, PodCounters};
use support::{Pod, Proxy, World, accept, assert_joined, close, nobody_waits};

/// A captured pod, and one beyond capture.
fn setup(strict: bool) -> (World, Capture, Pod, Proxy, Pod) {
    let mut world = World::new();
    let (pod, other) = (world.pod(), world.pod());
    let proxy = pod.proxy();
    let mut capture = world.capture();
    capture.enrol(&pod.spec(&proxy, strict)).unwrap();
    (world, capture, pod, proxy, other)
}

#[test]
fn a_permissive_pod_is_connected_directly() {
    let (_world, capture, pod, proxy, other) = setup(false);
    let (own, theirs) = (pod.app(), other.app());
    close(proxy);
    for to in [theirs.v4, theirs.v6] {
        let stream = pod.connect(to);
        assert_joined(&stream, &theirs.accept().0);
        assert_eq!(stream.peer_addr().unwrap(), to);
    }
    for to in [own.v4, own.v6] {
        assert_joined(&other.connect(to), &own.accept().0);
    }
    let expected =
        PodCounters { bypassed_out_no_listener: 2, bypassed_in_no_listener: 2, ..PodCounters::default() };
    assert_eq!(capture.counters(pod.cookie).unwrap(), expected);
}

#[test]
fn a_strict_pod_is_refused() {
    let (_world, capture, pod, proxy, other) = setup(true);
    let (own, theirs) = (pod.app(), other.app());
    close(proxy);
    for to in [theirs.v4, theirs.v6] {
        assert_eq!(pod.try_connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    for to in [own.v4, own.v6] {
        assert_eq!(other.try_connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(nobody_waits(&own.listener) && nobody_waits(&theirs.listener));
    let expected = PodCounters { refused_out: 2, refused_in: 2, ..PodCounters::default() };
    assert_eq!(capture.counters(pod.cookie).unwrap(), expected);
}

#[test]
fn each_family_is_decided_by_its_own_listener() {
    let (_world, capture, pod, proxy, other) = setup(false);
    let theirs = other.app();
    let Proxy { out4, out6, .. } = proxy;
    close(out6);
    assert_joined(&pod.connect(theirs.v6), &theirs.accept().0);
    let stream = pod.connect(theirs.v4);
    let (accepted, peer) = accept(&out4);
    assert_joined(&stream, &accepted);
    assert_eq!(capture.orig_dst().take(pod.cookie, peer), Some(theirs.v4));
}

#[test]
fn a_listener_that_comes_back_takes_over_again() {
    let (_world, mut capture, pod, proxy, other) = setup(false);
    let (own, theirs) = (pod.app(), other.app());
    let ports = (proxy.outbound_port, proxy.inbound_port);
    close(proxy);
    assert_joined(&pod.connect(theirs.v4), &theirs.accept().0);

    // Outbound needs no more than the listener; inbound is told which socket it is.
    let out4 = pod.listen(&format!("127.0.0.1:{}", ports.0));
    let to: SocketAddr = theirs.v4;
    let stream = pod.connect(to);
    let (accepted, peer) = accept(&out4);
    assert_joined(&stream, &accepted);
    assert_eq!(capture.orig_dst().take(pod.cookie, peer), Some(to));
    assert_joined(&other.connect(own.v4), &own.accept().0);

    let proxy = pod.proxy();
    capture.enrol(&pod.spec(&proxy, false)).unwrap();
    assert_joined(&other.connect(own.v4), &accept(&proxy.in4).0);
    assert_joined(&pod.connect(theirs.v6), &accept(&proxy.out6).0);
    // Counted since the first enrolment.
    let counters = capture.counters(pod.cookie).unwrap();
    assert_eq!((counters.captured_out, counters.bypassed_out_no_listener), (2, 1));
}

#[test]
fn a_refused_connect_leaves_no_record() {
    let (_world, capture, pod, proxy, _other) = setup(true);
    let port = proxy.outbound_port;
    close(proxy);
    let source: SocketAddr = "127.0.0.1:40405".parse().unwrap();
    let bound = || {
        let socket = pod.socket(socket2::Domain::IPV4);
        socket.set_reuse_address(true).unwrap();
        socket.bind(&source.into()).unwrap();
        socket
    };
    let to = "203.0.113.9:81".parse().unwrap();
    assert_eq!(support::connect(bound(), to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Nothing cleans up but the kernel's own report of the failure.
    assert_eq!(capture.orig_dst().take(pod.cookie, source), None);
    let out4 = pod.listen(&format!("127.0.0.1:{port}"));
    let _stream = support::connect(bound(), to).unwrap();
    let (_, peer) = accept(&out4);
    assert_eq!(capture.orig_dst().take(pod.cookie, peer), Some(to));
}

/// Keeps what is logged in this process.
struct Collector(Mutex<Vec<String>>);

static LOG: Collector = Collector(Mutex::new(Vec::new()));

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {} {}", record.level(), record.target(), record.args());
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

#[test]
fn what_the_programs_say_is_logged_and_not_too_often() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let (_world, mut capture, pod, _proxy, _other) = setup(true);
    let refused = || {
        let socket = pod.socket(socket2::Domain::IPV4);
        socket.bind_device(Some(b"lo")).unwrap();
        let error = support::connect(socket, "203.0.113.9:81".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    };
    let mut said = |about: &str| {
        capture.drain_log();
        let lines = LOG.0.lock().unwrap();
        lines.iter().filter(|line| line.contains(about)).cloned().collect::<Vec<_>>()
    };
    let own = format!("namespace {}: connect to [::ffff:203.0.113.9]:81 refused: its socket", pod.cookie);
    assert_eq!(said(&own), Vec::<String>::new());
    refused();
    let first = said(&own);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(first[0].starts_with("WARN culvert_bpf::outbound "), "{first:?}");
    // Far more than the share of all processors for the second or two that this takes.
    for _ in 0..2000 {
        refused();
    }
    let many = said(&own).len();
    assert!(many < 1000, "{many} of 2001 messages were logged");
    // Those that were not are told of as well.
    let told = |line: &String| line.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap();
    let left_out: usize = said(" messages of the eBPF programs were left out").iter().map(told).sum();
    assert_eq!(many + left_out, 2001);
}
