use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use super::*;
use crate::capture::{
    InstanceLock, Target, call_or_repair, clear_leftovers, repair_offline, state_dir,
    testing::{TestDir, TestNetns},
    upstream_socket,
};

/// Hang guard only.
const PATIENCE: Duration = Duration::from_secs(20);
const LISTENERS: [(&str, TrafficDirection); 2] =
    [("out", TrafficDirection::Outbound), ("in", TrafficDirection::Inbound)];

/// Workers that do nothing by themselves: the test accepts from their listeners.
#[derive(Clone)]
struct FakeWorkers {
    count: usize,
    state: Arc<Mutex<FakeState>>,
}

#[derive(Default)]
struct FakeState {
    listeners: Vec<(usize, InPodListener)>,
    events: Vec<String>,
    /// Looked at whenever a listener comes or goes.
    probe: Option<Box<dyn Fn() -> String + Send>>,
}

impl FakeState {
    fn close(&mut self, is_meant: impl Fn(&InPodListener) -> bool) {
        for (_, listener) in self.listeners.extract_if(.., |(_, listener)| is_meant(listener)) {
            // Closing would be enough, but for the children of other tests that have a copy until their exec.
            rustix::net::shutdown(&listener.fd, rustix::net::Shutdown::Both).unwrap();
        }
    }

    fn note(&mut self, event: String) {
        let seen = self.probe.as_ref().map(|probe| format!(" ({})", probe())).unwrap_or_default();
        self.events.push(event + &seen);
    }
}

impl WorkerPort for FakeWorkers {
    fn workers(&self) -> usize {
        self.count
    }

    fn add_listener(&self, worker: usize, listener: InPodListener) {
        let mut state = self.state.lock().unwrap();
        let address = local(&listener.fd);
        state.note(format!("add {worker} {} {address} {}", listener.direction, listener.listener_name));
        state.listeners.push((worker, listener));
    }

    fn retarget(&self, pod: u32, direction: Direction, listener_name: Arc<str>) {
        self.state.lock().unwrap().note(format!("retarget {pod} {direction} {listener_name}"));
    }

    fn remove_listeners(&self, pod: u32) {
        let mut state = self.state.lock().unwrap();
        state.note(format!("remove {pod}"));
        state.close(|listener| listener.pod.id == pod);
    }
}

/// What a worker gets out of a captured connection.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    original: Option<SocketAddr>,
    pod: Arc<PodHandle>,
}

impl FakeWorkers {
    fn new(count: usize) -> Self {
        Self { count, state: Arc::default() }
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().events)
    }

    fn accept(&self, direction: Direction) -> Accepted {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(accepted) = self.try_accept(direction) {
                return accepted;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no {direction} connection came");
    }

    fn try_accept(&self, direction: Direction) -> Option<Accepted> {
        let state = self.state.lock().unwrap();
        for (_, listener) in state.listeners.iter().filter(|(_, listener)| listener.direction == direction) {
            let socket = TcpListener::from(listener.fd.try_clone().unwrap());
            if let Ok((stream, peer)) = socket.accept() {
                let pod = Arc::clone(&listener.pod);
                let original = pod.original_dst(stream.as_fd(), peer, direction);
                return Some(Accepted { stream, peer, original, pod });
            }
        }
        None
    }
}

/// Directories, workers and mode of one culvert, which can be started again and again.
struct Site {
    _directory: TestDir,
    socket: PathBuf,
    config: CaptureConfig,
    workers: FakeWorkers,
}

impl Site {
    fn new(name: &str, mode: CaptureMode) -> Self {
        let name = format!("{name}-{mode}");
        let directory = TestDir::new(&name);
        let socket = directory.path().join("control.sock");
        let config = config(&name, &socket, mode);
        Self { _directory: directory, socket, config, workers: FakeWorkers::new(2) }
    }

    fn start(&self, pods: Vec<PodSpec>) -> CaptureManager {
        let mut manager = CaptureManager::new(self.config.clone(), Box::new(self.workers.clone())).unwrap();
        manager.set_listeners(listeners(&LISTENERS));
        manager.start(pods).unwrap();
        manager
    }

    /// All listeners close, as they do when the process dies.
    fn kill(&self, manager: CaptureManager) {
        drop(manager);
        self.workers.state.lock().unwrap().close(|_| true);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = culvert_bpf::uninstall(&self.config.pin_dir);
    }
}

