//! Tracing on both drivers: what upstreams are told of a trace, and the spans that real collectors get.

mod contexts;
mod logs;
mod operations;
mod otlp;
mod spans;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Arc, Mutex};

use support::{
    DRIVERS,
    client::{Client, Response},
    culvert::{Culvert, cluster, free_port, indent},
    upstream::{Upstream, ok, read_request},
};

/// A culvert with one connection manager that traces.
#[derive(Default)]
struct Scene<'a> {
    /// Fields of `tracing`.
    tracing: &'a str,
    /// Fields of the connection manager.
    manager: &'a str,
    /// Fields of its listener.
    listener: &'a str,
    /// Fields of the route to the cluster `up`.
    route: &'a str,
    /// Entries of `http_filters` before the router.
    filters: &'a str,
    /// Further clusters.
    clusters: &'a str,
    /// Entries of `access_log` before the one that is looked at.
    logs: &'a str,
    /// Further values of the runtime.
    runtime: &'a str,
}

impl Scene<'_> {
    /// Runs `test` on both drivers. The upstream answers with the head of the request, or with the status that
    /// `x-answer` asks for; logs show the ids.
    fn run(&self, test: impl Fn(&Culvert, u16)) {
        let upstream =
            Upstream::answering(|head| match head.lines().find_map(|line| line.strip_prefix("x-answer: ")) {
                Some(status) => format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes(),
                None => ok(head.as_bytes()),
            });
        for driver in DRIVERS {
            let port = free_port();
            let text = format!(
                "node: {{id: node, cluster: service, locality: {{zone: z}}}}\nadmin: {{address: {{socket_address: \
                 {{address: 127.0.0.1, port_value: 0}}}}}}\nlayered_runtime: {{layers: [{{name: s, static_layer: \
                 {{tracing.opentelemetry.flush_interval_ms: 50, tracing.zipkin.flush_interval_ms: 50, {}}}}}]}}\n\
                 static_resources:\n  listeners: [{{name: l, {} address: {{socket_address: {{address: \
                 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                 stat_prefix: s, {} tracing: {{{}}}, access_log: [{} {{name: f, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: \
                 {{text_format_source: {{inline_string: \"LOG %REQ(:PATH)% %TRACE_ID% %SPAN_ID%\\n\"}}}}}}}}], \
                 http_filters: [{} {{name: router, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], route_config: {{name: r, \
                 virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /direct}}, direct_response: \
                 {{status: 503}}}}, {{match: {{prefix: /}}, {} route: {{cluster: up, retry_policy: {{retry_on: 5xx, \
                 num_retries: 1}}}}}}]}}]}}}}}}]}}]}}]\n  clusters:\n{}{}",
                self.runtime,
                self.listener,
                self.manager,
                self.tracing,
                self.logs,
                self.filters,
                self.route,
                indent(&cluster("up", &[upstream.address]), 2),
                self.clusters,
            );
            let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
            test(&culvert, port);
        }
    }
}

/// A provider with fields of its configuration.
fn provider(kind: &str, fields: &str) -> String {
    format!(
        "provider: {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.config.trace.v3.{kind}, {fields}}}}}"
    )
}

const ZIPKIN: &str =
    "collector_cluster: collector, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON";

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A GET with these fields on a connection of its own.
fn get(port: u16, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(port);
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n"));
    client.response("GET")
}

/// The value of a header in the head of a request, as the upstream mirrors it.
fn seen(response: &Response, name: &str) -> Option<String> {
    let mark = format!("{name}: ");
    response.text().lines().find_map(|line| line.strip_prefix(&mark).map(str::to_owned))
}

/// Waits for a line of the access log.
fn logged(culvert: &Culvert, line: &str) {
    let line = format!("LOG {line}\n");
    culvert.wait_until(&line, |culvert| culvert.log().contains(&line));
}

/// Heads and bodies of requests.
type Requests = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector over HTTP, and what it got.
fn http_collector(status: &'static str) -> (Upstream, Requests) {
    let got = Requests::default();
    let requests = got.clone();
    let collector = Upstream::start(move |mut stream| {
        use std::io::Write as _;
        while let Some(request) = read_request(&mut stream) {
            requests.lock().unwrap().push(request);
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    (collector, got)
}
