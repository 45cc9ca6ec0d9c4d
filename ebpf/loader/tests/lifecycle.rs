//! What stays when a process goes, and what goes when it is asked to.

mod support;

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind},
    net::SocketAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use culvert_bpf::{
    Capture, CaptureConfig, Error, InboundListener, PodCounters, PodSpec, netns_addresses, netns_cookie,
    probe, uninstall,
};
use support::{HANG_GUARD, Pod, Proxy, World, accept, assert_joined, ip, nobody_waits, spawn};

/// Tells this test program to be the process that is killed.
const CHILD: &str = "CULVERT_TEST_CHILD";

/// A process that captures a pod until it is killed.
struct Culvert(Child);

impl Culvert {
    fn start(world: &World, pod: &Pod, strict: bool) -> Self {
        let config = world.config();
        let fields = [
            config.pin_dir.display().to_string(),
            config.cgroup.unwrap().display().to_string(),
            pod.name.clone(),
            strict.to_string(),
        ];
        let mut command = Command::new(env::current_exe().unwrap());
        let command = command.args(["--exact", "the_process_that_is_killed", "--nocapture"]);
        let mut child = spawn(command.env(CHILD, fields.join("\n")).stdout(Stdio::piped()));
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().map_while(Result::ok).any(|line| line.contains("captured"));
        let culvert = Self(child);
        assert!(ready, "the child did not get as far as capturing");
        culvert
    }

    /// SIGKILL, and it is gone when this returns.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Culvert {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No test by itself: it is the child of the tests that kill it, and does nothing when run among them.
#[test]
fn the_process_that_is_killed() {
    let Ok(fields) = env::var(CHILD) else { return };
    let fields: Vec<&str> = fields.split('\n').collect();
    let [pin_dir, cgroup, name, strict] = fields[..] else { panic!("{fields:?}") };
    let config = CaptureConfig { pin_dir: pin_dir.into(), cgroup: Some(cgroup.into()) };
    let netns = File::open(format!("/run/netns/{name}")).unwrap();
    let cookie = netns_cookie(netns.as_fd()).unwrap();
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0)).ip();
    let pod = Pod { name: name.into(), netns, cookie, v4: unknown, v6: unknown };
    let proxy = pod.proxy();
    let mut capture = Capture::open(config).unwrap();
    capture.enrol(&pod.spec(&proxy, strict == "true")).unwrap();
    println!("captured");
    loop {
        thread::park();
    }
}

fn two_pods(world: &mut World) -> (Pod, Pod) {
    (world.pod(), world.pod())
}

/// That connections from and to the pod end at the proxy.
fn assert_captured(capture: &Capture, pod: &Pod, proxy: &Proxy, other: &Pod) {
    let app = other.app();
    let stream = pod.connect(app.v4);
    let (accepted, peer) = accept(&proxy.out4);
    assert_joined(&stream, &accepted);
    assert_eq!(capture.orig_dst().take(pod.cookie, peer), Some(app.v4));
    let own = pod.app();
    assert_joined(&other.connect(own.v6), &accept(&proxy.in6).0);
    assert!(nobody_waits(&app.listener) && nobody_waits(&own.listener));
}

/// That connections from and to the pod end at the applications.
fn assert_direct(pod: &Pod, other: &Pod) {
    for (from, to) in [(pod, other), (other, pod)] {
        let app = to.app();
        for to in [app.v4, app.v6] {
            let stream = from.connect(to);
            assert_joined(&stream, &app.accept().0);
            assert_eq!(stream.peer_addr().unwrap(), to);
        }
    }
}

