//! Connections to upstreams that speak HTTP/2.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Response, request::Parts};

use crate::{
    eventually, explicit, http2, on_each,
    peer::{self, Conn, Server, block_on},
    protocol_options,
    support::{client::Client, upstream::Upstream},
};

async fn resetting(parts: Parts, _: RecvStream, mut respond: SendResponse<Bytes>) {
    match parts.uri.path() {
        "/refused" => respond.send_reset(Reason::REFUSED_STREAM),
        "/reset" => respond.send_reset(Reason::INTERNAL_ERROR),
        "/half" => {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let _ = respond.send_response(Response::new(()), true);
        }
        _ => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = respond.send_response(Response::new(()), true);
        }
    }
}

#[test]
fn resets_are_answered_as_envoy_does() {
    let upstream = Server::start(resetting);
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        let before = upstream.accepted();
        let mut client = Client::connect(port);
        for (path, reason) in [("/refused", "remote refused stream reset"), ("/reset", "remote reset")] {
            let response = client.get(path);
            assert_eq!(response.status, 503);
            assert!(response.text().ends_with(&format!("reset reason: {reason}")), "{}", response.text());
        }
        // The connection is as good as before.
        assert_eq!(client.get("/").status, 200);
        client.send("GET /half HTTP/1.1\r\nhost: t\r\n\r\n");
        let head = client.until(b"\r\n\r\n").unwrap();
        assert!(head.starts_with(b"HTTP/1.1 200"));
        let rest = client.rest().unwrap();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut body must not look complete");
        block_on(async {
            let conn = Conn::open(port).await;
            let cut = conn.try_get("/half").await.unwrap_err();
            assert_eq!(cut.reason(), Some(Reason::INTERNAL_ERROR));
        });
        assert_eq!(upstream.accepted() - before, 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_rx_reset"), 3, "a refused stream is none");
        assert_eq!(culvert.stat("cluster.up.http2.rx_reset"), 4);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_destroy"), 0);
    });
}

#[test]
fn a_request_that_is_given_up_resets_its_stream_only() {
    let upstream = Server::start(resetting);
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let slow = conn.start(peer::get("/slow"), true).await;
            eventually(culvert, "it is sent on", |it| it.stat("cluster.up.upstream_rq_active") == 1).await;
            drop(slow);
            eventually(culvert, "it is reset", |it| it.stat("cluster.up.http2.tx_reset") == 1).await;
        });
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_tx_reset"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_active"), 1);
        assert_eq!(culvert.stat("cluster.up.http2.streams_active"), 0);
    });
}

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Every other request fails.
async fn failing_once(parts: Parts, _: RecvStream, mut respond: SendResponse<Bytes>) {
    let status = if ASKED.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { 503 } else { 200 };
    let body = parts.uri.path() == "/body";
    let mut stream =
        respond.send_response(Response::builder().status(status).body(()).unwrap(), !body).unwrap();
    if body {
        let _ = stream.send_data(Bytes::from_static(b"why"), true);
    }
}

/// An answer that was received to its end is not reset, though the client does not get it.
#[test]
fn an_answer_that_is_complete_is_not_reset() {
    let upstream = Server::start(failing_once);
    let manager = "use_remote_address: true\ninternal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, \
                   prefix_len: 8}]}";
    on_each(upstream.address, manager, &http2(""), |culvert, port| {
        for (path, resets) in [("/bare", 0), ("/body", 1)] {
            let mut client = Client::connect(port);
            client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\nx-envoy-retry-on: 5xx\r\n\r\n"));
            assert_eq!(client.response("GET").status, 200);
            assert_eq!(culvert.stat("cluster.up.upstream_rq_tx_reset"), resets, "{path}");
        }
    });
}

#[test]
fn a_server_that_goes_away_is_connected_to_anew() {
    let upstream = Server::mirror();
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/").status, 200);
        assert_eq!(client.get("/goaway").status, 200, "the last stream is served to its end");
        for _ in 0..5 {
            assert_eq!(client.get("/").status, 200);
        }
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 2);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_close_notify"), 1);
        culvert.wait_until("the old one is closed", |it| it.stat("cluster.up.upstream_cx_active") == 1);
    });
}

#[test]
fn a_server_that_goes_away_may_have_a_stream_open() {
    let upstream = Server::start(resetting);
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let slow = conn.start(peer::get("/slow"), true).await;
            eventually(culvert, "it is sent on", |it| it.stat("cluster.up.upstream_rq_active") == 1).await;
            assert_eq!(
                peer::answer(conn.start(peer::get("/goaway"), true).await.0).await.unwrap().status,
                200
            );
            for _ in 0..3 {
                assert_eq!(peer::answer(conn.start(peer::get("/"), true).await.0).await.unwrap().status, 200);
            }
            drop(slow);
        });
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 2);
    });
}

