//! What the h2 crate does not tell of a request: the fragment of its path, and pseudo-header fields among its trailers.

use std::{thread, time::Duration};

use http::{HeaderName, HeaderValue};

use crate::{
    http1, on_each,
    peer::{
        CONTINUATION, Conn, DATA, Frame, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, answer, block_on,
        frame, get,
    },
    support::upstream::Upstream,
};

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;
const WHOLE: u8 = END_STREAM | END_HEADERS;

const PROTOCOL_ERROR: u32 = 1;
const COMPRESSION_ERROR: u32 = 9;

// Statuses as every encoder writes them: fields of the static table.
const OK: u8 = 0x88;
const BAD_REQUEST: u8 = 0x8c;

const LENIENT: &str = "http2_protocol_options: {override_stream_error_on_invalid_http_message: true}";
const REFUSED: &str = "http.ingress.downstream_rq_failed_path_normalization";

/// `GET` of `test`; the path comes in front of the authority.
fn block(path: &[u8]) -> Vec<u8> {
    [b"\x82\x86", path, b"\x01\x04test"].concat()
}

/// `/a#b` in the forms that no table is needed for.
const FORMS: [&[u8]; 6] = [
    b"\x04\x04/a#b",
    b"\x15\x04/a#b",
    b"\x04\x84\x60\x7f\xf5\x1f",
    b"\x00\x05:path\x04/a#b",
    b"\x10\x84\xb9\x58\xd3\x3f\x04/a#b",
    b"\x00\x84\xb9\x58\xd3\x3f\x84\x60\x7f\xf5\x1f",
];

/// The next frame that concerns a stream, or ends the connection.
fn next(raw: &mut Raw) -> Frame {
    loop {
        let frame = raw.next().expect("a frame");
        if matches!(frame.kind, DATA | HEADERS | RST_STREAM | GOAWAY) {
            return frame;
        }
    }
}

fn is_answered(raw: &mut Raw, stream: u32, status: u8, what: &str) {
    let head = next(raw);
    assert_eq!((head.kind, head.stream, head.payload[0]), (HEADERS, stream, status), "{what}: {head:?}");
    let mut last = head;
    while last.flags & END_STREAM == 0 {
        last = next(raw);
        assert_eq!((last.kind, last.stream), (DATA, stream), "{what}: {last:?}");
    }
}

fn is_refused(raw: &mut Raw, stream: u32, what: &str) {
    let head = next(raw);
    assert_eq!((head.kind, head.flags, head.stream), (HEADERS, WHOLE, stream), "{what}: {head:?}");
    assert_eq!(head.payload[0], BAD_REQUEST, "{what}");
}