fn assert_refused(pod: &Pod, other: &Pod) {
    for (from, to) in [(pod, other), (other, pod)] {
        let app = to.app();
        for to in [app.v4, app.v6] {
            assert_eq!(from.try_connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert!(nobody_waits(&app.listener));
    }
}

fn link_ids(pin_dir: &Path) -> Vec<(PathBuf, u32)> {
    let links = fs::read_dir(pin_dir.join("links")).unwrap().map(|entry| entry.unwrap().path());
    let id = |path: &PathBuf| FdLink::from(PinnedLink::from_pin(path).unwrap()).info().unwrap().id();
    let mut ids: Vec<_> = links.map(|path| (path.clone(), id(&path))).collect();
    ids.sort();
    ids
}

#[test]
fn a_killed_process_leaves_permissive_pods_connected() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    let culvert = Culvert::start(&world, &pod, false);
    let app = other.app();
    let _captured = pod.connect(app.v4);
    assert!(nobody_waits(&app.listener));
    culvert.kill();
    assert_direct(&pod, &other);

    // The next process counts on from where the last one was.
    let mut capture = world.capture();
    let pods = capture.pods().unwrap();
    assert_eq!(
        pods.iter().map(|p| (p.name.as_str(), p.cookie)).collect::<Vec<_>>(),
        [(&*pod.name, pod.cookie)]
    );
    assert!(!pods[0].strict && pods[0].inbound_port.is_some());
    assert_eq!(pods[0].addresses, netns_addresses(pod.netns.as_fd()).unwrap());
    assert!(pods[0].addresses.starts_with(&[pod.v4, pod.v6]), "{:?}", pods[0].addresses);
    assert_direct(&pod, &other);
    let counters = capture.counters(pod.cookie).unwrap();
    assert_eq!((counters.captured_out, counters.bypassed_out_no_listener), (1, 4));
    let proxy = pod.proxy();
    capture.enrol(&pod.spec(&proxy, false)).unwrap();
    assert_captured(&capture, &pod, &proxy, &other);
}

#[test]
fn a_killed_process_leaves_strict_pods_closed() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    let culvert = Culvert::start(&world, &pod, true);
    let links = link_ids(&world.pin_dir);
    culvert.kill();
    assert_refused(&pod, &other);

    let mut capture = world.capture();
    assert_eq!(link_ids(&world.pin_dir), links, "links are updated, not made anew");
    assert_refused(&pod, &other);
    let proxy = pod.proxy();
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    assert_eq!(link_ids(&world.pin_dir), links);
    assert_captured(&capture, &pod, &proxy, &other);
}

#[test]
fn taking_over_from_a_living_process_leaves_no_gap() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    let proxy = pod.proxy();
    let mut capture = world.capture();
    capture.enrol(&pod.spec(&proxy, false)).unwrap();
    let (own, theirs) = (pod.app(), other.app());
    let done = AtomicBool::new(false);
    let count = thread::scope(|scope| {
        // Whoever dials while the programs are replaced is captured all the same.
        let dial = |from: &'static str| {
            let (pod, other, own, theirs, proxy, done) = (&pod, &other, &own, &theirs, &proxy, &done);
            move || {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let (stream, listener) = match from {
                        "inside" => (pod.connect(theirs.v4), &proxy.out4),
                        _ => (other.connect(own.v4), &proxy.in4),
                    };
                    assert_joined(&stream, &accept(listener).0);
                    count += 1;
                }
                count
            }
        };
        let (inside, outside) = (scope.spawn(dial("inside")), scope.spawn(dial("outside")));
        let takeovers = thread::Builder::new().spawn_scoped(scope, || {
            for _ in 0..5 {
                let mut next = world.capture();
                next.enrol(&pod.spec(&proxy, false)).unwrap();
            }
        });
        let takeovers = takeovers.unwrap().join();
        done.store(true, Ordering::Relaxed);
        takeovers.unwrap();
        (inside.join().unwrap(), outside.join().unwrap())
    });
    assert!(count.0 > 0 && count.1 > 0);
    assert!(nobody_waits(&own.listener) && nobody_waits(&theirs.listener));
    let expected = PodCounters { captured_out: count.0, captured_in: count.1, ..PodCounters::default() };
    assert_eq!(capture.counters(pod.cookie).unwrap(), expected);
}

#[test]
fn a_removed_pod_is_direct_again_and_its_connections_live_on() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    let proxy = pod.proxy();
    let mut capture = world.capture();
    // Strict, so that it is the removal that opens the way.
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    let to = other.app().v4;
    let stream = pod.connect(to);
    let (accepted, _) = accept(&proxy.out4);
    capture.remove(pod.cookie).unwrap();
    assert_joined(&stream, &accepted);
    assert_eq!(stream.peer_addr().unwrap(), to);
    assert_direct(&pod, &other);
    assert_eq!(capture.pods().unwrap(), []);
    assert!(matches!(capture.remove(pod.cookie), Err(Error::NotEnrolled { cookie }) if cookie == pod.cookie));
    assert!(matches!(capture.counters(pod.cookie), Err(Error::NotEnrolled { .. })));

    // Enrolled again, it starts counting again.
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    assert_eq!(capture.counters(pod.cookie).unwrap(), PodCounters::default());
    assert_captured(&capture, &pod, &proxy, &other);
}

