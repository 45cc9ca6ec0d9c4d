//! Redirects that culvert follows itself.

use crate::{Client, Scene, ask, logged, support::client::Response, with};

const POLICY: &str = "internal_redirect_policy: {response_headers_to_copy: [x-copy]}";

/// A request that is answered with a redirect, then with what follows in the script of its new path.
fn redirected(port: u16, method: &str, path: &str, to: &str, body: &str) -> Response {
    let mut client = Client::connect(port);
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nx-script: 302+location={to}+x-copy=copied\r\nx-copy: \
         mine\r\n{length}\r\n{body}"
    ));
    client.response(method)
}

#[test]
fn a_redirect_is_another_request() {
    let scene = Scene {
        routes: &[
            ("/from", "name: from, request_headers_to_add: [{header: {key: x-from, value: 'yes'}}],"),
            ("/to", "name: to, request_headers_to_remove: [x-script],"),
        ],
        actions: &[POLICY, "prefix_rewrite: /there"],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let response = redirected(port, "GET", "/from/1", "http://other.example/to?q=1#part", "");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        let seen = &ledger.of("/there?q=1")[0];
        assert_eq!(seen.header("host"), Some("other.example"));
        assert_eq!(seen.header("x-copy"), Some("copied"));
        assert_eq!(seen.header("x-from"), Some("yes"));
        assert_eq!(seen.header("x-envoy-original-url"), Some("http://test/from/1"));
        assert_eq!(ledger.count("/from/1"), 1);
        logged(culvert, "/to?q=1 302 - internal_redirect 1");
        logged(culvert, "/there?q=1 200 - via_upstream 1");
        assert_eq!(culvert.stat("cluster.up.upstream_internal_redirect_succeeded_total"), 1);
        assert_eq!(culvert.stat("http.s.downstream_rq_total"), 2);
        assert_eq!(culvert.stat("http.s.downstream_rq_completed"), 1);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_302"), 0);

        // With its body.
        assert_eq!(redirected(port, "POST", "/from/2", "http://test/to/2", "some body").status, 200);
        let seen = &ledger.of("/there/2")[0];
        assert!(seen.head.starts_with("post "));
        assert_eq!(seen.body, b"some body");
    });
}

#[test]
fn some_redirects_are_the_clients_own() {
    let scene = Scene {
        routes: &[
            ("/from", "name: from,"),
            ("/none", "name: none,"),
            ("/to", "request_headers_to_remove: [x-script],"),
        ],
        actions: &[POLICY, ""],
        ..Scene::default()
    };
    with(scene, |culvert, port, _| {
        let passed = |path: &str, to: &str, reason: &str| {
            let response = redirected(port, "GET", path, to, "");
            assert_eq!((response.status, response.header("location")), (302, Some(to)), "{reason}");
            logged(culvert, &format!("{path} 302 - via_upstream 1"));
            if !reason.is_empty() {
                assert_eq!(
                    culvert.stat(&format!("http.s.passthrough_internal_redirect_{reason}")),
                    1,
                    "{reason}"
                );
            }
        };
        passed("/none", "http://test/to", "");
        assert_eq!(culvert.stat("cluster.up.upstream_internal_redirect_failed_total"), 0);
        passed("/from/1", "/to", "bad_location");
        passed("/from/2", "https://test/to", "unsafe_scheme");
        passed("/from/3", "http://test/unknown", "no_route");
        assert_eq!(culvert.stat("cluster.up.upstream_internal_redirect_failed_total"), 3);
        // One is followed, the second one is not.
        let response = redirected(port, "GET", "/from/4", "http://test/from/5", "");
        assert_eq!(response.status, 302);
        assert_eq!(culvert.stat("http.s.passthrough_internal_redirect_too_many_redirects"), 1);
        logged(culvert, "/from/5 302 - internal_redirect 1");
        logged(culvert, "/from/5 302 - via_upstream 1");
    });
}

#[test]
fn policies_say_which_are_followed() {
    let predicate = |kind: &str, fields: &str| {
        format!(
            "internal_redirect_policy: {{max_internal_redirects: 5, allow_cross_scheme_redirect: true, predicates: \
             [{{name: p, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.internal_redirect.{kind}, \
             {fields}}}}}]}}"
        )
    };
    let listed = predicate("allow_listed_routes.v3.AllowListedRoutesConfig", "allowed_route_names: [to]");
    let previous = predicate("previous_routes.v3.PreviousRoutesConfig", "");
    let safe = predicate("safe_cross_scheme.v3.SafeCrossSchemeConfig", "");
    let actions = [
        listed.as_str(),
        &previous,
        &safe,
        "internal_redirect_policy: {redirect_response_codes: [303, 307], allow_cross_scheme_redirect: true}",
        "",
    ];
    let scene = Scene {
        routes: &[
            ("/listed", "name: listed,"),
            ("/previous", "name: previous,"),
            ("/safe", "name: safe,"),
            ("/codes", "name: codes,"),
            ("/to", "name: to, request_headers_to_remove: [x-script],"),
        ],
        actions: &actions,
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let status = |path: &str, to: &str| redirected(port, "GET", path, to, "").status;
        assert_eq!(status("/listed/1", "http://test/to"), 200);
        assert_eq!(status("/listed/2", "http://test/codes"), 302);
        assert_eq!(status("/previous/1", "http://test/to"), 200);
        // Led from this route to this route twice.
        assert_eq!(status("/previous/2", "http://test/previous/2"), 302);
        assert_eq!(ledger.count("/previous/2"), 2);
        assert_eq!(status("/safe/1", "http://test/to"), 200);
        assert_eq!(status("/safe/2", "https://test/to"), 302);
        assert_eq!(culvert.stat("http.s.passthrough_internal_redirect_predicate"), 3);
        assert_eq!(status("/codes/1", "http://test/to"), 302);
        let word = "303+location=https://test/to/303";
        let mut client = Client::connect(port);
        client.send(format!(
            "POST /codes/2 HTTP/1.1\r\nhost: t\r\nx-script: {word}\r\ncontent-length: 4\r\n\r\nbody"
        ));
        assert_eq!(client.response("POST").status, 200);
        let seen = &ledger.of("/to/303")[0];
        assert!(seen.head.starts_with("get ") && seen.body.is_empty(), "{}", seen.head);
        assert_eq!(seen.header("content-length"), None);
        assert_eq!(
            ask(port, "PUT", "/codes/3", "307+location=http://test/to/307", &[("content-length", "0")])
                .status,
            200
        );
        assert!(ledger.of("/to/307")[0].head.starts_with("put "));
    });
}
