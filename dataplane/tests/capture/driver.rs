//! The driver that culvert takes when it is left to it.

use culvert_ring::{DriverKind, IoChoice, probe};

use crate::support::mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied};

/// Pods are captured with the better driver of those that the kernel has, and the log says why it is none better.
#[test]
fn is_the_best_there_is() {
    let mut mesh = Mesh::new(Variant { mode: "ebpf", driver: "auto" });
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app = server.app();
    let pods = [enrolled(&client, "policy: strict, inbound: off")];
    let culvert = mesh.start(&Bootstrap::of_service(&app), &pods);
    assert!(is_proxied(&client.get(app.v4)));
    let said = match probe(IoChoice::Uring) {
        Ok(probe) => {
            assert_eq!(probe.driver, DriverKind::Uring);
            probe.to_string()
        }
        Err(refused) => format!("io driver epoll, tier epoll: {}", refused.reason),
    };
    assert!(culvert.log().contains(&said), "{said} is not in:\n{}", culvert.log());
}
