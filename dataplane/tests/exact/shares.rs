//! Who gets how much: weights, chance, rates, and what moves when a host leaves.

use std::{collections::BTreeMap, fs, net::SocketAddr, thread};

use crate::{
    Client, on_each,
    support::{
        DRIVERS,
        culvert::{Culvert, bootstrap, cluster, free_port, indent, put},
        upstream::{Upstream, ok},
    },
};

/// Servers that answer with their place in the list.
fn places(count: usize) -> Vec<Upstream> {
    (0..count).map(|place| Upstream::answering(move |_| ok(place.to_string().as_bytes()))).collect()
}

/// How often each place answers.
fn answers(port: u16, path: &str, count: usize) -> BTreeMap<usize, usize> {
    let mut client = Client::connect(port);
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        *answers.entry(client.get(path).text().parse().expect("a place")).or_default() += 1;
    }
    answers
}

/// What Pearson's statistic exceeds once in 10^8 times, for one degree of freedom and more.
const CHI_SQUARE_MAX: [f64; 7] = [32.8, 36.8, 40.1, 43.1, 45.8, 48.4, 50.8];

/// Whether `counted` agrees with these shares.
fn assert_shares(counted: &BTreeMap<usize, usize>, weights: &[f64]) {
    let total = counted.values().sum::<usize>() as f64;
    let sum: f64 = weights.iter().sum();
    let statistic: f64 = weights
        .iter()
        .enumerate()
        .map(|(place, weight)| {
            let expected = total * weight / sum;
            (counted.get(&place).copied().unwrap_or(0) as f64 - expected).powi(2) / expected
        })
        .sum();
    assert!(statistic < CHI_SQUARE_MAX[weights.len() - 2], "{counted:?} is not {weights:?}: {statistic}");
}

#[test]
fn chance_keeps_to_weights() {
    const WEIGHTS: [f64; 4] = [1.0, 2.0, 7.0, 30.0];
    let upstreams = places(4);
    let weighted: Vec<_> = WEIGHTS
        .iter()
        .enumerate()
        .map(|(place, weight)| format!("{{name: c{place}, weight: {weight}}}"))
        .collect();
    let routes = format!(
        "- {{match: {{prefix: /weighted}}, route: {{weighted_clusters: {{clusters: [{}]}}}}}}\n- {{match: {{prefix: /some, \
         runtime_fraction: {{default_value: {{numerator: 30}}}}}}, route: {{cluster: c0}}}}\n- {{match: {{prefix: /some}}, \
         route: {{cluster: c1}}}}\n- {{match: {{prefix: /random}}, route: {{cluster: all}}}}\n",
        weighted.join(", ")
    );
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    let mut clusters = cluster("all", &addresses) + "  lb_policy: RANDOM\n";
    for (place, upstream) in upstreams.iter().enumerate() {
        clusters += &cluster(&format!("c{place}"), &[upstream.address]);
    }
    on_each(&routes, &clusters, |_, port| {
        assert_shares(&answers(port, "/weighted", 2_000), &WEIGHTS);
        assert_shares(&answers(port, "/some", 1_000), &[30.0, 70.0]);
        assert_shares(&answers(port, "/random", 1_000), &[1.0; 4]);
    });
}

/// By turns there is no chance: each worker's rounds are exact, and begin anywhere.
#[test]
fn turns_keep_to_weights() {
    const WEIGHTS: [usize; 3] = [1, 3, 6];
    let upstreams = places(3);
    let endpoints: Vec<_> = WEIGHTS
        .iter()
        .zip(&upstreams)
        .map(|(weight, upstream)| {
            format!(
                "{{load_balancing_weight: {weight}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
                 {}}}}}}}}}",
                upstream.address.port()
            )
        })
        .collect();
    let clusters = format!(
        "- {{name: up, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}}}\n",
        endpoints.join(", ")
    );
    on_each("- {match: {prefix: /}, route: {cluster: up}}\n", &clusters, |_, port| {
        let answers = answers(port, "/", 200);
        for (place, weight) in WEIGHTS.iter().enumerate() {
            assert!(answers[&place].abs_diff(20 * weight) <= 1, "{answers:?}");
        }
    });
}

