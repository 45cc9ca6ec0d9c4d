//! Connections made to a pod: the application is reached, and sees who is there.

use std::net::{Ipv6Addr, SocketAddr};

use crate::support::{
    client::Client,
    culvert::cluster,
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, to_cluster},
    netns::{App, Seen},
};

tests!(ebpf, iptables: the_application_sees_its_clients_address, from_pod_to_pod_the_address_survives_two_hops,
    opaque_bytes_keep_the_address_too);

/// An inbound listener to the application on this loopback address.
fn inbound(to: SocketAddr) -> Bootstrap {
    Bootstrap::default().http("inbound", "INBOUND", &to_cluster("app")).cluster(&cluster("app", &[to]))
}

fn the_application_sees_its_clients_address(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let server = mesh.world.pod("server");
    let clients = [mesh.world.pod("one"), mesh.world.pod("two")];
    let app = server.app();
    // eBPF decides strictly for both directions or for none.
    let pod = [enrolled(
        &server,
        if variant.is_ebpf() { "policy: permissive, outbound: off" } else { "outbound: off" },
    )];
    {
        let culvert = mesh.start(&inbound(([127, 0, 0, 1], app.port).into()), &pod);
        let mut talks: Vec<Client> = clients.iter().map(|client| client.client(app.v4)).collect();
        // The proxy keeps connections to the application, and none of them serves a client it was not made for.
        for _ in 0..50 {
            for (client, talk) in clients.iter().zip(&mut talks) {
                let response = talk.get("/");
                assert!(is_proxied(&response), "{response:?}");
                let seen = Seen::from(&response);
                assert_eq!((seen.by.as_str(), seen.peer.ip()), ("server", client.v4.into()));
                assert!(
                    seen.head.contains(&format!("x-forwarded-for: {}", client.v4))
                        || !seen.head.contains("x-forwarded-for")
                );
            }
        }
        let kept = app.accepted();
        assert!(kept <= 8, "{kept} connections for 100 requests of two clients");
        for client in &clients {
            assert_eq!(Seen::from(&client.get(app.v4)).peer.ip(), client.v4);
        }
        assert_eq!(culvert.stat("culvert.capture.captured_inbound"), 4);
        assert_eq!(culvert.stat("http.inbound.downstream_rq_2xx"), 102);
        assert_eq!(mesh.counters(&server).captured, 4);
        // An address of one family cannot be shown over the other, and another one would be a lie.
        assert_eq!(clients[0].get(app.v6).status, 503);
    }
    let _culvert = mesh.start(&inbound((Ipv6Addr::LOCALHOST, app.port).into()), &pod);
    for client in &clients {
        let response = client.get(app.v6);
        assert!(is_proxied(&response), "{response:?}");
        assert_eq!(Seen::from(&response).peer.ip(), client.v6);
    }
}

fn from_pod_to_pod_the_address_survives_two_hops(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app: App = server.app();
    let culvert = mesh.start(
        &Bootstrap::of_service(&app),
        &[enrolled(&client, "policy: strict"), enrolled(&server, "policy: strict")],
    );
    for _ in 0..20 {
        let response = client.get(app.v4);
        assert!(is_proxied(&response), "{response:?}");
        assert_eq!(Seen::from(&response).peer.ip(), client.v4);
    }
    assert_eq!(culvert.stat("culvert.capture.captured_outbound"), 20);
    assert!(
        culvert.stat("culvert.capture.captured_inbound") >= 1,
        "the second hop goes through the server's proxy"
    );
    assert_eq!(culvert.stat("http.inbound.downstream_rq_2xx"), 20);
    assert_eq!(culvert.stat("cluster.app.upstream_rq_200"), 20);
    // The server as a client of the other pod, and of itself.
    let back = client.app();
    let direct = server.get(app.v4);
    assert!(!is_proxied(&direct), "a pod talks to itself directly");
    assert_eq!(Seen::from(&direct).peer.ip(), server.v4);
    drop(back);
}

fn opaque_bytes_keep_the_address_too(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app = server.app();
    let bootstrap = Bootstrap::default()
        .tcp("inbound", "INBOUND", "app")
        .tcp("outbound", "OUTBOUND", "app")
        .cluster(&cluster("app", &[([127, 0, 0, 1], app.port).into()]));
    let culvert = mesh.start(&bootstrap, &[enrolled(&server, "policy: strict")]);
    for _ in 0..10 {
        let seen = Seen::from(&client.get(app.v4));
        assert_eq!((seen.by.as_str(), seen.peer.ip()), ("server", client.v4.into()));
    }
    assert_eq!(culvert.stat("tcp.inbound.downstream_cx_total"), 10);
    assert_eq!(culvert.stat("culvert.capture.captured_inbound"), 10);
}
