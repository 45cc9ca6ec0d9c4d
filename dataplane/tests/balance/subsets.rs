//! Subsets over real sockets: what routes ask for.

use std::{collections::BTreeSet, io::Read as _, net::TcpStream};

use crate::{
    ask, cluster, endpoint, on_each, places,
    support::{
        DRIVERS,
        culvert::{Culvert, free_port, indent},
        upstream::Upstream,
    },
};

fn labelled(upstream: &Upstream, labels: &str) -> String {
    endpoint(upstream.address, &format!(", metadata: {{filter_metadata: {{envoy.lb: {{{labels}}}}}}}"))
}

fn matching(labels: &str) -> String {
    format!("metadata_match: {{filter_metadata: {{envoy.lb: {{{labels}}}}}}}")
}

fn subsets(upstreams: &[Upstream], fields: &str) -> String {
    let labels = ["stage: prod, v: 1", "stage: prod, v: 2", "stage: dev, v: 1", ""];
    let endpoints: Vec<_> =
        upstreams.iter().zip(labels).map(|(upstream, labels)| labelled(upstream, labels)).collect();
    cluster("up", fields, &[format!("{{lb_endpoints: [{}]}}", endpoints.join(", "))])
}

/// All places that answer.
fn seen(port: u16, path: &str) -> BTreeSet<String> {
    (0..30).map(|_| ask(port, path, &[]).text()).collect()
}

#[test]
fn routes_ask_for_labels() {
    let upstreams = places(4);
    let routes = format!(
        "- {{match: {{prefix: /prod}}, route: {{cluster: up, {}}}}}\n- {{match: {{prefix: /one}}, route: {{cluster: up, \
         {}}}}}\n- {{match: {{prefix: /none}}, route: {{cluster: up, {}}}}}\n- {{match: {{prefix: /weighted}}, route: \
         {{{}, weighted_clusters: {{clusters: [{{name: up, weight: 1, {}}}]}}}}}}\n- {{match: {{prefix: /}}, route: \
         {{cluster: up}}}}\n",
        matching("stage: prod"),
        matching("v: 2, stage: prod"),
        matching("stage: none"),
        matching("stage: dev, v: 2"),
        matching("v: 1")
    );
    let selectors = "subset_selectors: [{keys: [stage]}, {keys: [v, stage]}]";
    let old = format!(
        "lb_subset_config: {{fallback_policy: DEFAULT_SUBSET, default_subset: {{v: 1}}, {selectors}}}"
    );
    let typed = format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: s, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.load_balancing_policies.subset.v3.Subset, fallback_policy: DEFAULT_SUBSET, \
         default_subset: {{v: 1}}, {selectors}, subset_lb_policy: {{policies: [{{typed_extension_config: {{name: r, \
         typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}}}}]}}}}}}}}]}}"
    );
    let places = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<BTreeSet<_>>();
    for fields in [old, typed] {
        on_each(&routes, &subsets(&upstreams, &fields), |culvert, port| {
            assert_eq!(seen(port, "/prod"), places(&["0", "1"]));
            assert_eq!(seen(port, "/one"), places(&["1"]));
            // What a weighted cluster says goes over what its route says.
            assert_eq!(seen(port, "/weighted"), places(&["2"]));
            assert_eq!(culvert.stat("cluster.up.lb_subsets_selected"), 90);
            assert_eq!(seen(port, "/none"), places(&["0", "2"]));
            assert_eq!(seen(port, "/"), places(&["0", "2"]));
            assert_eq!(culvert.stat("cluster.up.lb_subsets_fallback"), 60);
        });
    }
}

#[test]
fn without_a_subset_and_a_fallback_there_is_nobody() {
    let upstreams = places(4);
    let routes = format!("- {{match: {{prefix: /}}, route: {{cluster: up, {}}}}}\n", matching("stage: none"));
    let clusters = subsets(&upstreams, "lb_subset_config: {subset_selectors: [{keys: [stage]}]}");
    on_each(&routes, &clusters, |_, port| {
        let response = ask(port, "/", &[]);
        assert_eq!((response.status, response.text().as_str()), (503, "no healthy upstream"));
    });
}

#[test]
fn tcp_proxies_ask_for_labels_too() {
    let upstreams: Vec<_> = (0..4)
        .map(|place: usize| {
            Upstream::start(move |mut stream| {
                let _ = std::io::Write::write_all(&mut stream, place.to_string().as_bytes());
            })
        })
        .collect();
    let clusters =
        subsets(&upstreams, "lb_subset_config: {subset_selectors: [{keys: [v]}, {keys: [stage, v]}]}");
    let proxies = [
        format!("cluster: up, {}", matching("v: 2")),
        format!(
            "{}, weighted_clusters: {{clusters: [{{name: up, weight: 1, {}}}]}}",
            matching("stage: dev, v: 2"),
            matching("v: 1")
        ),
    ];
    for (proxy, expected) in proxies.iter().zip(["1", "2"]) {
        for driver in DRIVERS {
            let (admin, port) = (free_port(), free_port());
            let text = format!(
                "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
                 static_resources:\n  listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: \
                 {port}}}}}, filter_chains: [{{filters: [{{name: t, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, \
                 {proxy}}}}}]}}]}}]\n  clusters:\n{}",
                indent(&clusters, 2)
            );
            let _culvert = Culvert::start(driver, admin, &text);
            for _ in 0..6 {
                let mut said = String::new();
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
                stream.read_to_string(&mut said).expect("an end");
                assert_eq!(said, expected);
            }
        }
    }
}
