//! Checks of clusters that come and change while culvert serves.

use std::net::SocketAddr;

use crate::{
    answers, checked, only,
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, cluster, free_port, put},
    },
    switch::{PATH, Switch},
};

/// A CDS file with these clusters, each of one endpoint. None of them serves anybody while its endpoint is not healthy.
fn clusters(clusters: &[(&str, SocketAddr)]) -> String {
    let checks = checked(&format!(
        "healthy_threshold: 1\nunhealthy_threshold: 1\nhttp_health_check: {{path: {PATH}}}\n"
    ));
    let of = |(name, address): &(&str, SocketAddr)| {
        let cluster = cluster(name, &[*address]);
        let typed = "- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name:";
        let panic = "  common_lb_config: {healthy_panic_threshold: {value: 0}}\n";
        format!("{}{checks}{panic}", cluster.replacen("- name:", typed, 1))
    };
    format!("resources:\n{}", clusters.iter().map(of).collect::<String>())
}

/// As in Envoy, where clusters warm: `cluster_manager.warming_clusters`.
#[test]
fn a_version_of_a_cluster_serves_once_its_hosts_were_checked() {
    for driver in DRIVERS {
        let (a, b, c) = (Switch::new("a"), Switch::new("b"), Switch::new("c"));
        let (admin, port) = (free_port(), free_port());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cds.yaml");
        put(&path, &clusters(&[("up", a.address())]));
        let routes =
            "- {match: {prefix: /new}, route: {cluster: new}}\n- {match: {prefix: /}, route: {cluster: up}}";
        let text = bootstrap(admin, port, "", routes, "");
        let text = text.replace("name: local", "name: local\n            validate_clusters: false");
        let source = format!("{{path_config_source: {{path: \"{}\"}}}}", path.display());
        let text = format!("{text}\ndynamic_resources: {{cds_config: {source}}}\n");
        let culvert = Culvert::start_in(dir, driver, admin, &text, &[]);
        assert!(only(&answers(port, 10), &["a"]));
        let new = || Client::connect(port).get("/new").status;

        b.hold(true);
        put(&path, &clusters(&[("up", b.address()), ("new", b.address())]));
        culvert.wait_until("both are checked", |_| b.checks() >= 2);
        assert!(only(&answers(port, 20), &["a"]), "the version before serves on");
        assert_eq!(new(), 503);
        assert_eq!(culvert.stat("cluster_manager.active_clusters"), 1);
        assert_eq!(culvert.stat("cluster_manager.warming_clusters"), 2);
        b.hold(false);
        culvert.wait_until("all go to b", |_| {
            let answers = answers(port, 5);
            assert!(!answers.contains_key("503"), "there is always somebody");
            only(&answers, &["b"])
        });
        culvert.wait_until("the new one serves", |_| new() == 200);
        assert_eq!(culvert.stat("cluster_manager.warming_clusters"), 0);
        assert_eq!(culvert.stat("cluster.up.health_check.healthy"), 1);

        // A version that was taken back while it was warming never serves.
        c.hold(true);
        put(&path, &clusters(&[("up", c.address())]));
        culvert.wait_until("c is checked", |_| c.checks() > 0);
        let updates = culvert.stat("cluster_manager.cluster_updated");
        put(&path, &clusters(&[("up", b.address())]));
        culvert.wait_until("it is taken back", |culvert| {
            culvert.stat("cluster_manager.cluster_updated") > updates
        });
        c.hold(false);
        culvert.wait_until("b is checked again", |culvert| {
            culvert.stat("cluster_manager.warming_clusters") == 0
        });
        assert!(only(&answers(port, 20), &["b"]));
        assert_eq!(new(), 503, "it was removed");
    }
}
