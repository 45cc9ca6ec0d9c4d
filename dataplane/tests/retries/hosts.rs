//! Where attempts go.

use std::net::SocketAddr;

use crate::{
    Ledger, Scene, cluster, get, scripted,
    support::{culvert::free_port, upstream::Upstream},
};

fn predicate(kind: &str, fields: &str) -> String {
    format!(
        "retry_policy: {{retry_on: 5xx, num_retries: 3, host_selection_retry_max_attempts: 100, retry_back_off: \
         {{base_interval: 0.001s}}, retry_host_predicate: [{{name: p, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.retry.host.{kind}, {fields}}}}}]}}"
    )
}

/// Scripted servers that share a ledger.
fn servers(count: usize, ledger: &Ledger) -> Vec<Upstream> {
    (0..count).map(|server| scripted(server, ledger.clone())).collect()
}

#[test]
fn hosts_that_were_tried_are_avoided() {
    let ledger = Ledger::default();
    let servers = servers(4, &ledger);
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let action = predicate("previous_hosts.v3.PreviousHostsPredicate", "");
    let actions = [action.as_str()];
    let scene =
        Scene { routes: &[("/", "")], actions: &actions, cluster: "lb_policy: RANDOM", ..Scene::default() };
    scene.run(&addresses, |culvert, port| {
        for nth in 0..20 {
            let path = format!("/{}/{nth}", culvert.pid());
            get(port, &path, "503");
            let mut servers: Vec<_> = ledger.of(&path).iter().map(|seen| seen.server).collect();
            servers.sort_unstable();
            assert_eq!(servers, [0, 1, 2, 3]);
        }
    });
}

#[test]
fn an_attempt_without_a_connection_has_no_protocol() {
    let ledger = Ledger::default();
    let server = scripted(0, ledger.clone());
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let action =
        predicate("previous_hosts.v3.PreviousHostsPredicate", "").replace("num_retries: 3", "num_retries: 1");
    let actions = [action.as_str()];
    let scene =
        Scene { routes: &[("/", "")], actions: &actions, cluster: "lb_policy: RANDOM", ..Scene::default() };
    scene.run(&[server.address, dead], |culvert, port| {
        let mut ends = [0; 2];
        // Either host may be the second, and decides.
        for nth in 0..50 {
            let response = get(port, &format!("/{nth}"), "503");
            let answered = response.header("x-server").is_some();
            let line = format!("{} LOG /{nth} 503 ", if answered { "HTTP/1.1" } else { "-" });
            culvert
                .wait_until(&line, |culvert| culvert.log().lines().any(|logged| logged.starts_with(&line)));
            ends[usize::from(answered)] += 1;
        }
        assert!(!ends.contains(&0), "{ends:?}");
    });
}

/// A cluster whose first endpoint has this metadata.
fn labelled(addresses: &[SocketAddr], labels: &str) -> String {
    let endpoints: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(index, address)| {
            let metadata = if index == 0 {
                format!("metadata: {{filter_metadata: {{envoy.lb: {labels}}}}},")
            } else {
                String::new()
            };
            format!(
                "{{{metadata} endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}",
                address.port()
            )
        })
        .collect();
    format!(
        "- name: labelled\n  type: STATIC\n  lb_policy: RANDOM\n  load_assignment: {{cluster_name: labelled, endpoints: \
         [{{lb_endpoints: [{}]}}]}}\n",
        endpoints.join(", ")
    )
}

#[test]
fn hosts_are_avoided_by_their_metadata() {
    for (kind, fields, labels) in [
        ("omit_canary_hosts.v3.OmitCanaryHostsPredicate", "", "{canary: true}"),
        (
            "omit_host_metadata.v3.OmitHostMetadataConfig",
            "metadata_match: {filter_metadata: {envoy.lb: {a: b}}}",
            "{a: b, c: d}",
        ),
    ] {
        let ledger = Ledger::default();
        let servers = servers(2, &ledger);
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let action = predicate(kind, fields).replacen("retry_policy", "cluster: labelled, retry_policy", 1);
        let clusters = labelled(&addresses, labels);
        let actions = [action.as_str()];
        let scene =
            Scene { routes: &[("/", "")], actions: &actions, clusters: &clusters, ..Scene::default() };
        scene.run(&addresses, |culvert, port| {
            let mut firsts = [0; 2];
            for nth in 0..40 {
                let path = format!("/{}/{nth}", culvert.pid());
                get(port, &path, "503");
                let seen = ledger.of(&path);
                assert_eq!(seen.len(), 4);
                firsts[seen[0].server] += 1;
                assert!(seen[1..].iter().all(|seen| seen.server == 1), "{kind}");
            }
            assert!(firsts[0] > 0, "the first attempt may go there: {firsts:?}");
        });
    }
}

#[test]
fn a_host_that_is_not_there_is_followed_by_another_one() {
    let ledger = Ledger::default();
    let server = scripted(0, ledger.clone());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [nobody.local_addr().unwrap(), server.address];
    drop(nobody);
    for on in ["connect-failure", "reset-before-request", "5xx", "reset"] {
        let action = format!(
            "retry_policy: {{retry_on: {on}, num_retries: 1, retry_back_off: {{base_interval: 0.001s}}}}"
        );
        let actions = [action.as_str()];
        let scene = Scene { routes: &[("/", "")], actions: &actions, ..Scene::default() };
        scene.run(&addresses, |culvert, port| {
            // In turn: of two attempts one reaches the other one.
            for nth in 0..6 {
                assert_eq!(get(port, &format!("/{nth}"), "200").status, 200, "{on}");
            }
            assert!(culvert.stat("cluster.up.upstream_rq_retry_success") > 0);
        });
    }
}