#[test]
fn a_path_with_a_fragment_is_refused_in_every_form() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.0.set_nodelay(true).expect("no delay");
        // A request that goes on beside all others.
        raw.send(&frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x84\x41\x04test"));
        let (mut stream, mut refused) = (1, 0);
        let mut refuse = |raw: &mut Raw, frames: &dyn Fn(u32) -> Vec<Vec<u8>>, what: &str| {
            stream += 2;
            for piece in frames(stream) {
                raw.send(&piece);
                // Mostly, each piece is received on its own.
                thread::sleep(Duration::from_millis(1));
            }
            is_refused(raw, stream, what);
            refused += 1;
            stream += 2;
            raw.send(&frame(HEADERS, WHOLE, stream, &block(b"\x04\x02/c")));
            is_answered(raw, stream, OK, what);
            assert_eq!(culvert.stat(REFUSED), refused, "{what}");
        };
        for form in FORMS {
            let block = block(form);
            let what = format!("{form:x?}");
            refuse(&mut raw, &|stream| vec![frame(HEADERS, WHOLE, stream, &block)], &what);
            let padded = [&b"\x02\0\0\0\0\x10"[..], &block, b"\0\0"].concat();
            let flags = WHOLE | PADDED | PRIORITIZED;
            refuse(&mut raw, &|stream| vec![frame(HEADERS, flags, stream, &padded)], &what);
            for cut in [0, 3, 5, block.len() - 8, block.len()] {
                let (a, b) = block.split_at(cut);
                let what = format!("{what}, cut at {cut}");
                let cut = |stream| {
                    let first = frame(HEADERS, END_STREAM, stream, a);
                    vec![[first, frame(CONTINUATION, END_HEADERS, stream, b)].concat()]
                };
                refuse(&mut raw, &cut, &what);
            }
            let pieces =
                |stream| frame(HEADERS, WHOLE, stream, &block).chunks(5).map(<[u8]>::to_vec).collect();
            refuse(&mut raw, &pieces, &format!("{what}, in pieces"));
        }
        // From the table, where another entry comes in front of it.
        let stored = |stream| vec![frame(HEADERS, WHOLE, stream, &block(b"\x44\x84\x60\x7f\xf5\x1f"))];
        refuse(&mut raw, &stored, "stored");
        let indexed = |stream| vec![frame(HEADERS, WHOLE, stream, &block(b"\xbe"))];
        refuse(&mut raw, &indexed, "indexed");
        let more = [&block(b"\xbe")[..], b"\x40\x01x\x01#"].concat();
        let behind = |stream| vec![frame(HEADERS, WHOLE, stream, &more)];
        refuse(&mut raw, &behind, "something comes behind it");
        let indexed = |stream| vec![frame(HEADERS, WHOLE, stream, &block(b"\xbf"))];
        refuse(&mut raw, &indexed, "further back");
        // The first one ends now.
        raw.send(&frame(DATA, END_STREAM, 1, b"body"));
        is_answered(&mut raw, 1, OK, "the first");
        assert_eq!(culvert.stat("http.ingress.downstream_cx_total"), 1);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_4xx"), refused);
        assert_eq!(culvert.stat("http.ingress.downstream_cx_protocol_error"), 0);
    });
}

/// More requests than the client was allowed.
#[test]
fn a_fragment_of_a_refused_stream_is_nobody_elses() {
    const REFUSED_STREAM: u32 = 7;
    let upstream = Upstream::mirror();
    let options = "http2_protocol_options: {max_concurrent_streams: 1}";
    on_each(upstream.address, options, &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x84\x41\x04test"));
        for stream in (3..103).step_by(2) {
            let path = [&b"\x04\x7f\x81\x7d/#"[..], &[b'x'; 16_126]].concat();
            raw.send(&frame(HEADERS, WHOLE, stream, &block(&path)));
            let reset = next(&mut raw);
            assert_eq!((reset.kind, reset.stream), (RST_STREAM, stream), "{reset:?}");
            assert_eq!(reset.payload[..], REFUSED_STREAM.to_be_bytes());
        }
        raw.send(&frame(DATA, END_STREAM, 1, b"body"));
        is_answered(&mut raw, 1, OK, "the first");
        raw.send(&frame(HEADERS, WHOLE, 103, &block(b"\x04\x02/c")));
        is_answered(&mut raw, 103, OK, "one without");
        raw.send(&frame(HEADERS, WHOLE, 105, &block(b"\x04\x02/#")));
        is_refused(&mut raw, 105, "one with it");
        assert_eq!(culvert.stat(REFUSED), 1);
    });
}

#[test]
fn a_refused_request_that_is_not_complete_is_reset() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |_, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block(b"\x04\x02/#")));
        is_refused(&mut raw, 1, "an open request");
        let reset = next(&mut raw);
        assert_eq!((reset.kind, reset.stream, &reset.payload[..]), (RST_STREAM, 1, &[0; 4][..]), "NO_ERROR");
        raw.send(&frame(HEADERS, WHOLE, 3, &block(b"\x84")));
        is_answered(&mut raw, 3, OK, "the next");
    });
}

#[test]
fn control_characters_in_a_fragment_are_malformed() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, LENIENT, &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(HEADERS, WHOLE, 1, &block(b"\x04\x04/#a\n")));
        let reset = next(&mut raw);
        assert_eq!(reset.payload[..], PROTOCOL_ERROR.to_be_bytes(), "{reset:?}");
        raw.send(&frame(HEADERS, WHOLE, 3, &block(b"\x84")));
        is_answered(&mut raw, 3, OK, "the next");
        assert_eq!((culvert.stat("http2.rx_messaging_error"), culvert.stat(REFUSED)), (1, 0));
    });
}

