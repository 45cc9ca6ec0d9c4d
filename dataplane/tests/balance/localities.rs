//! Localities, and the policies that look at what happens.

use std::{collections::BTreeMap, thread, time::Duration};

use crate::{
    ask, cluster, endpoint, on_each, places,
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, free_port},
        upstream::{Upstream, ok},
    },
};

const ROUTE: &str = "- {match: {prefix: /}, route: {cluster: up}}\n";

/// A locality in `zone` with further fields.
fn zone(zone: &str, fields: &str, upstreams: &[Upstream]) -> String {
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| endpoint(upstream.address, "")).collect();
    format!("{{locality: {{zone: {zone}}}, {fields} lb_endpoints: [{}]}}", endpoints.join(", "))
}

/// How often each place answers.
fn answers(port: u16, count: usize) -> BTreeMap<String, usize> {
    let mut client = Client::connect(port);
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        *answers.entry(client.get("/").text()).or_default() += 1;
    }
    answers
}

fn counted(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(place, count)| ((*place).to_owned(), *count)).collect()
}

#[test]
fn a_locality_has_the_share_of_its_weight() {
    let upstreams = places(4);
    let localities = [
        zone("a", "load_balancing_weight: 1,", &upstreams[..3]),
        zone("b", "load_balancing_weight: 3,", &upstreams[3..]),
        zone("c", "", &upstreams[..1]),
    ];
    let fields = "common_lb_config: {locality_weighted_lb_config: {}}";
    on_each(ROUTE, &cluster("up", fields, &localities), |culvert, port| {
        let shown = culvert.get("/clusters").expect("clusters");
        assert_eq!(shown.matches("::zone::a\n").count(), 3, "{shown}");
        let expected = counted(&[("0", 10), ("1", 10), ("2", 10), ("3", 90)]);
        assert_eq!(answers(port, 120), expected);
    });
}

/// Culvert is in zone `a`, where the local cluster has its only endpoint, or half of them.
#[test]
fn requests_stay_in_the_zone() {
    let (upstreams, instances) = (places(6), places(2));
    let up = cluster(
        "up",
        "common_lb_config: {zone_aware_lb_config: {min_cluster_size: 3}}",
        &[zone("a", "", &upstreams[..2]), zone("b", "", &upstreams[2..])],
    );
    for (zones, stay) in [(["a", "b"], 2.0 / 3.0), (["b", "c"], 2.0 / 6.0)] {
        let us = cluster(
            "us",
            "lb_policy: RANDOM",
            &[zone(zones[0], "", &instances[..1]), zone(zones[1], "", &instances[1..])],
        );
        for driver in DRIVERS {
            let (admin, port) = (free_port(), free_port());
            let text = bootstrap(admin, port, "", ROUTE, &format!("{us}{up}")).replace(
                "cluster: tests}",
                "cluster: tests, locality: {zone: a}}\ncluster_manager: {local_cluster_name: us}",
            );
            let culvert = Culvert::start(driver, admin, &text);
            let answers = answers(port, 600);
            let here: usize = ["0", "1"].iter().filter_map(|place| answers.get(*place)).sum();
            // Seven standard deviations.
            assert!((here as f64 - 600.0 * stay).abs() < 85.0, "{answers:?}");
            if zones[0] == "a" {
                assert_eq!(culvert.stat("cluster.up.lb_zone_routing_sampled"), here as u64);
                assert_eq!(culvert.stat("cluster.up.lb_zone_routing_cross_zone"), 600 - here as u64);
            }
        }
    }
}

/// A server that takes its time.
fn slow(place: &'static str, time: Duration) -> Upstream {
    Upstream::answering(move |_| {
        thread::sleep(time);
        ok(place.as_bytes())
    })
}

#[test]
fn a_slow_endpoint_gets_little() {
    let upstreams =
        [slow("slow", Duration::from_millis(40)), slow("a", Duration::ZERO), slow("b", Duration::ZERO)];
    let fields = "load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {\"@type\": \
                  type.googleapis.com/culvert.v1.PeakEwma, decay_time: 60s}}}]}";
    on_each(ROUTE, &cluster("up", fields, &[zone("a", "", &upstreams)]), |_, port| {
        let answers = answers(port, 300);
        // Two workers each try it; by turns it would be 100.
        assert!(answers.get("slow").is_none_or(|count| *count < 20), "{answers:?}");
        assert!(answers["a"] > 50 && answers["b"] > 50, "{answers:?}");
    });
}

/// A host that refuses connections answers soonest of all, in a way.
#[test]
fn an_endpoint_that_fails_does_not_pass_for_a_fast_one() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstreams = [slow("a", Duration::from_millis(2)), slow("b", Duration::from_millis(2))];
    let mut endpoints: Vec<_> = upstreams.iter().map(|upstream| endpoint(upstream.address, "")).collect();
    endpoints.push(endpoint(dead, ""));
    let fields = "load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {\"@type\": \
                  type.googleapis.com/culvert.v1.PeakEwma}}}]}";
    let locality = format!("{{lb_endpoints: [{}]}}", endpoints.join(", "));
    on_each(ROUTE, &cluster("up", fields, &[locality]), |_, port| {
        let failed = (0..200).filter(|_| ask(port, "/", &[]).status == 503).count();
        assert!(failed < 20, "{failed}");
    });
}
