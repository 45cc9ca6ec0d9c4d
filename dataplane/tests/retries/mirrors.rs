//! Requests that go to another cluster too.

use std::{thread, time::Duration};

use crate::{
    Client, DRIVERS, Ledger, Scene, get, scripted,
    support::{
        culvert::{Culvert, cluster, free_port},
        upstream::{Upstream, read_request},
    },
};

/// Runs `test` with a ledger for the cluster `up` and one for the cluster `shadow`.
fn with(scene: Scene<'_>, test: impl Fn(&Culvert, u16, &Ledger, &Ledger)) {
    for driver in DRIVERS {
        let (real, shadow) = (Ledger::default(), Ledger::default());
        let (up, other) = (scripted(0, real.clone()), scripted(1, shadow.clone()));
        let port = free_port();
        let clusters = cluster("shadow", &[other.address]);
        let text = Scene { clusters: &clusters, ..scene }.bootstrap(port, &[up.address]);
        let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
        test(&culvert, port, &real, &shadow);
    }
}

fn arrived(culvert: &Culvert, ledger: &Ledger, path: &str, count: usize) {
    culvert.wait_until(path, |_| ledger.count(path) == count);
}

fn post(port: u16, path: &str, body: &[u8]) -> u16 {
    let mut client = Client::connect(port);
    client.send(format!(
        "POST {path} HTTP/1.1\r\nhost: test:81\r\nx-mirror: shadow\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ));
    client.send(body);
    client.response("POST").status
}

#[test]
fn the_same_is_sent_elsewhere() {
    let scene = Scene {
        host: "request_mirror_policies: [{cluster: shadow}],",
        routes: &[
            ("/rewritten", "request_headers_to_add: [{header: {key: x-added, value: some}}],"),
            ("/plain", ""),
            ("/named", ""),
            ("/header", ""),
            ("/never", ""),
            ("/twice", ""),
            ("/", ""),
        ],
        actions: &[
            "prefix_rewrite: /new, request_mirror_policies: [{cluster: shadow}]",
            "request_mirror_policies: [{cluster: shadow, disable_shadow_host_suffix_append: true}]",
            "request_mirror_policies: [{cluster: shadow, host_rewrite_literal: other.example}]",
            "request_mirror_policies: [{cluster_header: x-mirror}]",
            "request_mirror_policies: [{cluster: shadow, runtime_fraction: {default_value: {numerator: 0}}}]",
            "request_mirror_policies: [{cluster: shadow}, {cluster: shadow}]",
            "",
        ],
        ..Scene::default()
    };
    with(scene, |culvert, port, real, shadow| {
        assert_eq!(post(port, "/rewritten", b"body"), 200);
        arrived(culvert, shadow, "/new", 1);
        let seen = &shadow.of("/new")[0];
        assert!(seen.head.starts_with("post /new http/1.1"));
        assert_eq!(seen.body, b"body");
        assert_eq!(seen.header("host"), Some("test-shadow:81"));
        assert_eq!(seen.header("x-added"), Some("some"));
        assert_eq!(seen.header("x-envoy-internal"), Some("true"));
        let sent = &real.of("/new")[0];
        assert_eq!((sent.header("host"), sent.header("x-envoy-internal")), (Some("test:81"), None));
        assert_eq!(seen.header("x-request-id"), sent.header("x-request-id"));
        for (path, host) in
            [("/plain", "test:81"), ("/named", "other.example"), ("/header", "test-shadow:81")]
        {
            assert_eq!(post(port, path, b"body"), 200);
            arrived(culvert, shadow, path, 1);
            assert_eq!(shadow.of(path)[0].header("host"), Some(host), "{path}");
        }
        assert_eq!(get(port, "/twice", "200").status, 200);
        arrived(culvert, shadow, "/twice", 2);
        // The virtual host's, where the route has none.
        assert_eq!(get(port, "/other", "200").status, 200);
        arrived(culvert, shadow, "/other", 1);
        for _ in 0..10 {
            assert_eq!(get(port, "/never", "200").status, 200);
        }
        assert_eq!(real.count("/never"), 10);
        assert_eq!(shadow.count("/never"), 0);
        culvert.wait_until("all answers", |it| it.stat("cluster.shadow.upstream_rq_200") == 7);
        assert_eq!(culvert.stat("cluster.shadow.upstream_rq_total"), 7);
        assert_eq!(culvert.stat("cluster.shadow.upstream_rq_active"), 0);
    });
}

#[test]
fn nobody_waits_for_the_other_answer() {
    let scene = Scene {
        routes: &[("/gone", ""), ("/", "")],
        actions: &[
            "request_mirror_policies: [{cluster_header: x-nothing}]",
            "request_mirror_policies: [{cluster: shadow}]",
        ],
        ..Scene::default()
    };
    with(scene, |culvert, port, real, shadow| {
        for (path, word) in [("/close", "close"), ("/503", "503"), ("/hang", "hang")] {
            // Both do the same.
            let mut client = Client::connect(port);
            client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\nx-script: {word}\r\n\r\n"));
            culvert.wait_until(path, |_| shadow.count(path) == 1 && real.count(path) == 1);
        }
        assert_eq!(get(port, "/gone", "200").status, 200);
        culvert.wait_until("answers", |it| it.stat("cluster.shadow.upstream_rq_503") == 2);
        assert_eq!(shadow.count("/gone"), 0);
    });
}

#[test]
fn bodies_are_mirrored_whole_or_not_at_all() {
    let scene = Scene {
        listener: "per_connection_buffer_limit_bytes: 100000,",
        routes: &[("/", "")],
        actions: &["request_mirror_policies: [{cluster: shadow}]"],
        ..Scene::default()
    };
    with(scene, |culvert, port, real, shadow| {
        let body: Vec<u8> = (0..90_000_u32).map(|at| at as u8).collect();
        for nth in 0..5 {
            let path = format!("/{nth}");
            assert_eq!(post(port, &path, &body), 200);
            arrived(culvert, shadow, &path, 1);
            assert!(shadow.of(&path)[0].body == body && real.of(&path)[0].body == body);
        }
        assert_eq!(culvert.stat("cluster.up.retry_or_shadow_abandoned"), 0);
        // A client that leaves in the middle takes the mirrored request with it.
        let mut client = Client::connect(port);
        client.send("POST /half HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nhalf");
        culvert.wait_until("it is there", |it| it.stat("cluster.shadow.upstream_rq_active") == 1);
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        culvert.wait_until("it is given up", |it| it.stat("cluster.shadow.upstream_rq_active") == 0);
        assert_eq!(shadow.count("/half"), 0);
        assert_eq!(culvert.stat("cluster.shadow.upstream_rq_tx_reset"), 1);
    });
}

#[test]
fn a_mirrored_request_is_cut_when_the_streams_of_its_cluster_may_not_take_longer() {
    let silent = Upstream::start(|mut stream| {
        let _ = read_request(&mut stream);
        thread::sleep(Duration::from_secs(60));
    });
    let real = scripted(0, Ledger::default());
    let duration = "  common_http_protocol_options: {max_stream_duration: 0.2s}\n";
    let clusters = cluster("shadow", &[silent.address]) + duration;
    let scene = Scene {
        host: "request_mirror_policies: [{cluster: shadow}],",
        routes: &[("/", "")],
        clusters: &clusters,
        ..Scene::default()
    };
    scene.run(&[real.address], |culvert, port| {
        assert_eq!(get(port, "/", "200").status, 200);
        let reached = |it: &Culvert| it.stat("cluster.shadow.upstream_rq_max_duration_reached") == 1;
        culvert.wait_until("the end of its stream", reached);
        culvert.wait_until("the connection's", |it| it.stat("cluster.shadow.upstream_cx_active") == 0);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_max_duration_reached"), 0);
    });
}
