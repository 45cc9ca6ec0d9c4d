//! HTTP/2 on both sides, with real peers, on both drivers.

mod conformance;
mod dead;
mod floods;
mod heads;
mod lifetime;
mod limits;
mod mixes;
mod peer;
#[path = "../support/mod.rs"]
mod support;
mod tunnels;
mod upstream;

use std::net::SocketAddr;

use support::{
    DRIVERS,
    culvert::{Culvert, bootstrap, cluster, free_port, indent},
};

const ROUTES: &str = "- {match: {prefix: /limited}, route: {cluster: up, timeout: 0.1s, max_stream_duration: \
                      {max_stream_duration: 20s, grpc_timeout_header_max: 0.6s}}}\n- {match: {prefix: /}, route: \
                      {cluster: up, timeout: 0s}}";

/// Protocol options of a cluster that speaks HTTP/2.
fn http2(options: &str) -> String {
    explicit(&format!("http2_protocol_options: {{{options}}}"))
}

/// Protocol options of a cluster that speaks HTTP/1 and passes trailers.
fn http1() -> String {
    explicit("http_protocol_options: {enable_trailers: true}")
}

fn explicit(config: &str) -> String {
    protocol_options(&format!("explicit_http_config: {{{config}}}"))
}

fn protocol_options(config: &str) -> String {
    format!(
        "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    {config}\n"
    )
}

/// Waits while the client's connections move.
async fn eventually(culvert: &Culvert, what: &str, condition: impl Fn(&Culvert) -> bool) {
    for _ in 0..1_000 {
        if condition(culvert) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen: {}", culvert.log());
}

/// A culvert in front of one upstream, on every driver in turn.
fn on_each(upstream: SocketAddr, manager: &str, cluster_options: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let clusters = cluster("up", &[upstream]) + &indent(cluster_options, 2);
        let config = bootstrap(admin, port, manager, ROUTES, &clusters);
        // Connections of one worker are shared; how clients spread over several is up to the kernel.
        let culvert = Culvert::start_with(driver, admin, &config, &["--concurrency", "1"]);
        test(&culvert, port);
    }
}
