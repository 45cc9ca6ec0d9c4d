//! Which attempts are followed by another one.

use crate::{Scene, ask, get, logged, support::client::Client, with};

const FAST: &str = "retry_back_off: {base_interval: 0.001s}";

#[test]
fn every_condition_has_its_answers() {
    let policies = [
        ("5xx", "", &[("503", 2), ("500", 2), ("599", 2), ("close", 2), ("404", 1), ("409", 1)][..]),
        ("gateway-error", "", &[("502", 2), ("503", 2), ("504", 2), ("500", 1), ("close", 2)]),
        ("reset", "", &[("close", 2), ("503", 1)]),
        ("connect-failure", "", &[("close", 1), ("503", 1)]),
        ("reset-before-request", "", &[("503", 1)]),
        ("refused-stream", "", &[("close", 1)]),
        ("retriable-4xx", "", &[("409", 2), ("404", 1), ("503", 1)]),
        ("envoy-ratelimited", "", &[("429+x-envoy-ratelimited=true", 2), ("429", 1)]),
        ("5xx,reset", "", &[("503+x-envoy-ratelimited=true", 1)]),
        (
            "retriable-status-codes",
            "retriable_status_codes: [404, 425],",
            &[("404", 2), ("425", 2), ("403", 1)],
        ),
        ("retriable-status-codes", "", &[("404", 1)]),
        (
            "retriable-headers",
            "retriable_headers: [{name: x-again, string_match: {exact: again}}, {name: ':status', string_match: {exact: '418'}}],",
            &[("200+x-again=again", 2), ("200+x-again=off", 1), ("418", 2), ("200", 1)],
        ),
        ("cancelled", "", &[("200+grpc-status=1", 2), ("200+grpc-status=4", 1)]),
        ("deadline-exceeded", "", &[("200+grpc-status=4", 2), ("200+grpc-status=1", 1)]),
        ("resource-exhausted", "", &[("200+grpc-status=8", 2), ("200+grpc-status=0", 1)]),
        ("internal", "", &[("200+grpc-status=13", 2)]),
        ("unavailable", "", &[("200+grpc-status=14", 2), ("503", 1)]),
        ("nonsense, 5xx", "", &[("503", 2)]),
        ("http3-post-connect-failure", "", &[("503", 1), ("close", 1)]),
    ];
    let paths: Vec<_> = (0..policies.len()).map(|index| format!("/{index}/")).collect();
    let actions: Vec<_> = policies
        .iter()
        .map(|(on, fields, _)| format!("retry_policy: {{retry_on: '{on}', {fields} {FAST}}}"))
        .collect();
    let routes: Vec<_> = paths.iter().map(|path| (path.as_str(), "")).collect();
    let actions: Vec<_> = actions.iter().map(String::as_str).collect();
    with(Scene { routes: &routes, actions: &actions, ..Scene::default() }, |_, port, ledger| {
        for ((on, _, answers), path) in policies.iter().zip(&paths) {
            for (nth, (word, attempts)) in answers.iter().enumerate() {
                let path = format!("{path}{nth}");
                get(port, &path, word);
                assert_eq!(ledger.count(&path), *attempts, "{on}: {word}");
            }
        }
    });
}

#[test]
fn only_so_many_attempts_are_made() {
    let actions = [
        "retry_policy: {retry_on: 5xx, num_retries: 0}",
        "retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}",
        "retry_policy: {retry_on: 5xx, num_retries: 3, retry_back_off: {base_interval: 0.001s}}",
    ];
    let scene = Scene {
        host: "include_request_attempt_count: true, include_attempt_count_in_response: true,",
        routes: &[("/none", ""), ("/one", ""), ("/three", ""), ("/", "")],
        actions: &actions,
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        for (path, attempts) in [("/none", 1), ("/one", 2), ("/three", 4)] {
            let response = get(port, path, "503");
            assert_eq!((response.status, ledger.count(path)), (503, attempts), "{path}");
            assert_eq!(response.header("x-envoy-attempt-count"), Some(&*attempts.to_string()));
            for (nth, seen) in ledger.of(path).iter().enumerate() {
                assert_eq!(seen.header("x-envoy-attempt-count"), Some(&*(nth + 1).to_string()));
            }
            logged(culvert, &format!("{path} 503 URX via_upstream {attempts}"));
        }
        let stat = |name: &str| culvert.stat(&format!("cluster.up.{name}"));
        assert_eq!(stat("upstream_rq_retry"), 4);
        assert_eq!(stat("upstream_rq_retry_backoff_exponential"), 4);
        assert_eq!(stat("upstream_rq_retry_limit_exceeded"), 3);
        assert_eq!(stat("upstream_rq_retry_success"), 0);
        assert_eq!(stat("retry.upstream_rq_503"), 4);
        assert_eq!(stat("retry.upstream_rq_5xx"), 4);
        assert_eq!(stat("retry.upstream_rq_completed"), 4);
        assert_eq!(stat("upstream_rq_503"), 3);
        assert_eq!(stat("upstream_rq_total"), 7);

        let response = get(port, "/three/ok", "503 close 503 200");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert_eq!(response.header("x-envoy-attempt-count"), Some("4"));
        logged(culvert, "/three/ok 200 - via_upstream 4");
        assert_eq!(stat("upstream_rq_retry_success"), 1);
        assert_eq!(stat("upstream_rq_active"), 0);

        let response = get(port, "/three/close", "close");
        assert_eq!(response.status, 503);
        assert_eq!(
            response.text(),
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: \
             connection termination"
        );
        logged(
            culvert,
            "/three/close 503 URX,UC upstream_reset_before_response_started{connection_termination} 4",
        );
        // Without a policy there is one attempt.
        assert_eq!(get(port, "/", "503").status, 503);
        assert_eq!(ledger.count("/"), 1);
    });
}

