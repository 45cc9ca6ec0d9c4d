//! The cluster of the control plane is an ordinary one.

use crate::{
    control_plane::ControlPlane,
    scene::{Mode, Scene, address, answer, listener, xds_cluster},
    support::culvert::{Culvert, free_port},
};

#[test]
fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    let plane = ControlPlane::start_on_path(&path);
    let cluster = xds_cluster("STATIC", &[format!("{{pipe: {{path: {}}}}}", path.display())]);
    let scene = Scene::with(Mode::AdsWorld, "auto", plane, &cluster, |_| {}).serving();
    scene.still_follows();
}

#[test]
fn by_name() {
    let plane = ControlPlane::start();
    let port = plane.address.port();
    let named = format!("{{socket_address: {{address: localhost, port_value: {port}}}}}");
    let cluster = xds_cluster("STRICT_DNS, dns_lookup_family: V4_ONLY", &[named]);
    let scene = Scene::with(Mode::AdsDelta, "auto", plane, &cluster, |_| {}).serving();
    scene.still_follows();
}

#[test]
fn with_an_endpoint_that_is_dead() {
    for mode in [Mode::AdsWorld, Mode::Delta] {
        let plane = ControlPlane::start();
        let dead = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
        let cluster = xds_cluster("STATIC", &[address(dead), address(plane.address)]);
        let scene = Scene::with(mode, "auto", plane, &cluster, |_| {}).serving();
        scene.still_follows();
    }
}

#[test]
fn not_there_at_the_start() {
    let mut plane = ControlPlane::start();
    plane.stop();
    let address = address(plane.address);
    let mode = Mode::AdsWorld;
    // The proxy is not ready without what it names. Somebody starts the control plane after a while.
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(700));
        plane.restart();
        plane
    });
    let culvert = Culvert::start("auto", 0, &mode.bootstrap(&xds_cluster("STATIC", &[address])));
    let plane = late.join().expect("the control plane");
    assert!(plane.streams() > 0, "it was found");
    culvert.wait_until("connected", |c| c.stat("control_plane.connected_state") == 1);
}

#[test]
fn a_listener_that_cannot_be_bound_leaves_the_start_to_the_others() {
    for driver in crate::support::DRIVERS {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = taken.local_addr().expect("an address").port();
        let mode = Mode::AdsDelta;
        let scene = Scene::prepare(mode, driver, |plane| {
            plane.put([
                listener(mode, "another", port, "local"),
                listener(mode, "last", free_port(), "local"),
            ]);
        });
        let scene = scene.serving();
        assert_eq!(scene.culvert.stat("listener_manager.total_listeners_active"), 2);
        assert_eq!(scene.culvert.stat("listener_manager.listener_create_failure"), 1);
        // It is there as soon as it can be.
        drop(taken);
        scene.culvert.wait_until("it is bound", |_| answer(port).is_some());
    }
}
