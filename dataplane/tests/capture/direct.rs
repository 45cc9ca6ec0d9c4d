//! Connections between pods that go past the proxy: which, how they are counted, and how they are ended.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    culvert::{Culvert, put},
    mesh::{Bootstrap, Mesh, Variant, enrolled, wait_for},
    netns::{App, Pod, canonical},
};

tests!(ebpf: pods_are_reached_past_the_proxy, other_pods_keep_the_proxy, bytes_are_counted_while_they_flow,
    an_access_rule_ends_what_was_direct, an_endpoint_that_is_gone_is_closed_and_one_that_is_lighter_is_not,
    a_kill_leaves_connections_alone_and_the_next_start_looks_after_them, what_the_next_start_forbids_is_closed,
    idle_connections_are_closed);
tests!(iptables: rules_of_iptables_cannot_do_it);

/// How long a withdrawal may take; it should take far less.
const SOON: Duration = Duration::from_secs(1);
/// On a machine that is busy with other tests.
const GENEROUS: Duration = Duration::from_secs(8);

/// Service addresses without anybody behind them.
const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 9080);
const SERVICE_V6: (Ipv6Addr, u16) = (Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10), 9080);

/// Where the inbound listener sends connections: to where they were going.
const PASSING: &str = "- name: app\n  type: ORIGINAL_DST\n  lb_policy: CLUSTER_PROVIDED\n";

/// A client and a server, both captured, whose listeners and endpoints come from files.
struct Scene {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    app: App,
    /// Connections that the application has accepted.
    served: mpsc::Receiver<TcpStream>,
    listeners: PathBuf,
    endpoints: PathBuf,
    bootstrap: Bootstrap,
    pods: Vec<String>,
}

fn scene(variant: Variant) -> Scene {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let (accepted, served) = mpsc::channel();
    let app = server.serve("[::]:0", move |stream| {
        let _ = accepted.send(stream);
    });
    let (listeners, endpoints) =
        (mesh.world.dir.path().join("lds.yaml"), mesh.world.dir.path().join("eds.yaml"));
    fs::write(&listeners, lds("", "")).unwrap();
    fs::write(&endpoints, eds(&[(app.v4, 1)], &[(app.v6, 1)])).unwrap();
    let discovered = |name: &str| {
        format!(
            "- name: {name}\n  type: EDS\n  eds_cluster_config: {{eds_config: {{path_config_source: {{path: {}}}}}}}\n",
            endpoints.display()
        )
    };
    let bootstrap = Bootstrap::default()
        .cluster(&discovered("service"))
        .cluster(&discovered("service6"))
        .cluster(PASSING)
        .listeners_from(&listeners);
    let pods = [&client, &server].map(|pod| enrolled(pod, "policy: strict, direct: true")).to_vec();
    Scene { mesh, client, server, app, served, listeners, endpoints, bootstrap, pods }
}

/// The outbound and the inbound listener, with these filters before the TCP proxy, and fields of it.
fn lds(inbound_filters: &str, proxy: &str) -> String {
    let tcp = |name: &str, cluster: &str| {
        format!(
            "{{name: tcp, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, \
             cluster: {cluster}{proxy}}}}}"
        )
    };
    let listener = |name: &str, port: u16, chains: &str| {
        format!(
            "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name: {name}\n  address: \
             {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n  bind_to_port: false\n  \
             traffic_direction: {}\n  filter_chains:\n{chains}",
            name.to_uppercase()
        )
    };
    let v6 = "filter_chain_match: {prefix_ranges: [{address_prefix: \"fd96::\", prefix_len: 16}]}";
    let outbound = format!(
        "  - filters: [{}]\n  - {v6}\n    filters: [{}]\n",
        tcp("outbound", "service"),
        tcp("outbound", "service6")
    );
    let inbound = format!("  - filters: [{inbound_filters}{}]\n", tcp("inbound", "app"));
    format!("resources:\n{}{}", listener("outbound", 1, &outbound), listener("inbound", 2, &inbound))
}

/// Denies everything.
const DENY: &str = "{name: rbac, typed_config: {\"@type\": \
                    type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x, rules: {}}}, ";

fn eds(v4: &[(SocketAddr, u32)], v6: &[(SocketAddr, u32)]) -> String {
    let of = |name: &str, endpoints: &[(SocketAddr, u32)]| {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(at, weight)| {
                format!(
                    "{{load_balancing_weight: {weight}, endpoint: {{address: {{socket_address: {{address: \"{}\", \
                     port_value: {}}}}}}}}}",
                    at.ip(),
                    at.port()
                )
            })
            .collect();
        format!(
            "- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: {name}\n  \
             endpoints: [{{lb_endpoints: [{}]}}]\n",
            endpoints.join(", ")
        )
    };
    format!("resources:\n{}{}", of("service", v4), of("service6", v6))
}

