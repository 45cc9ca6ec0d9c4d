//! What waits for what, and for how long.

use std::{thread, time::Duration};

use crate::{
    control_plane::Kind,
    scene::{
        MODES, Mode, ROUTER, Scene, answer, dns_cluster, eds_cluster, endpoints, listener, listener_with,
        named, rds, repeatedly, routes,
    },
    support::{DRIVERS, client::Client, culvert::free_port, dns::NameServer},
};

#[test]
fn a_new_version_of_a_cluster_serves_when_its_endpoints_are_there() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        let from = scene.plane.count();
        scene.plane.hold(Kind::Endpoints);
        // Other endpoints: those of another service name.
        scene.plane.put([renamed(mode, "30s"), endpoints("b-service", &[named_b().address])]);
        scene.plane.wait_for("the new name", from, |seen| seen.names.contains(&"b-service".to_owned()));
        repeatedly(|_| assert_eq!(answer(scene.port).expect("an answer"), (200, "a".to_owned()), "{mode:?}"));
        scene.plane.release(Kind::Endpoints);
        scene.wait_for_answer("b");
        traffic.stop();
    }
}

#[test]
fn a_new_version_of_a_cluster_serves_when_its_names_are_resolved() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let (server, other) = (NameServer::start(), named_b());
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        server.hold(true);
        scene.plane.put([dns_cluster("a", &server, other.address.port())]);
        scene.culvert.wait_until("the name is asked for", |_| server.asked() > 0);
        // Also when what the old version had is gone, and when something else changes meanwhile.
        scene.plane.publish(|world| world.remove(Kind::Endpoints, "a"));
        scene.plane.put([eds_cluster(mode, "other", "15s", ""), endpoints("other", &[other.address])]);
        scene.wait_for_cluster("other");
        repeatedly(|_| assert_eq!(answer(scene.port).expect("an answer"), (200, "a".to_owned()), "{mode:?}"));
        server.hold(false);
        scene.wait_for_answer("b");
        traffic.stop();
    }
}

/// Cluster `a` with the endpoints of another service.
fn renamed(mode: Mode, timeout: &str) -> crate::control_plane::Resource {
    let yaml = format!(
        "{{name: a, type: EDS, connect_timeout: 5s, eds_cluster_config: {{service_name: b-service, eds_config: {}}}}}",
        mode.source(timeout)
    );
    crate::control_plane::Resource::new(Kind::Cluster, "a", &yaml)
}

/// Leaked, so that it serves for as long as the test process runs.
fn named_b() -> &'static crate::support::upstream::Upstream {
    Box::leak(Box::new(named("b")))
}

#[test]
fn endpoints_that_never_come_do_not_wedge_an_update() {
    // Envoy waits for ever for nothing: the new version comes up after its timeout, without a host unless
    // `envoy.restart_features.use_eds_cache_for_ads` is on. Here the assignment that is known goes on.
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        scene.plane.hold(Kind::Endpoints);
        let breakers = ", circuit_breakers: {thresholds: [{max_connections: 77}]}";
        scene.plane.put([eds_cluster(mode, "a", "0.3s", breakers)]);
        scene.culvert.wait_until("the new version", |c| {
            c.get("/clusters").expect("clusters").contains("max_connections::77")
        });
        repeatedly(|_| {});
        traffic.stop();
        scene.plane.release(Kind::Endpoints);
        scene.still_follows();
    }
}

#[test]
fn endpoints_that_never_come_do_not_wedge_the_start() {
    for mode in MODES {
        let scene = Scene::prepare(mode, "auto", |plane| {
            plane.hold(Kind::Endpoints);
            plane.put([eds_cluster(mode, "a", "0.3s", "")]);
        });
        // It is live (or it would not be here), and says what is missing.
        scene.wait_for_status(503);
        assert_eq!(scene.culvert.stat("cluster.a.init_fetch_timeout"), 1, "{mode:?}");
        scene.plane.release(Kind::Endpoints);
        scene.wait_for_answer("a");
    }
}

#[test]
fn routes_that_never_come_do_not_wedge_a_listener() {
    for mode in MODES {
        let scene = Scene::prepare(mode, "auto", |plane| plane.hold(Kind::Route));
        drop(scene_with_route_timeout(scene));
    }
}

fn scene_with_route_timeout(scene: Scene) -> Scene {
    // A second listener, whose routes are waited for only a moment.
    let port = free_port();
    let mode = scene.mode;
    scene.plane.put([listener_with("impatient", port, &rds(mode, "other", "0.3s"), ROUTER)]);
    scene.culvert.wait_until("404", |_| answer(port).is_some_and(|(status, _)| status == 404));
    scene.plane.put([routes("other", "a")]);
    scene.plane.release(Kind::Route);
    scene.culvert.wait_until("200", |_| answer(port).is_some_and(|(status, _)| status == 200));
    scene.serving()
}

