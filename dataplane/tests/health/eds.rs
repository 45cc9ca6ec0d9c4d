//! Checks of endpoints that come and go.

use std::{fs, net::SocketAddr};

use crate::{
    answers, checked, flags, only,
    support::{
        DRIVERS,
        culvert::{Culvert, bootstrap, free_port, put},
    },
    switch::{PATH, Switch},
};

/// An EDS file with these endpoints.
fn assignment(endpoints: &[SocketAddr]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|at| {
            format!(
                "    - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}\n",
                at.ip(),
                at.port()
            )
        })
        .collect();
    format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  \
         cluster_name: up\n  endpoints:\n  - lb_endpoints:\n{endpoints}"
    )
}

/// A culvert whose cluster has its endpoints from `eds.yaml` in its directory.
fn with_eds(driver: &str, endpoints: &[SocketAddr], more: &str) -> (Culvert, u16) {
    let (mut culvert, port) = launched(driver, endpoints, more);
    culvert.wait_live();
    (culvert, port)
}

/// As [`with_eds`], not waiting for it to serve.
fn launched(driver: &str, endpoints: &[SocketAddr], more: &str) -> (Culvert, u16) {
    let (admin, port) = (free_port(), free_port());
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("eds.yaml");
    fs::write(&path, assignment(endpoints)).expect("written");
    let checks = checked(&format!(
        "healthy_threshold: 1\nunhealthy_threshold: 1\nhttp_health_check: {{path: {PATH}}}\n"
    ));
    let cluster = format!(
        "- name: up\n  type: EDS\n  connect_timeout: 2s\n  eds_cluster_config:\n    eds_config: {{path_config_source: {{path: \
         \"{}\"}}}}\n{checks}{more}",
        path.display()
    );
    let text = bootstrap(admin, port, "", "- {match: {prefix: /}, route: {cluster: up}}", &cluster);
    (Culvert::launch_in(dir, driver, admin, &text, &[]), port)
}

#[test]
fn a_start_that_waits_for_a_check_hears_of_changes() {
    for driver in DRIVERS {
        let (a, silent) = (Switch::new("a"), Switch::new("silent"));
        silent.say(Vec::new());
        // Its first check would end in ten minutes.
        let (mut culvert, port) = launched(driver, &[silent.address()], "");
        culvert.wait_until("it is checked", |_| silent.checks() > 0);
        assert!(culvert.get("/ready").is_some_and(|answer| answer.contains("INITIALIZING")));
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address()]));
        culvert.wait_live();
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
        // Nor does the wait keep it from ending.
        let (culvert, _) = launched(driver, &[silent.address()], "");
        let checks = silent.checks();
        culvert.wait_until("it is checked", |_| silent.checks() > checks);
        culvert.post("/quitquitquit");
        culvert.wait_until("it ends", |culvert| culvert.get("/ready").is_none());
    }
}

#[test]
fn a_healthy_endpoint_outlives_its_removal() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let (culvert, port) = with_eds(driver, &[a.address(), b.address()], "");
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address()]));
        culvert.wait_until("b is to go", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/pending_dynamic_removal")
        });
        assert!(only(&answers(port, 20), &["a", "b"]));
        b.answer(500, "");
        culvert.wait_until("b is gone", |culvert| flags(culvert, b.address()).is_none());
        assert_eq!(culvert.stat("cluster.up.membership_total"), 1);
        let before = b.checks();
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address(), b.address()]));
        culvert.wait_until("b is checked again", |_| b.checks() > before);
        b.answer(200, "");
        culvert.wait_until("b is back", |_| only(&answers(port, 20), &["a", "b"]));
    }
}

#[test]
fn an_endpoint_that_comes_back_stays() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let (culvert, _) = with_eds(driver, &[a.address(), b.address()], "");
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address()]));
        culvert.wait_until("b is to go", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/pending_dynamic_removal")
        });
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address(), b.address()]));
        culvert.wait_until("b stays", |culvert| flags(culvert, b.address()).as_deref() == Some("healthy"));
        b.answer(500, "");
        culvert.wait_until("b failed", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/failed_active_hc")
        });
    }
}

#[test]
fn removal_can_disregard_health() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let more = "  ignore_health_on_host_removal: true\n";
        let (culvert, port) = with_eds(driver, &[a.address(), b.address()], more);
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&[a.address()]));
        culvert.wait_until("b is gone", |culvert| flags(culvert, b.address()).is_none());
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
    }
}

#[test]
fn new_endpoints_wait_for_their_first_check() {
    for driver in DRIVERS {
        let a = Switch::new("a");
        let silent: Vec<Switch> = ["x", "y", "z"].into_iter().map(Switch::new).collect();
        for server in &silent {
            server.say(Vec::new());
        }
        let mut all = vec![a.address()];
        all.extend(silent.iter().map(Switch::address));
        // One of four is healthy: panic.
        let (culvert, port) = with_eds(driver, &all[..1], "");
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&all));
        culvert.wait_until("they are there", |culvert| culvert.stat("cluster.up.membership_total") == 4);
        culvert.wait_until("all get requests", |_| only(&answers(port, 40), &["a", "x", "y", "z"]));
        // They do not count as long as they have not been checked.
        let more = "  common_lb_config: {ignore_new_hosts_until_first_hc: true}\n";
        let (culvert, port) = with_eds(driver, &all[..1], more);
        put(&culvert.dir.path().join("eds.yaml"), &assignment(&all));
        culvert.wait_until("they are there", |culvert| culvert.stat("cluster.up.membership_excluded") == 3);
        assert!(only(&answers(port, 40), &["a"]));
        let first = flags(&culvert, silent[0].address());
        assert_eq!(first.as_deref(), Some("/failed_active_hc/pending_active_hc"));
    }
}
