//! How connections of clients begin and end.

use std::time::Duration;

use crate::{
    eventually, http1, on_each,
    peer::{
        self, Conn, DATA, GET_ROOT, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
        block_on, frame,
    },
    support::{
        client::Client,
        upstream::{Upstream, ok},
    },
};

#[test]
fn settings_are_envoys_or_as_configured() {
    let upstream = Upstream::mirror();
    let settings = |port| {
        let mut raw = Raw::open(port);
        let first = raw.until(SETTINGS);
        let window = raw.until(WINDOW_UPDATE);
        let value = |id: u8| {
            let found = first.payload.chunks(6).find(|it| it[1] == id);
            found.map(|it| u32::from_be_bytes(it[2..6].try_into().unwrap()))
        };
        let window = u32::from_be_bytes(window.payload[..4].try_into().unwrap()) + 65_535;
        (value(3), value(4), window)
    };
    on_each(upstream.address, "", &http1(), |_, port| {
        assert_eq!(settings(port), (Some(1_024), Some(16 << 20), 24 << 20));
    });
    let given = "http2_protocol_options: {max_concurrent_streams: 7, initial_stream_window_size: 70000, \
                 initial_connection_window_size: 200000}";
    on_each(upstream.address, given, &http1(), |_, port| {
        assert_eq!(settings(port), (Some(7), Some(70_000), 200_000));
    });
}

#[test]
fn codec_type_http1_speaks_nothing_else() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "codec_type: HTTP1", &http1(), |culvert, port| {
        assert_eq!(Client::connect(port).get("/").status, 200);
        let mut raw = Raw::open(port);
        let mut start = [0; 9];
        std::io::Read::read_exact(&mut raw.0, &mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 ");
        assert_eq!(culvert.stat("http.ingress.downstream_cx_http2_total"), 0);
    });
}

/// The identifiers of the GOAWAY frames up to the end of the connection, with their codes.
fn goaways(raw: &mut Raw) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let mut found = Vec::new();
    while let Ok(received) = raw.next() {
        if received.kind == GOAWAY {
            found.push((number(&received.payload[..4]), number(&received.payload[4..8])));
        }
        if received.kind == PING && received.flags == 0 {
            raw.send(&frame(PING, 1, 0, &received.payload));
        }
    }
    found
}

#[test]
fn the_last_request_of_a_connection_is_followed_by_its_end() {
    let upstream = Upstream::mirror();
    let options = "common_http_protocol_options: {max_requests_per_connection: 2}";
    on_each(upstream.address, options, &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, 0x5, 1, GET_ROOT));
        raw.send(&frame(HEADERS, 0x5, 3, GET_ROOT));
        assert_eq!(goaways(&mut raw), [((1 << 31) - 1, 0), (3, 0)]);
        assert_eq!(culvert.stat("http.ingress.downstream_cx_max_requests_reached"), 1);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_2xx"), 2);
        assert_eq!(culvert.stat("http2.goaway_sent"), 2);
    });
}

#[test]
fn connections_end_when_they_are_old_or_idle() {
    let upstream = Upstream::mirror();
    for (options, counter) in [
        ("{idle_timeout: 0.3s}", "downstream_cx_idle_timeout"),
        ("{max_connection_duration: 0.3s}", "downstream_cx_max_duration_reached"),
    ] {
        let options = format!("drain_timeout: 0.2s\ncommon_http_protocol_options: {options}");
        on_each(upstream.address, &options, &http1(), |culvert, port| {
            let mut raw = Raw::open(port);
            raw.send(&frame(HEADERS, 0x5, 1, GET_ROOT));
            assert_eq!(goaways(&mut raw), [((1 << 31) - 1, 0), (1, 0)]);
            // One that answers no ping is not waited for.
            let mut raw = Raw::open(port);
            assert!(raw.rest().iter().any(|frame| frame.kind == GOAWAY));
            assert_eq!(culvert.stat(&format!("http.ingress.{counter}")), 2);
        });
    }
}

#[test]
fn a_request_in_flight_survives_the_drain_of_its_connection() {
    let upstream = Upstream::answering(|head| {
        std::thread::sleep(Duration::from_millis(800));
        ok(head.as_bytes())
    });
    let options = "drain_timeout: 0.2s\ncommon_http_protocol_options: {max_connection_duration: 0.3s}";
    on_each(upstream.address, options, &http1(), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            assert_eq!(conn.get("/").await.status, 200);
            assert!(conn.try_get("/").await.is_err(), "no further request is taken");
        });
    });
}

#[test]
fn a_draining_listener_lets_its_connections_go() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        block_on(async {
            let mut conn = Conn::open(port).await;
            assert_eq!(conn.get("/").await.status, 200);
            culvert.post("/drain_listeners").unwrap();
            // The answer to a request says so, as soon as the worker has heard of it.
            while conn.try_get("/").await.is_ok() {}
            tokio::time::timeout(Duration::from_secs(20), &mut conn.driver).await.unwrap().unwrap().unwrap();
        });
    });
}

