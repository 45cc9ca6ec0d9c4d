//! Who says what when: nonces, versions, errors, names, the node.

use tonic::Status;

use crate::{
    control_plane::{Kind, Manners, Resource, Seen},
    scene::{MODES, Mode, Scene, eds_cluster, endpoints, named, repeatedly, routes, static_cluster},
};

#[test]
fn every_request_has_the_nonce_of_the_last_response() {
    // java-control-plane drops a request with an old nonce, and with it a change of names.
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        for turn in 0..5 {
            let (name, from) = (format!("more-{turn}"), scene.plane.count());
            scene
                .plane
                .put([eds_cluster(mode, &name, "15s", ""), endpoints(&name, &[scene.upstream.address])]);
            scene.plane.wait_for_ack(Kind::Endpoints, from);
            scene.plane.wait_for_ack(Kind::Cluster, from);
        }
        let stale: Vec<_> = scene.plane.seen().into_iter().filter(|seen| !seen.current).collect();
        assert!(stale.is_empty(), "{mode:?}: {stale:#?}");
    }
}

#[test]
fn the_node_is_sent_on_the_first_message_of_a_stream() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let seen = scene.plane.seen();
        for stream in 0..scene.plane.streams() {
            let mut of: Vec<&Seen> = seen.iter().filter(|seen| seen.stream == stream).collect();
            assert!(!of.is_empty(), "{mode:?}: a stream without a request");
            let node = of.remove(0).node.clone().expect("the node");
            assert_eq!((node.id.as_str(), node.cluster.as_str()), ("test", "tests"), "{mode:?}");
            assert_eq!(node.locality.expect("locality").zone, "z");
            assert!(node.metadata.expect("metadata").fields.contains_key("role"));
            assert!(!node.user_agent_name.is_empty() && node.user_agent_version_type.is_some());
            assert!(of.iter().all(|seen| seen.node.is_none()), "{mode:?}: only the first one");
        }
    }
}

#[test]
fn an_error_keeps_the_version_before_and_the_neighbours_are_applied() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let from = scene.plane.count();
        let accepted = latest_ack(&scene, Kind::Cluster);
        let rejected = scene.culvert.stat("cluster_manager.cds.update_rejected");
        // Envoy: "Error adding/updating cluster(s) bad: cannot create an EDS cluster without an EDS config", and the other
        // one is there. A duration below 0 would make it refuse the whole response, and not say whose it is.
        scene.plane.put([
            Resource::new(Kind::Cluster, "bad", "{name: bad, type: EDS}"),
            static_cluster("good", scene.upstream.address),
        ]);
        let nack = scene.plane.wait_for_nack(Kind::Cluster, from);
        let reason = nack.error.expect("a reason");
        assert!(reason.contains("bad"), "{mode:?}: the resource is named: {reason}");
        if !mode.is_delta() {
            assert_eq!(nack.version, accepted.version, "{mode:?}: the version accepted last");
        }
        assert!(nack.current, "{mode:?}");
        scene
            .culvert
            .wait_until("the neighbour", |c| c.get("/clusters").expect("clusters").contains("good::"));
        assert!(scene.culvert.stat("cluster_manager.cds.update_rejected") > rejected);
        scene.plane.publish(|world| world.remove(Kind::Cluster, "bad"));
        scene.still_follows();
        traffic.stop();
    }
}

fn latest_ack(scene: &Scene, kind: Kind) -> Seen {
    let is_ack = |seen: &Seen| seen.kind == Some(kind) && !seen.nonce.is_empty() && seen.error.is_none();
    scene.plane.seen().into_iter().rfind(is_ack).expect("an acknowledgement")
}

#[test]
fn a_bad_route_configuration_is_refused_and_the_last_one_serves() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let from = scene.plane.count();
        scene.plane.put([Resource::new(
            Kind::Route,
            "local",
            "{name: local, virtual_hosts: [{name: all, domains: ['*', '*'], routes: [{match: {prefix: /}, route: \
             {cluster: a}}]}]}",
        )]);
        let nack = scene.plane.wait_for_nack(Kind::Route, from);
        assert!(nack.error.expect("a reason").contains("local"), "{mode:?}");
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn a_new_stream_begins_with_what_is_known() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let (from, streams) = (scene.plane.count(), scene.plane.streams());
        scene.plane.end_streams(&Status::unavailable("restarting"));
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route] {
            let seen = scene
                .plane
                .wait_for("the type again", from, |seen| seen.kind == Some(kind) && seen.stream >= streams);
            assert_eq!(seen.nonce, "", "{mode:?}: {kind:?}: nonces belong to a stream");
            assert!(seen.error.is_none());
            if mode.is_delta() {
                let name = match kind {
                    Kind::Listener => "ingress",
                    Kind::Route => "local",
                    _ => "a",
                };
                assert!(seen.known.contains_key(name), "{mode:?}: {kind:?}: {seen:?}");
            } else {
                assert_ne!(seen.version, "", "{mode:?}: {kind:?}: the version accepted last");
            }
            match kind {
                Kind::Endpoints => assert_eq!(seen.names, ["a"]),
                Kind::Route => assert_eq!(seen.names, ["local"]),
                _ => assert!(seen.names.is_empty() || seen.names == ["*"], "{mode:?}: {seen:?}"),
            }
        }
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn a_control_plane_that_comes_back_is_found_again() {
    for mode in [Mode::AdsWorld, Mode::Delta] {
        let mut scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        scene.plane.stop();
        scene.culvert.wait_until("disconnected", |c| c.stat("control_plane.connected_state") == 0);
        // What it was told while nobody listened.
        let other = named("b");
        scene.plane.put([eds_cluster(mode, "b", "15s", ""), endpoints("b", &[other.address])]);
        scene.plane.restart();
        scene.wait_for_cluster("b");
        scene.plane.put([routes("local", "b")]);
        scene.wait_for_answer("b");
        // Envoy: one gauge for all streams, which the last one to open or close has set.
        if mode == Mode::AdsWorld {
            scene.culvert.wait_until("connected", |c| c.stat("control_plane.connected_state") == 1);
        }
        traffic.stop();
    }
}

#[test]
fn a_control_plane_that_closes_after_every_response_is_followed() {
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        scene.plane.manners(Manners::CloseAfterResponse);
        let other = named("b");
        scene.plane.put([static_cluster("b", other.address)]);
        scene.wait_for_cluster("b");
        scene.plane.put([routes("local", "b")]);
        scene.wait_for_answer("b");
        scene.plane.manners(Manners::Good);
        traffic.stop();
    }
}

#[test]
fn a_control_plane_that_resets_at_every_message_costs_no_request() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        scene.plane.manners(Manners::ResetOnRequest);
        let from = scene.plane.count();
        scene.plane.end_streams(&Status::unavailable("restarting"));
        repeatedly(|_| {});
        let tries = scene.plane.count() - from;
        // Full jitter from 500 ms up: in a bit more than a second a handful, also with a stream for each type.
        assert!(tries < 60, "{mode:?}: {tries} requests in {:?} are no back-off", crate::scene::WHILE);
        scene.plane.manners(Manners::Good);
        scene.still_follows();
        traffic.stop();
    }
}
