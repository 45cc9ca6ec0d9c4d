//! Connections that upstreams of HTTP/2 close while they are idle in the pool.

use std::{
    io::Read as _,
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    http2, on_each,
    peer::{DATA, GOAWAY, HEADERS, Raw, SETTINGS, frame},
    support::{client::Client, culvert::Culvert, gone::unnoticed, upstream::Upstream},
    upstream::at_once,
};

/// What a server does with a request that it has received.
enum Then {
    Answer,
    Close,
    /// Goes away for this reason, and has seen no stream.
    GoAway(u32),
}

/// A server whose connections ask `then` what to do with each of their requests.
fn server(then: impl Fn(usize) -> Then + Clone + Send + 'static) -> Upstream {
    Upstream::start(move |stream| serve(stream, &then))
}

fn serve(mut stream: TcpStream, then: &impl Fn(usize) -> Then) {
    if stream.read_exact(&mut [0; 24]).is_err() {
        return;
    }
    let mut raw = Raw(stream);
    raw.send(&frame(SETTINGS, 0, 0, &[]));
    let mut requests = 0;
    while let Ok(got) = raw.next() {
        let ends = matches!(got.kind, HEADERS | DATA) && got.flags & 1 != 0;
        if got.kind == SETTINGS && got.flags & 1 == 0 {
            raw.send(&frame(SETTINGS, 1, 0, &[]));
        }
        if !ends {
            continue;
        }
        match then(requests) {
            // `:status: 200`
            Then::Answer => raw.send(&frame(HEADERS, 5, got.stream, b"\x88")),
            Then::Close => return,
            Then::GoAway(code) => {
                raw.send(&frame(GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat()));
                thread::sleep(Duration::from_millis(100));
                return;
            }
        }
        requests += 1;
    }
}

fn post(client: &mut Client) -> u16 {
    client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nbody");
    client.response("POST").status
}

fn stat(culvert: &Culvert, name: &str) -> u64 {
    culvert.stat(&format!("cluster.up.upstream_rq_dead_connection_{name}"))
}

/// The upstream has closed, and its FIN is there, when the requests come: nothing is written to it.
#[test]
fn nobody_notices_that_a_connection_is_gone() {
    let open = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
    let executed = Arc::new(AtomicUsize::new(0));
    let (kept, count) = (open.clone(), executed.clone());
    let upstream = Upstream::start(move |stream| {
        kept.lock().unwrap().push(stream.try_clone().unwrap());
        let count = count.clone();
        serve(stream, &move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Then::Answer
        });
    });
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        unnoticed(culvert, port, 4, &open, &executed);
        assert_eq!((stat(culvert, "retry"), stat(culvert, "lost")), (0, 0));
    });
}

#[test]
fn a_request_that_may_have_been_read_is_sent_again_only_if_it_is_idempotent() {
    let upstream = server(|nth| if nth == 0 { Then::Answer } else { Then::Close });
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/").status, 200);
        assert_eq!(client.get("/").status, 200);
        assert_eq!((stat(culvert, "retry"), stat(culvert, "lost")), (1, 0));
        assert_eq!(post(&mut client), 503);
        assert_eq!((stat(culvert, "retry"), stat(culvert, "lost")), (1, 1));
    });
}

/// Where one connection was dead, others that were idle as long may be as well.
#[test]
fn a_request_that_met_a_dead_connection_gets_a_new_one() {
    let upstream = server(|nth| {
        thread::sleep(Duration::from_millis(100));
        if nth == 0 { Then::Answer } else { Then::Close }
    });
    on_each(upstream.address, "", &http2("max_concurrent_streams: 1"), |culvert, port| {
        assert_eq!(at_once(port, 3), [200, 200, 200]);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 3);
        assert_eq!(Client::connect(port).get("/").status, 200);
        assert_eq!((stat(culvert, "retry"), stat(culvert, "lost")), (1, 0));
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 4);
    });
}

/// Whatever the reason: streams above the last one that GOAWAY names have not been looked at (RFC 9113 section 6.8).
#[test]
fn a_stream_that_a_server_has_not_seen_is_refused() {
    for code in [0, 2, 11] {
        let upstream = server(move |nth| if nth == 0 { Then::Answer } else { Then::GoAway(code) });
        on_each(upstream.address, "", &http2(""), |culvert, port| {
            let mut client = Client::connect(port);
            assert_eq!(client.get("/").status, 200);
            // Nothing has read it, so that it may be sent again.
            assert_eq!(post(&mut client), 200, "{code}");
            assert_eq!((stat(culvert, "retry"), stat(culvert, "lost")), (1, 0), "{code}");
        });
        let upstream = server(move |_| Then::GoAway(code));
        on_each(upstream.address, "", &http2(""), |_, port| {
            let response = Client::connect(port).get("/");
            assert_eq!(response.status, 503);
            assert!(response.text().ends_with("remote refused stream reset"), "{code}: {}", response.text());
        });
    }
}