fn config(name: &str, socket: &Path, mode: CaptureMode) -> CaptureConfig {
    let pin_dir = format!("/sys/fs/bpf/culvert-test-{name}-{}", std::process::id()).into();
    CaptureConfig { mode, state_dir: state_dir(socket), pin_dir, ..CaptureConfig::default() }
}

fn listeners(of: &[(&str, TrafficDirection)]) -> Vec<(Arc<str>, TrafficDirection)> {
    of.iter().map(|(name, direction)| ((*name).into(), *direction)).collect()
}

fn local(fd: &OwnedFd) -> SocketAddr {
    rustix::net::getsockname(fd).unwrap().try_into().unwrap()
}

fn spec(name: &str, netns: &TestNetns, policy: Policy) -> PodSpec {
    PodSpec { policy, ..PodSpec::new(name, netns.path()) }
}

fn connect(from: &TestNetns, to: &str) -> io::Result<TcpStream> {
    from.inside(|| TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE))
}

fn listen(netns: &TestNetns, address: &str) -> TcpListener {
    netns.inside(|| TcpListener::bind(address)).unwrap()
}

/// Rules, routes and settings: what capture may have changed in a pod.
fn traces(netns: &TestNetns) -> String {
    let commands: [&[&str]; 7] = [
        &["iptables-save"],
        &["ip6tables-save"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["sysctl", "net.ipv4.tcp_fwmark_accept"],
        &["ss", "-Htln"],
    ];
    let all: String = commands.iter().map(|command| netns.run(command)).collect();
    // Comments carry the date, and the kernel adds its own routes whenever an interface comes up.
    let is_noise =
        |line: &&str| line.starts_with('#') || line.contains("ff00::/8") || line.contains("fe80::");
    all.lines().filter(|line| !is_noise(line)).collect::<Vec<_>>().join("\n")
}

fn each_mode(test: impl Fn(CaptureMode)) {
    for mode in [CaptureMode::Ebpf, CaptureMode::Iptables] {
        test(mode);
    }
}

#[test]
fn both_directions_are_captured_with_their_original_destination() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr");
        let site = Site::new("directions", mode);
        let mut manager = site.start(Vec::new());
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        for to in ["10.77.0.2:80", "[fd77::2]:80"] {
            let stream = connect(&pod, to).unwrap();
            let accepted = site.workers.accept(Direction::Outbound);
            assert_eq!(accepted.original, Some(to.parse().unwrap()), "{mode}");
            assert_eq!(accepted.peer.port(), stream.local_addr().unwrap().port());
            if mode == CaptureMode::Ebpf {
                assert_eq!(stream.peer_addr().unwrap(), to.parse().unwrap());
            }
        }
        let mapped = connect(&pod, "[::ffff:10.77.0.2]:81").unwrap();
        let accepted = site.workers.accept(Direction::Outbound);
        assert_eq!(accepted.original, Some("10.77.0.2:81".parse().unwrap()), "{mode}");
        drop(mapped);
        for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
            let stream = connect(&peer, to).unwrap();
            let accepted = site.workers.accept(Direction::Inbound);
            assert_eq!(accepted.original, Some(to.parse().unwrap()), "{mode}");
            assert_eq!(accepted.peer.port(), stream.local_addr().unwrap().port());
        }
        let report = &manager.list()[0];
        assert_eq!(report.counters, PodCounters { captured: 5, ..PodCounters::default() }, "{mode}");
        assert_eq!((report.outbound.as_deref(), report.inbound.as_deref()), (Some("out"), Some("in")));
        let own: Vec<IpAddr> = ["10.77.0.1", "fd77::1"].map(|ip| ip.parse().unwrap()).into();
        assert!(own.iter().all(|ip| report.addresses.contains(ip)), "{:?}", report.addresses);
    });
}

