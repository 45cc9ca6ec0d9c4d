//! CONNECT: tunnels that end here, and those that are passed on.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
};

use crate::{
    Client, Scene, logged,
    support::upstream::{Upstream, read_until},
};

const MANAGER: &str = "upgrade_configs: [{upgrade_type: CONNECT}],";

/// The routes of a scene match paths, which CONNECT has none of.
fn run(action: &str, upstream: SocketAddr, test: impl Fn(&crate::Culvert, u16)) {
    run_with("", action, upstream, test);
}

/// With these fields of the cluster.
fn run_with(cluster: &str, action: &str, upstream: SocketAddr, test: impl Fn(&crate::Culvert, u16)) {
    let scene = Scene { manager: MANAGER, routes: &[("/", "")], cluster, ..Scene::default() };
    for driver in crate::DRIVERS {
        let port = crate::free_port();
        let text = scene.bootstrap(port, &[upstream]).replace(
            "{match: {prefix: /},  route: {cluster: up, }}",
            &format!("{{match: {{connect_matcher: {{}}}}, route: {{cluster: up, {action}}}}}"),
        );
        assert!(text.contains("connect_matcher"), "{text}");
        let culvert = crate::Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
        test(&culvert, port);
    }
}

/// Sends everything back, in upper case.
fn shouting() -> Upstream {
    Upstream::start(|mut stream| {
        let mut piece = [0; 4_096];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            if stream.write_all(&piece[..count].to_ascii_uppercase()).is_err() {
                return;
            }
        }
    })
}

const ENDS: &str = "upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]";

#[test]
fn a_tunnel_ends_here() {
    let upstream = shouting();
    run(ENDS, upstream.address, |culvert, port| {
        let mut client = Client::connect(port);
        // What follows the head belongs to the tunnel.
        client.send("CONNECT some.example:443 HTTP/1.1\r\nhost: some.example:443\r\n\r\nearly");
        let head = String::from_utf8(client.until(b"\r\n\r\n").unwrap()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert_eq!(client.exactly(5).unwrap(), b"EARLY");
        let large = vec![b'x'; 300_000];
        let mut writer = client.stream.try_clone().unwrap();
        let sent = large.clone();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        assert!(client.exactly(large.len()).unwrap() == large.to_ascii_uppercase());
        writing.join().unwrap();
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 1);
        // Each end is passed on.
        client.finish();
        assert!(client.rest().unwrap().is_empty());
        culvert.wait_until("its end", |it| it.stat("cluster.up.upstream_cx_active") == 0);
        // What came after the head, and what went back.
        logged(culvert, "- 200 DC downstream_remote_disconnect 1");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_200"), 1);
        assert_eq!(culvert.stat("http.s.downstream_cx_upgrades_total"), 1);
    });
}

#[test]
fn a_tunnel_to_nobody_is_refused() {
    let upstream = shouting();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = nobody.local_addr().unwrap();
    drop(nobody);
    run(ENDS, gone, |_, port| {
        let mut client = Client::connect(port);
        client.send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n");
        assert_eq!(client.response("CONNECT").status, 503);
    });
    run(
        "upgrade_configs: [{upgrade_type: CONNECT, enabled: false, connect_config: {}}]",
        upstream.address,
        |culvert, port| {
            let mut client = Client::connect(port);
            client.send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n");
            assert_eq!(client.response("CONNECT").status, 403);
            assert_eq!(culvert.stat("http.s.downstream_rq_ws_on_non_ws_route"), 1);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 0);
        },
    );
}

