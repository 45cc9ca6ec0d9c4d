//! HTTP/1.1 proxying over real sockets, on both drivers.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
    time::Duration,
};

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, bootstrap, cluster, free_port},
    upstream::{Upstream, ok, read_request, read_until},
};

/// A culvert in front of one upstream, on every driver in turn.
fn on_each(upstream: SocketAddr, manager: &str, test: impl Fn(&Culvert, u16)) {
    on_each_with_routes(upstream, manager, "- {match: {prefix: /}, route: {cluster: up}}", test);
}

fn on_each_with_routes(upstream: SocketAddr, manager: &str, routes: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let config = bootstrap(admin, port, manager, routes, &cluster("up", &[upstream]));
        let culvert = Culvert::start(driver, admin, &config);
        test(&culvert, port);
    }
}

#[test]
fn requests_reach_the_upstream_and_connections_are_reused() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |culvert, port| {
        let before = upstream.accepted();
        let mut client = Client::connect(port);
        for n in 0..50 {
            let response = client.get(&format!("/page?n={n}"));
            assert_eq!(response.status, 200);
            let head = response.text();
            assert!(head.starts_with(&format!("GET /page?n={n} HTTP/1.1\r\n")), "{head}");
            assert!(head.contains("host: test\r\n"), "{head}");
            assert!(head.contains("x-request-id: "), "{head}");
            assert!(head.contains("x-forwarded-proto: http\r\n"), "{head}");
            assert!(head.contains("x-envoy-expected-rq-timeout-ms: 15000\r\n"), "{head}");
            assert_eq!(response.header("server"), Some("envoy"));
            assert!(response.header("date").is_some());
            assert!(response.header("x-envoy-upstream-service-time").is_some());
        }
        assert_eq!(upstream.accepted() - before, 1, "one connection serves all");
        assert_eq!(culvert.stat("http.ingress.downstream_rq_total"), 50);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_2xx"), 50);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_200"), 50);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        let requests: String = (0..40).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: t\r\n\r\n")).collect();
        client.send(requests);
        for n in 0..40 {
            let response = client.response("GET");
            assert!(response.text().starts_with(&format!("GET /{n} ")), "answer {n}: {}", response.text());
        }
    });
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_served() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        for byte in
            b"POST /slow HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        {
            client.send([*byte]);
        }
        assert!(client.response("POST").text().starts_with("POST /slow "));
        assert_eq!(client.get("/next").status, 200);
    });
}

#[test]
fn chunked_bodies_pass_both_ways() {
    let upstream = Upstream::start(|mut stream| {
        while let Some((_, body)) = read_request(&mut stream) {
            let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for piece in body.chunks(7) {
                response.extend_from_slice(format!("{:x};ext=1\r\n", piece.len()).as_bytes());
                response.extend_from_slice(piece);
                response.extend_from_slice(b"\r\n");
            }
            response.extend_from_slice(b"0\r\n\r\n");
            if stream.write_all(&response).is_err() {
                return;
            }
        }
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
        let response = client.response("POST");
        assert_eq!(response.text(), "hello world");
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        assert_eq!(client.get("/again").status, 200);
    });
}

#[test]
fn trailers_pass_where_they_are_enabled() {
    let upstream = Upstream::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            let response =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n";
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
    });
    let manager = "http_protocol_options: {enable_trailers: true}";
    let routes = "- {match: {prefix: /}, route: {cluster: up}}";
    let enabled = "  typed_extension_protocol_options:\n    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n      \
                   \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n      \
                   explicit_http_config: {http_protocol_options: {enable_trailers: true}}\n";
    for (options, trailers) in [(enabled, &[("x-sum".to_owned(), "42".to_owned())][..]), ("", &[])] {
        for driver in DRIVERS {
            let (admin, port) = (free_port(), free_port());
            let clusters = cluster("up", &[upstream.address]) + options;
            let mut culvert =
                Culvert::start(driver, admin, &bootstrap(admin, port, manager, routes, &clusters));
            culvert.wait_live();
            assert_eq!(Client::connect(port).get("/").trailers, trailers, "{options}");
        }
    }
    on_each(upstream.address, "", |_, port| {
        let response = Client::connect(port).get("/");
        assert_eq!((response.text().as_str(), response.trailers.len()), ("ok", 0));
    });
}

