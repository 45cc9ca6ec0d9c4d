//! How an update reaches connections that are open.

use std::net::{SocketAddr, TcpStream};

use crate::{
    control_plane::{Kind, Resource},
    scene::{MODES, Mode, ROUTER, Scene, eds_cluster, manager, repeatedly},
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, PATIENCE},
    },
};

/// A listener with one chain for clients at 127.0.0.2 and one for all others, whose answers say which it was.
fn two_chains(port: u16, first: &str, second: &str) -> Resource {
    let chain = |name: &str, matches: &str, body: &str| {
        let routes = format!(
            "route_config: {{name: {name}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}"
        );
        format!("{{name: {name}, {matches} filters: [{}]}}", manager(&routes, ROUTER))
    };
    let yaml = format!(
        "{{name: ingress, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{}, {}]}}",
        chain(
            "two",
            "filter_chain_match: {source_prefix_ranges: [{address_prefix: 127.0.0.2, prefix_len: 32}]},",
            second
        ),
        chain("rest", "", first),
    );
    Resource::new(Kind::Listener, "ingress", &yaml)
}

fn client_from(last: u8, port: u16) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).expect("bound");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("connected");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    Client::over(stream)
}

#[test]
fn a_changed_chain_is_replaced_and_the_others_do_not_notice() {
    for (mode, driver) in [Mode::AdsWorld, Mode::AdsDelta].into_iter().zip(DRIVERS) {
        let scene = Scene::start(mode, driver);
        scene.plane.put([two_chains(scene.port, "one", "two")]);
        // One worker may have it before the other.
        let mut clients = None;
        scene.culvert.wait_until("connections of both chains", |_| {
            let (mut same, mut changed) = (client_from(1, scene.port), client_from(2, scene.port));
            let both = same.get("/").text() == "one" && changed.get("/").text() == "two";
            clients = both.then_some((same, changed));
            both
        });
        let (mut same, mut changed) = clients.expect("connected");
        let before = scene.culvert.stat("listener_manager.listener_in_place_updated");
        scene.plane.put([two_chains(scene.port, "one", "new")]);
        scene.culvert.wait_until("the new chain", |_| client_from(2, scene.port).get("/").text() == "new");
        let updates = scene.culvert.stat("listener_manager.listener_in_place_updated") - before;
        assert_eq!(updates, 1, "{mode:?}");
        // Envoy: connections of a chain that went are drained, and answered by what they were accepted with.
        if let Ok(response) = changed.try_get("/") {
            assert_eq!((response.status, response.text().as_str()), (200, "two"), "{mode:?}");
        }
        for _ in 0..20 {
            let response = same.get("/");
            assert_eq!((response.text().as_str(), response.header("connection")), ("one", None), "{mode:?}");
        }
    }
}

#[test]
fn a_listener_that_changes_without_pause_costs_no_request() {
    for (mode, driver) in MODES.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let scene = Scene::start(mode, driver);
        let traffic = scene.traffic();
        repeatedly(|turn| scene.plane.put([two_chains(scene.port, &format!("one-{turn}"), "two")]));
        scene.plane.put([two_chains(scene.port, "last", "two")]);
        scene.wait_for_answer("last");
        traffic.stop();
    }
}

#[test]
fn an_update_that_means_the_same_is_none() {
    for mode in MODES {
        let scene = Scene::start(mode, "auto");
        let with_metadata = |keys: [&str; 3]| {
            let entries: Vec<_> = keys.iter().map(|key| format!("{key}: {{a: 1}}")).collect();
            let more = format!(", metadata: {{filter_metadata: {{{}}}}}", entries.join(", "));
            eds_cluster(mode, "a", "15s", &more)
        };
        let from = scene.plane.count();
        scene.plane.put([with_metadata(["x", "y", "z"])]);
        scene.plane.wait_for_ack(Kind::Cluster, from);
        scene.culvert.wait_until("the change", |c| c.stat("cluster_manager.cluster_modified") > 0);
        scene.wait_for_answer("a");
        let mut open = Client::connect(scene.port);
        assert_eq!(open.get("/").status, 200);
        let before = signs_of_change(&scene.culvert);
        let upstream = scene.upstream.accepted();
        for keys in [["z", "y", "x"], ["y", "z", "x"], ["x", "y", "z"]] {
            let from = scene.plane.count();
            // The same again, as new versions: the map in another order, the rest to the letter.
            scene.plane.put([
                with_metadata(keys),
                reordered(crate::scene::listener(mode, "ingress", scene.port, "local")),
                crate::scene::routes("local", "a"),
                crate::scene::endpoints("a", &[scene.upstream.address]),
            ]);
            for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route] {
                scene.plane.wait_for_ack(kind, from);
            }
        }
        assert_eq!(signs_of_change(&scene.culvert), before, "{mode:?}");
        let response = open.get("/");
        assert_eq!(
            (response.status, response.header("connection")),
            (200, None),
            "{mode:?}: nothing is drained"
        );
        assert_eq!(scene.upstream.accepted(), upstream, "{mode:?}: pools stay");
    }
}

/// The same listener with its fields in another order on the wire: the name, which comes first, at the end.
fn reordered(mut resource: Resource) -> Resource {
    let bytes = &mut resource.any.value;
    let length = 2 + usize::from(bytes[1]);
    assert_eq!(bytes[0], 0x0A, "the name is first");
    bytes.rotate_left(length);
    resource
}

fn signs_of_change(culvert: &Culvert) -> Vec<u64> {
    [
        "cluster_manager.cluster_modified",
        "cluster_manager.cluster_added",
        "listener_manager.listener_modified",
        "listener_manager.listener_added",
        "listener_manager.listener_in_place_updated",
    ]
    .map(|name| culvert.stat(name))
    .into()
}
