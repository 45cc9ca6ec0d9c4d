//! Circuit breakers are exact: with all load on one worker of two never one over the limit, and never a refusal while fewer
//! than the limit are in use. Streams of one connection are on one worker.

use std::time::Duration;

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::Request;

use crate::{
    eventually, http2,
    peer::{Answer, Conn, Server, answer, block_on},
    support::{
        DRIVERS,
        culvert::{Culvert, bootstrap, cluster, free_port, indent},
        upstream::{Upstream, ok},
    },
};

/// A culvert with two workers and clusters `c1` to `c10`, whose limits are their numbers, each at the path of its number.
fn on_each(options: impl Fn(u32) -> String, address: std::net::SocketAddr, test: impl Fn(&Culvert, u16)) {
    let routes: String = (1..=10)
        .map(|limit| format!("- {{match: {{path: /{limit}}}, route: {{cluster: c{limit}, timeout: 0s}}}}\n"))
        .collect();
    let clusters: String = (1..=10)
        .map(|limit| cluster(&format!("c{limit}"), &[address]) + &indent(&options(limit), 2))
        .collect();
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let text = bootstrap(admin, port, "", &routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "2"]);
        test(&culvert, port);
    }
}

/// A request that lasts until its body ends.
struct Held {
    response: ResponseFuture,
    body: SendStream<Bytes>,
}

async fn hold(conn: &Conn, limit: u32) -> Held {
    let request = Request::post(format!("http://test/{limit}")).body(()).expect("a request");
    let (response, body) = conn.start(request, false).await;
    Held { response, body }
}

impl Held {
    async fn end(mut self) -> Answer {
        self.body.send_data(Bytes::new(), true).expect("sent");
        answer(self.response).await.expect("a response")
    }
}

/// Of requests to an upstream that answers their heads at once.
async fn refused(conn: &Conn, limit: u32) {
    let refused = answer(hold(conn, limit).await.response).await.expect("a response");
    assert_eq!((refused.status, refused.header("x-envoy-overloaded")), (503, "true"), "limit {limit}");
}

/// A request whose answer has begun.
struct Begun {
    body: SendStream<Bytes>,
    answer: h2::RecvStream,
}

async fn admitted(conn: &Conn, limit: u32, what: &str) -> Begun {
    let held = hold(conn, limit).await;
    let (head, answer) = held.response.await.expect("a response").into_parts();
    assert_eq!(head.status, 200, "limit {limit}: {what}");
    Begun { body: held.body, answer }
}

impl Begun {
    async fn end(mut self) {
        self.body.send_data(Bytes::new(), true).expect("sent");
        while let Some(bytes) = self.answer.data().await {
            let length = bytes.expect("a body").len();
            self.answer.flow_control().release_capacity(length).expect("room");
        }
    }
}

#[test]
fn requests_up_to_the_limit_and_no_more() {
    let upstream = Server::mirror();
    let options = |limit| {
        http2("")
            + &format!(
                "circuit_breakers: {{thresholds: [{{max_requests: {limit}, track_remaining: true}}]}}\n"
            )
    };
    on_each(options, upstream.address, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            for limit in 1..=10 {
                let mut begun = Vec::new();
                for request in 0..limit {
                    begun.push(admitted(&conn, limit, &format!("request {request}")).await);
                }
                for round in 0..20 {
                    refused(&conn, limit).await;
                    begun.swap_remove(round % begun.len()).end().await;
                    begun.push(admitted(&conn, limit, &format!("round {round}")).await);
                }
                // Those that come over other connections, some of them to the other worker, are refused as well.
                for _ in 0..6 {
                    refused(&Conn::open(port).await, limit).await;
                }
                let scope = format!("cluster.c{limit}.circuit_breakers.default");
                assert_eq!(culvert.stat(&format!("{scope}.rq_open")), 1);
                assert_eq!(culvert.stat(&format!("{scope}.remaining_rq")), 0);
                for begun in begun {
                    begun.end().await;
                }
                assert_eq!(culvert.stat(&format!("{scope}.remaining_rq")), u64::from(limit));
                assert_eq!(culvert.stat(&format!("cluster.c{limit}.upstream_rq_active_overflow")), 26);
            }
        });
    });
}