#[test]
fn a_route_goes_before_its_virtual_host() {
    let scene = Scene {
        host: "retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}},",
        routes: &[("/own", ""), ("/off", ""), ("/", "")],
        actions: &[
            "retry_policy: {retry_on: retriable-4xx, retry_back_off: {base_interval: 0.001s}}",
            "retry_policy: {retry_on: ''}",
        ],
        ..Scene::default()
    };
    with(scene, |_, port, ledger| {
        for (path, word, attempts) in [
            ("/own/a", "503", 1),
            ("/own/b", "409", 2),
            ("/off", "503", 1),
            ("/a", "503", 3),
            ("/b", "409", 1),
        ] {
            get(port, path, word);
            assert_eq!(ledger.count(path), attempts, "{path}");
        }
    });
}

#[test]
fn requests_have_a_say_inside_the_mesh() {
    let scene = |manager| Scene {
        manager,
        routes: &[("/limited", ""), ("/", "")],
        actions: &[
            "retry_policy: {retry_on: 5xx, retriable_request_headers: [{name: x-safe, present_match: true}]}",
        ],
        ..Scene::default()
    };
    let inside = "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, \
                  prefix_len: 8}]},";
    with(scene(inside), |_, port, ledger| {
        /// Path, what is answered, fields of the request, how often it is tried.
        type Ask<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], usize);
        let asks: &[Ask<'_>] = &[
            ("/on", "503", &[("x-envoy-retry-on", "gateway-error")], 2),
            ("/grpc", "200+grpc-status=14", &[("x-envoy-retry-grpc-on", "unavailable")], 2),
            ("/max", "503", &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3")], 4),
            ("/zero", "503", &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "0")], 1),
            ("/nonsense", "503", &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "x")], 2),
            (
                "/codes",
                "404",
                &[
                    ("x-envoy-retry-on", "retriable-status-codes"),
                    ("x-envoy-retriable-status-codes", "403, 404"),
                ],
                2,
            ),
            (
                "/names",
                "200+x-again=1",
                &[
                    ("x-envoy-retry-on", "retriable-headers"),
                    ("x-envoy-retriable-header-names", "X-Other,X-Again"),
                ],
                2,
            ),
            ("/wrong-list", "200+grpc-status=14", &[("x-envoy-retry-on", "unavailable")], 1),
            ("/limited/no", "503", &[], 1),
            ("/limited/yes", "503", &[("x-safe", "1")], 2),
        ];
        for (path, word, fields, attempts) in asks {
            ask(port, "GET", path, word, fields);
            let seen = ledger.of(path);
            assert_eq!(seen.len(), *attempts, "{path}");
            for (name, _) in fields.iter().filter(|(name, _)| name.starts_with("x-envoy-")) {
                assert_eq!(seen[0].header(name), None, "{path}: {name} is for the proxy");
            }
            assert_eq!(seen[0].header("x-envoy-internal"), Some("true"));
        }
    });
    with(scene(""), |_, port, ledger| {
        ask(port, "GET", "/out", "503", &[("x-envoy-retry-on", "5xx"), ("x-envoy-internal", "true")]);
        let seen = ledger.of("/out");
        assert_eq!((seen.len(), seen[0].header("x-envoy-internal")), (1, None));
    });
}

#[test]
fn the_connection_is_kept_where_that_is_possible() {
    let scene = Scene {
        routes: &[("/", "")],
        actions: &["retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}"],
        ..Scene::default()
    };
    with(scene, |culvert, port, _| {
        let mut client = Client::connect(port);
        for path in ["/a", "/b", "/c"] {
            client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\nx-keep: 1\r\nx-script: 503 200\r\n\r\n"));
            assert_eq!(client.response("GET").status, 200);
        }
        assert_eq!(culvert.stat("http.s.downstream_cx_total"), 1);
        // A body that nobody reads is in the way.
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 4);
    });
}

#[test]
fn what_a_client_was_told_is_not_said_again() {
    let policy = "retry_policy: {retry_on: \"5xx,reset\", retry_back_off: {base_interval: 0.001s}}";
    with(Scene { routes: &[("/", "")], actions: &[policy], ..Scene::default() }, |culvert, port, ledger| {
        for (path, script) in [("/answered", "hints 200"), ("/lost", "hint-close 200")] {
            let mut client = Client::connect(port);
            client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\nx-script: {script}\r\n\r\n"));
            assert_eq!(client.response("GET").status, 103);
            assert_eq!(client.response("GET").status, 503, "{path}");
            assert_eq!(ledger.count(path), 1);
        }
        assert_eq!(culvert.stat("cluster.up.upstream_rq_retry"), 0);
    });
}
