//! WebSockets and CONNECT where HTTP/2 is spoken on one side or both (RFC 8441).

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, ext::Protocol, server::SendResponse};
use http::{Method, Request, Response, request::Parts};

use crate::{
    http2,
    peer::{self, Conn, Server, block_on},
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, cluster, free_port, indent},
        upstream::{Upstream, read_until},
    },
};

const MANAGER: &str =
    "upgrade_configs: [{upgrade_type: websocket}]\nhttp2_protocol_options: {allow_connect: true}";

const ROUTES: &str = "- {match: {connect_matcher: {}}, route: {cluster: up, upgrade_configs: [{upgrade_type: CONNECT, \
                      connect_config: {}}]}}\n- {match: {prefix: /}, route: {cluster: up}}";

fn on_each(upstream: SocketAddr, manager: &str, options: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let clusters = cluster("up", &[upstream]) + &indent(options, 2);
        let config = bootstrap(admin, port, manager, ROUTES, &clusters);
        let culvert = Culvert::start_with(driver, admin, &config, &["--concurrency", "1"]);
        test(&culvert, port);
    }
}

/// Sends back in upper case what comes, to its end.
fn shout(stream: &mut std::net::TcpStream) {
    let mut piece = [0; 4_096];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..count].to_ascii_uppercase()).is_err() {
            return;
        }
    }
}

/// An upstream of HTTP/1 that takes WebSockets from who names a key.
fn http1_sockets() -> Upstream {
    Upstream::start(|mut stream| {
        let Some(head) = read_until(&mut stream, b"\r\n\r\n") else { return };
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let asks = head.starts_with("get /chat http/1.1\r\n")
            && head.contains("\r\nupgrade: websocket\r\n")
            && head.contains("\r\nconnection: upgrade\r\n")
            && head.contains("\r\nsec-websocket-key: ");
        let answer = if asks {
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nx-own: 1\r\n\r\n"
        } else {
            "HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n"
        };
        stream.write_all(answer.as_bytes()).unwrap();
        shout(&mut stream);
    })
}

async fn socket(parts: Parts, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let asks = parts.method == Method::CONNECT
        && parts.uri.path() == "/chat"
        && parts.extensions.get::<Protocol>().map(Protocol::as_str) == Some("websocket")
        && !parts.headers.contains_key("upgrade");
    let response =
        Response::builder().status(if asks { 200 } else { 400 }).header("x-own", "1").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(response, !asks) else { return };
    while let Some(Ok(bytes)) = body.data().await {
        let _ = body.flow_control().release_capacity(bytes.len());
        if peer::send(&mut stream, bytes.to_ascii_uppercase().into()).await.is_none() {
            return;
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}

fn http2_sockets() -> Server {
    let mut settings = h2::server::Builder::new();
    settings.enable_connect_protocol();
    Server::with(settings, socket)
}

/// Through the tunnel and back, more than fits into any buffer, then its end.
async fn converse(mut send: SendStream<Bytes>, mut receive: RecvStream) {
    let sent = vec![b'x'; 600_000];
    let piece = Bytes::from(sent.clone());
    let sending = tokio::spawn(async move {
        peer::send(&mut send, piece).await.unwrap();
        send
    });
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let bytes = receive.data().await.unwrap().unwrap();
        receive.flow_control().release_capacity(bytes.len()).unwrap();
        received.extend_from_slice(&bytes);
    }
    assert!(received == sent.to_ascii_uppercase());
    sending.await.unwrap().send_data(Bytes::new(), true).unwrap();
    while let Some(bytes) = receive.data().await {
        assert!(bytes.unwrap().is_empty(), "its end");
    }
}

async fn open(conn: &Conn, request: Request<()>) -> (Response<RecvStream>, SendStream<Bytes>) {
    let (response, send) = conn.start(request, false).await;
    (response.await.unwrap(), send)
}

fn chat() -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).uri("http://test/chat");
    request.extension(Protocol::from_static("websocket")).body(()).unwrap()
}

/// Waits until the connection says what it takes, without which the codec refuses to ask.
async fn ready(conn: &Conn) {
    while !conn.send.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn clients_of_http2(address: SocketAddr, options: &str) {
    on_each(address, MANAGER, options, |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            ready(&conn).await;
            let (response, send) = open(&conn, chat()).await;
            assert_eq!(
                (response.status().as_u16(), response.headers()["x-own"].to_str().unwrap()),
                (200, "1")
            );
            assert!(!response.headers().contains_key("upgrade"));
            converse(send, response.into_body()).await;
        });
        assert_eq!(culvert.stat("http.ingress.downstream_cx_upgrades_total"), 1);
        culvert.wait_until("its end", |it| it.stat("cluster.up.upstream_rq_active") == 0);
    });
}

#[test]
fn a_websocket_comes_over_http2() {
    clients_of_http2(http1_sockets().address, "");
    clients_of_http2(http2_sockets().address, &http2(""));
}

#[test]
fn a_websocket_goes_over_http2() {
    let upstream = http2_sockets();
    on_each(upstream.address, MANAGER, &http2(""), |culvert, port| {
        let mut client = Client::connect(port);
        client.send(
            "GET /chat HTTP/1.1\r\nhost: t\r\nconnection: keep-alive, Upgrade\r\nupgrade: \
             websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        let response = client.response("GET");
        assert_eq!(response.status, 101);
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("x-own", "1"),
            // RFC 6455 section 1.3
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            assert_eq!(response.header(name), Some(value), "{name}");
        }
        client.send("through it");
        assert_eq!(client.exactly(10).unwrap(), b"THROUGH IT");
        client.finish();
        assert!(client.rest().unwrap().is_empty());
        culvert.wait_until("its end", |it| it.stat("cluster.up.upstream_rq_active") == 0);
    });
}

#[test]
fn a_server_that_takes_no_upgrades_is_not_asked() {
    let upstream = Server::mirror();
    on_each(upstream.address, MANAGER, &http2(""), |culvert, port| {
        let mut client = Client::connect(port);
        assert_eq!(client.get("/").status, 200);
        client.send("GET /chat HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        assert_eq!(client.response("GET").status, 502);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_total"), 1);
    });
}

/// What is not allowed is not announced.
#[test]
fn clients_may_ask_only_where_it_is_allowed() {
    let upstream = http1_sockets();
    on_each(upstream.address, "upgrade_configs: [{upgrade_type: websocket}]", "", |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            conn.get("/").await;
            assert!(!conn.send.is_extended_connect_protocol_enabled());
        });
    });
    on_each(upstream.address, "http2_protocol_options: {allow_connect: true}", "", |culvert, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            ready(&conn).await;
            let (response, _) = open(&conn, chat()).await;
            assert_eq!(response.status(), 403);
        });
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 0);
    });
}

#[test]
fn a_tunnel_of_http2_ends_here() {
    let upstream = Upstream::start(|mut stream| shout(&mut stream));
    on_each(upstream.address, MANAGER, "", |_, port| {
        block_on(async {
            let conn = Conn::open(port).await;
            let request =
                Request::builder().method(Method::CONNECT).uri("some.example:443").body(()).unwrap();
            let (response, send) = open(&conn, request).await;
            assert_eq!(response.status(), 200);
            converse(send, response.into_body()).await;
        });
    });
}
