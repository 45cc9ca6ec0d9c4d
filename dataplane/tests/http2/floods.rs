//! Clients that abuse the protocol, frame by frame.

use std::time::Duration;

use crate::{
    http1, on_each,
    peer::{
        self, CONTINUATION, Conn, DATA, ENHANCE_YOUR_CALM, GET_ROOT, GOAWAY, HEADERS, PING, PRIORITY,
        RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block_on, frame,
    },
    support::{culvert::Culvert, upstream::Upstream},
};

/// Sends the flood, and expects to be told to calm down while others are served.
fn is_ended(culvert: &Culvert, port: u16, flood: &[u8], counter: &str) {
    let before = culvert.stat(counter);
    let mut raw = Raw::open(port);
    raw.send(flood);
    assert_eq!(raw.goaway_code(), Some(ENHANCE_YOUR_CALM), "{counter}");
    assert_eq!(culvert.stat(counter), before + 1, "{counter}");
    block_on(async {
        assert_eq!(Conn::open(port).await.get("/").await.status, 200);
    });
}

fn times(count: usize, frame: &[u8]) -> Vec<u8> {
    frame.repeat(count)
}

#[test]
fn floods_end_the_connection() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        let open = frame(HEADERS, 0x4, 1, GET_ROOT);
        // `a` with a value of 15,000 bytes, not compressed.
        let field = [&b"\x00\x01a\x7f\x99\x74"[..], &[b'b'; 15_000]].concat();
        for (flood, counter) in [
            ([open.clone(), times(2, &frame(DATA, 0, 1, &[]))].concat(), "inbound_empty_frames_flood"),
            (times(101, &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])), "inbound_priority_frames_flood"),
            (times(6, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])), "inbound_window_update_frames_flood"),
            (
                [frame(HEADERS, 0, 1, GET_ROOT), times(40, &frame(CONTINUATION, 0, 1, &field))].concat(),
                "header_overflow",
            ),
            (
                [frame(HEADERS, 0, 1, GET_ROOT), times(400, &frame(CONTINUATION, 0, 1, b"\x00\x01a\x00"))]
                    .concat(),
                "header_overflow",
            ),
        ] {
            is_ended(culvert, port, &flood, &format!("http2.{counter}"));
        }
        culvert.wait_until("all are closed", |it| it.stat("http.ingress.downstream_cx_active") == 0);
    });
}

/// Whoever asks for answers and does not read them.
#[test]
fn answers_that_nobody_reads_end_the_connection() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        for frame in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])] {
            let before = culvert.stat("http2.outbound_control_flood");
            let mut raw = Raw::open(port);
            let flood = times(10_000, &frame);
            // It ends when nothing is taken any more, at the latest.
            while std::io::Write::write_all(&mut raw.0, &flood).is_ok() {}
            assert_eq!(culvert.stat("http2.outbound_control_flood"), before + 1);
        }
        culvert.wait_until("both are closed", |it| it.stat("http.ingress.downstream_cx_active") == 0);
    });
}