/// Sends so many requests at a time, and waits for all of them.
pub(crate) fn at_once(port: u16, count: usize) -> Vec<u16> {
    block_on(async {
        let conn = Conn::open(port).await;
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(conn.start(peer::get("/"), true).await.0);
        }
        let mut statuses = Vec::new();
        for response in all {
            statuses.push(peer::answer(response).await.unwrap().status);
        }
        statuses
    })
}

#[test]
fn more_connections_are_made_when_one_is_full() {
    for (settings, options) in [(None, "max_concurrent_streams: 3"), (Some(3), "")] {
        let mut server = h2::server::Builder::new();
        if let Some(max) = settings {
            server.max_concurrent_streams(max);
        }
        let upstream = Server::with(server, resetting);
        on_each(upstream.address, "", &http2(options), |culvert, port| {
            // Its settings are known from here on.
            assert_eq!(at_once(port, 1), [200]);
            let before = upstream.accepted();
            assert_eq!(at_once(port, 9), [200; 9]);
            let made = upstream.accepted() - before;
            assert_eq!(made, 2, "three streams each");
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 3);
            assert_eq!(culvert.stat("cluster.up.upstream_rq_pending_active"), 0);
        });
    }
}

#[test]
fn circuit_breakers_count_streams_as_requests() {
    let upstream = Server::start(resetting);
    let limits = |limits: &str| {
        http2("max_concurrent_streams: 2") + &format!("circuit_breakers: {{thresholds: [{{{limits}}}]}}\n")
    };
    on_each(upstream.address, "", &limits("max_requests: 3"), |culvert, port| {
        let mut statuses = at_once(port, 8);
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 503, 503, 503, 503, 503]);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active_overflow"), 5);
    });
    // One connection with two streams; the others wait for their turn.
    on_each(upstream.address, "", &limits("max_connections: 1"), |culvert, port| {
        assert_eq!(at_once(port, 8), [200; 8]);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
        assert!(culvert.stat("cluster.up.upstream_cx_overflow") > 0);
    });
    on_each(upstream.address, "", &limits("max_connections: 1, max_pending_requests: 2"), |culvert, port| {
        assert_eq!(at_once(port, 1), [200]);
        let mut statuses = at_once(port, 6);
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 503, 503], "two on it, two that wait");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_pending_overflow"), 2);
    });
}

#[test]
fn connections_are_used_for_as_many_requests_and_as_long_as_configured() {
    let upstream = Server::start(resetting);
    let common = |options: &str| http2("") + &format!("    common_http_protocol_options: {{{options}}}\n");
    on_each(upstream.address, "", &common("max_requests_per_connection: 2"), |culvert, port| {
        let mut client = Client::connect(port);
        for _ in 0..6 {
            assert_eq!(client.get("/").status, 200);
        }
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 3);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_max_requests"), 3);
        culvert.wait_until("they are closed", |it| it.stat("cluster.up.upstream_cx_active") == 0);
    });
    on_each(upstream.address, "", &common("idle_timeout: 0.5s"), |culvert, port| {
        assert_eq!(Client::connect(port).get("/").status, 200);
        culvert.wait_until("it is closed", |it| it.stat("cluster.up.upstream_cx_active") == 0);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_idle_timeout"), 1);
    });
}

#[test]
fn connections_take_no_request_once_they_are_old() {
    let upstream = Server::start(version);
    let plain = Upstream::mirror();
    let common = "    common_http_protocol_options: {max_connection_duration: 2s}\n";
    for (address, options) in
        [(upstream.address, http2("")), (plain.address, explicit("http_protocol_options: {}"))]
    {
        on_each(address, "", &(options + common), |culvert, port| {
            let mut client = Client::connect(port);
            assert_eq!(client.get("/").status, 200);
            assert_eq!(client.get("/").status, 200);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
            std::thread::sleep(Duration::from_millis(2_100));
            assert_eq!(client.get("/").status, 200);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 2);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_max_duration_reached"), 1);
            culvert.wait_until("idle ones are closed", |it| it.stat("cluster.up.upstream_cx_active") == 0);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_max_duration_reached"), 2);
        });
    }
}