#[test]
fn informational_responses_and_expectations() {
    let upstream = Upstream::start(|mut stream| {
        while let Some((head, _)) = read_request(&mut stream) {
            assert!(
                !head.to_ascii_lowercase().contains("expect:"),
                "the expectation is met by the proxy: {head}"
            );
            let response = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                            HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
        assert_eq!(client.response("POST").status, 100);
        client.send("abc");
        let hints = client.response("POST");
        assert_eq!((hints.status, hints.header("link")), (103, Some("</a>")));
        assert_eq!(client.response("POST").text(), "ok");
    });
}

#[test]
fn responses_without_a_body_keep_the_connection_in_step() {
    let upstream = Upstream::answering(|head| {
        if head.starts_with("HEAD") {
            b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n".to_vec()
        } else if head.contains("/204") {
            b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
        } else if head.contains("/304") {
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n".to_vec()
        } else {
            ok(b"body")
        }
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("HEAD / HTTP/1.1\r\nhost: t\r\n\r\n");
        let head = client.response("HEAD");
        assert_eq!((head.status, head.header("content-length")), (200, Some("12345")));
        let none = client.get("/204");
        assert_eq!((none.status, none.header("content-length")), (204, None));
        assert_eq!(client.get("/304").status, 304);
        assert_eq!(client.get("/").text(), "body");
    });
}

#[test]
fn a_response_that_ends_with_the_connection_becomes_chunked() {
    let upstream = Upstream::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end");
        }
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        for _ in 0..2 {
            let response = client.get("/");
            assert_eq!(response.text(), "until the end");
            assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        }
    });
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let upstream = Upstream::start(|mut stream| {
        let Some(head) = read_until(&mut stream, b"\r\n\r\n") else { return };
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        );
        let mut piece = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            piece[..n].make_ascii_uppercase();
            if stream.write_all(&piece[..n]).is_err() {
                return;
            }
        }
    });
    on_each(upstream.address, "upgrade_configs: [{upgrade_type: websocket}]", |_, port| {
        let mut client = Client::connect(port);
        client
            .send("GET /chat HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly");
        assert_eq!(client.response("GET").status, 101);
        assert_eq!(client.exactly(10).unwrap(), b"helloEARLY");
        client.send("more");
        assert_eq!(client.exactly(4).unwrap(), b"MORE");
        client.finish();
        assert_eq!(client.rest().unwrap(), b"");
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("GET /chat HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        assert_eq!(client.response("GET").status, 403);
    });
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer() {
    let upstream = Upstream::answering(|_| {
        thread::sleep(Duration::from_millis(200));
        ok(b"late")
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        client.finish();
        assert_eq!(client.response("GET").text(), "late");
        assert!(client.is_closed());
    });
}

#[test]
fn requests_pipelined_before_a_half_close_are_all_answered() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: t\r\n\r\n")).collect();
        client.send(requests);
        client.finish();
        for n in 0..5 {
            assert!(client.response("GET").text().starts_with(&format!("GET /{n} ")));
        }
        assert!(client.is_closed());
    });
}

#[test]
fn a_slow_reader_holds_the_sender() {
    let upstream = Upstream::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n");
            let piece = vec![b'x'; 1 << 20];
            for _ in 0..256 {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
        }
    });
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        client.until(b"\r\n\r\n").unwrap();
        // Nothing is read for a while: what culvert takes from the upstream must come to a stop.
        let received = || culvert.stat("cluster.up.upstream_cx_rx_bytes_total");
        culvert.wait_until("a standstill", |_| {
            let before = received();
            thread::sleep(Duration::from_millis(300));
            before > 0 && before == received()
        });
        let (taken, resident) = (received(), culvert.resident_kb());
        assert!(taken < 64 << 20, "{taken} bytes were taken from an upstream nobody reads");
        assert!(resident < 200 << 10, "{resident} KB resident for one stream");
        // It goes on where it stopped, and nothing is lost.
        let mut left = 268_435_456 - client.buffered();
        let mut piece = vec![0; 1 << 20];
        while left > 0 {
            let n = client.stream.read(&mut piece).unwrap();
            assert!(n > 0, "ended {left} bytes early");
            left -= n;
        }
    });
}

