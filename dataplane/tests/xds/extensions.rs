//! HTTP filters whose configuration is discovered (ECDS).

use std::cell::RefCell;

use crate::{
    control_plane::{Kind, Resource},
    scene::{MODES, Mode, ROUTER, Scene, answer, listener_with, rds},
    support::{DRIVERS, client::Client, culvert::free_port},
};

const MUTATION: &str = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const ACCESS: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";

/// A filter that writes `value` into the header `x-tag` of responses.
fn tagging(value: &str) -> String {
    format!(
        "{{\"@type\": {MUTATION}, mutations: {{response_mutations: [{{append: {{header: {{key: x-tag, value: {value}}}, \
         append_action: OVERWRITE_IF_EXISTS_OR_ADD}}}}]}}}}"
    )
}

fn extension(config: &str) -> Resource {
    Resource::new(Kind::Extension, "tag", &format!("{{name: tag, typed_config: {config}}}"))
}

/// The listener, with a filter `tag` that is discovered.
fn listener(mode: Mode, port: u16, timeout: &str, more: &str) -> Resource {
    let source = mode.source(timeout);
    let filter = format!(
        "{{name: tag, config_discovery: {{config_source: {source}, type_urls: [{MUTATION}] {more}}}}}"
    );
    listener_with("ingress", port, &rds(mode, "local", "15s"), &format!("{filter}, {ROUTER}"))
}

/// Status and tag of a request on this connection.
fn ask(client: &mut Client) -> (u16, String) {
    let response = client.get("/");
    (response.status, response.header("x-tag").unwrap_or_default().to_owned())
}

fn says(scene: &Scene, status: u16, tag: &str) {
    let what = format!("{:?}: {status} {tag:?}", scene.mode);
    let wanted = (status, tag.to_owned());
    scene.culvert.wait_until(&what, |_| ask(&mut Client::connect(scene.port)) == wanted);
}

#[test]
fn a_filter_is_what_was_discovered_last() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let from = scene.plane.count();
        // Else a delta control plane says at once that there is none.
        scene.plane.hold(Kind::Extension);
        scene.plane.put([listener(mode, scene.port, "600s", "")]);
        scene.plane.wait_for("it is asked for", from, |seen| seen.kind == Some(Kind::Extension));
        // The listener waits for it; what was there serves.
        assert_eq!(ask(&mut Client::connect(scene.port)), (200, String::new()), "{mode:?}");
        scene.plane.put([extension(&tagging("one"))]);
        scene.plane.release(Kind::Extension);
        says(&scene, 200, "one");
        // A change reaches connections that there are, and drains none.
        let mut client = Client::connect(scene.port);
        assert_eq!(ask(&mut client).1, "one");
        let modified = scene.culvert.stat("listener_manager.listener_modified");
        scene.plane.put([extension(&tagging("two"))]);
        says(&scene, 200, "two");
        assert_eq!(ask(&mut client).1, "two", "{mode:?}");
        assert_eq!(scene.culvert.stat("listener_manager.listener_modified"), modified, "{mode:?}");
        // What was not asked for is refused, and so is what is wrong with it.
        for bad in [
            format!("{{\"@type\": {ACCESS}}}"),
            format!("{{\"@type\": {MUTATION}, mutations: {{request_mutations: [{{}}]}}}}"),
        ] {
            let from = scene.plane.count();
            scene.plane.put([extension(&bad)]);
            let nack = scene.plane.wait_for_nack(Kind::Extension, from);
            assert!(nack.error.expect("why").contains("extension configuration \"tag\""), "{mode:?}");
            assert_eq!(ask(&mut client).1, "two", "{mode:?}");
        }
        let dump = scene.culvert.get("/config_dump?resource=ecds_filters").expect("a dump");
        assert!(
            dump.contains("EcdsFilterConfig") && dump.contains("\"two\"") && dump.contains("error_state"),
            "{dump}"
        );
        scene.plane.put([extension(&tagging("three"))]);
        says(&scene, 200, "three");
        assert_eq!(ask(&mut client).1, "three", "{mode:?}");
    }
}

#[test]
fn there_may_be_something_until_it_comes() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let default = format!(", default_config: {}", tagging("default"));
        let scene = Scene::start(mode, driver);
        let eager = format!("{default}, apply_default_config_without_warming: true");
        scene.plane.put([listener(mode, scene.port, "600s", &eager)]);
        says(&scene, 200, "default");
        scene.plane.put([extension(&tagging("one"))]);
        says(&scene, 200, "one");
        if mode.is_delta() {
            scene.plane.publish(|world| world.remove(Kind::Extension, "tag"));
            says(&scene, 200, "default");
        }
        // Or once it is clear that it does not come in time.
        let scene = Scene::start(mode, driver);
        scene.plane.put([listener(mode, scene.port, "0.2s", &default)]);
        says(&scene, 200, "default");
    }
}