#[test]
fn clients_are_pinged_and_those_that_do_not_answer_are_gone() {
    let upstream = Upstream::mirror();
    let options = "http2_protocol_options: {connection_keepalive: {interval: 0.1s, timeout: 0.2s, \
                   interval_jitter: {value: 0}}}";
    on_each(upstream.address, options, &http1(), |culvert, port| {
        // This one answers.
        block_on(async {
            let conn = Conn::open(port).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_eq!(conn.get("/").await.status, 200);
        });
        assert_eq!(culvert.stat("http2.keepalive_timeout"), 0);
        let mut raw = Raw::open(port);
        assert!(raw.rest().iter().any(|frame| frame.kind == PING));
        assert_eq!(culvert.stat("http2.keepalive_timeout"), 1);
    });
}

#[test]
fn a_stream_that_is_reset_gives_its_upstream_up() {
    let upstream = Upstream::start(|mut stream| {
        let _ = crate::support::upstream::read_request(&mut stream);
        std::thread::sleep(Duration::from_secs(20));
    });
    on_each(upstream.address, "", &http1(), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let (response, _stream) = conn.start(peer::get("/"), true).await;
            eventually(culvert, "it is sent on", |it| it.stat("cluster.up.upstream_rq_active") == 1).await;
            drop((response, _stream));
            eventually(culvert, "it is given up", |it| it.stat("cluster.up.upstream_rq_active") == 0).await;
        });
        assert_eq!(culvert.stat("http.ingress.downstream_rq_rx_reset"), 1);
        let given_up = "cluster.up.upstream_cx_destroy_local_with_active_rq";
        assert_eq!(culvert.stat(given_up) + culvert.stat("cluster.up.upstream_rq_tx_reset"), 1);
        assert_eq!(culvert.stat("http2.rx_reset"), 1);
        culvert.wait_until("its connection is closed", |it| it.stat("cluster.up.upstream_cx_active") == 0);
    });
}

#[test]
fn an_early_answer_to_a_long_request_is_whole() {
    let upstream = Upstream::start(|mut stream| {
        let _ = crate::support::upstream::read_until(&mut stream, b"\r\n\r\n");
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 413 X\r\ncontent-length: 3\r\n\r\nbig");
        std::thread::sleep(Duration::from_secs(1));
    });
    on_each(upstream.address, "", &http1(), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let request = http::Request::post("http://test/").body(()).unwrap();
            let (response, mut stream) = conn.start(request, false).await;
            let answer = peer::answer(response).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
            let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
            assert_eq!(reset, h2::Reason::NO_ERROR, "no more of the request is wanted");
        });
    });
}

/// An answer that is there as a whole, and whose client does not let it through.
#[test]
fn the_rest_of_a_response_is_not_kept_for_ever() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    on_each(nobody, "stream_flush_timeout: 0.3s", "", |culvert, port| {
        let mut raw = Raw::open(port);
        let window = |bytes: u32| frame(SETTINGS, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat());
        raw.send(&window(0));
        raw.send(&frame(HEADERS, 5, 1, GET_ROOT));
        assert_eq!(raw.until(HEADERS).stream, 1);
        let reset = raw.until(RST_STREAM);
        assert_eq!((reset.stream, culvert.stat("http2.tx_flush_timeout")), (1, 1));
        // The connection is as good as before.
        raw.send(&window(65_535));
        raw.send(&frame(HEADERS, 5, 3, GET_ROOT));
        let body = raw.until(DATA);
        assert!(body.stream == 3 && body.payload.starts_with(b"upstream connect error"));
        culvert.wait_until("it is over", |it| it.stat("http2.streams_active") == 0);
        assert_eq!(culvert.stat("http2.tx_flush_timeout"), 1);
    });
}

#[test]
fn streams_last_as_long_as_they_may() {
    let upstream = Upstream::answering(|head| {
        let pause = if head.contains("/quick") { 400 } else { 20_000 };
        std::thread::sleep(Duration::from_millis(pause));
        ok(head.as_bytes())
    });
    on_each(upstream.address, "", &http1(), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            // The route's timeout is shorter, and does not count.
            assert_eq!(conn.get("/limited/quick").await.status, 200);
            for timeout in ["200m", "50S"] {
                let mut request = peer::get("/limited/slow");
                let fields = request.headers_mut();
                fields.insert("content-type", http::HeaderValue::from_static("application/grpc"));
                fields.insert("grpc-timeout", http::HeaderValue::from_static(timeout));
                let (response, _) = conn.start(request, true).await;
                let answer = peer::answer(response).await.unwrap();
                assert_eq!((answer.status, answer.header("grpc-status")), (200, "4"), "{timeout}");
                assert_eq!(answer.header("grpc-message"), "downstream duration timeout");
            }
        });
        assert_eq!(culvert.stat("http.ingress.downstream_rq_max_duration_reached"), 2);
        culvert.wait_until("nothing is left", |it| it.stat("cluster.up.upstream_rq_active") == 0);
    });
    let options = "common_http_protocol_options: {max_stream_duration: 0.3s}";
    on_each(upstream.address, options, &http1(), |culvert, port| {
        let response = Client::connect(port).get("/slow");
        assert_eq!((response.status, response.text().as_str()), (504, "downstream duration timeout"));
        assert_eq!(culvert.stat("http.ingress.downstream_rq_max_duration_reached"), 1);
    });
}