#[test]
fn a_timeout_of_zero_waits_for_ever() {
    for mode in [Mode::AdsWorld, Mode::Delta] {
        let scene = Scene::start(mode, "auto");
        let port = free_port();
        scene.plane.hold(Kind::Route);
        scene
            .plane
            .put([listener_with("patient", port, &rds(mode, "other", "0s"), ROUTER), routes("other", "a")]);
        scene.culvert.wait_until("warming", |c| c.stat("listener_manager.total_listeners_warming") == 1);
        thread::sleep(Duration::from_millis(500));
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "{mode:?}: it has no routes");
        scene.plane.release(Kind::Route);
        scene.culvert.wait_until("200", |_| answer(port).is_some_and(|(status, _)| status == 200));
    }
}

#[test]
fn half_a_snapshot_changes_nothing_until_the_other_half_is_there() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().rev().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        let from = scene.plane.count();
        // The listener first, then its routes, then their cluster: the wrong way round, with a pause each time.
        scene.plane.put([listener(mode, "ingress", scene.port, "next")]);
        scene.plane.wait_for("the routes", from, |seen| seen.names.contains(&"next".to_owned()));
        repeatedly(|_| assert_eq!(answer(scene.port).expect("an answer"), (200, "a".to_owned()), "{mode:?}"));
        let other = named("b");
        scene.plane.put([eds_cluster(mode, "b", "15s", ""), endpoints("b", &[other.address])]);
        scene.culvert.wait_until("b", |c| c.get("/clusters").expect("clusters").contains("b::"));
        scene.plane.put([routes("next", "b")]);
        scene.wait_for_answer("b");
        traffic.stop();
    }
}

#[test]
fn a_listener_comes_before_everything_it_needs() {
    for mode in MODES {
        let scene = Scene::prepare(mode, "auto", |plane| {
            plane.publish(|world| {
                world.remove(Kind::Cluster, "a");
                world.remove(Kind::Endpoints, "a");
            });
        });
        // Envoy: the cluster is looked for when a request needs it: 503.
        scene.wait_for_status(503);
        scene.plane.put([eds_cluster(mode, "a", "15s", ""), endpoints("a", &[scene.upstream.address])]);
        scene.wait_for_answer("a");
    }
}

#[test]
fn what_waits_is_shown() {
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        scene.plane.hold(Kind::Endpoints);
        scene.plane.put([eds_cluster(mode, "waits", "30s", "")]);
        scene.culvert.wait_until("warming", |c| c.stat("cluster_manager.warming_clusters") == 1);
        let dump = scene.culvert.get("/config_dump").expect("a dump");
        assert!(dump.contains("dynamic_warming_clusters"), "{dump}");
        scene.plane.put([endpoints("waits", &[scene.upstream.address])]);
        scene.plane.release(Kind::Endpoints);
        scene.culvert.wait_until("warm", |c| c.stat("cluster_manager.warming_clusters") == 0);
    }
}

#[test]
fn what_a_listener_waits_for_is_shown() {
    // Envoy: "unready_targets_dumps", one entry for each init manager that waits, with the names of what it waits for.
    let scene = Scene::start(Mode::AdsWorld, "auto");
    scene.plane.hold(Kind::Route);
    scene.plane.put([listener(scene.mode, "patient", free_port(), "other")]);
    let shows = |c: &crate::support::culvert::Culvert| {
        let dump = c.get("/init_dump").expect("a dump");
        dump.contains("unready_targets_dumps") && dump.contains("other")
    };
    scene.culvert.wait_until("the listener in /init_dump", shows);
    let dump = scene.culvert.get("/config_dump").expect("a dump");
    assert!(dump.contains("warming_state"), "{dump}");
    scene.plane.put([routes("other", "a")]);
    scene.plane.release(Kind::Route);
    scene.culvert.wait_until("nothing in /init_dump", |c| !shows(c));
}

#[test]
fn requests_on_open_connections_follow_too() {
    for driver in DRIVERS {
        let scene = Scene::start(Mode::AdsWorld, driver);
        let mut client = Client::connect(scene.port);
        assert_eq!(client.get("/").text(), "a");
        let other = named("b");
        scene.plane.put([
            eds_cluster(scene.mode, "b", "15s", ""),
            endpoints("b", &[other.address]),
            routes("local", "b"),
        ]);
        scene.wait_for_answer("b");
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.header("connection")), ("b", None));
    }
}
