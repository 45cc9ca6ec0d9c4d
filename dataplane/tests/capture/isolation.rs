//! Pods do not mix: neither their connections in the kernel nor their connections in the pools.

use std::{
    net::SocketAddr,
    sync::{Arc, Barrier},
    thread,
};

use socket2::{Domain, Socket, Type};

use crate::support::{
    client::Client,
    culvert::{PATIENCE, cluster, free_port},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, to_cluster},
    netns::{Pod, Seen, introduce},
    upstream::Upstream,
};

tests!(ebpf, iptables: pods_with_the_same_tuple_do_not_mix, pools_belong_to_pods, pools_of_pods_are_not_those_of_the_node);

/// Connects from this port of the pod's.
fn client_from(pod: &Pod, port: u16, to: SocketAddr) -> Client {
    let socket = pod.inside(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::over(socket.into())
}

fn pods_with_the_same_tuple_do_not_mix(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let (one, two, server) = (mesh.world.pod("one"), mesh.world.pod("two"), mesh.world.pod("server"));
    let (app, decoy) = (server.app(), server.app_on("[::]:0", "decoy"));
    let bootstrap = Bootstrap::of_service(&app)
        .http("other", "UNSPECIFIED", &to_cluster("decoy"))
        .cluster(&cluster("decoy", &[decoy.v4]));
    // Connections of the two pods differ in nothing but the pod, and have to end in different places.
    let pods = [
        enrolled(&one, "policy: strict, inbound: off, outbound: outbound"),
        enrolled(&two, "policy: strict, inbound: off, outbound: other"),
    ];
    let culvert = mesh.start(&bootstrap, &pods);
    let ports = 40_000..40_040;
    let start = Barrier::new(2);
    let asking = |pod: &Pod, by: &str| {
        let mut talks = Vec::new();
        for port in ports.clone() {
            start.wait();
            talks.push(client_from(pod, port, app.v4));
        }
        for talk in &mut talks {
            let response = talk.get("/");
            assert!(is_proxied(&response), "{response:?}");
            let seen = Seen::from(&response);
            assert_eq!((seen.by.as_str(), seen.peer.ip()), (by, pod.v4.into()));
        }
        // All of them are open now, with the same tuples in both pods.
        start.wait();
        for talk in &mut talks {
            assert_eq!(Seen::from(&talk.get("/")).by, by);
        }
        start.wait();
    };
    thread::scope(|scope| {
        scope.spawn(|| asking(&one, "server"));
        scope.spawn(|| asking(&two, "decoy"));
    });
    assert_eq!(culvert.stat("culvert.capture.captured_outbound"), 80);
    assert_eq!(culvert.stat("culvert.capture.no_original_dst"), 0);
    assert_eq!((mesh.counters(&one).captured, mesh.counters(&two).captured), (40, 40));
}

fn pools_belong_to_pods(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let clients = [mesh.world.pod("one"), mesh.world.pod("two"), mesh.world.pod("three")];
    let server = mesh.world.pod("server");
    let app = server.app();
    let pods: Vec<String> =
        clients.iter().map(|client| enrolled(client, "policy: strict, inbound: off")).collect();
    let culvert = mesh.start(&Bootstrap::of_service(&app), &pods);
    // Several connections of each pod, so that both workers serve all pods; one request at a time, so that the pool
    // always has the other pods' connections to offer.
    let mut talks: Vec<(&Pod, Client)> =
        (0..8).flat_map(|_| &clients).map(|client| (client, client.client(app.v4))).collect();
    for _ in 0..25 {
        for (client, talk) in &mut talks {
            let response = talk.get("/");
            assert!(is_proxied(&response), "{response:?}");
            assert_eq!(Seen::from(&response).peer.ip(), client.v4, "pod {}", client.name);
        }
    }
    assert_eq!(culvert.stat("cluster.service.upstream_rq_200"), 600);
    let opened = app.accepted();
    assert!((3..=6).contains(&opened), "{opened} connections: one per pod and worker, all of them reused");
    // The same, all at once.
    let shared: Arc<Vec<Pod>> = Arc::new(clients.to_vec());
    let threads: Vec<_> = (0..6)
        .map(|n| {
            let clients = shared.clone();
            let to = app.v4;
            thread::spawn(move || {
                let client = &clients[n % 3];
                let mut talk = client.client(to);
                for _ in 0..100 {
                    assert_eq!(Seen::from(&talk.get("/")).peer.ip(), client.v4);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn pools_of_pods_are_not_those_of_the_node(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let pods = [mesh.world.pod("one"), mesh.world.pod("two")];
    // The same address in three namespaces, each with its own server.
    let node = Upstream::start(|stream| introduce(stream, "node"));
    let to = node.address;
    let _apps: Vec<_> = pods.iter().map(|pod| pod.app_on(&to.to_string(), &pod.name)).collect();
    let direct = free_port();
    let bootstrap = Bootstrap::default()
        .http("outbound", "OUTBOUND", &to_cluster("local"))
        .http_on(direct, "node", &to_cluster("local"))
        .cluster(&cluster("local", &[to]));
    let entries: Vec<String> = pods.iter().map(|pod| enrolled(pod, "policy: strict, inbound: off")).collect();
    let _culvert = mesh.start(&bootstrap, &entries);
    let nowhere = SocketAddr::from(([10, 96, 0, 10], 80));
    let mut talks: Vec<(&str, Client)> = Vec::new();
    for _ in 0..8 {
        talks.push(("node", Client::connect(direct)));
        talks.extend(pods.iter().map(|pod| (pod.name.as_str(), pod.client(nowhere))));
    }
    for _ in 0..10 {
        for (by, talk) in &mut talks {
            let response = talk.get("/");
            assert!(is_proxied(&response), "{response:?}");
            assert_eq!(Seen::from(&response).by, *by);
        }
    }
}
