//! Requests of either version to upstreams of either version.

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, request::Parts};

use crate::{
    http1, http2, on_each,
    peer::{self, Conn, Server, block_on},
    support::{
        client::Client,
        upstream::{Upstream, ok},
    },
};

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("17"));
    trailers
}

#[test]
fn http2_to_http2() {
    let upstream = Server::mirror();
    on_each(upstream.address, "", &http2(""), |culvert, port| {
        let before = upstream.accepted();
        block_on(async {
            let conn = Conn::open(port).await;
            let answer = conn.get("/page?n=1").await;
            assert_eq!(answer.status, 200);
            let text = answer.text();
            assert!(text.starts_with("GET http://test/page?n=1 HTTP/2.0\n"), "{text}");
            assert!(text.contains("x-forwarded-proto: http\n"), "{text}");
            assert!(text.contains("x-request-id: "), "{text}");
            assert!(!text.contains("host: "), "{text}");
            assert_eq!(answer.header("server"), "envoy");
            assert!(!answer.headers.contains_key("connection"));
            let body = vec![b'x'; 300_000];
            let answer = conn.post("/post", &body, trailers()).await;
            assert!(answer.body.ends_with(&body));
            assert_eq!(answer.trailers, trailers());
            // Many at a time share both connections.
            let mut all = Vec::new();
            for n in 0..50 {
                all.push(conn.start(peer::get(&format!("/{n}")), true).await.0);
            }
            for (n, response) in all.into_iter().enumerate() {
                let answer = peer::answer(response).await.unwrap();
                assert!(answer.text().contains(&format!("test/{n} HTTP")));
            }
        });
        assert_eq!(upstream.accepted() - before, 1, "one connection carries all");
        assert_eq!(culvert.stat("http.ingress.downstream_cx_http2_total"), 1);
        assert_eq!(culvert.stat("http.ingress.downstream_cx_http1_total"), 0);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_http2_total"), 52);
        assert_eq!(culvert.stat("http.ingress.downstream_rq_2xx"), 52);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
        assert_eq!(culvert.stat("cluster.up.http2.streams_active"), 0);
        culvert.wait_until("the client's end is seen", |it| {
            it.stat("http.ingress.downstream_cx_http2_active") == 0
        });
    });
}

#[test]
fn http2_to_http1() {
    let upstream = Upstream::mirror();
    on_each(upstream.address, "", &http1(), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let mut request = peer::get("/page");
            let fields = request.headers_mut();
            fields.append("cookie", HeaderValue::from_static("a=1"));
            fields.append("cookie", HeaderValue::from_static("b=2"));
            fields.append("x-one", HeaderValue::from_static("1"));
            fields.append("te", HeaderValue::from_static("trailers"));
            let (response, _) = conn.start(request, true).await;
            let text = peer::answer(response).await.unwrap().text();
            assert!(text.starts_with("GET /page HTTP/1.1\r\nhost: test\r\n"), "{text}");
            assert!(text.contains("cookie: a=1; b=2\r\n"), "crumbs are one field: {text}");
            assert!(text.contains("te: trailers\r\n"), "{text}");
            assert!(!text.contains("content-length"), "{text}");
            let text = conn.post("/chunks", b"hello", HeaderMap::new()).await.text();
            assert!(text.contains("transfer-encoding: chunked\r\n"), "{text}");
            let request = Request::post("http://test/length").header("content-length", "5").body(()).unwrap();
            let (response, mut stream) = conn.start(request, false).await;
            stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
            let text = peer::answer(response).await.unwrap().text();
            assert!(text.contains("content-length: 5\r\n") && !text.contains("chunked"), "{text}");
            let head = Request::head("http://test/").body(()).unwrap();
            let (response, _) = conn.start(head, true).await;
            let answer = peer::answer(response).await;
            assert_eq!(answer.map(|answer| (answer.status, answer.body.len())).unwrap(), (200, 0));
        });
        assert_eq!(culvert.stat("http.ingress.downstream_rq_http2_total"), 4);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 0);
    });
}

#[test]
fn trailers_of_http1_upstreams_reach_clients() {
    let upstream = Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 17\r\n\r\n".to_vec()
    });
    on_each(upstream.address, "", &http1(), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let answer = conn.get("/").await;
            assert_eq!((answer.text().as_str(), answer.trailers), ("hi", trailers()));
        });
    });
}