impl Scene {
    fn start(&self) -> Culvert {
        self.mesh.start(&self.bootstrap, &self.pods)
    }

    /// A connection of the client, and its other end at the application.
    fn connect(&self, to: SocketAddr) -> (TcpStream, TcpStream) {
        let stream = self.client.connect(to);
        let served = self.served.recv_timeout(GENEROUS).expect("the application has it");
        served.set_read_timeout(Some(GENEROUS)).unwrap();
        (stream, served)
    }

    fn direct(&self) -> u64 {
        self.mesh.counters(&self.client).direct
    }
}

/// Whether bytes pass both ways.
fn is_joined(mut one: &TcpStream, mut other: &TcpStream) -> bool {
    let mut passes = || -> std::io::Result<()> {
        let mut byte = [0; 4];
        one.write_all(b"ping")?;
        other.read_exact(&mut byte)?;
        other.write_all(b"pong")?;
        one.read_exact(&mut byte)
    };
    passes().is_ok()
}

/// That the connection ends although nobody at either end has closed it.
fn assert_cut(mut stream: &TcpStream, since: Instant) {
    stream.set_read_timeout(Some(GENEROUS)).unwrap();
    let error = stream.read(&mut [0; 1]).expect_err("cut");
    let took = since.elapsed();
    assert!(matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset), "{error}");
    println!("cut after {took:?}, of at most {SOON:?}");
    assert!(took < GENEROUS, "{took:?}");
}

fn pods_are_reached_past_the_proxy(variant: Variant) {
    let scene = scene(variant);
    let culvert = scene.start();
    for (to, own) in [
        (SocketAddr::from(SERVICE), scene.client.v4.into()),
        (SERVICE_V6.into(), std::net::IpAddr::from(scene.client.v6)),
    ] {
        let (stream, served) = scene.connect(to);
        assert!(is_joined(&stream, &served));
        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername");
        let peer = canonical(served.peer_addr().unwrap());
        assert_eq!((peer.ip(), peer), (own, stream.local_addr().unwrap()), "the application sees the client");
    }
    let pods = scene.mesh.pods();
    assert!(pods.iter().all(|pod| pod.direct), "{pods:?}");
    assert_eq!((scene.direct(), scene.mesh.counters(&scene.server).direct), (2, 2));
    for stat in ["captured_outbound", "captured_inbound"] {
        assert_eq!(culvert.stat(&format!("culvert.capture.{stat}")), 0, "{stat}");
    }
    for name in [
        "tcp.outbound.downstream_cx_total",
        "tcp.inbound.downstream_cx_total",
        "cluster.app.upstream_cx_total",
    ] {
        culvert.wait_until(name, |culvert| culvert.stat(name) == 2);
    }
    for name in ["cluster.service.upstream_cx_total", "cluster.service6.upstream_cx_total"] {
        culvert.wait_until(name, |culvert| culvert.stat(name) == 1);
    }
    assert!(scene.mesh.pod(&["list"]).unwrap().contains("direct 2"));
    let clusters = culvert.get("/clusters").unwrap();
    assert!(clusters.contains(&format!("service::{}::cx_total::1", scene.app.v4)), "{clusters}");
}

fn other_pods_keep_the_proxy(variant: Variant) {
    let mut scene = scene(variant);
    // Neither allows it, then one of both, then both by the default, except for one.
    let fields = |client: &str, server: &str| {
        [(&scene.client, client), (&scene.server, server)]
            .map(|(pod, field)| enrolled(pod, &format!("policy: strict{field}")))
            .to_vec()
    };
    let (on, off) = (", direct: true", ", direct: false");
    let cases = [fields("", ""), fields(on, ""), fields("", on), fields(on, off)];
    for pods in cases {
        scene.pods = pods;
        let culvert = scene.start();
        let (stream, served) = scene.connect(SERVICE.into());
        assert!(is_joined(&stream, &served));
        assert_eq!((scene.direct(), culvert.stat("culvert.capture.captured_outbound")), (0, 1));
    }
    let path = scene.mesh.world.dir.path().join("default.yaml");
    for (pods, direct) in [(["", ""], 1), (["", off], 0)] {
        let of = |pod: &Pod, field: &str| enrolled(pod, &format!("policy: strict{field}"));
        let text = format!("pods:\n{}{}", of(&scene.client, pods[0]), of(&scene.server, pods[1]));
        fs::write(&path, text).unwrap();
        let flags = ["--direct", "on", "--pods", &path.display().to_string()];
        let _culvert = scene.mesh.start_with(&scene.bootstrap, &flags);
        let before = scene.direct();
        let (stream, served) = scene.connect(SERVICE.into());
        assert!(is_joined(&stream, &served));
        assert_eq!(scene.direct() - before, direct);
    }
}