#[test]
fn ambiguous_requests_are_refused() {
    let upstream = Upstream::mirror();
    let cases: [(&str, u16); 14] = [
        (
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\nhost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nx: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nbad name: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nname : y\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", 426),
        ("G\u{1}T / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ];
    on_each(upstream.address, "", |culvert, port| {
        for (request, status) in cases {
            let mut client = Client::connect(port);
            client.send(request);
            let response = client.response("GET");
            assert_eq!(response.status, status, "{request:?}");
            assert_eq!(response.header("connection"), Some("close"), "{request:?}");
            assert!(client.is_closed(), "{request:?}");
        }
        assert_eq!(culvert.stat("cluster.up.upstream_rq_total"), 0, "none of them was passed on");
        // A missing host is a request's fault, not the protocol's.
        assert_eq!(culvert.stat("http.ingress.downstream_cx_protocol_error"), cases.len() as u64 - 1);
    });
}

#[test]
fn a_bad_chunk_ends_both_sides() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n");
        assert_eq!(client.response("POST").status, 400);
        assert!(client.is_closed());
        assert_eq!(culvert.stat("cluster.up.upstream_rq_200"), 0);
    });
}

#[test]
fn heads_over_the_limit_get_431() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "max_request_headers_kb: 8", |_, port| {
        let mut client = Client::connect(port);
        client.send(format!("GET / HTTP/1.1\r\nhost: t\r\nbig: {}\r\n\r\n", "x".repeat(9_000)));
        assert_eq!(client.response("GET").status, 431);
        let mut client = Client::connect(port);
        let many: String = (0..101).map(|n| format!("h{n}: v\r\n")).collect();
        client.send(format!("GET / HTTP/1.1\r\nhost: t\r\n{many}\r\n"));
        assert_eq!(client.response("GET").status, 431);
        let mut client = Client::connect(port);
        client.send(format!("GET / HTTP/1.1\r\nhost: t\r\nbig: {}\r\n\r\n", "x".repeat(7_000)));
        assert_eq!(client.response("GET").status, 200);
    });
}

#[test]
fn a_dead_upstream_is_503_and_a_broken_one_502() {
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    on_each(gone, "", |culvert, port| {
        let mut client = Client::connect(port);
        for _ in 0..3 {
            let response = client.get("/");
            assert_eq!(response.status, 503);
            assert!(response.text().contains("upstream connect error"), "{}", response.text());
        }
        assert_eq!(culvert.stat("cluster.up.upstream_cx_connect_fail"), 3);
    });
    let garbage = Upstream::answering(|_| b"SSH-2.0-OpenSSH\r\n\r\n".to_vec());
    on_each(garbage.address, "", |_, port| assert_eq!(Client::connect(port).get("/").status, 502));
    let silent = Upstream::start(|mut stream| {
        let _ = read_request(&mut stream);
    });
    on_each(silent.address, "", |_, port| assert_eq!(Client::connect(port).get("/").status, 503));
}

#[test]
fn an_upstream_that_closes_mid_body_is_not_taken_for_complete() {
    let upstream = Upstream::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
        }
    });
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        assert!(client.try_response("GET").is_err(), "a cut response must not look complete");
        assert_eq!(culvert.stat("http.ingress.downstream_rq_tx_reset"), 1);
    });
}

#[test]
fn a_route_timeout_answers_504() {
    let upstream = Upstream::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            thread::sleep(Duration::from_secs(20));
        }
    });
    let routes = "- {match: {prefix: /}, route: {cluster: up, timeout: 0.2s}}";
    on_each_with_routes(upstream.address, "", routes, |culvert, port| {
        let response = Client::connect(port).get("/");
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        assert_eq!(culvert.stat("cluster.up.upstream_rq_timeout"), 1);
    });
}

#[test]
fn idle_and_header_timeouts_close() {
    let upstream = Upstream::mirror();
    let manager = "common_http_protocol_options: {idle_timeout: 0.3s}\nrequest_headers_timeout: 0.3s";
    on_each(upstream.address, manager, |culvert, port| {
        let mut idle = Client::connect(port);
        assert_eq!(idle.get("/").status, 200);
        assert!(idle.is_closed());
        assert_eq!(culvert.stat("http.ingress.downstream_cx_idle_timeout"), 1);
        let mut slow = Client::connect(port);
        slow.send("GET / HTTP/1.1\r\nhos");
        assert_eq!(slow.response("GET").status, 408);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_header_timeout"), 1);
    });
}