/// Tokens are taken at the same time by both workers; none is taken twice.
#[test]
fn tokens_are_handed_out_once() {
    const TOKENS: usize = 150;
    let upstreams = places(1);
    let limit = format!(
        "http_filters:\n- name: limit\n  typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: r, token_bucket: \
         {{max_tokens: {TOKENS}, fill_interval: 3600s}}, filter_enabled: {{default_value: {{numerator: 100}}}}, \
         filter_enforced: {{default_value: {{numerator: 100}}}}}}\n"
    );
    for driver in DRIVERS {
        let port = free_port();
        let route = "- {match: {prefix: /}, route: {cluster: up}}\n";
        let text = bootstrap(0, port, "", route, &cluster("up", &[upstreams[0].address]));
        let text = text.replace("          http_filters:\n", &indent(&limit, 10));
        let culvert = Culvert::start_with(driver, 0, &text, &["--concurrency", "2"]);
        let threads = (0..8).map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(port);
                (0..TOKENS / 4).filter(|_| client.get("/").status == 200).count()
            })
        });
        let threads: Vec<_> = threads.collect();
        let passed: usize = threads.into_iter().map(|thread| thread.join().expect("a client")).sum();
        assert_eq!(passed, TOKENS, "{driver}");
        assert_eq!(culvert.stat("r.http_local_rate_limit.ok"), TOKENS as u64);
    }
}

/// An EDS file with these endpoints.
fn assignment(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|at| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
                at.ip(),
                at.port()
            )
        })
        .collect();
    format!(
        "resources: [{{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: up, \
         endpoints: [{{lb_endpoints: [{}]}}]}}]\n",
        endpoints.join(", ")
    )
}

/// Where each of so many keys goes.
fn homes(port: u16, keys: usize) -> Vec<String> {
    let mut client = Client::connect(port);
    let home = |key| {
        client.send(format!("GET / HTTP/1.1\r\nhost: t\r\nx-key: {key}\r\n\r\n"));
        client.response("GET").text()
    };
    (0..keys).map(home).collect()
}

/// Keys of the host that leaves go elsewhere. Of the others few move: of a ring, whose hosts get some more points each, an
/// eighth at most, and of a table of Maglev's some percent. A table without such care would move seven of eight.
#[test]
fn few_keys_move_when_a_host_leaves() {
    const HOSTS: usize = 8;
    const KEYS: usize = 600;
    for (policy, most) in [("RING_HASH", 0.25), ("MAGLEV", 0.10)] {
        for driver in DRIVERS {
            let upstreams = places(HOSTS);
            let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("eds.yaml");
            fs::write(&path, assignment(&addresses)).expect("written");
            let cluster = format!(
                "- {{name: up, type: EDS, lb_policy: {policy}, eds_cluster_config: {{eds_config: {{path_config_source: \
                 {{path: \"{}\"}}}}}}}}\n",
                path.display()
            );
            let route = "- {match: {prefix: /}, route: {cluster: up, hash_policy: [{header: {header_name: x-key}}]}}\n";
            let port = free_port();
            let text = bootstrap(0, port, "", route, &cluster);
            let culvert = Culvert::start_in(dir, driver, 0, &text, &["--concurrency", "2"]);
            let before = homes(port, KEYS);
            assert_eq!(homes(port, KEYS), before, "a key has one home");
            for place in 0..HOSTS {
                let keys = before.iter().filter(|home| **home == place.to_string()).count();
                assert!(keys > KEYS / HOSTS / 4, "{policy}: {keys} keys at {place}");
            }
            put(&path, &assignment(&addresses[1..]));
            culvert.wait_until("it leaves", |it| it.stat("cluster.up.membership_total") == HOSTS as u64 - 1);
            let left = |homes: &[String]| homes.iter().all(|home| home != "0");
            let mut after = homes(port, KEYS);
            // The workers may be a turn behind.
            while !left(&after) {
                after = homes(port, KEYS);
            }
            let stayed: Vec<_> = before.iter().zip(&after).filter(|(before, _)| **before != "0").collect();
            let moved = stayed.iter().filter(|(before, after)| before != after).count();
            assert!((moved as f64) < most * stayed.len() as f64, "{policy}: {moved} of {}", stayed.len());
        }
    }
}
