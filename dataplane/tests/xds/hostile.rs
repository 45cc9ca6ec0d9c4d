//! What a control plane should not do, under traffic, on both drivers.

use std::net::TcpListener;

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as DeltaResource},
    google::protobuf::Any,
};

use crate::{
    control_plane::{Kind, Manners, Resource, Say},
    scene::{
        MODES, Mode, Scene, answer, eds_cluster, endpoints, listener, named, repeatedly, routes,
        static_cluster,
    },
    support::DRIVERS,
};

/// The same response in either protocol.
fn say(mode: Mode, kind_url: &str, nonce: &str, resources: Vec<(&str, Any)>) -> Say {
    if mode.is_delta() {
        let resources = resources.into_iter().map(|(name, any)| DeltaResource {
            name: name.to_owned(),
            version: "x".to_owned(),
            resource: Some(any),
            ..DeltaResource::default()
        });
        Say::Delta(DeltaDiscoveryResponse {
            system_version_info: "x".to_owned(),
            resources: resources.collect(),
            type_url: kind_url.to_owned(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        })
    } else {
        Say::World(DiscoveryResponse {
            version_info: "x".to_owned(),
            resources: resources.into_iter().map(|(_, any)| any).collect(),
            type_url: kind_url.to_owned(),
            nonce: nonce.to_owned(),
            ..DiscoveryResponse::default()
        })
    }
}

#[test]
fn duplicate_names_cost_no_request() {
    // Envoy: a response that names a resource twice is refused: "duplicate cluster a found", "duplicate listener ingress
    // found", in deltas "duplicate name a found among added/updated resources".
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let from = scene.plane.count();
        scene.plane.manners(Manners::Duplicates);
        scene.plane.put([static_cluster("b", scene.upstream.address)]);
        let nack = scene.plane.wait_for_nack(Kind::Cluster, from);
        assert!(nack.error.expect("a reason").contains("uplicate"), "{mode:?}");
        scene.plane.manners(Manners::Good);
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        // Names that are asked for: Envoy passes over others in a delta.
        for (kind, name) in [
            (Kind::Cluster, "a"),
            (Kind::Endpoints, "a"),
            (Kind::Listener, "ingress"),
            (Kind::Route, "local"),
        ] {
            let from = scene.plane.count();
            let garbage = Any { type_url: kind.url(), value: vec![0xFF; 40] };
            scene.plane.say(say(mode, &kind.url(), "", vec![(name, garbage)]));
            let nack = scene.plane.wait_for_nack(kind, from);
            assert!(nack.current, "{mode:?}: the error answers the response it is about");
        }
        scene.still_follows();
        traffic.stop();
    }
}

/// As in Envoy; and unlike there it comes by itself when the address is free.
#[test]
fn a_listener_that_cannot_be_bound_is_refused() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let port = taken.local_addr().expect("an address").port();
        let from = scene.plane.count();
        scene.plane.put([listener(mode, "other", port, "local")]);
        let reason = scene.plane.wait_for_nack(Kind::Listener, from).error.expect("a reason");
        assert!(reason.contains("cannot bind 127.0.0.1"), "{mode:?}: {reason}");
        assert_eq!(scene.culvert.stat("listener_manager.listener_create_failure"), 1);
        scene.still_follows();
        drop(taken);
        scene.culvert.wait_until("it is bound", |_| answer(port).is_some_and(|(status, _)| status == 200));
        assert_eq!(scene.culvert.stat("listener_manager.listener_create_failure"), 1);
        traffic.stop();
    }
}