#[test]
fn a_client_that_vanishes_takes_its_request_with_it() {
    let upstream = Upstream::start(|mut stream| {
        let _ = read_request(&mut stream);
        let mut rest = [0];
        let _ = stream.read(&mut rest);
    });
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        culvert.wait_until("the request", |culvert| culvert.stat("cluster.up.upstream_rq_active") == 1);
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        culvert.wait_until("its end", |culvert| {
            culvert.stat("cluster.up.upstream_rq_active") == 0
                && culvert.stat("http.ingress.downstream_cx_active") == 0
        });
        assert_eq!(culvert.stat("http.ingress.downstream_rq_rx_reset"), 1);
    });
}

#[test]
fn an_idle_upstream_connection_that_was_closed_is_not_used() {
    let upstream = Upstream::start(|mut stream| {
        // One request per connection, closed without a word.
        if read_request(&mut stream).is_some() {
            let _ = stream.write_all(&ok(b"one"));
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        for _ in 0..20 {
            assert_eq!(client.get("/").text(), "one");
            culvert.wait_until("the close", |culvert| culvert.stat("cluster.up.upstream_cx_active") == 0);
        }
    });
}

#[test]
fn the_case_of_names_is_kept_when_asked() {
    let upstream = Upstream::answering(|head| {
        let mut response = b"HTTP/1.1 200 OK\r\nX-MiXed: Yes\r\n".to_vec();
        response.extend_from_slice(format!("Content-Length: {}\r\n\r\n{head}", head.len()).as_bytes());
        response
    });
    let formatter = "http_protocol_options: {header_key_format: {stateful_formatter: {name: preserve_case, typed_config: \
                     {\"@type\": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}";
    on_each(upstream.address, formatter, |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nHost: t\r\nX-CaSe: 1\r\n\r\n");
        let response = client.response("GET");
        assert!(response.headers.iter().any(|(name, _)| name == "x-mixed" || name == "X-MiXed"));
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nHost: t\r\nX-CaSe: 1\r\n\r\n");
        let response = client.response("GET");
        assert!(response.headers.iter().any(|(name, _)| name == "x-mixed"), "{:?}", response.headers);
        assert!(response.text().contains("x-case: 1\r\n"), "{}", response.text());
    });
}

#[test]
fn header_values_may_name_the_request() {
    let upstream = Upstream::mirror();
    let routes = r#"
- match: {prefix: /api/}
  route: {cluster: up, prefix_rewrite: /v1/, host_rewrite_literal: inner}
  request_headers_to_add:
  - {header: {key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}
  - {header: {key: x-agent, value: "agent=%REQ(user-agent)%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  request_headers_to_remove: [x-secret]
  response_headers_to_add: [{header: {key: x-path, value: "%REQ(:PATH)%"}}]
- {match: {path: /gone}, direct_response: {status: 410, body: {inline_string: "gone"}}}
- {match: {prefix: /old}, redirect: {path_redirect: /new, response_code: FOUND}}
"#;
    on_each_with_routes(upstream.address, "", routes, |_, port| {
        let mut client = Client::connect(port);
        client.send(
            "GET /api/x?q=1 HTTP/1.1\r\nhost: t\r\nuser-agent: me\r\nx-agent: no\r\nx-secret: s\r\n\r\n",
        );
        let response = client.response("GET");
        let head = response.text();
        assert!(head.starts_with("GET /v1/x?q=1 HTTP/1.1\r\nhost: inner\r\n"), "{head}");
        assert!(head.contains("x-client: 127.0.0.1\r\n"), "{head}");
        assert!(head.contains("x-agent: agent=me\r\n"), "{head}");
        assert!(head.contains("x-envoy-original-path: /api/x?q=1\r\n"), "{head}");
        assert!(!head.contains("x-secret"), "{head}");
        let gone = client.get("/gone");
        assert_eq!((gone.status, gone.text().as_str()), (410, "gone"));
        let moved = client.get("/old/page");
        assert_eq!((moved.status, moved.header("location")), (302, Some("http://test/new")));
        assert_eq!(client.get("/elsewhere").status, 404);
    });
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_refused() {
    let upstream = Upstream::answering(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n".to_vec()
    });
    on_each(upstream.address, "upgrade_configs: [{upgrade_type: websocket}]", |culvert, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/").status, 502);
        assert_eq!(client.get("/").status, 502, "the client's connection is still HTTP");
        assert_eq!(culvert.stat("cluster.up.upstream_cx_active"), 0);
    });
}

#[test]
fn a_response_head_that_stops_in_its_middle_is_502() {
    let upstream = Upstream::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
        }
    });
    on_each(upstream.address, "", |_, port| assert_eq!(Client::connect(port).get("/").status, 502));
}

