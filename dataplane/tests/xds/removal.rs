//! What is gone, and what only was not mentioned. And what goes by itself.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use envoy_types::pb::google::protobuf;

use crate::{
    control_plane::{Kind, Resource},
    scene::{
        MODES, Mode, ROUTER, Scene, answer, eds_cluster, endpoints, listener, listener_with, manager, rds,
        repeatedly, routes, static_cluster,
    },
    support::{DRIVERS, client::Client, culvert::free_port},
};

#[test]
fn a_cluster_that_is_not_in_the_world_any_more_is_gone() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        scene.plane.publish(|world| world.remove(Kind::Cluster, "a"));
        scene.wait_for_status(503);
        assert!(!scene.culvert.get("/clusters").expect("clusters").contains("a::"), "{mode:?}");
        scene.plane.put([eds_cluster(mode, "a", "15s", "")]);
        scene.wait_for_answer("a");
    }
}

#[test]
fn a_listener_that_is_not_in_the_world_any_more_is_drained() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let mut open = Client::connect(scene.port);
        assert_eq!(open.get("/").status, 200);
        scene.plane.publish(|world| world.remove(Kind::Listener, "ingress"));
        scene.culvert.wait_until("closed", |_| TcpStream::connect(("127.0.0.1", scene.port)).is_err());
        if let Ok(response) = open.try_get("/") {
            assert_eq!(response.status, 200, "{mode:?}: the request that was under way");
        }
        scene.plane.put([listener(mode, "ingress", scene.port, "local")]);
        scene.wait_for_answer("a");
    }
}

#[test]
fn routes_and_endpoints_stay_while_somebody_needs_them() {
    // State of the world says nothing by leaving them out. A delta that removes them: Envoy ignores it for endpoints, and
    // for routes as long as the listener names them.
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        scene.plane.publish(|world| {
            world.remove(Kind::Endpoints, "a");
            world.remove(Kind::Route, "local");
        });
        repeatedly(|_| {});
        assert_eq!(answer(scene.port), Some((200, "a".to_owned())), "{mode:?}");
        traffic.stop();
        scene.plane.put([endpoints("a", &[scene.upstream.address]), routes("local", "a")]);
        scene.still_follows();
    }
}

#[test]
fn names_nobody_needs_are_given_back() {
    // Envoy: without ADS every subscription has a stream of its own, which ends.
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        let from = scene.plane.count();
        scene.plane.put([eds_cluster(mode, "b", "15s", ""), endpoints("b", &[scene.upstream.address])]);
        scene.plane.wait_for("b", from, |seen| {
            seen.kind == Some(Kind::Endpoints) && seen.names.contains(&"b".to_owned())
        });
        let from = scene.plane.count();
        scene.plane.publish(|world| world.remove(Kind::Cluster, "b"));
        scene.plane.wait_for("no b", from, |seen| {
            seen.kind == Some(Kind::Endpoints)
                && if mode.is_delta() { seen.unsubscribed == ["b"] } else { seen.names == ["a"] }
        });
        if mode == Mode::AdsDelta {
            scene.still_follows();
        }
    }
}

#[test]
fn a_resource_goes_when_its_time_to_live_is_over() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let mut cluster = static_cluster("short", scene.upstream.address);
        cluster.ttl = Some(protobuf::Duration { seconds: 1, nanos: 0 });
        scene.plane.put([cluster, routes("local", "short")]);
        let has =
            |c: &crate::support::culvert::Culvert| c.get("/clusters").expect("clusters").contains("short::");
        scene.culvert.wait_until("there", has);
        scene.culvert.wait_until("gone", |c| !has(c));
        scene.wait_for_status(503);
        scene.still_follows();
    }
}