fn bytes_are_counted_while_they_flow(variant: Variant) {
    const UP: usize = 3_000_000;
    const DOWN: usize = 5_000_001;
    let scene = scene(variant);
    let culvert = scene.start();
    let (stream, served) = scene.connect(SERVICE.into());
    thread::scope(|scope| {
        scope.spawn(|| (&stream).write_all(&vec![1; UP]).unwrap());
        scope.spawn(|| (&served).write_all(&vec![2; DOWN]).unwrap());
        scope.spawn(|| (&stream).read_exact(&mut vec![0; DOWN]).unwrap());
        (&served).read_exact(&mut vec![0; UP]).unwrap();
    });
    let counted = || {
        [
            ("tcp.outbound.downstream_cx_rx_bytes_total", UP),
            ("tcp.outbound.downstream_cx_tx_bytes_total", DOWN),
            ("tcp.inbound.downstream_cx_rx_bytes_total", UP),
            ("cluster.service.upstream_cx_tx_bytes_total", UP),
            ("cluster.service.upstream_cx_rx_bytes_total", DOWN),
            ("cluster.app.upstream_cx_rx_bytes_total", DOWN),
            ("cluster.service.upstream_cx_total", 1),
        ]
        .map(|(name, expected)| (name, expected as u64, culvert.stat(name)))
    };
    let all = || counted().iter().all(|(_, expected, seen)| expected == seen);
    culvert.wait_until("the bytes of an open connection", |_| all());
    assert_eq!(culvert.stat("cluster.service.upstream_cx_active"), 1);
    assert_eq!(culvert.stat("culvert.direct.cx_active"), 1);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&served).read(&mut [0; 1]).unwrap(), 0);
    drop(served);
    assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
    drop(stream);
    culvert.wait_until("the end", |culvert| culvert.stat("cluster.service.upstream_cx_active") == 0);
    assert_eq!(culvert.stat("cluster.service.upstream_cx_destroy"), 1);
    // Nothing is counted twice, and no FIN is a byte.
    thread::sleep(Duration::from_millis(1500));
    assert!(all(), "{:?}", counted());
    // An endpoint where nobody listens: the client itself is told.
    let nobody = scene.server.listen("[::]:0").local_addr().unwrap().port();
    put(&scene.endpoints, &eds(&[((scene.server.v4, nobody).into(), 1)], &[(scene.app.v6, 1)]));
    wait_for("the refusal", || {
        scene.client.try_connect(SERVICE.into()).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    culvert
        .wait_until("the failure", |culvert| culvert.stat("cluster.service.upstream_cx_connect_fail") == 1);
}

fn an_access_rule_ends_what_was_direct(variant: Variant) {
    let scene = scene(variant);
    let culvert = scene.start();
    let pairs = [scene.connect(SERVICE.into()), scene.connect(SERVICE_V6.into())];
    assert!(pairs.iter().all(|(one, other)| is_joined(one, other)));
    assert_eq!(scene.direct(), 2);
    let since = Instant::now();
    put(&scene.listeners, &lds(DENY, ""));
    for (one, other) in &pairs {
        assert_cut(one, since);
        assert_cut(other, since);
    }
    // What is made from now on goes through the proxy, which denies it.
    let mut denied = scene.client.connect(SERVICE);
    assert!(!matches!(denied.read(&mut [0; 1]), Ok(1..)));
    assert_eq!(scene.direct(), 2);
    assert!(culvert.stat("culvert.capture.captured_outbound") >= 1);
    // And back.
    put(&scene.listeners, &lds("", ""));
    culvert.wait_until("the old listener", |culvert| culvert.stat("culvert.direct.rules") > 0);
    let (stream, served) = scene.connect(SERVICE.into());
    assert!(is_joined(&stream, &served));
    assert_eq!(scene.direct(), 3);
}

fn an_endpoint_that_is_gone_is_closed_and_one_that_is_lighter_is_not(variant: Variant) {
    let scene = scene(variant);
    let other = scene.server.listen("[::]:0");
    let other: SocketAddr = (scene.server.v4, other.local_addr().unwrap().port()).into();
    let culvert = scene.start();
    let (stream, served) = scene.connect(SERVICE.into());
    let (stream6, served6) = scene.connect(SERVICE_V6.into());
    let changes = || culvert.stat("cluster.service.membership_change");
    let before = changes();
    put(&scene.endpoints, &eds(&[(scene.app.v4, 1), (other, 99)], &[(scene.app.v6, 1)]));
    culvert.wait_until("another endpoint", |_| changes() > before);
    thread::sleep(SOON);
    assert!(is_joined(&stream, &served) && is_joined(&stream6, &served6));
    put(&scene.endpoints, &eds(&[(other, 99)], &[(scene.app.v6, 1)]));
    culvert.wait_until("its end", |culvert| culvert.stat("culvert.direct.cx_withdrawn") == 1);
    assert_cut(&stream, Instant::now());
    assert_cut(&served, Instant::now());
    assert!(is_joined(&stream6, &served6), "the other service's");
    // A pod that leaves the mesh takes its traffic with it.
    scene.mesh.pod(&["remove", "client"]).unwrap();
    thread::sleep(SOON);
    assert!(is_joined(&stream6, &served6));
}

fn a_kill_leaves_connections_alone_and_the_next_start_looks_after_them(variant: Variant) {
    let scene = scene(variant);
    let mut culvert = scene.start();
    let (stream, served) = scene.connect(SERVICE.into());
    assert!(is_joined(&stream, &served));
    let rx = "tcp.outbound.downstream_cx_rx_bytes_total";
    culvert.wait_until("the first bytes", |culvert| culvert.stat(rx) == 4);
    culvert.kill();
    assert!(is_joined(&stream, &served));
    // Nobody is there who could withdraw what is allowed. The listeners of a process that was killed close a moment later.
    let mut late = 0;
    wait_for("the refusal", || match scene.client.try_connect(SERVICE.into()) {
        Ok(_) => {
            late += 1;
            false
        }
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    });
    let culvert = scene.start();
    assert!(is_joined(&stream, &served));
    // What was moved while nobody looked is counted, and what was counted before is not counted again.
    culvert.wait_until("the bytes since", |culvert| culvert.stat(rx) == 8);
    culvert.wait_until("one open", |culvert| culvert.stat("cluster.service.upstream_cx_active") == 1);
    assert_eq!(culvert.stat("cluster.service.upstream_cx_total"), late, "since the last process counted");
    put(&scene.listeners, &lds(DENY, ""));
    culvert.wait_until("the withdrawal", |culvert| culvert.stat("culvert.direct.cx_withdrawn") == 1);
    assert_cut(&stream, Instant::now());
    assert_cut(&served, Instant::now());
}

fn what_the_next_start_forbids_is_closed(variant: Variant) {
    let scene = scene(variant);
    let mut culvert = scene.start();
    let (stream, served) = scene.connect(SERVICE.into());
    culvert.kill();
    fs::write(&scene.listeners, lds(DENY, "")).unwrap();
    let culvert = scene.start();
    assert_cut(&stream, Instant::now());
    assert_cut(&served, Instant::now());
    assert_eq!(culvert.stat("culvert.direct.cx_withdrawn"), 1);
}

fn idle_connections_are_closed(variant: Variant) {
    let scene = scene(variant);
    fs::write(&scene.listeners, lds("", ", idle_timeout: 3s")).unwrap();
    let culvert = scene.start();
    let (idle, _served) = scene.connect(SERVICE.into());
    let (busy, answering) = scene.connect(SERVICE.into());
    let until = Instant::now() + GENEROUS + GENEROUS;
    while culvert.stat("tcp.outbound.idle_timeout") == 0 {
        assert!(is_joined(&busy, &answering) && Instant::now() < until);
        thread::sleep(Duration::from_millis(50));
    }
    assert_cut(&idle, Instant::now());
    assert!(is_joined(&busy, &answering));
    assert_eq!(culvert.stat("culvert.direct.cx_idle_timeout"), 1);
}

fn rules_of_iptables_cannot_do_it(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let path = mesh.world.pod("client").path().display().to_string();
    let bootstrap = Bootstrap::default().tcp("outbound", "OUTBOUND", "app").cluster(PASSING);
    let _culvert = mesh.start(&bootstrap, &[]);
    let add = ["add", "--netns", &path, "--inbound", "off", "--direct"];
    let error = mesh.pod(&[&add[..], &["on"]].concat()).unwrap_err();
    assert!(error.contains("direct: needs --capture ebpf"), "{error}");
    mesh.pod(&[&add[..], &["off"]].concat()).unwrap();
}
