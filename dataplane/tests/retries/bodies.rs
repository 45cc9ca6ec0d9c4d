//! Requests with bodies are sent again from memory, as far as there is some.

use crate::{Client, Ledger, Scene, get, with};

const POLICY: &str = "retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}";

/// A body whose bytes say where they are.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn post(port: u16, path: &str, body: &[u8], chunked: bool) -> u16 {
    let mut client = Client::connect(port);
    let framing = if chunked {
        "transfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {}", body.len())
    };
    client.send(format!("POST {path} HTTP/1.1\r\nhost: t\r\nx-script: 503 200\r\n{framing}\r\n\r\n"));
    if chunked {
        for piece in body.chunks(10_000) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
    } else {
        client.send(body);
    }
    client.response("POST").status
}

fn assert_twice(ledger: &Ledger, path: &str, body: &[u8]) {
    let seen = ledger.of(path);
    assert_eq!(seen.len(), 2, "{path}");
    assert!(seen.iter().all(|seen| seen.body == body), "{path}");
}

#[test]
fn the_same_is_sent_again() {
    with(Scene { routes: &[("/", "")], actions: &[POLICY], ..Scene::default() }, |culvert, port, ledger| {
        for (nth, length) in [1, 1_000, 100_000, 1 << 20].into_iter().enumerate() {
            for chunked in [false, true] {
                let (path, body) = (format!("/{nth}/{chunked}"), body(length));
                assert_eq!(post(port, &path, &body, chunked), 200);
                assert_twice(ledger, &path, &body);
            }
        }
        assert_eq!(culvert.stat("cluster.up.retry_or_shadow_abandoned"), 0);
        // One byte more than the default of the listener.
        assert_eq!(post(port, "/large", &body((1 << 20) + 1), false), 503);
        assert_eq!(ledger.count("/large"), 1);
        assert_eq!(culvert.stat("cluster.up.retry_or_shadow_abandoned"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_retry_limit_exceeded"), 0);
    });
}

#[test]
fn limits_are_those_of_the_route_the_virtual_host_or_the_listener() {
    let routes = [
        ("/most", "per_request_buffer_limit_bytes: 1000,"),
        ("/more", "per_request_buffer_limit_bytes: 100000,"),
        ("/exact", "request_body_buffer_limit: 100000,"),
        ("/", ""),
    ];
    let scene = |host| Scene {
        listener: "per_connection_buffer_limit_bytes: 20000,",
        host,
        routes: &routes,
        actions: &[POLICY; 4],
        ..Scene::default()
    };
    for (host, default) in [
        ("", 20_000),
        ("per_request_buffer_limit_bytes: 300,", 300),
        ("request_body_buffer_limit: 50000,", 50_000),
    ] {
        with(scene(host), |_, port, ledger| {
            for (path, limit) in
                [("/most", 1_000), ("/more", 100_000), ("/exact", 100_000), ("/plain", default)]
            {
                for (length, status) in [(limit, 200), (limit + 1, 503)] {
                    let (path, body) = (format!("{path}/{length}"), body(length));
                    assert_eq!(post(port, &path, &body, false), status, "{host} {path}");
                    match status {
                        200 => assert_twice(ledger, &path, &body),
                        _ => assert_eq!(ledger.count(&path), 1, "{host} {path}"),
                    }
                }
            }
        });
    }
}

/// The upstream answers before it has everything: what is still to come is for the next attempt too.
#[test]
fn an_answer_may_come_before_the_end_of_the_request() {
    use std::io::{Read as _, Write as _};
    let upstream = crate::Upstream::start(|mut stream| {
        let head = crate::support::upstream::read_until(&mut stream, b"\r\n\r\n");
        let head = String::from_utf8(head.unwrap()).unwrap();
        let mut body = vec![0; 10];
        if head.contains("x-envoy-attempt-count: 1") {
            stream.read_exact(&mut body[..5]).unwrap();
            stream.write_all(b"HTTP/1.1 503 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
            // Whatever else comes is dropped with the connection.
            let _ = stream.read_to_end(&mut Vec::new());
            return;
        }
        stream.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
    });
    let scene = Scene {
        host: "include_request_attempt_count: true,",
        routes: &[("/", "")],
        actions: &[POLICY],
        ..Scene::default()
    };
    scene.run(&[upstream.address], |culvert, port| {
        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n01234");
        culvert.wait_until("a retry", |it| it.stat("cluster.up.upstream_rq_retry") == 1);
        client.send("56789");
        let response = client.response("POST");
        assert_eq!((response.status, response.text().as_str()), (200, "0123456789"));
        // The client's connection goes on.
        client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nabcdefghij");
        assert_eq!(client.response("POST").text(), "abcdefghij");
    });
}

#[test]
fn without_a_policy_nothing_is_kept() {
    with(Scene { routes: &[("/", "")], ..Scene::default() }, |culvert, port, ledger| {
        assert_eq!(post(port, "/", &body(2 << 20), false), 503);
        assert_eq!(ledger.count("/"), 1);
        assert_eq!(culvert.stat("cluster.up.retry_or_shadow_abandoned"), 0);
        assert_eq!(get(port, "/get", "200").status, 200);
    });
}