#[test]
fn a_heartbeat_keeps_a_resource() {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as Wrapped};

    let mode = Mode::AdsDelta;
    let scene = Scene::start(mode, "auto");
    let mut cluster = static_cluster("kept", scene.upstream.address);
    let ttl = Some(protobuf::Duration { seconds: 1, nanos: 0 });
    cluster.ttl = ttl;
    scene.plane.put([cluster, routes("local", "kept")]);
    scene.culvert.wait_until("there", |c| c.get("/clusters").expect("clusters").contains("kept::"));
    scene.wait_for_answer("a");
    let traffic = scene.traffic();
    let version = scene.plane.version(Kind::Cluster, "kept");
    let changed = scene.culvert.stat("cluster_manager.cluster_modified");
    for _ in 0..2 {
        repeatedly(|turn| {
            if turn % 8 != 0 {
                return;
            }
            scene.plane.say(crate::control_plane::Say::Delta(DeltaDiscoveryResponse {
                resources: vec![Wrapped {
                    name: "kept".to_owned(),
                    version: version.clone(),
                    ttl,
                    ..Wrapped::default()
                }],
                type_url: Kind::Cluster.url(),
                ..DeltaDiscoveryResponse::default()
            }));
        });
    }
    traffic.stop();
    assert_eq!(scene.culvert.stat("cluster_manager.cluster_modified"), changed, "a heartbeat is no update");
    scene.wait_for_status(503);
}

#[test]
fn routes_of_a_listener_that_went_are_not_asked_for() {
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        let port = free_port();
        scene
            .plane
            .put([listener_with("second", port, &rds(mode, "more", "15s"), ROUTER), routes("more", "a")]);
        scene.culvert.wait_until("second", |_| answer(port).is_some_and(|(status, _)| status == 200));
        let from = scene.plane.count();
        scene.plane.publish(|world| world.remove(Kind::Listener, "second"));
        scene.plane.wait_for("no more", from, |seen| {
            seen.kind == Some(Kind::Route)
                && if mode.is_delta() { seen.unsubscribed == ["more"] } else { seen.names == ["local"] }
        });
        scene.still_follows();
    }
}

/// A listener of this name at `port`.
fn at(mode: Mode, name: &str, port: u16, reuse_port: bool) -> Resource {
    let yaml = format!(
        "{{name: {name}, enable_reuse_port: {reuse_port}, address: {{socket_address: {{address: 127.0.0.1, port_value: \
         {port}}}}}, filter_chains: [{{filters: [{}]}}]}}",
        manager(&rds(mode, "local", "15s"), ROUTER)
    );
    Resource::new(Kind::Listener, name, &yaml)
}

#[test]
fn an_address_that_goes_from_one_listener_to_another_is_open_all_the_time() {
    for (driver, reuse_port) in DRIVERS.into_iter().flat_map(|driver| [(driver, true), (driver, false)]) {
        let mode = Mode::AdsWorld;
        let scene = Scene::start(mode, driver);
        let port = free_port();
        scene.plane.put([at(mode, "first", port, reuse_port)]);
        scene.culvert.wait_until("it is there", |_| answer(port).is_some());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // A connection that the kernel drops would be tried again after a second.
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let stop = &stop;
            let connects = move || {
                while !stop.load(Ordering::SeqCst) {
                    TcpStream::connect_timeout(&address, Duration::from_millis(900)).expect("a connection");
                    // Not so many that they fill the queue of a worker that has to wait for a CPU.
                    thread::sleep(Duration::from_micros(200));
                }
            };
            let connecting = scope.spawn(connects);
            for turn in 0..6 {
                let (old, new) = if turn % 2 == 0 { ("first", "second") } else { ("second", "first") };
                let modified = scene.culvert.stat("listener_manager.listener_removed");
                scene.plane.publish(|world| {
                    world.remove(Kind::Listener, old);
                    world.put(at(mode, new, port, reuse_port));
                });
                scene.culvert.wait_until("it is taken over", |c| {
                    c.stat("listener_manager.listener_removed") > modified
                });
                assert_eq!(answer(port).expect("an answer").0, 200);
                // For longer than a removed socket accepts.
                thread::sleep(Duration::from_millis(150));
            }
            stop.store(true, Ordering::SeqCst);
            connecting.join().expect("no connection fails");
        });
        assert_eq!(scene.culvert.stat("listener_manager.listener_create_failure"), 0);
    }
}
