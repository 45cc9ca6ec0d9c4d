//! The other discovery services: scopes (SRDS) and virtual hosts (VHDS).

use crate::{
    control_plane::{Kind, Resource},
    scene::{MODES, Mode, ROUTER, Scene, eds_cluster, endpoints, listener_with, named, routes},
    support::{DRIVERS, client::Client},
};

/// Status and body of a request with this host and header.
fn ask(port: u16, host: &str, scope: &str) -> (u16, String) {
    let mut client = Client::connect(port);
    client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-scope: {scope}\r\n\r\n"));
    let response = client.response("GET");
    (response.status, response.text())
}

const KEY: &str = "scope_key_builder: {fragments: [{header_value_extractor: {name: Host, index: 0}}, \
                   {header_value_extractor: {name: X-Scope, element_separator: ';', element: {separator: '=', key: v}}}]}";

fn scope(name: &str, key: [&str; 2], routes: &str) -> Resource {
    let yaml = format!(
        "{{name: {name}, route_configuration_name: {routes}, key: {{fragments: [{{string_key: '{}'}}, {{string_key: '{}'}}]}}}}",
        key[0], key[1]
    );
    Resource::new(Kind::ScopedRoute, name, &yaml)
}

#[test]
fn a_request_meets_the_routes_of_its_scope() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let source = mode.source("15s");
        let scoped = format!(
            "scoped_routes: {{name: scopes, {KEY}, rds_config_source: {source}, scoped_rds: \
             {{scoped_rds_config_source: {source}}}}}"
        );
        let other = named("b");
        let scene = Scene::prepare(mode, driver, |plane| {
            plane.put([eds_cluster(mode, "b", "15s", ""), endpoints("b", &[other.address])]);
            plane.put([routes("for-a", "a"), routes("for-b", "b")]);
            plane.put([scope("one", ["x.y", "1"], "for-a"), scope("two", ["x.y", "2"], "for-b")]);
        });
        scene.plane.put([listener_with("ingress", scene.port, &scoped, ROUTER)]);
        let says = |scope: &str, status: u16, body: &str| {
            let what = format!("{mode:?}: {scope}: {status} {body}");
            scene.culvert.wait_until(&what, |_| ask(scene.port, "x.y", scope) == (status, body.to_owned()));
        };
        says("u=2;v=1", 200, "a");
        says("v=2", 200, "b");
        // Envoy: "route_not_found" where no scope has the key, or a part of it is missing.
        assert_eq!(ask(scene.port, "x.y", "v=3").0, 404, "{mode:?}");
        assert_eq!(ask(scene.port, "x.y", "2").0, 404, "{mode:?}");
        assert_eq!(ask(scene.port, "z.y", "v=1").0, 404, "{mode:?}");
        let traffic = ask(scene.port, "x.y", "v=1");
        assert_eq!(traffic, (200, "a".to_owned()));
        scene.plane.put([scope("one", ["x.y", "1"], "for-b"), scope("three", ["x.y", "3"], "for-a")]);
        says("v=1", 200, "b");
        says("v=3", 200, "a");
        scene.plane.publish(|world| world.remove(Kind::ScopedRoute, "two"));
        says("v=2", 404, "");
        says("v=1", 200, "b");
    }
}

#[test]
fn scopes_may_be_part_of_the_listener() {
    for driver in DRIVERS {
        let mode = Mode::AdsWorld;
        let scene = Scene::start(mode, driver);
        let inline = |key: &str, body: &str| {
            format!(
                "{{name: {body}, key: {{fragments: [{{string_key: x.y}}, {{string_key: '{key}'}}]}}, route_configuration: \
                 {{name: {body}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
                 direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}}}"
            )
        };
        let scoped = format!(
            "scoped_routes: {{name: scopes, {KEY}, scoped_route_configurations_list: {{scoped_route_configurations: \
             [{}, {}]}}}}",
            inline("1", "first"),
            inline("2", "second")
        );
        scene.plane.put([listener_with("ingress", scene.port, &scoped, ROUTER)]);
        scene.culvert.wait_until("the scopes", |_| ask(scene.port, "x.y", "v=1").1 == "first");
        assert_eq!(ask(scene.port, "x.y", "v=2"), (200, "second".to_owned()));
        assert_eq!(ask(scene.port, "x.y", "v=3").0, 404);
    }
}

#[test]
fn virtual_hosts_come_and_go_by_themselves() {
    for (mode, driver) in [Mode::AdsDelta, Mode::Delta].into_iter().zip(DRIVERS) {
        let host = |name: &str, domain: &str, cluster: &str| {
            let yaml = format!(
                "{{name: {name}, domains: ['{domain}'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}"
            );
            Resource::new(Kind::VirtualHost, name, &yaml)
        };
        let vhds = |more: &str| {
            let yaml = format!("{{name: local, vhds: {{config_source: {}}} {more}}}", mode.source("15s"));
            Resource::new(Kind::Route, "local", &yaml)
        };
        let scene = Scene::start(mode, driver);
        let own = ", virtual_hosts: [{name: own, domains: [own.y], routes: [{match: {prefix: /}, direct_response: \
                   {status: 200, body: {inline_string: own}}}]}]";
        scene.plane.put([
            vhds(own),
            host("local/one", "one.y", "a"),
            host("local/mine", "own.y", "a"),
            host("other/two", "two.y", "a"),
        ]);
        let says = |domain: &str, status: u16| {
            let what = format!("{mode:?}: {domain}: {status}");
            scene.culvert.wait_until(&what, |_| ask(scene.port, domain, "").0 == status);
        };
        // Until then the routes before, of which one matches every host.
        says("two.y", 404);
        says("one.y", 200);
        assert_eq!(ask(scene.port, "own.y", ""), (200, "own".to_owned()), "what was there stays");
        assert_eq!(ask(scene.port, "two.y", "").0, 404, "of other routes");
        scene.plane.put([host("local/three", "three.y", "a")]);
        says("three.y", 200);
        scene.plane.publish(|world| world.remove(Kind::VirtualHost, "local/one"));
        says("one.y", 404);
        says("three.y", 200);
    }
}
