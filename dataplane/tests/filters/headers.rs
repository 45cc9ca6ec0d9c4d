//! `header_mutation`, and `x-envoy-attempt-count`

use crate::{
    DRIVERS, Scene, filter, get, logged, route, seen, settings,
    support::{
        client::Client,
        culvert::{Culvert, bootstrap, cluster, free_port},
        upstream::Upstream,
    },
    values,
};

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

#[test]
fn bodies_of_direct_responses_are_formatted() {
    let direct = |path: &str, fields: &str| {
        format!("{{match: {{prefix: {path}}}, direct_response: {{status: 203, {fields}}}}}")
    };
    let routes = [
        direct(
            "/a",
            "body: {inline_string: orig}, body_format: {text_format_source: {inline_string: \"<%LOCAL_REPLY_BODY%> \
             %REQ(x-a)% %REQ(none)%\"}, content_type: text/html}",
        ),
        direct("/b", "body: {inline_string: orig}, body_format: {text_format: plain}"),
        direct("/c", "body_format: {text_format: \"%REQ(none)%.\", omit_empty_values: true}"),
        direct("/d", "body_format: {text_format_source: {inline_bytes: iVBORw==}}"),
    ];
    let filters = [filter("c", "cors.v3.Cors", "")];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|_, port| {
        for (path, body, kind) in [
            ("/a", &b"<orig> 1 -"[..], "text/html"),
            ("/b", b"plain", "text/plain"),
            ("/c", b".", "text/plain"),
            ("/d", b"\x89PNG", "text/plain"),
        ] {
            let answer = get(port, path, &[("x-a", "1")]);
            assert_eq!((answer.status, answer.header("content-type")), (203, Some(kind)), "{path}");
            assert_eq!(answer.body, body, "{path}");
        }
    });
}

const EARLY: &str =
    "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";
const STDERR: &str = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog";

/// A culvert whose connection manager has these fields, and one route, on each driver. Its log shows schemes.
fn managed(manager: &str, route: &str, test: impl Fn(&Culvert, u16)) {
    let upstream = Upstream::mirror();
    let log = format!(
        "access_log: [{{name: f, typed_config: {{'@type': {STDERR}, log_format: {{text_format_source: {{inline_string: \
         \"LOG %REQ(:PATH)% %REQ(:SCHEME)%\\n\"}}}}}}}}]"
    );
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let clusters = cluster("up", &[upstream.address]);
        let text = bootstrap(admin, port, &format!("{manager}\n{log}"), route, &clusters);
        test(&Culvert::start_with(driver, admin, &text, &["--file-flush-interval-msec", "20"]), port);
    }
}

#[test]
fn early_changes_come_before_routes_and_identity() {
    let manager = format!(
        "use_remote_address: true\nnormalize_path: true\nearly_header_mutation_extensions: [{{name: e, typed_config: \
         {{'@type': {EARLY}, mutations: [{{append: {{header: {{key: x-early, value: '%REQ(:PATH)%'}}}}}}, {{append: \
         {{header: {{key: x-forwarded-for, value: 9.9.9.9}}}}}}, {{append: {{header: {{key: x-id, value: \
         '%REQ(x-request-id)%'}}}}}}, {{append: {{header: {{key: x-envoy-retry-on, value: 5xx}}}}}}, {{remove: \
         x-gone}}]}}}}]"
    );
    let route =
        "- {match: {prefix: /, headers: [{name: x-early, string_match: {exact: /b}}]}, route: {cluster: up}}";
    managed(&manager, route, |_, port| {
        let answer = get(port, "/a/../b", &[("x-gone", "1")]);
        assert_eq!(answer.status, 200, "its route was found by what was added");
        assert_eq!(seen(&answer, "x-early"), ["/b"]);
        assert_eq!(seen(&answer, "x-forwarded-for"), ["9.9.9.9,127.0.0.1"]);
        for none in ["x-gone", "x-id", "x-envoy-retry-on"] {
            assert!(seen(&answer, none).is_empty(), "{none}");
        }
    });
}

#[test]
fn schemes_are_what_is_configured() {
    let route = "- {match: {prefix: /}, route: {cluster: up}}";
    let fields = [("x-forwarded-proto", "https")];
    managed("", route, |culvert, port| {
        assert_eq!(get(port, "/kept", &fields).status, 200);
        logged(culvert, "/kept https");
    });
    managed("scheme_header_transformation: {match_upstream: true}", route, |culvert, port| {
        assert_eq!(seen(&get(port, "/matched", &fields), "x-forwarded-proto"), ["https"]);
        logged(culvert, "/matched http");
    });
    managed("scheme_header_transformation: {scheme_to_overwrite: https}", route, |culvert, port| {
        let answer = get(port, "/over", &[]);
        assert_eq!(seen(&answer, "x-forwarded-proto"), ["https"]);
        logged(culvert, "/over https");
    });
}

#[test]
fn a_request_whose_upgrade_was_taken_away_is_an_ordinary_one() {
    let mutations = "mutations: {request_mutations: [{remove: upgrade}]}";
    let filters = [filter("m", "header_mutation.v3.HeaderMutation", mutations)];
    let routes =
        ["{match: {prefix: /}, route: {cluster: up, upgrade_configs: [{upgrade_type: websocket}]}}"
            .to_owned()];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let mut client = Client::connect(port);
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
            let answer = client.response("GET");
            assert_eq!((answer.status, answer.header("connection")), (200, None));
            assert!(seen(&answer, "upgrade").is_empty());
        }
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
        assert_eq!(culvert.stat("http.s.downstream_rq_response_before_rq_complete"), 0);
    });
}
