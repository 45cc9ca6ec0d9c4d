//! `cors`

use crate::{Scene, ask, filter, get, logged, route, settings, support::client::Response, switch};

const POLICY: &str = "allow_origin_string_match: [{suffix: .ok}], allow_methods: \"GET, PUT\", allow_headers: x-h, \
                      expose_headers: x-e, max_age: \"5\", allow_credentials: true, allow_private_network_access: true";

const GOOD: (&str, &str) = ("origin", "http://a.ok");
const OTHER: (&str, &str) = ("origin", "http://a.no");
const ASKS: (&str, &str) = ("access-control-request-method", "PUT");

/// Values of `access-control-*` headers.
fn shown(response: &Response) -> String {
    let of = |name: &str| {
        let value = response.header(&format!("access-control-{name}")).unwrap_or("-");
        value.to_owned()
    };
    ["allow-origin", "allow-credentials", "expose-headers", "allow-methods", "allow-headers", "max-age"]
        .map(of)
        .join(" ")
}

#[test]
fn origins_are_allowed_by_the_policy() {
    let policy = |fields: &str| settings("c", "cors.v3.CorsPolicy", &format!("{POLICY}{fields}"));
    let routes = [
        "{match: {prefix: /direct}, direct_response: {status: 200}}".to_owned(),
        route("/strict", &[policy(", forward_not_matching_preflights: false")]),
        route(
            "/shadow",
            &[policy(
                ", filter_enabled: {default_value: {numerator: 0}}, shadow_enabled: {default_value: {numerator: 100}}",
            )],
        ),
        route("/off", &[switch("c", "disabled: true")]),
        route("/", &[]),
    ];
    let host = format!("typed_per_filter_config: {{{}}},", policy(""));
    Scene { filters: &[filter("c", "cors.v3.Cors", "")], config: "", host: &host, routes: &routes }.run(
        |culvert, port| {
            const NONE: &str = "- - - - - -";
            const MARKED: &str = "http://a.ok true x-e - - -";
            const ANSWERED: &str = "http://a.ok true x-e GET, PUT x-h 5";
            assert_eq!(shown(&get(port, "/", &[])), NONE);
            assert_eq!(shown(&get(port, "/", &[GOOD])), MARKED);
            assert_eq!(shown(&get(port, "/", &[OTHER])), NONE);
            let preflight = ask(port, "OPTIONS", "/pre", &[GOOD, ASKS]);
            assert_eq!((preflight.status, shown(&preflight).as_str()), (200, ANSWERED));
            assert_eq!((preflight.body.len(), preflight.header("x-envoy-upstream-service-time")), (0, None));
            assert_eq!(preflight.header("access-control-allow-private-network"), None);
            let private = ask(
                port,
                "OPTIONS",
                "/pre",
                &[GOOD, ASKS, ("access-control-request-private-network", "true")],
            );
            assert_eq!(private.header("access-control-allow-private-network"), Some("true"));
            logged(culvert, "/pre 200 - cors_response");
            let forwarded = ask(port, "OPTIONS", "/pre", &[OTHER, ASKS]);
            assert!(forwarded.text().starts_with("OPTIONS /pre"), "the upstream is asked");
            assert_eq!(shown(&ask(port, "OPTIONS", "/pre", &[GOOD])), MARKED);
            assert_eq!(shown(&get(port, "/direct", &[GOOD])), NONE);
            let stat = |name: &str| culvert.stat(&format!("http.s.cors.{name}"));
            assert_eq!((stat("origin_valid"), stat("origin_invalid")), (4, 2));

            let strict = ask(port, "OPTIONS", "/strict", &[OTHER, ASKS]);
            assert_eq!((strict.status, strict.body.len(), shown(&strict).as_str()), (200, 0, NONE));
            assert_eq!(shown(&get(port, "/shadow", &[GOOD])), NONE);
            assert_eq!((stat("origin_valid"), stat("origin_invalid")), (5, 3));
            assert_eq!(shown(&get(port, "/off", &[GOOD])), NONE);
            assert_eq!(stat("origin_valid"), 5);
        },
    );
}