#[test]
fn the_application_sees_the_client_and_the_proxy_is_not_captured() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-src");
        let site = Site::new("source", mode);
        let mut manager = site.start(Vec::new());
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        // As strict as distributions set it.
        for interface in ["all", "lo", "eth0"] {
            pod.run(&["sysctl", "-qw", &format!("net.ipv4.conf.{interface}.rp_filter=1")]);
        }
        for (address, client) in [("10.77.0.1:8080", "10.77.0.2"), ("[fd77::1]:8080", "fd77::2")] {
            let application = listen(&pod, address);
            let mut client_side = connect(&peer, address).unwrap();
            let captured = site.workers.accept(Direction::Inbound);
            let to = captured.original.unwrap();
            let source = captured.peer.ip().to_canonical();
            let upstream = upstream_socket(&captured.pod, &to, Some(source)).unwrap();
            let mut upstream = connect_blocking(upstream, to);
            let (mut served, seen) = application.accept().unwrap();
            assert_eq!(seen.ip(), client.parse::<IpAddr>().unwrap(), "{mode}");
            let (first, last) = culvert_bpf::TRANSPARENT_PORTS;
            assert!((first..=last).contains(&seen.port()), "{seen}");
            client_side.write_all(b"ping").unwrap();
            relay(&captured.stream, &mut upstream);
            relay_back(&mut served, &mut upstream);
        }
        // Outbound: made in the pod, with the pod's address, not captured again.
        let outside = listen(&peer, "10.77.0.2:80");
        let _stream = connect(&pod, "10.77.0.2:80").unwrap();
        let captured = site.workers.accept(Direction::Outbound);
        let to = captured.original.unwrap();
        let _upstream = connect_blocking(upstream_socket(&captured.pod, &to, None).unwrap(), to);
        assert_eq!(outside.accept().unwrap().1.ip(), "10.77.0.1".parse::<IpAddr>().unwrap());
        assert!(site.workers.try_accept(Direction::Outbound).is_none(), "{mode}: captured again");
        // A foreign source is for the pod's own application only: answers from elsewhere would not come back.
        let source = Some("10.77.0.9".parse().unwrap());
        let _upstream = connect_blocking(upstream_socket(&captured.pod, &to, source).unwrap(), to);
        assert_eq!(outside.accept().unwrap().1.ip(), "10.77.0.1".parse::<IpAddr>().unwrap());
        let own = "10.77.0.1:8080".parse().unwrap();
        let wrong = upstream_socket(&captured.pod, &own, Some("::1".parse().unwrap())).unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::InvalidInput);
    });
}

fn connect_blocking(socket: OwnedFd, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::from(socket);
    socket.set_nonblocking(false).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    socket.into()
}

fn relay(mut from: &TcpStream, to: &mut TcpStream) {
    from.set_nonblocking(false).unwrap();
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).unwrap();
    to.write_all(&bytes).unwrap();
}

/// The application's answer finds its way to the proxy, although it goes to the client's address.
fn relay_back(served: &mut TcpStream, upstream: &mut TcpStream) {
    let mut bytes = [0; 4];
    served.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    served.write_all(b"pong").unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    upstream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

#[test]
fn a_direction_can_be_left_alone() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-off");
        let (outside, inside) = (listen(&peer, "10.77.0.2:80"), listen(&pod, "10.77.0.1:8080"));
        let site = Site::new("off", mode);
        let mut manager = site.start(Vec::new());
        for off in [Direction::Outbound, Direction::Inbound] {
            let mut spec = spec("pod", &pod, Policy::Strict);
            match off {
                Direction::Outbound => spec.outbound = Target::Off,
                Direction::Inbound => spec.inbound = Target::Off,
            }
            manager.enrol(spec).unwrap();
            for (direction, from, to, listener) in [
                (Direction::Outbound, &pod, "10.77.0.2:80", &outside),
                (Direction::Inbound, &peer, "10.77.0.1:8080", &inside),
            ] {
                let _stream = connect(from, to).unwrap();
                if direction == off {
                    listener.accept().unwrap();
                } else {
                    assert_eq!(site.workers.accept(direction).original, Some(to.parse().unwrap()), "{mode}");
                }
            }
            manager.remove("pod").unwrap();
        }
    });
}

#[test]
fn a_listener_dialled_directly_has_no_destination() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-direct");
        let site = Site::new("direct", mode);
        let mut manager = site.start(Vec::new());
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        let mut expected = 0;
        for (from, to, direction) in [
            (&pod, "127.0.0.1:15001", Direction::Outbound),
            (&pod, "[::1]:15001", Direction::Outbound),
            (&pod, "127.0.0.1:15006", Direction::Inbound),
            (&pod, "10.77.0.1:15006", Direction::Inbound),
            (&peer, "10.77.0.1:15006", Direction::Inbound),
            (&peer, "[fd77::1]:15006", Direction::Inbound),
        ] {
            let _stream = connect(from, to).unwrap();
            assert_eq!(site.workers.accept(direction).original, None, "{mode} {to}");
            expected += 1;
        }
        assert_eq!(manager.list()[0].counters.no_original_dst, expected);
    });
}