/// Connections of HTTP/1 carry one request: what comes beyond the limit waits, and is refused beyond the limit of those.
#[test]
fn connections_up_to_the_limit_and_no_more() {
    let upstream = Upstream::answering(|_| ok(b""));
    let options = |limit| {
        format!(
            "circuit_breakers: {{thresholds: [{{max_connections: {limit}, max_pending_requests: {limit}}}]}}\n"
        )
    };
    on_each(options, upstream.address, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            for limit in 1..=10_u32 {
                let before = upstream.accepted();
                let active = format!("cluster.c{limit}.upstream_cx_active");
                let pending = format!("cluster.c{limit}.upstream_rq_pending_active");
                let mut held = Vec::new();
                for count in 1..=limit {
                    held.push(hold(&conn, limit).await);
                    // One after the other, for those that connect wait as well.
                    eventually(culvert, "a connection", |culvert| {
                        culvert.stat(&active) == u64::from(count) && culvert.stat(&pending) == 0
                    })
                    .await;
                }
                for count in 1..=limit {
                    held.push(hold(&conn, limit).await);
                    eventually(culvert, "waiting", |culvert| culvert.stat(&pending) == u64::from(count))
                        .await;
                }
                refused(&conn, limit).await;
                assert_eq!(upstream.accepted() - before, limit as usize);
                assert_eq!(culvert.stat(&active), u64::from(limit));
                for held in held {
                    assert_eq!(held.end().await.status, 200);
                }
                assert_eq!(
                    upstream.accepted() - before,
                    limit as usize,
                    "those that waited had the same ones"
                );
            }
        });
    });
}

/// What waits for a connection is no request to the cluster yet.
#[test]
fn requests_that_wait_are_not_counted() {
    let upstream = Upstream::answering(|_| ok(b""));
    let options = |_| "circuit_breakers: {thresholds: [{max_connections: 1, max_requests: 1}]}\n".to_owned();
    on_each(options, upstream.address, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let pending = |count| {
                move |culvert: &Culvert| {
                    culvert.stat("cluster.c1.upstream_cx_active") == 1
                        && culvert.stat("cluster.c1.upstream_rq_pending_active") == count
                }
            };
            let mut held = vec![hold(&conn, 1).await];
            eventually(culvert, "a connection", pending(0)).await;
            for count in 1..=3 {
                held.push(hold(&conn, 1).await);
                eventually(culvert, "waiting", pending(count)).await;
            }
            // In which order they get the connection does not matter here.
            for held in &mut held {
                held.body.send_data(Bytes::new(), true).expect("sent");
            }
            for held in held {
                assert_eq!(answer(held.response).await.expect("a response").status, 200);
            }
            assert_eq!(culvert.stat("cluster.c1.upstream_rq_active_overflow"), 0);
        });
    });
}

/// A connection that was made for a request which is refused then is there for the next one.
#[test]
fn a_refused_request_leaves_its_connection() {
    let upstream = Upstream::answering(|_| ok(b""));
    let options = |_| "circuit_breakers: {thresholds: [{max_requests: 1}]}\n".to_owned();
    on_each(options, upstream.address, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let held = hold(&conn, 1).await;
            eventually(culvert, "it is sent on", |it| it.stat("cluster.c1.upstream_rq_total") == 1).await;
            for _ in 0..4 {
                refused(&conn, 1).await;
            }
            assert_eq!(culvert.stat("cluster.c1.upstream_cx_total"), 2);
            assert_eq!(held.end().await.status, 200);
        });
    });
}

/// A request that `max_requests` refuses is none of the connection's.
#[test]
fn refused_requests_do_not_use_connections_up() {
    let upstream = Server::mirror();
    let options = http2("")
        + "    common_http_protocol_options: {max_requests_per_connection: 3}\n"
        + "circuit_breakers: {thresholds: [{max_requests: 1}]}\n";
    let clusters = cluster("up", &[upstream.address]) + &indent(&options, 2);
    let routes = "- {match: {prefix: /}, route: {cluster: up, timeout: 0s}}\n";
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let text = bootstrap(admin, port, "", routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "1"]);
        let before = upstream.accepted();
        block_on(async {
            let conn = Conn::open(port).await;
            let first = admitted(&conn, 1, "the first").await;
            for _ in 0..5 {
                refused(&conn, 1).await;
            }
            assert_eq!(culvert.stat("cluster.up.upstream_cx_max_requests"), 0);
            let over = |it: &Culvert| it.stat("cluster.up.upstream_rq_active") == 0;
            first.end().await;
            eventually(&culvert, "the first is over", over).await;
            admitted(&conn, 1, "the second").await.end().await;
            eventually(&culvert, "the second is over", over).await;
            admitted(&conn, 1, "the third").await.end().await;
            assert_eq!(culvert.stat("cluster.up.upstream_cx_max_requests"), 1);
            assert_eq!(upstream.accepted() - before, 1);
        });
    }
}