#[test]
fn http1_to_http2() {
    let upstream = Server::mirror();
    on_each(
        upstream.address,
        "http_protocol_options: {enable_trailers: true}",
        &http2(""),
        |culvert, port| {
            let before = upstream.accepted();
            let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(port)).collect();
            for (n, client) in clients.iter_mut().enumerate() {
                let response = client.get(&format!("/page?n={n}"));
                assert_eq!(response.status, 200);
                let text = response.text();
                assert!(text.starts_with(&format!("GET http://test/page?n={n} HTTP/2.0\n")), "{text}");
            }
            let client = &mut clients[0];
            client.send(
            "POST /x HTTP/1.1\r\nHost: t\r\nX-Camel: Case\r\nConnection: x-hop\r\nX-Hop: 1\r\ntransfer-encoding: \
             chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 17\r\n\r\n",
        );
            let response = client.response("POST");
            let text = response.text();
            assert!(text.contains("x-camel: Case\n"), "names in lower case: {text}");
            assert!(!text.contains("hop") && !text.contains("transfer-encoding"), "{text}");
            assert!(text.contains("\n\nhello"), "{text}");
            client.send("HEAD / HTTP/1.1\r\nhost: t\r\n\r\n");
            assert_eq!(client.response("HEAD").status, 200);
            assert_eq!(upstream.accepted() - before, 1, "one connection carries all");
            assert_eq!(culvert.stat("http.ingress.downstream_rq_http1_total"), 10);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_http2_total"), 1);
            assert_eq!(culvert.stat("cluster.up.upstream_cx_active"), 1);
        },
    );
}

async fn without_body(parts: Parts, _: RecvStream, mut respond: SendResponse<Bytes>) {
    let status: u16 = parts.uri.path().trim_start_matches('/').parse().unwrap();
    let response = Response::builder().status(status).body(()).unwrap();
    let _ = respond.send_response(response, true);
}

#[test]
fn responses_without_body_are_framed_for_http1() {
    let upstream = Server::start(without_body);
    on_each(upstream.address, "", &http2(""), |_, port| {
        let mut client = Client::connect(port);
        for status in [200, 204, 304, 404, 200] {
            let response = client.get(&format!("/{status}"));
            assert_eq!(response.status, status);
            let length = (!matches!(status, 204 | 304)).then_some("0");
            assert_eq!(response.header("content-length"), length, "{status}");
        }
    });
}

async fn interim(_: Parts, _: RecvStream, mut respond: SendResponse<Bytes>) {
    let early = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
    respond.send_informational(early).unwrap();
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"done"), true).unwrap();
}

#[test]
fn informational_responses_pass() {
    let upstream = Server::start(interim);
    on_each(upstream.address, "", &http2(""), |_, port| {
        let mut client = Client::connect(port);
        client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n");
        let early = client.until(b"\r\n\r\n").unwrap();
        assert!(String::from_utf8_lossy(&early).starts_with("HTTP/1.1 103 "), "{early:?}");
        assert_eq!(client.response("GET").text(), "done");
        block_on(async {
            let conn = Conn::open(port).await;
            let (mut response, _) = conn.start(peer::get("/"), true).await;
            let early = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(
                (early.status().as_u16(), &early.headers()["link"]),
                (103, &HeaderValue::from_static("</a>"))
            );
            assert_eq!(peer::answer(response).await.unwrap().text(), "done");
        });
    });
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let upstream = Upstream::answering(|head| ok(head.as_bytes()));
    on_each(upstream.address, "", &http1(), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let request = Request::post("http://test/").header("expect", "100-continue").body(()).unwrap();
            let (mut response, mut stream) = conn.start(request, false).await;
            let go_on = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(go_on.status().as_u16(), 100);
            stream.send_data(Bytes::from_static(b"body"), true).unwrap();
            let text = peer::answer(response).await.unwrap().text();
            assert!(!text.contains("expect:"), "{text}");
        });
    });
}

async fn endless(_: Parts, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
    let piece = Bytes::from(vec![7; 16_384]);
    for _ in 0..16 * 64 {
        if peer::send(&mut stream, piece.clone()).await.is_none() {
            return;
        }
    }
    while let Some(Ok(bytes)) = body.data().await {
        let _ = body.flow_control().release_capacity(bytes.len());
    }
    let _ = stream.send_data(Bytes::new(), true);
}

