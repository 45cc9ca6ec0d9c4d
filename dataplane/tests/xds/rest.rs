//! REST: polled, with JSON.

use std::net::SocketAddr;

use crate::{
    control_plane::{ControlPlane, Kind},
    scene::{Traffic, answer, named, repeatedly},
    support::culvert::{Culvert, free_port},
};

const CLUSTERS: &str = "/v3/discovery:clusters";
const LISTENERS: &str = "/v3/discovery:listeners";
const ENDPOINTS: &str = "/v3/discovery:endpoints";
const ROUTES: &str = "/v3/discovery:routes";

const SOURCE: &str = r#"{"resource_api_version": "V3", "api_config_source": {"api_type": "REST", "transport_api_version": "V3", "cluster_names": ["xds"], "refresh_delay": "0.1s", "request_timeout": "1s"}}"#;

fn response(version: &str, kind: Kind, resources: &str) -> String {
    format!(r#"{{"version_info": "{version}", "type_url": "{}", "resources": [{resources}]}}"#, kind.url())
}

fn clusters(version: &str, names: &[&str]) -> String {
    let of = |name: &&str| {
        format!(
            r#"{{"@type": "{}", "name": "{name}", "type": "EDS", "connect_timeout": "5s", "eds_cluster_config": {{"eds_config": {SOURCE}}}}}"#,
            Kind::Cluster.url()
        )
    };
    response(version, Kind::Cluster, &names.iter().map(of).collect::<Vec<_>>().join(","))
}

fn endpoints(version: &str, all: &[(&str, SocketAddr)]) -> String {
    let of = |(name, at): &(&str, SocketAddr)| {
        format!(
            r#"{{"@type": "{}", "cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {{"socket_address": {{"address": "{}", "port_value": {}}}}}}}}}]}}]}}"#,
            Kind::Endpoints.url(),
            at.ip(),
            at.port()
        )
    };
    response(version, Kind::Endpoints, &all.iter().map(of).collect::<Vec<_>>().join(","))
}

fn routes(version: &str, cluster: &str) -> String {
    let routes = format!(
        r#"{{"@type": "{}", "name": "local", "virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "{cluster}"}}}}]}}]}}"#,
        Kind::Route.url()
    );
    response(version, Kind::Route, &routes)
}

fn listeners(version: &str, port: u16) -> String {
    let manager = crate::scene::MANAGER;
    let listener = format!(
        r#"{{"@type": "{}", "name": "ingress", "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
        "filter_chains": [{{"filters": [{{"name": "hcm", "typed_config": {{"@type": "{manager}", "stat_prefix": "ingress",
        "rds": {{"route_config_name": "local", "config_source": {SOURCE}}},
        "http_filters": [{{"name": "router", "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}]}}]}}"#,
        Kind::Listener.url()
    );
    response(version, Kind::Listener, &listener)
}

#[test]
fn a_server_that_fails_or_talks_nonsense_costs_no_request() {
    let upstreams = [named("a"), named("b")];
    let plane = ControlPlane::start();
    let port = free_port();
    // Envoy polls for each cluster by itself, and refuses an answer with more endpoints than it asked for.
    plane.rest(CLUSTERS, 200, &clusters("1", &["a"]));
    plane.rest(ENDPOINTS, 200, &endpoints("1", &[("a", upstreams[0].address)]));
    plane.rest(LISTENERS, 200, &listeners("1", port));
    plane.rest(ROUTES, 200, &routes("1", "a"));
    let bootstrap = format!(
        "node: {{id: test, cluster: tests}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         dynamic_resources: {{cds_config: {SOURCE}, lds_config: {SOURCE}}}\n\
         static_resources: {{clusters: [{{name: xds, type: STATIC, connect_timeout: 1s, load_assignment: \
         {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}}}]}}\n",
        crate::scene::address(plane.address)
    );
    let culvert = Culvert::start("auto", 0, &bootstrap);
    let says = |body: &str| {
        culvert
            .wait_until(body, |_| answer(port).is_some_and(|(status, said)| status == 200 && said == body));
    };
    says("a");
    let traffic = Traffic::start(port);
    for (status, body) in [
        (500, "no"),
        (200, "not json"),
        (200, "{}"),
        (200, "[]"),
        (200, r#"{"version_info": "2", "resources": [{"@type": "type.googleapis.com/no.such.Type"}]}"#),
        (
            200,
            r#"{"version_info": "2", "resources": [{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": 4}]}"#,
        ),
        (404, ""),
    ] {
        plane.rest(ROUTES, status, body);
        plane.rest(ENDPOINTS, status, body);
        let from = plane.count();
        plane.wait_for("another poll", from + 4, |seen| seen.kind == Some(Kind::Route));
    }
    plane.rest(ENDPOINTS, 200, &endpoints("2", &[("a", upstreams[1].address)]));
    plane.rest(ROUTES, 200, &routes("2", "a"));
    says("b");
    repeatedly(|_| {});
    traffic.stop();
    let polls: Vec<_> = plane.seen().into_iter().filter(|seen| seen.kind == Some(Kind::Route)).collect();
    let last = polls.last().expect("polls");
    assert_eq!((last.version.as_str(), last.names.as_slice()), ("2", &["local".to_owned()][..]));
    assert_eq!(last.node.as_ref().expect("the node").id, "test");
}