#[test]
fn uninstalling_leaves_nothing() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    let proxy = pod.proxy();
    let mut capture = world.capture();
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    assert_captured(&capture, &pod, &proxy, &other);
    let links = link_ids(&world.pin_dir);
    assert_eq!(links.len(), 6);

    // Detached at once, although somebody has the links open.
    let _open: Vec<PinnedLink> = links.iter().map(|(path, _)| PinnedLink::from_pin(path).unwrap()).collect();
    capture.uninstall().unwrap();
    assert!(!world.pin_dir.exists());
    assert_direct(&pod, &other);
    drop(_open);
    for (path, id) in links {
        // Whoever lists the links of this machine, another test for one, has each of them open for a moment.
        let is_alive = || aya::programs::loaded_links().filter_map(Result::ok).any(|link| link.id() == id);
        let until = Instant::now() + Duration::from_secs(30);
        while is_alive() {
            assert!(Instant::now() < until, "{}", path.display());
            thread::sleep(Duration::from_millis(10));
        }
    }
    uninstall(&world.pin_dir).unwrap();
}

#[test]
fn two_instances_in_one_cgroup_do_not_disturb_each_other() {
    let (mut one, mut two) = (World::new(), World::new());
    let (pod1, other1) = two_pods(&mut one);
    let (pod2, other2) = two_pods(&mut two);
    let (proxy1, proxy2) = (pod1.proxy(), pod2.proxy());
    let (mut capture1, mut capture2) = (one.capture(), two.capture());
    capture1.enrol(&pod1.spec(&proxy1, true)).unwrap();
    capture2.enrol(&pod2.spec(&proxy2, true)).unwrap();
    assert_captured(&capture1, &pod1, &proxy1, &other1);
    assert_captured(&capture2, &pod2, &proxy2, &other2);
    assert_eq!(capture1.pods().unwrap().len(), 1);
    capture2.uninstall().unwrap();
    assert_captured(&capture1, &pod1, &proxy1, &other1);
    assert_direct(&pod2, &other2);
}