/// Routes of priority HIGH have limits and connections of their own.
#[test]
fn priorities_do_not_share_limits() {
    let upstream = Server::mirror();
    let options = "circuit_breakers: {thresholds: [{max_requests: 1}, {priority: HIGH, max_requests: 2, \
                   max_connections: 1}]}\n";
    let clusters = cluster("up", &[upstream.address]) + &indent(&(http2("") + options), 2);
    let routes = "- {match: {path: /1}, route: {cluster: up, timeout: 0s}}\n- {match: {path: /2}, route: {cluster: up, \
                  timeout: 0s, priority: HIGH}}\n";
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let text = bootstrap(admin, port, "", routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "2"]);
        let before = upstream.accepted();
        block_on(async {
            let conn = Conn::open(port).await;
            let low = admitted(&conn, 1, "the only one").await;
            refused(&conn, 1).await;
            let high = [admitted(&conn, 2, "the first").await, admitted(&conn, 2, "the second").await];
            refused(&conn, 2).await;
            for (priority, open) in [("default", 1), ("high", 1)] {
                assert_eq!(culvert.stat(&format!("cluster.up.circuit_breakers.{priority}.rq_open")), open);
            }
            assert_eq!(culvert.stat("cluster.up.circuit_breakers.high.cx_open"), 1);
            assert_eq!(culvert.stat("cluster.up.circuit_breakers.default.cx_open"), 0);
            assert_eq!(upstream.accepted() - before, 2);
            low.end().await;
            for begun in high {
                begun.end().await;
            }
            admitted(&conn, 1, "again").await.end().await;
            assert_eq!(culvert.stat("cluster.up.circuit_breakers.high.rq_open"), 0);
        });
    }
}

/// Each priority has a connection at least, and what one gives back is no use to who waits for another.
#[test]
fn priorities_do_not_share_connections() {
    let upstream = Upstream::answering(|_| ok(b""));
    let options =
        "circuit_breakers: {thresholds: [{max_connections: 1}, {priority: HIGH, max_connections: 0}]}\n";
    let clusters = cluster("up", &[upstream.address]) + &indent(options, 2);
    let routes = "- {match: {path: /1}, route: {cluster: up, timeout: 0s}}\n- {match: {path: /2}, route: {cluster: up, \
                  timeout: 0s, priority: HIGH}}\n";
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let text = bootstrap(admin, port, "", routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "1"]);
        let before = upstream.accepted();
        block_on(async {
            let conn = Conn::open(port).await;
            let pending = |count| {
                move |culvert: &Culvert| {
                    culvert.stat("cluster.up.upstream_cx_active") == 1
                        && culvert.stat("cluster.up.upstream_rq_pending_active") == count
                }
            };
            let low = hold(&conn, 1).await;
            eventually(&culvert, "a connection", pending(0)).await;
            let waiting = hold(&conn, 1).await;
            eventually(&culvert, "waiting", pending(1)).await;
            for _ in 0..3 {
                assert_eq!(hold(&conn, 2).await.end().await.status, 200);
            }
            assert_eq!(upstream.accepted() - before, 2);
            for held in [low, waiting] {
                assert_eq!(held.end().await.status, 200);
            }
            assert_eq!(upstream.accepted() - before, 2);
        });
    }
}

/// The limit of connections to each endpoint of a cluster.
#[test]
fn connections_to_an_endpoint() {
    let upstream = Upstream::answering(|_| ok(b""));
    let options =
        |limit| format!("circuit_breakers: {{per_host_thresholds: [{{max_connections: {limit}}}]}}\n");
    on_each(options, upstream.address, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            for limit in [1_u32, 4, 10] {
                let before = upstream.accepted();
                let pending = format!("cluster.c{limit}.upstream_rq_pending_active");
                let mut held = Vec::new();
                for _ in 0..limit + 2 {
                    held.push(hold(&conn, limit).await);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                eventually(culvert, "waiting", |culvert| culvert.stat(&pending) == 2).await;
                // The kernel has the connections before the server does.
                eventually(culvert, "accepted", |_| upstream.accepted() - before == limit as usize).await;
                for held in held {
                    assert_eq!(held.end().await.status, 200);
                }
                assert_eq!(upstream.accepted() - before, limit as usize);
            }
        });
    });
}