/// A cluster with one endpoint a priority.
fn by_priority(addresses: &[SocketAddr], fields: &str, endpoint: &str) -> String {
    let levels: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(priority, address)| {
            format!(
                "{{priority: {priority}, lb_endpoints: [{{{endpoint} endpoint: {{address: {{socket_address: {{address: \
                 127.0.0.1, port_value: {}}}}}}}}}]}}",
                address.port()
            )
        })
        .collect();
    format!(
        "- name: levels\n  type: STATIC\n  load_assignment: {{cluster_name: levels, endpoints: [{}]}}\n{fields}",
        levels.join(", ")
    )
}

/// What goes to `levels` avoids priorities after so many attempts.
fn previous_priorities(frequency: u32, fields: &str) -> String {
    format!(
        "cluster: levels, {fields} retry_policy: {{retry_on: 5xx, num_retries: 9, retry_back_off: {{base_interval: \
         0.001s}}, retry_priority: {{name: p, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, \
         update_frequency: {frequency}}}}}}}"
    )
}

fn tried(ledger: &Ledger, path: &str) -> Vec<usize> {
    ledger.of(path).iter().map(|seen| seen.server).collect()
}

/// As Envoy 1.40 did with the same policies.
#[test]
fn priorities_that_were_tried_are_avoided() {
    let ledger = Ledger::default();
    let servers = servers(3, &ledger);
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let actions: Vec<_> = (1..=3).map(|frequency| previous_priorities(frequency, "")).collect();
    let actions: Vec<_> = actions.iter().map(String::as_str).collect();
    let clusters = by_priority(&addresses, "", "");
    let scene = Scene {
        routes: &[("/1", ""), ("/2", ""), ("/3", "")],
        actions: &actions,
        clusters: &clusters,
        ..Scene::default()
    };
    scene.run(&addresses, |culvert, port| {
        let expected: [[usize; 10]; 3] =
            [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 0, 1, 1, 2, 2, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]];
        for (frequency, expected) in (1..).zip(&expected) {
            // The second time with what the first one has arranged.
            for nth in 0..2 {
                let path = format!("/{frequency}/{}/{nth}", culvert.pid());
                assert_eq!(get(port, &path, "503").status, 503);
                assert_eq!(tried(&ledger, &path), expected);
            }
        }
        // Another request begins from the beginning.
        let path = format!("/1/{}/ok", culvert.pid());
        assert_eq!(get(port, &path, "200").status, 200);
        assert_eq!(tried(&ledger, &path), [0]);
    });
}

/// Their priorities are numbered through its children; as Envoy 1.40 did.
#[test]
fn an_aggregate_cluster_goes_on_with_its_next_child() {
    let ledger = Ledger::default();
    let servers = servers(3, &ledger);
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let aggregate = "- name: all\n  lb_policy: CLUSTER_PROVIDED\n  cluster_type: {name: all, typed_config: {\"@type\": \
                     type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a, levels]}}\n";
    let actions: Vec<_> = (1..=2)
        .map(|frequency| previous_priorities(frequency, "").replace("cluster: levels", "cluster: all"))
        .collect();
    let actions = [&actions[0], &actions[1], "cluster: all, retry_policy: {retry_on: 5xx, num_retries: 2}"];
    let clusters =
        [aggregate, &cluster("a", &addresses[..1]), &by_priority(&addresses[1..], "", "")].concat();
    let scene = Scene {
        routes: &[("/1", ""), ("/2", ""), ("/without", "")],
        actions: &actions,
        clusters: &clusters,
        ..Scene::default()
    };
    scene.run(&addresses, |culvert, port| {
        for (route, expected) in [
            ("1", &[0, 1, 2, 0, 1, 2, 0, 1, 2, 0][..]),
            ("2", &[0, 0, 1, 1, 2, 2, 0, 0, 1, 1]),
            ("without", &[0, 0, 0]),
        ] {
            let path = format!("/{route}/{}", culvert.pid());
            assert_eq!(get(port, &path, "503").status, 503);
            assert_eq!(tried(&ledger, &path), expected, "{route}");
        }
        // The children are what counts the requests.
        assert_eq!(culvert.stat("cluster.a.upstream_rq_503"), 1 + 1);
        let path = format!("/1/{}/second", culvert.pid());
        assert_eq!(get(port, &path, "503 200").status, 200);
        assert_eq!(tried(&ledger, &path), [0, 1]);
    });
}

/// What hashes goes where the hash says, and subsets have priorities of their own; so in Envoy.
#[test]
fn priorities_are_avoided_within_a_subset_and_not_by_hashes() {
    let ledger = Ledger::default();
    let servers = servers(2, &ledger);
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let run = |fields: &str, endpoint: &str, action: &str, expected: &[usize; 10]| {
        let action = previous_priorities(1, action);
        let clusters = by_priority(&addresses, fields, endpoint);
        let actions = [action.as_str()];
        let scene =
            Scene { routes: &[("/", "")], actions: &actions, clusters: &clusters, ..Scene::default() };
        scene.run(&addresses, |culvert, port| {
            let path = format!("/{}", culvert.pid());
            assert_eq!(get(port, &path, "503").status, 503);
            assert_eq!(tried(&ledger, &path), expected);
        });
    };
    let by_header = "hash_policy: [{header: {header_name: x-script}}],";
    run("  lb_policy: RING_HASH\n", "", by_header, &[0; 10]);
    run(
        "  lb_subset_config: {subset_selectors: [{keys: [v]}]}\n",
        "metadata: {filter_metadata: {envoy.lb: {v: a}}},",
        "metadata_match: {filter_metadata: {envoy.lb: {v: a}}},",
        &[0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    );
}
