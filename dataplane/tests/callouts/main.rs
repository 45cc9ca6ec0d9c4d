//! HTTP filters that ask somebody, over real sockets, on both drivers.

mod authz_grpc;
mod authz_http;
mod jwt;
mod ratelimit;
mod service;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;

use support::{
    DRIVERS,
    client::{Client, Response},
    culvert::{Culvert, cluster, free_port, indent},
    said::{logged, seen, values},
    upstream::{Upstream, ok, read_request},
};

/// An entry of `http_filters`.
fn filter(name: &str, kind: &str, fields: &str) -> String {
    format!(
        "{{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{kind}, {fields}}}}}"
    )
}

/// An entry of `typed_per_filter_config`.
fn settings(name: &str, kind: &str, fields: &str) -> String {
    format!("{name}: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{kind}, {fields}}}")
}

/// A route to the cluster `up`, with settings of filters.
fn route(prefix: &str, settings: &[String]) -> String {
    format!(
        "{{match: {{prefix: {prefix}}}, route: {{cluster: up}}, typed_per_filter_config: {{{}}}}}",
        settings.join(", ")
    )
}

/// A cluster of a service of gRPC.
fn grpc_cluster(name: &str, at: SocketAddr) -> String {
    cluster(name, &[at])
        + "  typed_extension_protocol_options:\n    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n      \
           \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n      \
           explicit_http_config: {http2_protocol_options: {}}\n"
}

/// A culvert with one connection manager, and the cluster `up`, which answers with the head of the request and its body.
#[derive(Default)]
struct Scene<'a> {
    filters: &'a [String],
    /// Fields of the connection manager, and of the virtual host.
    manager: &'a str,
    host: &'a str,
    routes: &'a [String],
    /// Besides `up`, a YAML list.
    clusters: String,
}

impl Scene<'_> {
    /// Runs `test` on both drivers. What is logged is the path, status, flags, details and bytes received.
    fn run(&self, test: impl Fn(&Culvert, u16)) {
        let upstream = mirror();
        for driver in DRIVERS {
            let port = free_port();
            let clusters = cluster("up", &[upstream.address]) + &self.clusters;
            let text = format!(
                "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, \
                 port_value: 0}}}}}}\nstatic_resources:\n  listeners: [{{name: l, address: {{socket_address: {{address: \
                 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                 stat_prefix: s, {} access_log: [{{name: f, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: \
                 {{text_format_source: {{inline_string: \"LOG %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
                 %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED%\\n\"}}}}}}}}], http_filters: [{}, {}], route_config: {{name: \
                 r, virtual_hosts: [{{name: v, domains: [\"*\"], {} routes: [{}]}}]}}}}}}]}}]}}]\n  clusters:\n{}",
                self.manager,
                self.filters.join(", "),
                filter("router", "router.v3.Router", ""),
                self.host,
                self.routes.join(", "),
                indent(&clusters, 2)
            );
            let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
            test(&culvert, port);
        }
    }
}

/// A server that answers with the head of the request and its body. Its responses have headers of their own.
fn mirror() -> Upstream {
    Upstream::start(|mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let answer = ok(&[head.as_bytes(), &body].concat());
            let own = b"HTTP/1.1 200 OK\r\nr-own: u\r\n";
            let answer = [&own[..], &answer[b"HTTP/1.1 200 OK\r\n".len()..]].concat();
            if std::io::Write::write_all(&mut stream, &answer).is_err() {
                return;
            }
        }
    })
}

/// A GET with these fields on a connection of its own.
fn get(port: u16, path: &str, fields: &[(&str, &str)]) -> Response {
    ask(port, "GET", path, fields, b"")
}

fn ask(port: u16, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
    let mut client = Client::connect(port);
    send(&mut client, method, path, fields, body);
    client.response(method)
}

fn send(client: &mut Client, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) {
    let mut fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    if !body.is_empty() {
        fields.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n"));
    client.send(body);
}
