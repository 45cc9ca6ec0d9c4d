//! The configuration changes while pods' traffic flows.

use std::{fs, thread, time::Instant};

use crate::support::{
    client::Client,
    culvert::{cluster, put},
    load::{Load, between},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, wait_for},
    netns::{Pod, Seen},
};

tests!(ebpf, iptables: weights_change_under_traffic);

fn weights(v1: u32, v2: u32) -> String {
    format!(
        r#"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: reviews
  virtual_hosts:
  - name: reviews
    domains: ["*"]
    routes:
    - match: {{prefix: /}}
      route: {{weighted_clusters: {{clusters: [{{name: v1, weight: {v1}}}, {{name: v2, weight: {v2}}}]}}}}
"#
    )
}

/// How many of so many requests on this connection each version answers.
fn split(client: &mut Client, pod: &Pod, requests: usize) -> (usize, usize) {
    let mut counts = (0, 0);
    for _ in 0..requests {
        let response = client.get("/");
        assert!(is_proxied(&response), "{response:?}");
        let seen = Seen::from(&response);
        assert_eq!(seen.peer.ip(), pod.v4);
        match seen.by.as_str() {
            "v1" => counts.0 += 1,
            "v2" => counts.1 += 1,
            other => panic!("answered by {other}"),
        }
    }
    counts
}

fn weights_change_under_traffic(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let clients = [mesh.world.pod("one"), mesh.world.pod("two")];
    let (v1, v2) = (mesh.world.pod("v1").app(), mesh.world.pod("v2").app());
    let file = mesh.world.dir.path().join("rds.yaml");
    fs::write(&file, weights(100, 0)).unwrap();
    let source = format!(
        "rds: {{route_config_name: reviews, config_source: {{path_config_source: {{path: {}}}}}}}",
        file.display()
    );
    let bootstrap = Bootstrap::default()
        .http("outbound", "OUTBOUND", &source)
        .cluster(&cluster("v1", &[v1.v4]))
        .cluster(&cluster("v2", &[v2.v4]));
    let pods: Vec<String> = clients.iter().map(|pod| enrolled(pod, "policy: strict, inbound: off")).collect();
    let culvert = mesh.start(&bootstrap, &pods);
    let start = Instant::now();
    let loads = clients.each_ref().map(|pod| Load::start(1, pod, v1.v4));
    // On connections that are open all the while.
    let mut talks = clients.each_ref().map(|pod| pod.client(v1.v4));
    let mut each = |requests: usize| {
        let (one, two) = (&clients, &mut talks);
        thread::scope(|scope| {
            let asking: Vec<_> = one
                .iter()
                .zip(two)
                .map(|(pod, talk)| scope.spawn(move || split(talk, pod, requests)))
                .collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    assert_eq!(each(50), [(50, 0), (50, 0)]);

    let updates = || culvert.stat("http.outbound.rds.reviews.update_success");
    let rejected = || culvert.stat("http.outbound.rds.reviews.update_rejected");
    let (before, refused) = (updates(), rejected());
    put(&file, &weights(0, 100));
    culvert.wait_until("the new weights", |_| updates() > before);
    culvert.wait_until("v2", |_| clients.iter().all(|pod| split(&mut pod.client(v1.v4), pod, 4) == (0, 4)));
    assert_eq!(each(50), [(0, 50), (0, 50)]);

    put(&file, &weights(1, 1).replace("prefix:", "prefx:"));
    culvert.wait_until("the refusal", |_| rejected() > refused);
    assert_eq!(each(10), [(0, 10), (0, 10)], "the last good one serves on");

    let before = updates();
    put(&file, &weights(50, 50));
    culvert.wait_until("the new weights", |_| updates() > before);
    wait_for("both versions", || {
        let counts = each(100);
        counts.iter().all(|(one, two)| *one > 20 && *two > 20)
    });

    let end = Instant::now();
    for load in loads {
        load.wait_for(5);
        for attempt in between(&load.stop(), start, end) {
            assert!(attempt.result.as_ref().is_ok_and(is_proxied), "{:?}", attempt.result);
        }
    }
}
