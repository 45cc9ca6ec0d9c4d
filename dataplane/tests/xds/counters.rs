//! What is counted, as clusters come and go.

use crate::{
    control_plane::Kind,
    scene::{Mode, ROUTER, Scene, eds_cluster, endpoints, listener_with, named, rds, routes},
    support::{client::Client, culvert::free_port},
};

/// Counts calls of gRPC by method.
const CALLS: &str = "{name: calls, typed_config: {\"@type\": \
                     type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, stats_for_all_methods: \
                     true}}";

#[test]
fn what_filters_count_of_a_cluster_goes_with_it() {
    let mode = Mode::AdsDelta;
    let scene = Scene::start(mode, "auto");
    let (upstream, port) = (named("b"), free_port());
    let source = rds(mode, "other", "15s");
    let filters = format!("{CALLS}, {ROUTER}");
    scene.plane.put([eds_cluster(mode, "b", "15s", ""), endpoints("b", &[upstream.address])]);
    scene.wait_for_cluster("b");
    scene.plane.put([listener_with("counting", port, &source, &filters), routes("other", "b")]);
    let call = || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        drop(stream);
        let mut client = Client::connect(port);
        let head = "POST /a.Service/Method HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 6\r\n\r\n";
        client.send(head);
        client.send(b"\0\0\0\0\x01x");
        Some(client.response("POST").status)
    };
    scene.culvert.wait_until("calls are answered", |_| call() == Some(200));
    let counts = |culvert: &crate::support::culvert::Culvert| {
        let stats = culvert.get("/stats?filter=Service.Method").expect("counters");
        stats.contains("cluster.b.grpc.a.Service.Method.request_message_count")
    };
    scene.culvert.wait_until("they are counted", counts);
    scene.plane.put([routes("other", "a")]);
    scene.culvert.wait_until("calls go elsewhere", |culvert| {
        call();
        let stats = culvert.get("/stats?filter=Service.Method").expect("counters");
        stats.contains("cluster.a.grpc")
    });
    scene.plane.publish(|world| {
        world.remove(Kind::Cluster, "b");
        world.remove(Kind::Endpoints, "b");
    });
    scene.culvert.wait_until("they are forgotten", |culvert| !counts(culvert));
}