#[test]
fn servers_that_were_silent_are_pinged_before_they_are_used() {
    // It answers the first request, and nothing any more.
    let silent = Upstream::start(|mut stream| {
        let _ = std::io::Write::write_all(&mut stream, &peer::frame(peer::SETTINGS, 0, 0, &[]));
        let mut preface = [0; 24];
        if std::io::Read::read_exact(&mut stream, &mut preface).is_err() {
            return;
        }
        loop {
            let mut head = [0; 9];
            if std::io::Read::read_exact(&mut stream, &mut head).is_err() {
                return;
            }
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            let _ = std::io::Read::read_exact(&mut stream, &mut payload);
            if head[3] == peer::HEADERS {
                break;
            }
        }
        // `:status: 200`
        let _ = std::io::Write::write_all(&mut stream, &peer::frame(peer::HEADERS, 5, 1, &[0x88]));
        std::thread::sleep(Duration::from_secs(20));
    });
    let options = "connection_keepalive: {timeout: 0.2s, connection_idle_interval: 0.3s}";
    on_each(silent.address, "", &http2(options), |culvert, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/").status, 200);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(culvert.stat("cluster.up.http2.keepalive_timeout"), 0, "nobody has asked");
        // The connection is found dead, and another one answers.
        assert_eq!(client.get("/").status, 200);
        assert_eq!(culvert.stat("cluster.up.http2.keepalive_timeout"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 2);
    });
}

#[test]
fn servers_are_pinged() {
    let silent = Upstream::start(|mut stream| {
        // It says hello, and nothing any more.
        let _ = std::io::Write::write_all(&mut stream, &peer::frame(peer::SETTINGS, 0, 0, &[]));
        std::thread::sleep(Duration::from_secs(20));
    });
    let options = "connection_keepalive: {interval: 0.1s, timeout: 0.2s}";
    on_each(silent.address, "", &http2(options), |culvert, port| {
        let response = Client::connect(port).get("/");
        assert_eq!(response.status, 503);
        assert!(response.text().ends_with("reset reason: connection termination"), "{}", response.text());
        assert_eq!(culvert.stat("cluster.up.http2.keepalive_timeout"), 1);
    });
}

#[test]
fn a_server_that_speaks_something_else_is_a_failure() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http2(""), |_, port| {
        let mut client = Client::connect(port);
        for _ in 0..2 {
            assert!(matches!(client.get("/").status, 502 | 503));
        }
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_a_connection_failure() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    on_each(gone, "", &http2(""), |culvert, port| {
        assert_eq!(at_once(port, 4), [503; 4]);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_pending_active"), 0);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_active"), 0);
        assert!(culvert.stat("cluster.up.upstream_cx_connect_fail") >= 1);
    });
}

async fn version(_: Parts, _: RecvStream, mut respond: SendResponse<Bytes>) {
    let _ = respond.send_response(Response::new(()), true);
}

#[test]
fn the_deprecated_field_means_the_same() {
    let upstream = Server::start(version);
    on_each(upstream.address, "", "http2_protocol_options: {}\n", |culvert, port| {
        assert_eq!(Client::connect(port).get("/").status, 200);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 1);
    });
}

#[test]
fn an_upstream_may_be_spoken_to_as_the_client_speaks() {
    // It takes both, told apart by the preface.
    let upstream = Server::start(version);
    let plain = Upstream::mirror();
    for options in [
        protocol_options("use_downstream_protocol_config: {http2_protocol_options: {}}"),
        "protocol_selection: USE_DOWNSTREAM_PROTOCOL\n".to_owned(),
    ] {
        on_each(upstream.address, "", &options, |culvert, port| {
            block_on(async {
                assert_eq!(Conn::open(port).await.get("/").await.status, 200);
            });
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 1);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http1_total"), 0);
        });
        on_each(plain.address, "", &options, |culvert, port| {
            assert_eq!(Client::connect(port).get("/").status, 200);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 0);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http1_total"), 1);
        });
    }
}

#[test]
fn protocol_options_without_http2_speak_http1() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &explicit("http_protocol_options: {}"), |culvert, port| {
        block_on(async {
            assert_eq!(Conn::open(port).await.get("/").await.status, 200);
        });
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http1_total"), 1);
    });
}

#[test]
fn streams_take_no_longer_than_their_cluster_allows() {
    let upstream = Server::start(resetting);
    let options = http2("") + "    common_http_protocol_options: {max_stream_duration: 0.5s}\n";
    on_each(upstream.address, "", &options, |culvert, port| {
        let before = upstream.accepted();
        let mut client = Client::connect(port);
        let response = client.get("/slow");
        assert_eq!(
            (response.status, response.text().as_str()),
            (504, "upstream max stream duration reached")
        );
        block_on(async {
            let answer = Conn::open(port).await.try_get("/slow").await.unwrap();
            assert_eq!(answer.status, 504);
        });
        // It was the stream's end, not the connection's.
        assert_eq!(client.get("/").status, 200);
        assert_eq!(upstream.accepted() - before, 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_max_duration_reached"), 2);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_tx_reset"), 2);
    });
}
