//! HTTP filters before the router, over real sockets, on both drivers.

mod access;
mod buffer;
mod calls;
mod compressor;
mod cors;
mod fault;
mod headers;
mod health;
mod limit;
mod login;
mod routes;
#[path = "../support/mod.rs"]
mod support;
mod web;

use support::{
    DRIVERS,
    client::{Client, Response},
    culvert::{Culvert, cluster, free_port, indent},
    said::{logged, seen, values},
    upstream::Upstream,
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

/// An entry of `typed_per_filter_config` that is a `FilterConfig`.
fn switch(name: &str, fields: &str) -> String {
    format!("{name}: {{\"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, {fields}}}")
}

/// A route to the cluster `up`, with settings of filters.
fn route(prefix: &str, settings: &[String]) -> String {
    format!(
        "{{match: {{prefix: {prefix}}}, route: {{cluster: up}}, typed_per_filter_config: {{{}}}}}",
        settings.join(", ")
    )
}

/// A culvert with one connection manager.
struct Scene<'a> {
    filters: &'a [String],
    /// Fields of the route configuration, its virtual host, and its routes.
    config: &'a str,
    host: &'a str,
    routes: &'a [String],
}

impl Scene<'_> {
    /// Runs `test` on both drivers. The upstream answers with the head of the request; what is logged is the path, status,
    /// flags and details.
    fn run(&self, test: impl Fn(&Culvert, u16)) {
        self.run_with("", test);
    }

    /// As [`Scene::run`], with further clusters.
    fn run_with(&self, clusters: &str, test: impl Fn(&Culvert, u16)) {
        let upstream = Upstream::mirror();
        for driver in DRIVERS {
            let port = free_port();
            let text = format!(
                "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, \
                 port_value: 0}}}}}}\nstatic_resources:\n  listeners: [{{name: l, address: {{socket_address: {{address: \
                 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                 stat_prefix: s, access_log: [{{name: f, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: \
                 {{text_format_source: {{inline_string: \"LOG %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
                 %RESPONSE_CODE_DETAILS%\\n\"}}}}}}}}], http_filters: [{}, {}], route_config: {{name: r, {} \
                 virtual_hosts: [{{name: v, domains: [\"*\"], {} routes: [{}]}}]}}}}}}]}}]}}]\n  clusters:\n{}{clusters}",
                self.filters.join(", "),
                filter("router", "router.v3.Router", ""),
                self.config,
                self.host,
                self.routes.join(", "),
                indent(&cluster("up", &[upstream.address]), 2)
            );
            let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
            test(&culvert, port);
        }
    }
}

/// A GET with these fields on a connection of its own.
fn get(port: u16, path: &str, fields: &[(&str, &str)]) -> Response {
    ask(port, "GET", path, fields)
}

fn ask(port: u16, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(port);
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n"));
    client.response(method)
}