#[test]
fn without_a_filter_nothing_goes_through() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        scene.plane.put([listener(mode, scene.port, "0.2s", "")]);
        // As Envoy: a filter that may be there to refuse cannot be passed over.
        says(&scene, 500, "");
        scene.plane.put([extension(&tagging("late"))]);
        says(&scene, 200, "late");
    }
}

#[test]
fn what_was_removed_lets_nothing_through() {
    for (mode, driver) in [Mode::AdsDelta, Mode::Delta].into_iter().zip(DRIVERS) {
        let scene = Scene::start(mode, driver);
        scene.plane.put([extension(&tagging("one"))]);
        scene.plane.put([listener(mode, scene.port, "600s", "")]);
        says(&scene, 200, "one");
        let client = RefCell::new(Client::connect(scene.port));
        let again = || ask(&mut client.borrow_mut());
        assert_eq!(again(), (200, "one".to_owned()), "{mode:?}");
        scene.plane.publish(|world| world.remove(Kind::Extension, "tag"));
        // Also where it has been at work.
        scene.culvert.wait_until("it is gone", |_| again().0 == 500);
        assert_eq!(ask(&mut Client::connect(scene.port)).0, 500, "{mode:?}");
        scene.plane.put([extension(&tagging("two"))]);
        scene.culvert.wait_until("it is back", |_| again() == (200, "two".to_owned()));
        // What drains has it until its end, whatever becomes of it.
        scene.plane.publish(|world| {
            world.remove(Kind::Listener, "ingress");
            world.remove(Kind::Extension, "tag");
        });
        scene
            .culvert
            .wait_until("it drains", |culvert| culvert.stat("listener_manager.listener_removed") == 1);
        assert_eq!(again(), (200, "two".to_owned()), "{mode:?}");
    }
}

#[test]
fn each_listener_takes_what_it_asked_for() {
    for (mode, driver) in [Mode::AdsWorld, Mode::Delta].into_iter().zip(DRIVERS) {
        let scene = Scene::start(mode, driver);
        let port = free_port();
        let of = |name: &str, port: u16, types: &str| {
            let source = mode.source("600s");
            let filter =
                format!("{{name: tag, config_discovery: {{config_source: {source}, type_urls: [{types}]}}}}");
            listener_with(name, port, &rds(mode, "local", "15s"), &format!("{filter}, {ROUTER}"))
        };
        scene.plane.put([extension(&tagging("one"))]);
        scene.plane.put([of("ingress", scene.port, &format!("{MUTATION}, {ACCESS}"))]);
        says(&scene, 200, "one");
        // It may have been anything that keeps others out.
        scene.plane.put([of("other", port, ACCESS)]);
        scene.culvert.wait_until("the other one answers", |_| answer(port).is_some_and(|it| it.0 == 500));
        assert_eq!(ask(&mut Client::connect(scene.port)), (200, "one".to_owned()), "{mode:?}");
        // From now on it has to be right for both.
        let from = scene.plane.count();
        scene.plane.put([extension(&tagging("two"))]);
        let nack = scene.plane.wait_for_nack(Kind::Extension, from);
        assert!(nack.error.expect("why").contains("not what is asked for"), "{mode:?}");
        assert_eq!(ask(&mut Client::connect(scene.port)), (200, "one".to_owned()), "{mode:?}");
        scene.plane.put([extension(&format!("{{\"@type\": {ACCESS}, rules: {{action: DENY}}}}"))]);
        for port in [scene.port, port] {
            scene.culvert.wait_until("both have it", |_| ask(&mut Client::connect(port)).0 == 200);
        }
        assert_eq!(ask(&mut Client::connect(scene.port)), (200, String::new()), "{mode:?}");
    }
}

#[test]
fn a_filter_that_cannot_be_discovered_is_refused() {
    let mode = Mode::AdsWorld;
    let scene = Scene::start(mode, DRIVERS[0]);
    let source = mode.source("1s");
    let of = |discovery: &str| {
        let filters =
            format!("{{name: tag, config_discovery: {{config_source: {source}, {discovery}}}}}, {ROUTER}");
        listener_with("ingress", scene.port, &rds(mode, "local", "15s"), &filters)
    };
    for (discovery, reason) in [
        (
            "type_urls: [type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm]",
            "wasm.v3.Wasm is not a supported HTTP filter",
        ),
        (
            "type_urls: [type.googleapis.com/envoy.extensions.filters.http.router.v3.Router]",
            "the router cannot be discovered",
        ),
        (&format!("type_urls: [{ACCESS}], default_config: {}", tagging("x")), "is none of type_urls"),
        (&format!("type_urls: [{ACCESS}], apply_default_config_without_warming: true"), "value is required"),
    ] {
        let from = scene.plane.count();
        scene.plane.put([of(discovery)]);
        let error = scene.plane.wait_for_nack(Kind::Listener, from).error.expect("why");
        assert!(error.contains(reason), "{error}");
        assert_eq!(ask(&mut Client::connect(scene.port)), (200, String::new()));
    }
}
