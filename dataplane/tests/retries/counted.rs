//! What requests are counted by beside their cluster: virtual clusters and routes.

use crate::{Scene, ask, get, support::culvert::Culvert, with};

const CLUSTERS: &str = "virtual_clusters: [{name: gets, headers: [{name: ':method', string_match: {exact: GET}}, \
                        {name: ':path', string_match: {prefix: /a}}]}, {name: none, headers: [{name: x-none, \
                        present_match: true}]}, {name: late, headers: [{name: ':method', string_match: {exact: \
                        GET}}]}], request_headers_to_add: [{header: {key: x-vc, value: '%VIRTUAL_CLUSTER_NAME%'}}],";

/// The counters of one of the scopes of virtual host `v`, with what is not zero.
fn counters(culvert: &Culvert, scope: &str) -> Vec<(String, u64)> {
    let prefix = format!("vhost.v.{scope}.upstream_rq_");
    let text = culvert.get("/stats?filter=^vhost").unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once(": "));
    lines
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .filter(|(_, value)| *value > 0)
        .collect()
}

fn pairs(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

#[test]
fn the_first_virtual_cluster_that_matches_counts() {
    let scene = Scene {
        host: CLUSTERS,
        routes: &[("/a/try", "stat_prefix: tries,"), ("/", "stat_prefix: rest,")],
        actions: &[
            "prefix_rewrite: /b, retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}}",
            "timeout: 0.3s",
        ],
        cluster: "circuit_breakers: {thresholds: [{max_retries: 9}]}",
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        // Matched before the path is rewritten.
        assert_eq!(get(port, "/a/try", "503 200").status, 200);
        assert_eq!(ledger.of("/b")[0].header("x-vc"), Some("gets"));
        let counted =
            [("200", 1), ("2xx", 1), ("completed", 1), ("retry", 1), ("retry_success", 1), ("total", 2)];
        assert_eq!(counters(culvert, "vcluster.gets"), pairs(&counted));
        assert_eq!(counters(culvert, "route.tries"), pairs(&counted));
        assert!(counters(culvert, "route.rest").is_empty());

        assert_eq!(get(port, "/a/timeout", "hang").status, 504);
        assert_eq!(get(port, "/a/limit", "404").status, 404);
        let counted = [
            ("200", 1),
            ("2xx", 1),
            ("404", 1),
            ("4xx", 1),
            ("504", 1),
            ("5xx", 1),
            ("completed", 3),
            ("retry", 1),
            ("retry_success", 1),
            ("timeout", 1),
            ("total", 4),
        ];
        assert_eq!(counters(culvert, "vcluster.gets"), pairs(&counted));

        assert_eq!(get(port, "/late", "200").status, 200);
        assert_eq!(ledger.of("/late")[0].header("x-vc"), Some("late"));
        assert_eq!(
            counters(culvert, "vcluster.late"),
            pairs(&[("200", 1), ("2xx", 1), ("completed", 1), ("total", 1)])
        );
        // The one of all others has no name in logs, as in Envoy.
        assert_eq!(ask(port, "DELETE", "/a/x", "503", &[]).status, 503);
        assert_eq!(ledger.of("/a/x")[0].header("x-vc"), None);
        assert_eq!(
            counters(culvert, "vcluster.other"),
            pairs(&[("503", 1), ("5xx", 1), ("completed", 1), ("total", 1)])
        );
        assert!(counters(culvert, "vcluster.none").is_empty());

        let metrics = culvert.get("/stats/prometheus").unwrap();
        for line in [
            r#"envoy_vhost_vcluster_upstream_rq{envoy_response_code="404",envoy_virtual_cluster="gets",envoy_virtual_host="v"} 1"#,
            r#"envoy_vhost_vcluster_upstream_rq_timeout{envoy_virtual_cluster="gets",envoy_virtual_host="v"} 1"#,
            r#"envoy_vhost_vcluster_upstream_rq_time_count{envoy_virtual_cluster="late",envoy_virtual_host="v"} 1"#,
            r#"envoy_vhost_route_upstream_rq_total{envoy_virtual_host="v",envoy_route="tries"} 2"#,
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
    });
}

#[test]
fn retries_that_are_not_made_are_counted_too() {
    let scene = Scene {
        host: CLUSTERS,
        routes: &[("/", "")],
        actions: &["retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}}"],
        cluster: "circuit_breakers: {thresholds: [{max_retries: 0}]}",
        ..Scene::default()
    };
    with(scene, |culvert, port, _| {
        assert_eq!(get(port, "/a", "503").status, 503);
        let counted = [("503", 1), ("5xx", 1), ("completed", 1), ("retry_overflow", 1), ("total", 1)];
        assert_eq!(counters(culvert, "vcluster.gets"), pairs(&counted));
    });
    let scene = Scene { cluster: "", ..scene };
    with(scene, |culvert, port, _| {
        assert_eq!(get(port, "/a", "503").status, 503);
        let counted = [
            ("503", 1),
            ("5xx", 1),
            ("completed", 1),
            ("retry", 2),
            ("retry_limit_exceeded", 1),
            ("total", 3),
        ];
        assert_eq!(counters(culvert, "vcluster.gets"), pairs(&counted));
    });
}