#[test]
fn a_client_that_always_sends_one_byte_too_many_costs_no_memory() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", |culvert, port| {
        let mut client = Client::connect(port);
        let request = b"GET /some/path HTTP/1.1\r\nhost: t\r\nfiller: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n\r\n";
        let padded = request.len() + 4_000;
        let mut big = request.to_vec();
        big.splice(25..25, format!("pad: {}\r\n", "y".repeat(padded - request.len() - 7)).into_bytes());
        client.send(&big[..1]);
        let mut before = 0;
        for n in 0..4_000 {
            client.send(&big[1..]);
            client.send(&big[..1]);
            assert_eq!(client.response("GET").status, 200);
            if n == 500 {
                before = culvert.resident_kb();
            }
        }
        let grown = culvert.resident_kb().saturating_sub(before);
        assert!(grown < 4 << 10, "{grown} KB more after 14 MB of requests on one connection");
    });
}

#[test]
fn a_stray_line_end_before_a_half_close_does_not_cost_the_response() {
    let upstream = Upstream::answering(|_| {
        thread::sleep(Duration::from_millis(100));
        ok(b"answer")
    });
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n\r\n");
        client.finish();
        assert_eq!(client.response("GET").text(), "answer");
    });
}

#[test]
fn a_slow_reader_gets_the_end_of_the_last_response() {
    let upstream = Upstream::answering(|_| ok(&vec![b'x'; 8 << 20]));
    on_each(upstream.address, "", |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        client.finish();
        // Longer than any linger of a socket.
        thread::sleep(Duration::from_secs(4));
        assert_eq!(client.response("GET").body.len(), 8 << 20);
    });
}

#[test]
fn a_status_without_a_body_has_none_whatever_is_configured() {
    let upstream = Upstream::mirror();
    let routes = "- {match: {path: /none}, direct_response: {status: 204, body: {inline_string: surplus}}}\n\
                  - {match: {prefix: /}, route: {cluster: up}}";
    on_each_with_routes(upstream.address, "", routes, |_, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/none").status, 204);
        assert_eq!(client.get("/next").status, 200);
    });
}

#[test]
fn a_request_that_waits_for_a_connection_keeps_its_timeout() {
    let upstream = Upstream::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            thread::sleep(Duration::from_secs(20));
        }
    });
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let limited = cluster("up", &[upstream.address]).replace(
            "  connect_timeout",
            "  circuit_breakers: {thresholds: [{max_connections: 1}]}\n  connect_timeout",
        );
        let routes = "- {match: {prefix: /}, route: {cluster: up, timeout: 0.5s}}";
        // One worker, so that both requests want the same connection.
        let config = bootstrap(admin, port, "", routes, &limited);
        let culvert = Culvert::start_with(driver, admin, &config, &["--concurrency", "1"]);
        let mut first = Client::connect(port);
        first.send("GET /1 HTTP/1.1\r\nhost: t\r\n\r\n");
        culvert.wait_until("the first request", |culvert| culvert.stat("cluster.up.upstream_cx_active") == 1);
        let mut second = Client::connect(port);
        second.send("GET /2 HTTP/1.1\r\nhost: t\r\n\r\n");
        assert_eq!(first.response("GET").status, 504);
        assert_eq!(second.response("GET").status, 504);
        culvert.wait_until("nothing pending", |culvert| {
            culvert.stat("cluster.up.upstream_rq_pending_active") == 0
                && culvert.stat("cluster.up.upstream_rq_active") == 0
        });
        assert!(culvert.stat("cluster.up.upstream_cx_overflow") > 0, "{driver}");
    }
}

#[test]
fn a_request_that_never_ends_is_408() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "request_timeout: 0.5s", |culvert, port| {
        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1000\r\n\r\nabc");
        assert_eq!(client.response("POST").status, 408);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_timeout"), 1);
    });
}
