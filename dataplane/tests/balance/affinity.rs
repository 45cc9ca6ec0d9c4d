//! Hash policies: what belongs together meets the same endpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ask, cluster, locality, on_each, places};

const RING: &str = "lb_policy: RING_HASH";

/// A route to `ring`.
fn route(prefix: &str, policies: &str) -> String {
    format!("- {{match: {{prefix: {prefix}}}, route: {{cluster: ring, hash_policy: [{policies}]}}}}\n")
}

#[test]
fn a_value_meets_one_endpoint_from_every_worker() {
    let upstreams = places(4);
    let routes = route("/header", "{header: {header_name: x-user}}")
        + &route("/query", "{query_parameter: {name: user}}")
        + &route(
            "/first",
            "{header: {header_name: x-user}, terminal: true}, {header: {header_name: x-other}}",
        )
        + &route("/source", "{connection_properties: {source_ip: true}}");
    on_each(&routes, &cluster("ring", RING, &[locality(&upstreams)]), |_, port| {
        let mut homes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for _ in 0..4 {
            for user in 0..100 {
                let user = user.to_string();
                let fields = [("x-user", &*user)];
                let home = homes.entry(user.clone()).or_default();
                home.insert(ask(port, "/header", &fields).text());
                home.insert(ask(port, &format!("/query?user={user}"), &[]).text());
                let other = fastrand::u32(..).to_string();
                home.insert(ask(port, "/first", &[("x-user", &user), ("x-other", &other)]).text());
            }
        }
        assert!(homes.values().all(|home| home.len() == 1), "{homes:?}");
        let all: BTreeSet<_> = homes.values().flatten().collect();
        assert_eq!(all.len(), 4, "all endpoints have somebody");
        let from = |address: &str| ask(port, "/source", &[("x-forwarded-for", address)]).text();
        let sources: BTreeSet<_> = (0..100).map(|client| from(&format!("10.0.0.{client}"))).collect();
        assert_eq!(sources.len(), 4);
        assert_eq!(from("10.0.0.7, 10.0.0.1"), from("10.0.0.1"));
        let nobody: BTreeSet<_> = (0..60).map(|_| ask(port, "/header", &[]).text()).collect();
        assert_eq!(nobody.len(), 4, "what has no hash goes anywhere");
    });
}

/// What the route makes of a request counts, as in Envoy 1.40, not what it was.
#[test]
fn hashes_are_those_of_the_request_as_it_is_sent() {
    let upstreams = places(4);
    let route = |prefix: &str, fields: &str| {
        format!(
            "- {{match: {{prefix: {prefix}}}, {fields} route: {{cluster: ring, hash_policy: [{{header: \
             {{header_name: x-user}}}}]}}}}\n"
        )
    };
    let set = "request_headers_to_add: [{header: {key: x-user, value: one}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}],";
    let routes = route("/set", set) + &route("/removed", "request_headers_to_remove: [x-user],");
    on_each(&routes, &cluster("ring", RING, &[locality(&upstreams)]), |_, port| {
        let homes = |path: &str, many: bool| -> BTreeSet<String> {
            let user = |nth: u32| if many { nth.to_string() } else { "one".to_owned() };
            (0..40).map(|nth| ask(port, path, &[("x-user", &user(nth))]).text()).collect()
        };
        assert_eq!(homes("/set", true).len(), 1, "it is the same for all");
        assert_eq!(homes("/removed", false).len(), 4, "what has no hash goes anywhere");
    });
}

#[test]
fn a_client_without_the_cookie_is_given_one() {
    let upstreams = places(4);
    let routes = route(
        "/given",
        "{cookie: {name: user, ttl: 60s, path: /here, attributes: [{name: SameSite, value: Strict}]}}",
    ) + &route("/asked", "{cookie: {name: user}}");
    on_each(&routes, &cluster("ring", RING, &[locality(&upstreams)]), |_, port| {
        let mut homes = BTreeSet::new();
        for _ in 0..100 {
            let first = ask(port, "/given", &[]);
            let cookie = first.header("set-cookie").expect("a cookie").to_owned();
            let (pair, rest) = cookie.split_once("; ").expect("attributes");
            assert_eq!(rest, "Max-Age=60; Path=/here; SameSite=Strict; HttpOnly");
            for path in ["/given", "/asked"] {
                let again = ask(port, path, &[("cookie", pair)]);
                assert_eq!(again.text(), first.text());
                assert_eq!(again.header("set-cookie"), None);
            }
            homes.insert(first.text());
        }
        assert_eq!(homes.len(), 4, "cookies differ");
        assert_eq!(ask(port, "/asked", &[]).header("set-cookie"), None);
    });
}

#[test]
fn the_policies_of_a_cluster_take_the_place_of_its_routes() {
    let upstreams = places(4);
    let own = "load_balancing_policy: {policies: [{typed_extension_config: {name: m, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev, table_size: 251, \
               consistent_hashing_lb_config: {hash_policy: [{header: {header_name: x-own}}]}}}}]}";
    let options = "lb_policy: MAGLEV, typed_extension_protocol_options: \
                   {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                   type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                   {http_protocol_options: {}}, hash_policy: [{header: {header_name: x-own}}]}}";
    for fields in [own, options] {
        let routes = route("/", "{header: {header_name: x-user}}");
        on_each(&routes, &cluster("ring", fields, &[locality(&upstreams)]), |_, port| {
            let of = |user: u32, own: &str| {
                ask(port, "/", &[("x-user", &*user.to_string()), ("x-own", own)]).text()
            };
            let same: BTreeSet<_> = (0..20).map(|user| of(user, "a")).collect();
            assert_eq!(same.len(), 1);
            let others: BTreeSet<_> = (0..100).map(|own| of(1, &own.to_string())).collect();
            assert_eq!(others.len(), 4);
        });
    }
}

/// The numbers are those that Envoy 1.40 goes by: the value modulo the sum of the weights.
#[test]
fn a_hash_or_a_number_chooses_among_clusters() {
    let upstreams = places(2);
    let clusters = cluster("one", "lb_policy: RANDOM", &[locality(&upstreams[..1])])
        + &cluster("two", "lb_policy: RANDOM", &[locality(&upstreams[1..])]);
    let weights = "clusters: [{name: one, weight: 30}, {name: two, weight: 70}]";
    let routes = format!(
        "- {{match: {{prefix: /number}}, route: {{weighted_clusters: {{header_name: x-random, {weights}}}}}}}\n\
         - {{match: {{prefix: /hash}}, route: {{weighted_clusters: {{use_hash_policy: true, {weights}}}, hash_policy: \
         [{{header: {{header_name: x-user}}}}]}}}}\n"
    );
    on_each(&routes, &clusters, |_, port| {
        for (number, expected) in
            [("0", "0"), ("29", "0"), ("30", "1"), ("99", "1"), ("100", "0"), ("18446744073709551615", "0")]
        {
            assert_eq!(ask(port, "/number", &[("x-random", number)]).text(), expected, "{number}");
        }
        let unread: BTreeSet<_> =
            (0..60).map(|_| ask(port, "/number", &[("x-random", "many")]).text()).collect();
        assert_eq!(unread.len(), 2, "chance where there is no number");
        // As Envoy 1.40 has chosen for `key0` and the following.
        let chosen: String =
            (0..40).map(|key| ask(port, "/hash", &[("x-user", &*format!("key{key}"))]).text()).collect();
        assert_eq!(chosen, "0000101001111010111111110110011111111111");
    });
}