/// 16 MiB to a client that takes its time: what waits is bounded by the windows, whatever is between.
#[test]
fn a_slow_reader_holds_its_upstream_back() {
    let upstream = Server::start(endless);
    let windows = "initial_stream_window_size: 65535, initial_connection_window_size: 65535";
    on_each(
        upstream.address,
        &format!("http2_protocol_options: {{{windows}}}"),
        &http2(windows),
        |culvert, port| {
            block_on(async {
                let conn = Conn::open(port).await;
                let warm = conn.start(peer::get("/"), true).await.0.await.unwrap();
                drop(warm);
                let before = culvert.resident_kb();
                let (response, _) = conn.start(peer::get("/"), true).await;
                let mut body = response.await.unwrap().into_body();
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                let grown = culvert.resident_kb().saturating_sub(before);
                assert!(grown < 8 * 1024, "{grown} KiB for a client that reads nothing");
                let mut received = 0;
                while let Some(bytes) = body.data().await {
                    let bytes = bytes.unwrap();
                    received += bytes.len();
                    body.flow_control().release_capacity(bytes.len()).unwrap();
                }
                assert_eq!(received, 16 << 20);
            });
        },
    );
}

#[test]
fn large_bodies_pass_both_ways_at_once() {
    let upstream = Server::mirror();
    on_each(upstream.address, "", &http2(""), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let body: Vec<u8> = (0..20_u32 << 20).map(|n| ((n * 31) >> 8) as u8).collect();
            let answer = conn.post("/", &body, HeaderMap::new()).await;
            assert!(answer.body.ends_with(&body));
        });
    });
}

/// A local reply to a gRPC client is a head alone, as Envoy's.
#[test]
fn grpc_clients_are_answered_in_their_way() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    on_each(gone, "", &http2(""), |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let request = Request::post("http://test/pkg.Service/Call")
                .header("content-type", "application/grpc+proto")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (response, _stream) = conn.start(request, false).await;
            let response = response.await.unwrap();
            assert_eq!(response.status().as_u16(), 200);
            assert!(response.body().is_end_stream(), "trailers only");
            let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(header("content-type"), Some("application/grpc"));
            assert_eq!(header("grpc-status"), Some("14"));
            assert!(header("grpc-message").unwrap().contains("remote connection failure"));
            assert_eq!(header("content-length"), None);
        });
        let mut client = Client::connect(port);
        client.send(
            "POST / HTTP/1.1\r\nhost: t\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
        );
        let response = client.response("POST");
        assert_eq!((response.status, response.header("grpc-status")), (200, Some("14")));
        assert_eq!(response.header("content-length"), Some("0"));
        assert_eq!(culvert.stat("http.ingress.downstream_rq_2xx"), 2);
    });
}

async fn grpc(parts: Parts, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    match parts.uri.path() {
        // Each message is answered as it comes.
        "/echo.Echo/Bidi" => {
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                stream.send_data(bytes, false).unwrap();
            }
        }
        "/echo.Echo/Stream" => {
            for n in 0..10_u8 {
                stream.send_data(Bytes::from(vec![0, 0, 0, 0, 1, n]), false).unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }
        _ => stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), false).unwrap(),
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("3"));
    trailers.insert("grpc-message", HeaderValue::from_static("so be it"));
    stream.send_trailers(trailers).unwrap();
}

#[test]
fn calls_of_every_kind_pass() {
    let upstream = Server::start(grpc);
    on_each(upstream.address, "", &http2(""), |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let call = |method: &str| {
                Request::post(format!("http://test/echo.Echo/{method}"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(())
                    .unwrap()
            };
            for method in ["Unary", "Stream"] {
                let (response, mut stream) = conn.start(call(method), false).await;
                stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
                let answer = peer::answer(response).await.unwrap();
                assert_eq!(answer.body.len(), if method == "Unary" { 5 } else { 60 });
                assert_eq!(answer.trailers["grpc-status"], "3");
                assert_eq!(answer.trailers["grpc-message"], "so be it");
            }
            let (response, mut stream) = conn.start(call("Bidi"), false).await;
            let mut body = response.await.unwrap().into_body();
            for n in 0..20_u8 {
                stream.send_data(Bytes::from(vec![n; 6]), false).unwrap();
                let back = body.data().await.unwrap().unwrap();
                assert_eq!(back, vec![n; 6], "before the request has ended");
                body.flow_control().release_capacity(6).unwrap();
            }
            stream.send_data(Bytes::new(), true).unwrap();
            assert!(body.data().await.is_none());
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "3");
        });
    });
}