/// What comes before trailers, and the trailers.
fn malformed_trailers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let post = b"\x83\x86\x84\x41\x04test".to_vec();
    let announced = [&post[..], b"\x0f\x0d\x014"].concat();
    vec![
        (post.clone(), b"\x83".to_vec()),
        (post.clone(), b"\x00\x07:method\x04POST".to_vec()),
        (post.clone(), b"\x00\x01x\x01y\x04\x01/".to_vec()),
        (announced, b"\x08\x03200".to_vec()),
        ([&post[..], b"\x47\x03:12"].concat(), b"\xbe".to_vec()),
    ]
}

#[test]
fn pseudo_header_fields_in_trailers_end_the_stream_or_the_connection() {
    let upstream = Upstream::mirror();
    let cut = |trailers: &[u8], stream| {
        let (a, b) = trailers.split_at(1);
        [frame(HEADERS, END_STREAM, stream, a), frame(CONTINUATION, END_HEADERS, stream, b)].concat()
    };
    on_each(upstream.address, LENIENT, &http1(), |culvert, port| {
        let mut raw = Raw::open(port);
        let mut stream = 1;
        let mut malformed = 0;
        for (head, trailers) in malformed_trailers() {
            if head.contains(&0x47) {
                continue;
            }
            for whole in [true, false] {
                raw.send(&frame(HEADERS, END_HEADERS, stream, &head));
                raw.send(&frame(DATA, 0, stream, b"body"));
                let trailers =
                    if whole { frame(HEADERS, WHOLE, stream, &trailers) } else { cut(&trailers, stream) };
                raw.send(&trailers);
                let reset = next(&mut raw);
                assert_eq!((reset.kind, reset.stream), (RST_STREAM, stream), "{reset:?}");
                assert_eq!(reset.payload[..], PROTOCOL_ERROR.to_be_bytes());
                malformed += 1;
                assert_eq!(culvert.stat("http2.rx_messaging_error"), malformed);
                // Trailers without them pass.
                raw.send(&frame(HEADERS, END_HEADERS, stream + 2, &head));
                raw.send(&frame(DATA, 0, stream + 2, b"body"));
                raw.send(&frame(HEADERS, WHOLE, stream + 2, b"\x00\x01x\x01:"));
                is_answered(&mut raw, stream + 2, OK, "with trailers");
                stream += 4;
            }
        }
        culvert.wait_until("all are over", |it| it.stat("http.ingress.downstream_rq_active") == 0);
    });
    on_each(upstream.address, "", &http1(), |culvert, port| {
        for (sent, (head, trailers)) in malformed_trailers().iter().enumerate().take(4) {
            let mut raw = Raw::open(port);
            raw.send(&frame(HEADERS, END_HEADERS, 1, head));
            raw.send(&frame(DATA, 0, 1, b"body"));
            raw.send(&frame(HEADERS, WHOLE, 1, trailers));
            assert_eq!(raw.goaway_code(), Some(PROTOCOL_ERROR));
            assert_eq!(culvert.stat("http2.rx_messaging_error"), sent as u64 + 1);
        }
    });
}

