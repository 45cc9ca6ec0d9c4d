//! Which endpoint a request goes to, over real sockets, on both drivers.

mod affinity;
mod localities;
mod subsets;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;

use support::{
    DRIVERS,
    client::{Client, Response},
    culvert::{Culvert, bootstrap, free_port},
    upstream::{Upstream, ok},
};

/// Servers that answer with their place in the list.
fn places(count: usize) -> Vec<Upstream> {
    (0..count).map(|place| Upstream::answering(move |_| ok(place.to_string().as_bytes()))).collect()
}

/// An endpoint with further fields, each of which begins with a comma.
fn endpoint(address: SocketAddr, more: &str) -> String {
    format!(
        "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}{more}}}",
        address.ip(),
        address.port()
    )
}

/// A STATIC cluster with further fields, and endpoints in localities (entries of `endpoints`).
fn cluster(name: &str, fields: &str, localities: &[String]) -> String {
    format!(
        "- {{name: {name}, connect_timeout: 5s, {fields}, load_assignment: {{cluster_name: {name}, endpoints: [{}]}}}}\n",
        localities.join(", ")
    )
}

/// A locality of plain endpoints.
fn locality(upstreams: &[Upstream]) -> String {
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| endpoint(upstream.address, "")).collect();
    format!("{{lb_endpoints: [{}]}}", endpoints.join(", "))
}

/// Runs `test` with two workers on both drivers.
fn on_each(routes: &str, clusters: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let text = bootstrap(admin, port, "", routes, clusters);
        let culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "2"]);
        test(&culvert, port);
    }
}

/// The answer to a request over a connection of its own.
fn ask(port: u16, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(port);
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
    client.response("GET")
}