#[test]
fn a_resource_of_another_type_is_refused() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        for (kind, other) in [(Kind::Cluster, Kind::Route), (Kind::Route, Kind::Cluster)] {
            let from = scene.plane.count();
            let resource = match other {
                Kind::Route => routes("local", "a"),
                _ => static_cluster("local", scene.upstream.address),
            };
            scene.plane.say(say(mode, &kind.url(), "", vec![("local", resource.any)]));
            scene.plane.wait_for_nack(kind, from);
        }
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn a_type_nobody_asked_for_is_passed_over() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        // An empty one on the stream of a type is taken for that type.
        let urls = ["type.googleapis.com/no.such.Type", "", "type.googleapis.com/envoy.config.core.v3.Node"];
        for url in
            urls.into_iter().filter(|url| !url.is_empty() || matches!(mode, Mode::AdsWorld | Mode::AdsDelta))
        {
            let any = Any { type_url: url.to_owned(), value: vec![1, 2, 3] };
            scene.plane.say(say(mode, url, "nonce", vec![("x", any)]));
        }
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn an_unknown_extension_is_refused_by_name() {
    for mode in [Mode::AdsWorld, Mode::Delta] {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let from = scene.plane.count();
        let mut bad = listener(mode, "other", scene.port + 1, "local");
        bad.name = "other".to_owned();
        // The name of the message inside an Any, in the bytes themselves.
        let text = b"envoy.extensions.filters.http.router.v3.Router";
        let at = bad.any.value.windows(text.len()).position(|window| window == text).expect("the router");
        bad.any.value[at + text.len() - 6..at + text.len()].copy_from_slice(b"Rooter");
        scene.plane.put([bad]);
        let nack = scene.plane.wait_for_nack(Kind::Listener, from);
        let reason = nack.error.expect("a reason");
        assert!(reason.contains("Rooter") && reason.contains("other"), "{mode:?}: {reason}");
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn clusters_that_flap_cost_no_request() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        repeatedly(|turn| {
            scene.plane.publish(|world| {
                // Its own cluster changes, and a neighbour comes and goes.
                let limit = 1_000 + turn;
                let breakers = format!(", circuit_breakers: {{thresholds: [{{max_connections: {limit}}}]}}");
                world.put(eds_cluster(mode, "a", "15s", &breakers));
                if turn % 2 == 0 {
                    world.put(eds_cluster(mode, "flap", "15s", ""));
                    world.put(endpoints("flap", &[scene.upstream.address]));
                } else {
                    world.remove(Kind::Cluster, "flap");
                    world.remove(Kind::Endpoints, "flap");
                }
            });
        });
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn everything_changes_at_once_again_and_again() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().rev().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        repeatedly(|turn| {
            let name = |turn: usize| format!("gen-{turn}");
            // Make before break: what is named now is there, and goes when nothing names it any more. Where each type has
            // a stream of its own, one of them may be far behind the others.
            if let Some(made) = turn.checked_sub(1) {
                scene.wait_for_cluster(&name(made));
            }
            if let Some(named) = turn.checked_sub(2) {
                let text = format!("\"{}\"", name(named));
                scene.culvert.wait_until("the routes name it", |culvert| {
                    let dump = culvert.get("/config_dump?resource=dynamic_route_configs");
                    dump.is_some_and(|dump| dump.contains(&text))
                });
            }
            scene.plane.publish(|world| {
                world.put(eds_cluster(mode, &name(turn), "15s", ""));
                world.put(endpoints(&name(turn), &[scene.upstream.address]));
                if let Some(named) = turn.checked_sub(1) {
                    world.put(routes("local", &name(named)));
                }
                if let Some(old) = turn.checked_sub(4) {
                    world.remove(Kind::Cluster, &name(old));
                    world.remove(Kind::Endpoints, &name(old));
                }
            });
        });
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn endpoints_that_move_cost_no_request() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let others = [named("a"), named("a")];
        let traffic = scene.traffic();
        repeatedly(|turn| scene.plane.put([endpoints("a", &[others[turn % 2].address])]));
        assert!(others.iter().all(|other| other.accepted() > 0), "{mode:?}: they were used");
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn an_old_nonce_in_a_response_is_no_matter() {
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        for _ in 0..3 {
            let from = scene.plane.count();
            let cluster = eds_cluster(mode, "a", "15s", "");
            scene.plane.say(say(mode, &Kind::Cluster.url(), "the same", vec![("a", cluster.any)]));
            let answered = scene.plane.wait_for("an answer", from, |seen| seen.kind == Some(Kind::Cluster));
            assert_eq!(answered.nonce, "the same");
        }
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn a_bad_resource_does_not_hold_up_good_ones_that_follow() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        repeatedly(|turn| {
            let kind = if turn % 2 == 0 { "EDS" } else { "STATIC" };
            scene.plane.put([Resource::new(
                Kind::Cluster,
                "odd",
                &format!("{{name: odd, type: {kind}, load_assignment: {{cluster_name: odd}}}}"),
            )]);
        });
        scene.still_follows();
        traffic.stop();
    }
}
