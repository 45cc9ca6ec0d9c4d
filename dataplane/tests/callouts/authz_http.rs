//! `ext_authz` over HTTP

use std::sync::{Arc, Mutex};

use crate::{
    Scene, ask, filter, get, logged, route, seen, settings,
    support::{
        culvert::cluster,
        upstream::{Upstream, read_request},
    },
    values,
};

/// A service that decides by the path, and the requests it has seen.
fn service() -> (Upstream, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let upstream = Upstream::start(move |mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            kept.lock().unwrap().push(head + &String::from_utf8_lossy(&body));
            let answer: &[u8] = match path.as_str() {
                "/pre/deny" => {
                    b"HTTP/1.1 401 X\r\nx-up: 1\r\nx-client: c\r\nwww-authenticate: b\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nno"
                }
                "/pre/moved" => b"HTTP/1.1 302 X\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
                "/pre/broken" => b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n",
                "/pre/garbage" => b"what\r\n\r\n",
                _ => {
                    b"HTTP/1.1 200 X\r\nx-up: 1\r\nx-app: s\r\nx-client: c\r\nx-md: m\r\nx-envoy-auth-headers-to-remove: x-gone, x-too\r\ncontent-length: 2\r\n\r\nok"
                }
            };
            if std::io::Write::write_all(&mut stream, answer).is_err() {
                return;
            }
        }
    });
    (upstream, seen)
}

fn authz(response: &str, fields: &str) -> String {
    let service = format!(
        "http_service: {{server_uri: {{uri: \"http://x/y\", cluster: auth, timeout: 20s}}, path_prefix: /pre, \
         authorization_request: {{headers_to_add: [{{key: x-added, value: here}}]}}, authorization_response: \
         {{{response}}}}}"
    );
    filter("ea", "ext_authz.v3.ExtAuthz", &format!("transport_api_version: V3, {service}, {fields}"))
}

fn patterns(name: &str) -> String {
    format!("{{patterns: [{{exact: {name}}}]}}")
}

#[test]
fn a_service_of_http_decides() {
    let (judge, asked) = service();
    let response = format!(
        "allowed_upstream_headers: {}, allowed_upstream_headers_to_append: {}, allowed_client_headers_on_success: {}, \
         dynamic_metadata_from_headers: {}",
        patterns("x-up"),
        patterns("x-app"),
        patterns("x-client"),
        patterns("x-md")
    );
    let rules = "rules: {action: DENY, policies: {p: {permissions: [{metadata: {filter: envoy.filters.http.ext_authz, \
                 path: [{key: x-md}], value: {string_match: {exact: m}}}}], principals: [{header: {name: x-red, \
                 present_match: true}}]}}}";
    let filters = [authz(&response, ""), filter("late", "rbac.v3.RBAC", rules)];
    let clusters = cluster("auth", &[judge.address]);
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(
        |culvert, port| {
            let last = || asked.lock().unwrap().pop().unwrap();
            let own = [
                ("authorization", "Basic a"),
                ("cookie", "secret"),
                ("x-app", "c"),
                ("x-gone", "c"),
                ("x-too", "c"),
            ];
            let answer = get(port, "/ok?q=1", &own);
            assert_eq!(answer.status, 200);
            assert_eq!(
                (seen(&answer, "x-up"), seen(&answer, "x-app")),
                (vec!["1".into()], vec!["c".into(), "s".into()])
            );
            assert!(seen(&answer, "x-gone").is_empty() && seen(&answer, "x-too").is_empty());
            assert_eq!((answer.header("x-client"), answer.header("x-md")), (Some("c"), None));
            let request = last();
            assert!(request.starts_with("GET /pre/ok?q=1 HTTP/1.1\r\nhost: test\r\n"), "{request}");
            for line in
                ["authorization: Basic a", "content-length: 0", "x-added: here", "x-envoy-internal: true"]
            {
                assert!(request.contains(&format!("{line}\r\n")), "{line} in {request}");
            }
            assert!(!request.contains("cookie") && !request.contains("x-app"), "{request}");

            assert_eq!(get(port, "/ok", &[("x-red", "1")]).status, 403, "metadata feeds the rules behind");
            let denied = get(port, "/deny", &[]);
            assert_eq!((denied.status, denied.text().as_str()), (401, "no"));
            assert_eq!((denied.header("x-up"), denied.header("x-client")), (Some("1"), Some("c")));
            assert_eq!(values(&denied, "content-type"), ["text/html"]);
            assert_eq!(values(&denied, "content-length"), ["2"]);
            let moved = get(port, "/moved", &[]);
            assert_eq!((moved.status, moved.header("location")), (302, Some("/login")));
            assert_eq!(get(port, "/broken", &[]).status, 403);
            assert_eq!(get(port, "/garbage", &[]).status, 403);
            logged(culvert, "/moved 302 UAEX ext_authz_denied 0");
            logged(culvert, "/garbage 403 UAEX ext_authz_error 0");
            let stat = |name: &str| culvert.stat(&format!("http.s.ext_authz.{name}"));
            assert_eq!((stat("ok"), stat("denied"), stat("error")), (2, 2, 2));
        },
    );
}

