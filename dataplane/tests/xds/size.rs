//! Much at once.

use crate::{
    control_plane::{Kind, Resource},
    scene::{MODES, Mode, Scene, eds_cluster, endpoints},
};

#[test]
fn twenty_thousand_clusters_at_once() {
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let name = |n: usize| format!("many-{n:05}");
        let many: Vec<_> = (0..20_000)
            .map(|n| {
                let name = name(n);
                Resource::new(
                    Kind::Cluster,
                    &name,
                    &format!("{{name: {name}, type: STATIC, load_assignment: {{cluster_name: {name}}}}}"),
                )
            })
            .collect();
        scene.plane.put(many);
        scene.culvert.wait_until("all of them", |c| c.stat("cluster_manager.active_clusters") >= 20_000);
        scene.still_follows();
        scene.plane.publish(|world| (0..20_000).for_each(|n| world.remove(Kind::Cluster, &name(n))));
        scene.culvert.wait_until("none of them", |c| c.stat("cluster_manager.active_clusters") < 10);
        scene.still_follows();
        traffic.stop();
    }
}

#[test]
fn all_names_of_a_type_are_in_one_request() {
    // go-control-plane answers nothing to a request that leaves names out.
    for mode in [Mode::AdsWorld, Mode::AdsDelta] {
        let names: Vec<_> = (0..1_000).map(|n| format!("many-{n:04}")).collect();
        let scene = Scene::prepare(mode, "auto", |plane| {
            plane.publish(|world| {
                for name in &names {
                    world.put(eds_cluster(mode, name, "15s", ""));
                    world.put(endpoints(name, &[]));
                }
            });
        })
        .serving();
        let seen = scene.plane.seen();
        let asked: Vec<_> =
            seen.iter().filter(|seen| seen.kind == Some(Kind::Endpoints) && !seen.names.is_empty()).collect();
        assert!(asked.iter().all(|seen| seen.names.len() == 1_001), "{mode:?}: {} requests", asked.len());
        // Another one: all of them again, in state of the world; only that one in deltas.
        let from = scene.plane.count();
        scene.plane.put([eds_cluster(mode, "one-more", "15s", ""), endpoints("one-more", &[])]);
        let next = scene.plane.wait_for("one more", from, |seen| seen.names.contains(&"one-more".to_owned()));
        assert_eq!(next.names.len(), if mode.is_delta() { 1 } else { 1_002 }, "{mode:?}");
    }
}

#[test]
fn a_resource_of_fifty_megabytes() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let traffic = scene.traffic();
        let from = scene.plane.count();
        let pad = "x".repeat(50 << 20);
        let yaml = "{name: big, type: STATIC, load_assignment: {cluster_name: big}, metadata: {filter_metadata: {pad: {v: \"PAD\"}}}}";
        scene.plane.put([Resource::new(Kind::Cluster, "big", &yaml.replace("PAD", &pad))]);
        // Taken or refused, but answered.
        scene.plane.wait_for("an answer", from, |seen| seen.kind == Some(Kind::Cluster));
        scene.plane.publish(|world| world.remove(Kind::Cluster, "big"));
        scene.still_follows();
        traffic.stop();
    }
}
