//! `basic_auth` and `csrf`

use crate::{Scene, ask, filter, get, logged, route, seen, settings, switch};

/// `test1` and `test2`.
const USERS: &str = "users: {inline_string: \"# users\\nu1:{SHA}tESsBmE/yNY3lb6a0L6vVQEZNqw=\\n\\nu2:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8=\\n\"}";
const ONE: (&str, &str) = ("authorization", "Basic dTE6dGVzdDE=");
const TWO: (&str, &str) = ("authorization", "Basic dTI6dGVzdDI=");

#[test]
fn who_has_no_password_is_refused() {
    let own = "users: {inline_string: \"u2:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8=\"}";
    let routes = [
        route("/two", &[settings("b", "basic_auth.v3.BasicAuthPerRoute", own)]),
        route("/off", &[switch("b", "disabled: true")]),
        route("/", &[]),
    ];
    let fields = format!("{USERS}, forward_username_header: X-User");
    Scene {
        filters: &[filter("b", "basic_auth.v3.BasicAuth", &fields)],
        config: "",
        host: "",
        routes: &routes,
    }
    .run(|culvert, port| {
        let ok = get(port, "/ok", &[ONE, ("x-user", "forged")]);
        assert_eq!((ok.status, seen(&ok, "x-user")), (200, vec!["u1".to_owned()]));
        for (fields, said, details) in [
            (&[][..], "Missing username and password.", "no_credential_for_basic_auth"),
            (
                &[("authorization", "Bearer x")],
                "Expected 'Basic' authentication scheme.",
                "invalid_scheme_for_basic_auth",
            ),
            (
                &[("authorization", "basic dTE6dGVzdDE=")],
                "Expected 'Basic' authentication scheme.",
                "invalid_scheme_for_basic_auth",
            ),
            (
                &[("authorization", "Basic zzz")],
                "Invalid basic credential format.",
                "invalid_format_for_basic_auth",
            ),
            (
                &[("authorization", "Basic dTE=")],
                "Invalid basic credential format.",
                "invalid_format_for_basic_auth",
            ),
            (
                &[("authorization", "Basic dTE6dGVzdDI=")],
                "Invalid username/password combination.",
                "invalid_credential_for_basic_auth",
            ),
        ] {
            let path = format!("/{details}?q");
            let refused = get(port, &path, fields);
            assert_eq!(
                (refused.status, refused.text()),
                (401, format!("User authentication failed. {said}"))
            );
            let realm = format!("Basic realm=\"http://test{path}\"");
            assert_eq!(refused.header("www-authenticate"), Some(realm.as_str()));
            logged(culvert, &format!("{path} 401 - {details}"));
        }
        // Other users on this route, none on that one.
        assert_eq!((get(port, "/two", &[ONE]).status, get(port, "/two", &[TWO]).status), (401, 200));
        assert_eq!(get(port, "/off", &[]).status, 200);
        assert_eq!(culvert.stat("http.s.basic_auth.allowed"), 2);
        assert_eq!(culvert.stat("http.s.basic_auth.denied"), 7);
    });
}

#[test]
fn credentials_may_be_elsewhere_or_missing() {
    let fields = format!(
        "{USERS}, authentication_header: X-Login, allow_missing: true, emit_dynamic_metadata: true, forward_username_header: x-user"
    );
    let rule = "rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{metadata: {filter: \
                envoy.filters.http.basic_auth, path: [{key: username}], value: {string_match: {exact: u2}}}}]}}}";
    let filters = [filter("b", "basic_auth.v3.BasicAuth", &fields), filter("r", "rbac.v3.RBAC", rule)];
    Scene { filters: &filters, config: "", host: "", routes: &[route("/", &[])] }.run(|culvert, port| {
        // Nobody can say by himself who he is.
        let nobody = get(port, "/", &[("x-user", "u1")]);
        assert_eq!((nobody.status, seen(&nobody, "x-user")), (200, Vec::new()));
        let one = get(port, "/", &[("x-login", "Basic dTE6dGVzdDE="), ("x-user", "u2")]);
        assert_eq!((one.status, seen(&one, "x-user")), (200, vec!["u1".to_owned()]));
        assert_eq!(get(port, "/", &[("x-login", "Basic dTE6eA==")]).status, 401);
        // Who it is may matter to what comes after.
        assert_eq!(get(port, "/", &[("x-login", "Basic dTI6dGVzdDI=")]).status, 403);
        assert_eq!(culvert.stat("http.s.basic_auth.allowed"), 3);
    });
}

#[test]
fn requests_of_other_sites_are_refused() {
    let policy = |enabled: u32| {
        format!(
            "filter_enabled: {{default_value: {{numerator: {enabled}}}}}, shadow_enabled: {{default_value: {{numerator: \
             100}}}}, additional_origins: [{{exact: good.com}}]"
        )
    };
    let routes = [route("/shadow", &[settings("c", "csrf.v3.CsrfPolicy", &policy(0))]), route("/", &[])];
    let filters = [filter("c", "csrf.v3.CsrfPolicy", &policy(100))];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let status = |method: &str, path: &str, fields: &[(&str, &str)]| {
            let fields: Vec<_> = fields.iter().copied().chain([("content-length", "0")]).collect();
            ask(port, method, path, &fields).status
        };
        assert_eq!(status("GET", "/", &[("origin", "http://evil.com")]), 200);
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(status(method, "/", &[("origin", "http://test")]), 200);
            assert_eq!(status(method, "/", &[("origin", "http://evil.com")]), 403);
        }
        assert_eq!(status("POST", "/", &[("origin", "https://good.com")]), 200);
        assert_eq!(status("POST", "/", &[("referer", "http://test/x")]), 200);
        let refused = ask(port, "POST", "/none", &[("content-length", "0")]);
        assert_eq!((refused.status, refused.text()), (403, "Invalid origin".to_owned()));
        logged(culvert, "/none 403 - csrf_origin_mismatch");
        assert_eq!(status("POST", "/shadow", &[("origin", "http://evil.com")]), 200);
        let stat = |name: &str| culvert.stat(&format!("http.s.csrf.{name}"));
        assert_eq!(
            (stat("request_valid"), stat("request_invalid"), stat("missing_source_origin")),
            (6, 5, 1)
        );
    });
}
