//! What requests cost that are like those before them: no memory, no lock.

mod allocations;
mod locks;
#[path = "../http2/peer.rs"]
mod peer;
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
};

use support::{
    client::Client,
    culvert::{Culvert, free_port},
    upstream::Upstream,
};

/// A culvert with one worker in front of `upstream`.
fn start(driver: &str, upstream: SocketAddr, scene: &Scene<'_>) -> (Culvert, u16) {
    let port = free_port();
    let text = scene.bootstrap(port, upstream);
    // What waits to be written must not be what the test is about.
    let flags = ["--concurrency", "1", "--file-flush-interval-msec", "1000"];
    (Culvert::start_with(driver, 0, &text, &flags), port)
}

/// What is configured besides the ordinary.
#[derive(Clone, Copy, Default)]
struct Scene<'a> {
    manager: &'a str,
    /// Before the router.
    filters: &'a str,
    host: &'a str,
    action: &'a str,
    route: &'a str,
    cluster: &'a str,
}

impl Scene<'_> {
    fn bootstrap(&self, port: u16, upstream: SocketAddr) -> String {
        let Self { manager, filters, host, action, route, cluster } = self;
        format!(
            "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             0}}}}}}\nstatic_resources:\n  listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, \
             port_value: {port}}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: s, {manager} http_filters: [{filters} {{name: router, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], route_config: {{name: r, \
             virtual_hosts: [{{name: v, domains: [\"*\"], {host} routes: [{{match: {{prefix: /}}, {route} route: \
             {{cluster: up, {action}}}}}]}}]}}}}}}]}}]}}]\n  clusters: [{{name: up, {cluster} load_assignment: \
             {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{hostname: up.example, address: \
             {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}}}]\n",
            upstream.ip(),
            upstream.port()
        )
    }
}

/// A server that answers quickly: with a length, or in chunks where the path says so.
fn quick() -> Upstream {
    Upstream::start(|mut stream| {
        stream.set_nodelay(true).expect("no delay");
        let mut buffer = Vec::new();
        while let Some(head) = head_of(&mut stream, &mut buffer) {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
            let is_chunked = head.contains("transfer-encoding: chunked");
            let end = |body: &[u8]| match is_chunked {
                true => body.windows(5).position(|window| window == b"0\r\n\r\n").map(|at| at + 5),
                false => Some(length).filter(|length| body.len() >= *length),
            };
            let body = loop {
                match end(&buffer) {
                    Some(body) => break body,
                    None if more(&mut stream, &mut buffer).is_none() => return,
                    None => {}
                }
            };
            buffer.drain(..body);
            let answer: &[u8] = if head.contains("/chunked") {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
            } else if head.starts_with("HEAD") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nx-a: b\r\n\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nx-a: b\r\n\r\nhello world"
            };
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    })
}

fn head_of(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(String::from_utf8_lossy(&buffer.drain(..at + 4).collect::<Vec<_>>()).into_owned());
        }
        more(stream, buffer)?;
    }
}

fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 4096];
    let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
    buffer.extend_from_slice(&piece[..n]);
    Some(())
}

/// Clients that stay connected and send request after request.
struct Clients {
    clients: Vec<Client>,
    requests: Vec<(&'static str, String)>,
}

/// How many clients there are.
const CLIENTS: usize = 4;

impl Clients {
    fn connect(port: u16) -> Self {
        let get = |method: &'static str, path: &str| {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: some.example:8080\r\nuser-agent: steady\r\naccept: */*\r\ncookie: a=b\r\n\r\n"
            );
            (method, head)
        };
        let post = "POST /a HTTP/1.1\r\nhost: some.example\r\ncontent-length: 5\r\n\r\nworld".to_owned();
        let chunked = "POST /b HTTP/1.1\r\nhost: some.example\r\ntransfer-encoding: chunked\r\n\r\n5\r\nworld\r\n0\r\n\r\n";
        let requests = [
            get("GET", "/some/path?and=query"),
            get("GET", "/chunked"),
            get("HEAD", "/head"),
            ("POST", post),
            ("POST", chunked.to_owned()),
        ];
        let clients = (0..CLIENTS).map(|_| Client::connect(port)).collect();
        Self { clients, requests: requests.into() }
    }

    /// Sends so many requests in all, from all clients at the same time.
    fn send(&mut self, count: usize) {
        let each = count / self.clients.len();
        thread::scope(|scope| {
            for client in &mut self.clients {
                let requests = &self.requests;
                scope.spawn(move || {
                    for (method, request) in requests.iter().cycle().take(each) {
                        client.send(request);
                        let answer = client.response(method);
                        assert_eq!(answer.status, 200);
                        if *method != "HEAD" {
                            assert_eq!(answer.body, b"hello world");
                        }
                    }
                });
            }
        });
    }
}
