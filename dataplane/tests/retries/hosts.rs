//! Where attempts go.

use std::net::SocketAddr;

use crate::{Ledger, Scene, get, scripted, support::upstream::Upstream};

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