#[test]
fn what_cannot_be_decompressed_ends_the_connection() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, LENIENT, &http1(), |culvert, port| {
        let open = |first: &[u8]| [frame(HEADERS, END_STREAM, 1, first)].concat();
        let rest = frame(CONTINUATION, END_HEADERS, 1, &block(b"\x84"));
        // Malformed in a way that leaves the codec's view of the connection in order: a field of connections.
        let connection = [&block(b"\x84")[..], b"\x00\x0aconnection\x01x"].concat();
        for (bytes, code) in [
            (frame(HEADERS, WHOLE, 1, &[&block(b"\x84")[..], b"\xff\x10"].concat()), COMPRESSION_ERROR),
            (frame(HEADERS, WHOLE, 1, b"\x00\x01"), COMPRESSION_ERROR),
            // A name without characters, which the codec would step over.
            ([open(b"\x40\x00\x81\x1f"), rest.clone()].concat(), COMPRESSION_ERROR),
            ([open(&connection), frame(HEADERS, WHOLE, 3, &block(b"\x84"))].concat(), PROTOCOL_ERROR),
            (rest, PROTOCOL_ERROR),
        ] {
            let before = culvert.stat("http.ingress.downstream_cx_protocol_error");
            let mut raw = Raw::open(port);
            raw.send(&bytes);
            raw.send(&frame(PING, 0, 0, &[0; 8]));
            assert_eq!(raw.goaway_code(), Some(code), "{bytes:x?}");
            culvert.wait_until("it is counted", |it| {
                it.stat("http.ingress.downstream_cx_protocol_error") == before + 1
            });
        }
        culvert.wait_until("all are closed", |it| it.stat("http.ingress.downstream_cx_active") == 0);
    });
}

/// An encoder that uses the table it is offered, whatever its size.
#[test]
fn tables_of_any_size_are_followed() {
    let upstream = Upstream::mirror();
    for size in [0, 100, 4_096, 65_536] {
        let options = format!("http2_protocol_options: {{hpack_table_size: {size}}}");
        on_each(upstream.address, &options, &http1(), |culvert, port| {
            block_on(async {
                let conn = Conn::open(port).await;
                for number in 0..120_usize {
                    let path = format!("/{}?n={number}", "path/".repeat(number % 7));
                    let mut request = get(&path);
                    for field in 0..number % 5 {
                        let name = format!("x-{}-{}", "n".repeat(field), (number + field) % 11);
                        let value = format!("{}{}", "value ".repeat(number * field % 60), number % 3);
                        request.headers_mut().insert(
                            HeaderName::try_from(name).expect("a name"),
                            HeaderValue::try_from(value).expect("a value"),
                        );
                    }
                    let (response, _) = conn.start(request, true).await;
                    let answer = answer(response).await.expect("a response");
                    assert_eq!(answer.status, 200, "{size}: {path}");
                    assert!(answer.text().starts_with(&format!("GET {path} ")), "{}", answer.text());
                }
            });
            assert_eq!(culvert.stat("http.ingress.downstream_cx_protocol_error"), 0);
        });
    }
}

/// A client that changes the table in the middle of everything.
#[test]
fn changes_of_the_table_are_followed() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "http2_protocol_options: {hpack_table_size: 8192}", &http1(), |_, port| {
        let mut raw = Raw::open(port);
        raw.send(&frame(SETTINGS, 0x1, 0, &[]));
        let request = |path: &[u8]| [b"\x82\x86", path, b"\x01\x04test"].concat();
        // 8192 bytes are allowed; two paths are stored, and one after the other is dropped.
        for (stream, block, status) in [
            (1, [&b"\x3f\xe1\x3f"[..], &request(b"\x44\x04/a#b")].concat(), BAD_REQUEST),
            (3, request(b"\x44\x02/c"), OK),
            (5, request(b"\xbf"), BAD_REQUEST),
            (7, request(b"\xbe"), OK),
            // Room for one.
            (9, [&b"\x3f\x0a"[..], &request(b"\xbe")].concat(), OK),
            (11, request(b"\x44\x04/a#b"), BAD_REQUEST),
            (13, request(b"\xbe"), BAD_REQUEST),
            (15, [&b"\x20\x3f\xe1\x3f"[..], &request(b"\x44\x02/c")].concat(), OK),
            (17, request(b"\xbe"), OK),
        ] {
            raw.send(&frame(HEADERS, WHOLE, stream, &block));
            is_answered(&mut raw, stream, status, &format!("stream {stream}"));
        }
        raw.send(&frame(HEADERS, WHOLE, 19, &request(b"\xbf")));
        assert_eq!(raw.goaway_code(), Some(COMPRESSION_ERROR));
    });
}