#[test]
fn a_tunnel_is_passed_on() {
    let upstream = Upstream::start(|mut stream| {
        let Some(head) = read_until(&mut stream, b"\r\n\r\n") else { return };
        let head = String::from_utf8(head).unwrap();
        let answer = if head.starts_with("CONNECT yes.example:443 HTTP/1.1\r\n") {
            "HTTP/1.1 200 Connected\r\n\r\n"
        } else {
            "HTTP/1.1 407 No\r\ncontent-length: 2\r\n\r\nno"
        };
        stream.write_all(answer.as_bytes()).unwrap();
        let mut piece = [0; 4_096];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..count]).unwrap();
        }
    });
    run("", upstream.address, |culvert, port| {
        let mut client = Client::connect(port);
        client.send("CONNECT yes.example:443 HTTP/1.1\r\nhost: yes.example:443\r\n\r\n");
        let head = String::from_utf8(client.until(b"\r\n\r\n").unwrap()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        client.send("through it");
        assert_eq!(client.exactly(10).unwrap(), b"through it");
        client.finish();
        assert!(client.rest().unwrap().is_empty());
        let mut client = Client::connect(port);
        client.send("CONNECT no.example:443 HTTP/1.1\r\nhost: no.example:443\r\n\r\n");
        let response = client.response("CONNECT");
        assert_eq!((response.status, response.text().as_str()), (407, "no"));
        logged(culvert, "- 407 - via_upstream 1");
        assert!(response.header("connection") == Some("close") && client.is_closed());
    });
}

/// The request of an upgrade has no end, so that a connection whose upgrade was refused carries nothing more.
#[test]
fn a_refused_upgrade_ends_its_connection() {
    let upstream = Upstream::answering(|head| {
        let spelled = head.contains("\r\nconnection: Upgrade\r\n");
        format!("HTTP/1.1 {} X\r\ncontent-length: 2\r\n\r\nno", if spelled { 403 } else { 500 }).into_bytes()
    });
    let scene = Scene {
        manager: "upgrade_configs: [{upgrade_type: websocket}],",
        routes: &[("/off", ""), ("/", "")],
        actions: &["upgrade_configs: [{upgrade_type: websocket, enabled: false}]", ""],
        ..Scene::default()
    };
    scene.run(&[upstream.address], |culvert, port| {
        for (path, details) in [("/off", "upgrade_failed 1"), ("/on", "via_upstream 1")] {
            let mut client = Client::connect(port);
            client.send(format!(
                "GET {path} HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nGET /smuggled \
                 HTTP/1.1\r\nhost: t\r\n\r\n"
            ));
            let response = client.response("GET");
            assert_eq!((response.status, response.header("connection")), (403, Some("close")), "{path}");
            assert_eq!(response.header("x-envoy-upstream-service-time"), None);
            assert!(client.is_closed());
            if path == "/on" {
                logged(culvert, &format!("{path} 403 - {details}"));
            }
        }
        assert_eq!(culvert.stat("http.s.downstream_rq_total"), 2);
        assert_eq!(culvert.stat("http.s.downstream_rq_response_before_rq_complete"), 2);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_destroy_local_with_active_rq"), 1);
    });
}

#[test]
fn a_silent_tunnel_is_no_attempt_that_hangs() {
    let upstream = shouting();
    let action =
        format!("{ENDS}, timeout: 0.2s, retry_policy: {{per_try_idle_timeout: 0.2s, per_try_timeout: 0.2s}}");
    run(&action, upstream.address, |culvert, port| {
        let mut client = Client::connect(port);
        client.send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n");
        assert!(client.until(b"\r\n\r\n").unwrap().starts_with(b"HTTP/1.1 200"));
        std::thread::sleep(std::time::Duration::from_millis(700));
        client.send("late");
        assert_eq!(client.exactly(4).unwrap(), b"LATE");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_per_try_idle_timeout"), 0);
    });
}

/// The streams of its cluster may not take longer: that holds for what is a tunnel by then.
#[test]
fn a_tunnel_is_cut_when_it_has_taken_too_long() {
    let upstream = shouting();
    let cluster = "common_http_protocol_options: {max_stream_duration: 1s}";
    run_with(cluster, ENDS, upstream.address, |culvert, port| {
        let mut client = Client::connect(port);
        client.send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\nearly");
        assert!(client.until(b"\r\n\r\n").unwrap().starts_with(b"HTTP/1.1 200"));
        assert_eq!(client.exactly(5).unwrap(), b"EARLY");
        let _ = client.rest();
        logged(culvert, "- 200 UMSDR upstream_max_stream_duration_reached 1");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_max_duration_reached"), 1);
        culvert.wait_until("its end", |it| it.stat("cluster.up.upstream_cx_active") == 0);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
    });
}