#[test]
fn limits_are_as_configured() {
    let upstream = Upstream::mirror();
    let options = "http2_protocol_options: {max_consecutive_inbound_frames_with_empty_payload: 5, \
                   max_inbound_priority_frames_per_stream: 7, max_outbound_control_frames: 10, \
                   max_inbound_window_update_frames_per_data_frame_sent: 1}";
    on_each(upstream.address, options, &http1(), |culvert, port| {
        let open = frame(HEADERS, 0x4, 1, GET_ROOT);
        is_ended(
            culvert,
            port,
            &[open, times(6, &frame(DATA, 0, 1, &[]))].concat(),
            "http2.inbound_empty_frames_flood",
        );
        is_ended(
            culvert,
            port,
            &times(8, &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
            "http2.inbound_priority_frames_flood",
        );
        is_ended(culvert, port, &times(11, &frame(PING, 0, 0, &[0; 8])), "http2.outbound_control_flood");
    });
}

#[test]
fn streams_that_are_opened_to_be_reset_end_the_connection() {
    let upstream = Upstream::start(|_stream| std::thread::sleep(Duration::from_secs(20)));
    on_each(upstream.address, "", &http1(), |culvert, port| {
        // All at once.
        let mut raw = Raw::open(port);
        let burst: Vec<u8> = (0..1_000_u32)
            .flat_map(|n| {
                let stream = 2 * n + 1;
                [frame(HEADERS, 0x5, stream, GET_ROOT), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            })
            .collect();
        raw.send(&burst);
        assert_eq!(raw.goaway_code(), Some(ENHANCE_YOUR_CALM));
        // One after the other.
        let mut raw = Raw::open(port);
        for n in 0..600_u32 {
            let stream = 2 * n + 1;
            raw.send(&frame(HEADERS, 0x5, stream, GET_ROOT));
            raw.send(&frame(PING, 0, 0, &[0; 8]));
            let answers: Vec<_> = std::iter::from_fn(|| raw.next().ok())
                .take_while(|frame| frame.kind != PING)
                .filter(|frame| frame.kind == GOAWAY)
                .collect();
            if let Some(goaway) = answers.first() {
                assert_eq!(goaway.payload[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
                break;
            }
            raw.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        assert_eq!(culvert.stat("http.ingress.downstream_rq_too_many_premature_resets"), 1);
        culvert.wait_until("everything is given back", |it| {
            it.stat("http.ingress.downstream_rq_active") + it.stat("cluster.up.upstream_rq_active") == 0
        });
    });
}

#[test]
fn what_is_not_http2_is_no_connection() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "codec_type: HTTP2", &http1(), |culvert, port| {
        let mut raw = Raw(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        raw.send(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        drop(raw.rest());
        culvert.wait_until("it is closed", |it| it.stat("http.ingress.downstream_cx_active") == 0);
        assert_eq!(culvert.stat("http.ingress.downstream_cx_protocol_error"), 1);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_total"), 0);
    });
}

#[test]
fn a_preface_may_come_in_pieces() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |_, port| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let opening = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            &frame(SETTINGS, 0, 0, &[]),
            &frame(HEADERS, 0x5, 1, GET_ROOT),
        ]
        .concat();
        for piece in opening.chunks(3) {
            std::io::Write::write_all(&mut stream, piece).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut raw = Raw(stream);
        assert!(!raw.until(HEADERS).payload.is_empty());
    });
}

#[test]
fn an_invalid_message_ends_its_stream_or_the_connection() {
    let upstream = Upstream::mirror();
    let invalid = [GET_ROOT, b"\x00\x0aconnection\x05close"].concat();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, 0x5, 1, &invalid));
        assert_eq!(raw.goaway_code(), Some(1), "PROTOCOL_ERROR");
        assert_eq!(culvert.stat("http2.rx_messaging_error"), 1);
    });
    let lenient = "http2_protocol_options: {override_stream_error_on_invalid_http_message: true}";
    on_each(upstream.address, lenient, &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, 0x5, 1, &invalid));
        assert_eq!(raw.until(RST_STREAM).stream, 1);
        // The refused head has left nothing in the tables of the compression.
        raw.send(&frame(HEADERS, 0x5, 3, GET_ROOT));
        assert_eq!(raw.until(HEADERS).stream, 3);
        // A body that is not as long as it says.
        let announced = [GET_ROOT, b"\x0f\x0d\x015"].concat();
        raw.send(&frame(HEADERS, 0x4, 5, &announced));
        raw.send(&frame(DATA, 0x1, 5, b"abc"));
        let reset = raw.until(RST_STREAM);
        assert_eq!((reset.stream, &reset.payload[..]), (5, &1_u32.to_be_bytes()[..]));
        assert_eq!(culvert.stat("http2.rx_messaging_error"), 2);
        assert_eq!(culvert.stat("http2.tx_reset"), 2);
    });
}

#[test]
fn names_with_underscores_are_refused_or_dropped() {
    let upstream = Upstream::mirror();
    let action =
        |action: &str| format!("common_http_protocol_options: {{headers_with_underscores_action: {action}}}");
    let request = || {
        let mut request = peer::get("/");
        request.headers_mut().insert("a_b", http::HeaderValue::from_static("1"));
        request
    };
    on_each(upstream.address, &action("REJECT_REQUEST"), &http1(), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let (response, _) = conn.start(request(), true).await;
            assert!(peer::answer(response).await.unwrap_err().is_reset());
            assert_eq!(conn.get("/").await.status, 200);
        });
        assert_eq!(culvert.stat("http2.requests_rejected_with_underscores_in_headers"), 1);
    });
    on_each(upstream.address, &action("DROP_HEADER"), &http1(), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let (response, _) = conn.start(request(), true).await;
            let text = peer::answer(response).await.unwrap().text();
            assert!(!text.contains("a_b"), "{text}");
        });
        assert_eq!(culvert.stat("http2.dropped_headers_with_underscores"), 1);
    });
}
