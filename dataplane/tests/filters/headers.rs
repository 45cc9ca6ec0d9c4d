//! `header_mutation`, and `x-envoy-attempt-count`

use crate::{Scene, filter, get, route, seen, settings, values};

/// Appends `value` to one header of requests and one of responses.
fn adding(value: &str) -> String {
    format!(
        "mutations: {{request_mutations: [{{append: {{header: {{key: x-a, value: {value}}}}}}}], response_mutations: \
         [{{append: {{header: {{key: x-r, value: {value}}}}}}}]}}"
    )
}

fn level(value: &str) -> String {
    settings("m", "header_mutation.v3.HeaderMutationPerRoute", &adding(value))
}

fn order(most_specific_wins: bool, expected: &[&str]) {
    let own = format!("{}, most_specific_header_mutations_wins: {most_specific_wins}", adding("own"));
    let weighted = format!(
        "{{match: {{prefix: /}}, typed_per_filter_config: {{{}}}, route: {{weighted_clusters: {{clusters: [{{name: up, \
         weight: 1, typed_per_filter_config: {{{}}}}}]}}}}}}",
        level("route"),
        level("cluster")
    );
    let scene = Scene {
        filters: &[filter("m", "header_mutation.v3.HeaderMutation", &own)],
        config: &format!("typed_per_filter_config: {{{}}},", level("config")),
        host: &format!("typed_per_filter_config: {{{}}},", level("host")),
        routes: &[weighted],
    };
    scene.run(|_, port| {
        let response = get(port, "/", &[]);
        assert_eq!(seen(&response, "x-a"), expected);
        assert_eq!(values(&response, "x-r"), expected);
    });
}

#[test]
fn every_level_has_its_changes() {
    order(false, &["own", "cluster", "route", "host", "config"]);
    order(true, &["own", "config", "host", "route", "cluster"]);
}

#[test]
fn changes_are_made_one_after_the_other() {
    let mutations = "mutations: {request_mutations: [{append: {header: {key: x-copy, value: \"%REQ(x-one)%\"}}}, \
                     {remove: x-one}, {append: {header: {key: x-after, value: \"%REQ(x-one)%!\"}}}, {append: {header: \
                     {key: x-two, value: new}, append_action: OVERWRITE_IF_EXISTS}}, {append: {header: {key: x-three, \
                     value: new}, append_action: OVERWRITE_IF_EXISTS}}, {remove_on_match: {key_matcher: {prefix: \
                     x-drop}}}], response_mutations: [{remove: content-type}, {append: {header: {key: x-status, value: \
                     \"%RESPONSE_CODE%\"}}}]}";
    let filters = [filter("m", "header_mutation.v3.HeaderMutation", mutations)];
    let direct =
        "{match: {prefix: /direct}, direct_response: {status: 202, body: {inline_string: x}}}".to_owned();
    Scene { filters: &filters, config: "", host: "", routes: &[direct, route("/", &[])] }.run(|_, port| {
        let fields = [("x-one", "1"), ("x-two", "old"), ("x-drop-a", "1"), ("x-dropped", "1")];
        let response = get(port, "/", &fields);
        let of = |name| seen(&response, name).join("|");
        assert_eq!(["x-copy", "x-one", "x-after", "x-two", "x-three"].map(of), ["1", "", "!", "new", ""]);
        assert!(!response.text().contains("x-drop"), "{}", response.text());
        let direct = get(port, "/direct", &[]);
        assert_eq!(
            (direct.status, direct.header("x-status"), direct.header("content-type")),
            (202, Some("202"), None)
        );
        assert_eq!(get(port, "/", &[]).header("x-status"), Some("200"));
    });
}

#[test]
fn attempts_are_told_where_the_virtual_host_says_so() {
    let named = "{match: {prefix: /none}, route: {cluster_header: x-cluster}}".to_owned();
    let routes = [named, route("/", &[])];
    let both = "include_request_attempt_count: true, include_attempt_count_in_response: true,";
    Scene { filters: &[filter("c", "cors.v3.Cors", "")], config: "", host: both, routes: &routes }.run(
        |_, port| {
            let response = get(port, "/", &[("x-envoy-attempt-count", "77")]);
            assert_eq!(seen(&response, "x-envoy-attempt-count"), ["1"]);
            assert_eq!(values(&response, "x-envoy-attempt-count"), ["1"]);
            let none = get(port, "/none", &[]);
            assert_eq!((none.status, none.header("x-envoy-attempt-count")), (503, None));
        },
    );
    Scene { filters: &[filter("c", "cors.v3.Cors", "")], config: "", host: "", routes: &routes }.run(
        |_, port| {
            let response = get(port, "/", &[]);
            assert!(seen(&response, "x-envoy-attempt-count").is_empty());
            assert_eq!(response.header("x-envoy-attempt-count"), None);
        },
    );
}