#[test]
fn pods_whose_namespace_is_gone_are_forgotten() {
    let mut world = World::new();
    let (pod, _other) = two_pods(&mut world);
    let proxy = pod.proxy();
    let mut capture = world.capture();
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    let (name, cookie) = (pod.name.clone(), pod.cookie);
    assert_eq!(capture.prune().unwrap(), []);
    drop((proxy, pod));
    ip(&format!("netns del {name}"));

    // The kernel takes namespaces apart in its own time.
    let deadline = Instant::now() + HANG_GUARD;
    while capture.prune().unwrap() != [cookie] {
        assert!(Instant::now() < deadline, "still there");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(capture.pods().unwrap(), []);
    assert_eq!(link_ids(&world.pin_dir).len(), 5);
}

#[test]
fn the_bpf_file_system_is_mounted_where_it_is_missing() {
    use rustix::{
        mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
        thread::{UnshareFlags, unshare_unsafe},
    };
    let world = World::new();
    let config = world.config();
    // A view of the file system that this thread has for itself, and that ends with it.
    let alone = thread::spawn(move || {
        // SAFETY: what is no longer shared is the view of the file system, on which no memory safety rests.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS).unwrap() };
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        while unmount("/sys/fs/bpf", UnmountFlags::DETACH).is_ok() {}
        let capture = Capture::open(config.clone()).unwrap();
        assert_eq!(link_ids(&config.pin_dir).len(), 5);
        capture.uninstall().unwrap();
    });
    alone.join().unwrap();
    assert!(!world.pin_dir.exists());
}

#[test]
fn pins_of_another_layout_are_refused_and_can_be_removed() {
    let world = World::new();
    drop(world.capture());
    let map = Map::from_map_data(MapData::from_pin(world.pin_dir.join("maps/LAYOUT")).unwrap()).unwrap();
    let mut layout: Array<_, u32> = map.try_into().unwrap();
    layout.set(0, 4711, 0).unwrap();
    let error = Capture::open(world.config()).unwrap_err();
    assert!(matches!(&error, Error::Layout { found, .. } if found == "version 4711"), "{error}");
    uninstall(&world.pin_dir).unwrap();
    drop(world.capture());
}

#[test]
fn an_interrupted_start_is_completed() {
    let mut world = World::new();
    let (pod, other) = two_pods(&mut world);
    drop(world.capture());
    fs::remove_file(world.pin_dir.join("links/connect4")).unwrap();
    fs::remove_file(world.pin_dir.join("maps/LAYOUT")).unwrap();
    let mut capture = world.capture();
    let proxy = pod.proxy();
    capture.enrol(&pod.spec(&proxy, true)).unwrap();
    assert_captured(&capture, &pod, &proxy, &other);
}

#[test]
fn all_places_can_be_taken_and_freed() {
    let world = World::new();
    let mut capture = world.capture();
    let netns = File::open("/proc/self/ns/net").unwrap();
    // Cookies that no namespace has: only the bookkeeping is under test.
    let spec = |cookie| PodSpec {
        name: format!("pod {cookie}"),
        netns: netns.as_fd(),
        cookie,
        outbound_port: 15001,
        inbound_port: None,
        inbound_listener: InboundListener::default(),
        strict: false,
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    let first = u64::MAX - 5000;
    for cookie in first..first + 1024 {
        capture.enrol(&spec(cookie)).unwrap();
    }
    let error = capture.enrol(&spec(1)).unwrap_err();
    assert!(matches!(&error, Error::TooManyPods { pod, max: 1024 } if pod == "pod 1"), "{error}");
    capture.enrol(&spec(first + 7)).unwrap();
    capture.remove(first + 500).unwrap();
    capture.enrol(&spec(1)).unwrap();
    assert_eq!(capture.pods().unwrap().len(), 1024);
}

#[test]
fn impossible_pods_are_refused_by_name() {
    let mut world = World::new();
    let pod = world.pod();
    let proxy = pod.proxy();
    let mut capture = world.capture();
    let good = pod.spec(&proxy, true);
    let bad = [
        PodSpec { cookie: 0, ..good.clone() },
        PodSpec { outbound_port: 0, inbound_port: None, ..good.clone() },
        PodSpec { inbound_port: Some(proxy.outbound_port), ..good.clone() },
        PodSpec { inbound_listener: InboundListener::default(), ..good.clone() },
    ];
    for spec in bad {
        let error = capture.enrol(&spec).unwrap_err();
        assert!(matches!(&error, Error::InvalidPod { pod: name, .. } if *name == pod.name), "{error}");
    }
    // Not a network namespace: found out last, and nothing of the pod remains.
    let file = File::open("/dev/null").unwrap();
    capture.enrol(&PodSpec { netns: file.as_fd(), ..good.clone() }).unwrap_err();
    assert_eq!(capture.pods().unwrap(), []);
    // Not a listener.
    let file = InboundListener { v4: Some(file.as_fd()), v6: None };
    let error = capture.enrol(&PodSpec { inbound_listener: file, ..good }).unwrap_err();
    assert!(matches!(error, Error::Map { map: "LISTENERS", .. }), "{error}");
    assert_eq!(capture.pods().unwrap(), []);
}

#[test]
fn what_is_wrong_is_named() {
    let world = World::new();
    let elsewhere = CaptureConfig { pin_dir: "/tmp/culvert-test-pins".into(), ..world.config() };
    let error = Capture::open(elsewhere).unwrap_err();
    assert!(matches!(&error, Error::NotBpffs { .. }), "{error}");
    assert!(!Path::new("/tmp/culvert-test-pins").exists());

    for cgroup in ["/tmp", "/sys/fs/cgroup/culvert-test-nowhere"] {
        let config = CaptureConfig { cgroup: Some(cgroup.into()), ..world.config() };
        let error = Capture::open(config).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cgroup {cgroup}: ")), "{error}");
    }
    assert!(!world.pin_dir.exists(), "a failed start leaves nothing");
}

#[test]
fn missing_privilege_is_said_in_one_line() {
    probe().unwrap();
    // Capabilities belong to threads.
    let error = thread::spawn(|| {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .unwrap();
        probe().unwrap_err()
    });
    let error = error.join().unwrap();
    assert!(matches!(error, Error::Privilege { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CAP_BPF") && text.lines().count() == 1, "{text}");
}