#[test]
fn headers_are_shown_and_told_as_configured() {
    let (judge, asked) = service();
    let response = format!("allowed_client_headers: {}", patterns("x-client"));
    let fields = "allowed_headers: {patterns: [{prefix: x-}]}, disallowed_headers: {patterns: [{exact: x-not}]}, \
                  with_request_body: {max_request_bytes: 4, allow_partial_message: true}";
    let clusters = cluster("auth", &[judge.address]);
    let filters = [authz(&response, fields)];
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(|_, port| {
        let own = [("x-a", "1"), ("x-a", "2"), ("x-not", "1"), ("authorization", "b"), ("cookie", "c")];
        let answer = ask(port, "POST", "/ok", &own, b"123456");
        assert!(answer.status == 200 && answer.text().ends_with("123456"));
        assert!(seen(&answer, "x-up").is_empty(), "nothing is allowed upstream");
        let request = asked.lock().unwrap().pop().unwrap();
        assert!(request.ends_with("\r\n\r\n1234"), "{request}");
        for line in ["x-a: 1,2", "authorization: b", "content-length: 4", "x-envoy-auth-partial-body: true"] {
            assert!(request.contains(&format!("{line}\r\n")), "{line} in {request}");
        }
        assert!(!request.contains("x-not") && !request.contains("cookie"), "{request}");
        let denied = get(port, "/deny", &[]);
        assert_eq!((denied.status, denied.header("x-up"), denied.header("x-client")), (401, None, Some("c")));
        assert_eq!(denied.header("www-authenticate"), Some("b"));
        assert_eq!(values(&denied, "content-type"), ["text/plain"]);
    });
}

/// Who decides about a redirect that is followed sees the body that goes along.
#[test]
fn the_body_is_shown_again_after_a_redirect() {
    let (judge, asked) = service();
    let moving = Upstream::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            let answer = b"HTTP/1.1 307 X\r\nlocation: http://test/to\r\ncontent-length: 0\r\n\r\n";
            if std::io::Write::write_all(&mut stream, answer).is_err() {
                return;
            }
        }
    });
    let moved = |prefix: &str, settings: &str| {
        format!(
            "{{match: {{prefix: {prefix}}}, route: {{cluster: moving, internal_redirect_policy: \
             {{redirect_response_codes: [307]}}}}, typed_per_filter_config: {{{settings}}}}}"
        )
    };
    let off = settings("ea", "ext_authz.v3.ExtAuthzPerRoute", "disabled: true");
    let routes = [moved("/blind", &off), moved("/seen", ""), route("/to", &[])];
    let filters = [authz("", "with_request_body: {max_request_bytes: 8}")];
    let clusters = cluster("auth", &[judge.address]) + &cluster("moving", &[moving.address]);
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|_, port| {
        for path in ["/blind", "/seen"] {
            let answer = ask(port, "POST", path, &[], b"123456");
            assert!(answer.status == 200 && answer.text().ends_with("\r\n\r\n123456"), "{}", answer.text());
            let request = asked.lock().unwrap().pop().unwrap();
            assert!(request.starts_with("POST /pre/to ") && request.ends_with("\r\n\r\n123456"), "{request}");
            asked.lock().unwrap().clear();
        }
        // More than it may be shown.
        assert_eq!(ask(port, "POST", "/blind", &[], b"123456789").status, 413);
        assert!(asked.lock().unwrap().is_empty());
    });
}

#[test]
fn without_it_requests_are_denied_or_not() {
    let (judge, asked) = service();
    let never = "filter_enabled: {default_value: {numerator: 0}}";
    let clusters = cluster("auth", &[judge.address]);
    let routes = [route("/", &[])];
    let open = [authz("", never)];
    Scene { filters: &open, routes: &routes, clusters: clusters.clone(), ..Scene::default() }.run(
        |culvert, port| {
            assert_eq!(get(port, "/deny", &[]).status, 200);
            assert_eq!(culvert.stat("http.s.ext_authz.disabled"), 1);
        },
    );
    let closed = [authz("", &format!("{never}, deny_at_disable: {{default_value: true, runtime_key: k}}"))];
    Scene { filters: &closed, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        assert_eq!(get(port, "/ok", &[]).status, 403);
        logged(culvert, "/ok 403 UAEX ext_authz_error 0");
    });
    assert!(asked.lock().unwrap().is_empty());
}