#[test]
fn listeners_come_before_traffic_and_go_after_it() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-order");
        let served = listen(&peer, "10.77.0.2:80");
        let site = Site::new("order", mode);
        let mut manager = site.start(Vec::new());
        let inside = fs::File::open(pod.path()).unwrap();
        served.set_nonblocking(true).unwrap();
        site.workers.state.lock().unwrap().probe = Some(Box::new(move || {
            let dial = || TcpStream::connect("10.77.0.2:80");
            let _stream = culvert_ring::net::in_netns(inside.as_fd(), dial).unwrap().unwrap();
            if served.accept().is_ok() { "direct".into() } else { "captured".into() }
        }));
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        let expected = [
            "add 0 outbound 127.0.0.1:15001 out",
            "add 0 outbound [::1]:15001 out",
            "add 1 outbound 127.0.0.1:15001 out",
            "add 1 outbound [::1]:15001 out",
            "add 0 inbound [::]:15006 in",
            "add 1 inbound [::]:15006 in",
        ];
        assert_eq!(site.workers.events(), expected.map(|event| format!("{event} (direct)")));
        manager.remove("pod").unwrap();
        assert_eq!(site.workers.events(), ["remove 1 (direct)"]);
    });
}

#[test]
fn removing_a_pod_leaves_no_trace() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-trace");
        let served = listen(&peer, "10.77.0.2:80");
        let before = traces(&pod);
        let site = Site::new("trace", mode);
        let mut manager = site.start(Vec::new());
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        assert_ne!(traces(&pod), before);
        // Again, just as it is: nothing happens.
        site.workers.events();
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        assert!(site.workers.events().is_empty());
        manager.remove("pod").unwrap();
        assert_eq!(traces(&pod), before, "{mode}");
        connect(&pod, "10.77.0.2:80").unwrap();
        served.accept().unwrap();
        assert!(manager.list().is_empty());
        assert!(matches!(manager.remove("pod"), Err(CaptureError::Unknown(_))));
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        let request = Request::Remove { name: None, netns: Some(pod.path().to_owned()) };
        assert_eq!(manager.handle(request), Response::messages(vec!["pod pod: removed".to_owned()]));
        assert_eq!(fs::read_dir(site.config.state_dir.join("pods")).unwrap().count(), 0);
    });
}

#[test]
fn a_dead_proxy_means_refused_or_direct_and_the_next_one_takes_over() {
    each_mode(|mode| {
        let policies: &[Policy] =
            if mode == CaptureMode::Ebpf { &[Policy::Strict, Policy::Permissive] } else { &[Policy::Strict] };
        for policy in policies {
            let (pod, peer) = TestNetns::pair("mgr-dead");
            let (outside, inside) = (listen(&peer, "10.77.0.2:80"), listen(&pod, "10.77.0.1:8080"));
            let before = traces(&pod);
            let site = Site::new(&format!("dead-{policy}"), mode);
            let mut manager = site.start(Vec::new());
            manager.enrol(spec("pod", &pod, *policy)).unwrap();
            let cookie = manager.list()[0].netns_cookie;
            site.kill(manager);
            for (from, to, listener) in [(&pod, "10.77.0.2:80", &outside), (&peer, "10.77.0.1:8080", &inside)]
            {
                match (policy, connect(from, to)) {
                    (Policy::Permissive, Ok(_)) => drop(listener.accept().unwrap()),
                    (Policy::Strict, Err(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
                    (policy, other) => panic!("{mode} {policy} {to}: {other:?}"),
                }
            }
            // `culvert pod add` is remembered.
            let mut manager = site.start(Vec::new());
            assert_eq!(manager.list()[0].netns_cookie, cookie);
            assert_eq!(manager.list()[0].pending, None);
            let _stream = connect(&pod, "10.77.0.2:80").unwrap();
            let original = site.workers.accept(Direction::Outbound).original;
            assert_eq!(original, Some("10.77.0.2:80".parse().unwrap()));
            manager.remove("pod").unwrap();
            assert_eq!(traces(&pod), before, "{mode} {policy}");
        }
    });
}

#[test]
fn an_orderly_stop_frees_permissive_pods_and_refuses_strict_ones() {
    let (permissive, strict) = (TestNetns::pair("mgr-stop-p"), TestNetns::pair("mgr-stop-s"));
    let served = listen(&permissive.1, "10.77.0.2:80");
    let _served = listen(&strict.1, "10.77.0.2:80");
    let before = traces(&permissive.0);
    let site = Site::new("stop", CaptureMode::Ebpf);
    let mut manager = site.start(Vec::new());
    manager.enrol(spec("p", &permissive.0, Policy::Permissive)).unwrap();
    manager.enrol(spec("s", &strict.0, Policy::Strict)).unwrap();
    manager.shutdown();
    site.kill(manager);
    assert_eq!(traces(&permissive.0), before);
    connect(&permissive.0, "10.77.0.2:80").unwrap();
    served.accept().unwrap();
    let error = connect(&strict.0, "10.77.0.2:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // Both are taken over by the next start.
    let manager = site.start(Vec::new());
    let names: Vec<_> = manager.list().into_iter().map(|pod| (pod.name, pod.pending)).collect();
    assert_eq!(names, [("p".to_owned(), None), ("s".to_owned(), None)]);
    for pod in [&permissive.0, &strict.0] {
        let _stream = connect(pod, "10.77.0.2:80").unwrap();
        assert!(site.workers.accept(Direction::Outbound).original.is_some());
    }
}

#[test]
fn a_pods_file_is_followed() {
    each_mode(|mode| {
        let (a, b) = TestNetns::pair("mgr-file");
        let c = TestNetns::new("mgr-file-c");
        let before = [traces(&a), traces(&b)];
        let site = Site::new("file", mode);
        let pods = |list: &[(&str, &TestNetns)]| {
            list.iter().map(|(name, netns)| spec(name, netns, Policy::Strict)).collect::<Vec<_>>()
        };
        let names = |manager: &CaptureManager| {
            manager.list().into_iter().map(|pod| (pod.name, pod.pending)).collect::<Vec<_>>()
        };
        let captured = |list: &[&str]| list.iter().map(|name| ((*name).to_owned(), None)).collect::<Vec<_>>();
        let mut manager = site.start(pods(&[("a", &a), ("b", &b)]));
        manager.enrol(spec("c", &c, Policy::Strict)).unwrap();
        assert_eq!(names(&manager), captured(&["a", "b", "c"]));
        manager.reload(pods(&[("b", &b)]));
        assert_eq!(names(&manager), captured(&["b", "c"]));
        assert_eq!(traces(&a), before[0], "{mode}");
        // A changed pod is set up anew, in place.
        site.workers.events();
        manager.reload(vec![PodSpec {
            inbound: Target::Off,
            outbound_port: 16001,
            ..spec("b", &b, Policy::Strict)
        }]);
        let events = site.workers.events();
        assert_eq!(events.first().unwrap(), "add 0 outbound 127.0.0.1:16001 out");
        assert_eq!(events.last().unwrap(), "remove 2");
        assert_eq!(manager.list()[0].inbound, None);
        site.kill(manager);
        // The next start has another file: what is not in it is undone, what was added by command stays.
        let manager = site.start(pods(&[("a", &a)]));
        assert_eq!(names(&manager), captured(&["a", "c"]));
        assert_eq!(traces(&b), before[1], "{mode}");
    });
}

#[test]
fn changing_the_mode_clears_what_the_other_left() {
    let (pod, peer) = TestNetns::pair("mgr-mode");
    let served = listen(&peer, "10.77.0.2:80");
    let before = traces(&pod);
    let mut site = Site::new("mode", CaptureMode::Iptables);
    let mut manager = site.start(Vec::new());
    manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
    site.kill(manager);
    for mode in [CaptureMode::Ebpf, CaptureMode::Iptables, CaptureMode::Ebpf] {
        site.config.mode = mode;
        let manager = site.start(Vec::new());
        assert_eq!(manager.list()[0].mode, mode);
        let _stream = connect(&pod, "10.77.0.2:80").unwrap();
        assert!(site.workers.accept(Direction::Outbound).original.is_some(), "{mode}");
        assert_eq!(pod.run(&["iptables-save"]).contains("CULVERT"), mode == CaptureMode::Iptables);
        assert_eq!(site.config.pin_dir.exists(), mode == CaptureMode::Ebpf);
        site.kill(manager);
    }
    // Pins somewhere else: the old ones go.
    let old = std::mem::replace(
        &mut site.config.pin_dir,
        format!("/sys/fs/bpf/culvert-test-elsewhere-{}", std::process::id()).into(),
    );
    let manager = site.start(Vec::new());
    assert!(!old.exists());
    let _stream = connect(&pod, "10.77.0.2:80").unwrap();
    assert!(site.workers.accept(Direction::Outbound).original.is_some());
    site.kill(manager);
    let held = InstanceLock::take(&site.socket).unwrap();
    clear_leftovers(&site.socket);
    assert_ne!(traces(&pod), before, "pods of a living culvert are not touched");
    drop(held);
    clear_leftovers(&site.socket);
    assert_eq!(traces(&pod), before);
    site.config.mode = CaptureMode::None;
    let mut manager = site.start(Vec::new());
    connect(&pod, "10.77.0.2:80").unwrap();
    served.accept().unwrap();
    let error = manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap_err();
    assert_eq!(error.to_string(), "pod pod: capture is off (--capture none)");
}

#[test]
fn what_cannot_be_captured_is_said_and_changes_nothing() {
    each_mode(|mode| {
        let (pod, _peer) = TestNetns::pair("mgr-wrong");
        let before = traces(&pod);
        let site = Site::new("wrong", mode);
        let mut manager = site.start(Vec::new());
        let message =
            |manager: &mut CaptureManager, spec: PodSpec| manager.enrol(spec).unwrap_err().to_string();
        let good = || spec("pod", &pod, Policy::Strict);
        let unknown = PodSpec { outbound: Target::Listener("nope".into()), ..good() };
        assert_eq!(message(&mut manager, unknown), "pod pod: outbound: no listener is called \"nope\"");
        let host = PodSpec { netns: "/proc/self/ns/net".into(), ..good() };
        assert!(message(&mut manager, host).contains("the host's network namespace"));
        if mode == CaptureMode::Iptables {
            let permissive = PodSpec { policy: Policy::Permissive, ..good() };
            assert!(message(&mut manager, permissive).contains("needs --capture ebpf"));
        }
        let taken = listen(&pod, "0.0.0.0:15006");
        let error = message(&mut manager, good());
        assert!(error.starts_with("pod pod: port [::]:15006 is in use inside the pod"), "{error}");
        drop(taken);
        assert_eq!(traces(&pod), before);
        assert!(manager.list().is_empty());
        assert_eq!(site.workers.events(), Vec::<String>::new());

        manager.enrol(good()).unwrap();
        let error = message(&mut manager, spec("other", &pod, Policy::Strict));
        assert_eq!(error, "pod other: netns: this is the network namespace of pod pod");
        let changed = PodSpec { outbound_port: 16001, ..good() };
        assert!(message(&mut manager, changed).contains("enrolled already"));
    });
}

#[test]
fn listeners_that_come_later_are_used() {
    let (pod, _peer) = TestNetns::pair("mgr-later");
    let site = Site::new("later", CaptureMode::Ebpf);
    let mut manager = CaptureManager::new(site.config.clone(), Box::new(site.workers.clone())).unwrap();
    manager.start(vec![spec("pod", &pod, Policy::Strict)]).unwrap();
    let reason = manager.list()[0].pending.clone().unwrap();
    assert!(reason.contains("no listener has traffic_direction OUTBOUND"), "{reason}");
    manager.set_listeners(listeners(&LISTENERS));
    assert_eq!(manager.list()[0].pending, None);
    site.workers.events();
    manager
        .set_listeners(listeners(&[("out", TrafficDirection::Outbound), ("in2", TrafficDirection::Inbound)]));
    assert_eq!(site.workers.events(), ["retarget 1 inbound in2"]);
    manager.set_listeners(listeners(&[("in2", TrafficDirection::Inbound)]));
    assert_eq!(site.workers.events(), Vec::<String>::new(), "a pod whose listener is gone stays captured");
}

#[test]
fn a_pod_whose_namespace_is_gone_is_let_go() {
    each_mode(|mode| {
        let (by_socket, by_file) = TestNetns::pair("mgr-gone");
        let site = Site::new("gone", mode);
        let mut manager = site.start(vec![spec("file", &by_file, Policy::Strict)]);
        manager.enrol(spec("socket", &by_socket, Policy::Strict)).unwrap();
        assert!(manager.reap().is_empty());
        by_socket.delete();
        by_file.delete();
        assert_eq!(manager.reap().len(), 2);
        let listed = manager.list();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].pending.as_ref().unwrap().contains("gone"));
        assert!(manager.reap().is_empty());
        assert!(site.workers.state.lock().unwrap().listeners.is_empty());
        assert_eq!(fs::read_dir(site.config.state_dir.join("pods")).unwrap().count(), 0);
    });
}

#[test]
fn repair_puts_back_what_someone_removed() {
    each_mode(|mode| {
        let (pod, _peer) = TestNetns::pair("mgr-repair");
        let site = Site::new("repair", mode);
        let mut manager = site.start(Vec::new());
        let before = traces(&pod);
        manager.enrol(spec("pod", &pod, Policy::Strict)).unwrap();
        let captured = traces(&pod);
        match mode {
            CaptureMode::Iptables => drop(pod.run(&["iptables", "-t", "nat", "-F"])),
            _ => drop(pod.run(&["ip", "rule", "del", "priority", "32764"])),
        }
        assert_ne!(traces(&pod), captured);
        assert_eq!(manager.repair(None).unwrap(), ["pod pod: set up anew"]);
        assert_eq!(traces(&pod), captured, "{mode}");
        let _stream = connect(&pod, "10.77.0.2:80").unwrap();
        assert!(site.workers.accept(Direction::Outbound).original.is_some());
        assert!(matches!(manager.repair(Some("nope")), Err(CaptureError::Unknown(_))));
        manager.remove("pod").unwrap();
        assert_eq!(traces(&pod), before, "{mode}");
    });
}

/// Runs in a child process: a culvert that enrols a pod and waits to be killed. See
/// [`a_killed_culvert_is_cleaned_up_without_one`].
#[test]
fn child_that_is_killed() {
    let Ok(arguments) = std::env::var("CULVERT_TEST_CAPTURE_CHILD") else { return };
    let [mode, state, pins, netns] = arguments.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let mode = mode.parse().unwrap();
    let config =
        CaptureConfig { mode, state_dir: state.into(), pin_dir: pins.into(), ..CaptureConfig::default() };
    let mut manager = CaptureManager::new(config, Box::new(FakeWorkers::new(2))).unwrap();
    manager.set_listeners(listeners(&LISTENERS));
    manager.enrol(PodSpec::new("pod", netns)).unwrap();
    println!("enrolled");
    std::thread::sleep(PATIENCE);
}

fn spawn_child(site: &Site, netns: &TestNetns) -> Child {
    let CaptureConfig { mode, state_dir, pin_dir, .. } = &site.config;
    let arguments =
        format!("{mode} {} {} {}", state_dir.display(), pin_dir.display(), netns.path().display());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["manager::tests::child_that_is_killed", "--nocapture"])
        .env("CULVERT_TEST_CAPTURE_CHILD", arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    while !output.ends_with("enrolled\n") {
        assert_ne!(stdout.read(&mut byte).unwrap(), 0, "child failed: {output}");
        output.push(char::from(byte[0]));
    }
    child
}

#[test]
fn a_killed_culvert_is_cleaned_up_without_one() {
    each_mode(|mode| {
        let (pod, peer) = TestNetns::pair("mgr-kill");
        let served = listen(&peer, "10.77.0.2:80");
        let before = traces(&pod);
        let site = Site::new("kill", mode);
        for name in [None, Some("pod")] {
            let mut child = spawn_child(&site, &pod);
            child.kill().unwrap();
            child.wait().unwrap();
            let error = connect(&pod, "10.77.0.2:80").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{mode}");
            let request = Request::Repair { name: name.map(str::to_owned) };
            match call_or_repair(&site.socket, &request).unwrap() {
                Response::Ok { messages, .. } => {
                    assert!(messages[0].starts_with("pod pod: its traffic"), "{messages:?}");
                }
                Response::Error { message } => panic!("{mode}: {message}"),
            }
            assert_eq!(traces(&pod), before, "{mode}");
            connect(&pod, "10.77.0.2:80").unwrap();
            served.accept().unwrap();
        }
        assert!(repair_offline(&site.socket, Some("pod")).is_err());
        repair_offline(&site.socket, None).unwrap();
        assert!(!site.config.pin_dir.exists());
        // A pod that died with its culvert.
        let mut child = spawn_child(&site, &pod);
        child.kill().unwrap();
        child.wait().unwrap();
        pod.delete();
        let done = repair_offline(&site.socket, None).unwrap();
        assert_eq!(done[0], "pod pod: its network namespace was gone; forgotten");
        assert!(!site.config.pin_dir.exists());
    });
}
