//! `rbac`

use crate::{Scene, filter, get, logged, route, settings};

const ANYBODY: &str = "principals: [{any: true}]";

fn policy(action: &str, name: &str, permission: &str, principals: &str) -> String {
    format!("{{action: {action}, policies: {{\"{name}\": {{permissions: [{permission}], {principals}}}}}}}")
}

#[test]
fn rules_shadows_and_routes() {
    let rules = policy("DENY", "not this", "{url_path: {path: {prefix: /deny}}}", ANYBODY);
    let shadow = policy("DENY", "x", "{header: {name: x-who, string_match: {exact: me}}}", ANYBODY);
    let own = policy("DENY", "own", "{header: {name: \":method\", string_match: {exact: GET}}}", ANYBODY);
    let filters = [filter(
        "a",
        "rbac.v3.RBAC",
        &format!(
            "rules: {rules}, rules_stat_prefix: one, shadow_rules: {shadow}, shadow_rules_stat_prefix: dry_"
        ),
    )];
    let routes = [
        route("/deny/free", &[settings("a", "rbac.v3.RBACPerRoute", "")]),
        route("/own", &[settings("a", "rbac.v3.RBACPerRoute", &format!("rbac: {{rules: {own}}}"))]),
        route("/", &[]),
    ];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        assert_eq!(get(port, "/yes", &[("x-who", "me")]).status, 200);
        let denied = get(port, "/deny?x", &[]);
        assert_eq!((denied.status, denied.text().as_str()), (403, "RBAC: access denied"));
        assert_eq!(get(port, "/deny/free", &[]).status, 200, "the route has no rules");
        assert_eq!(get(port, "/own", &[]).status, 403);
        logged(culvert, "/deny?x 403 - rbac_access_denied_matched_policy[not_this]");
        logged(culvert, "/own 403 - rbac_access_denied_matched_policy[own]");
        let stat = |name: &str| culvert.stat(&format!("http.s.rbac.{name}"));
        assert_eq!((stat("one.allowed"), stat("one.denied")), (1, 2));
        assert_eq!((stat("dry_.shadow_allowed"), stat("dry_.shadow_denied")), (1, 1));
        assert_eq!(culvert.stat("http.s.downstream_rq_4xx"), 2);
    });
}

#[test]
fn the_client_is_who_a_trusted_header_names() {
    let remote = policy(
        "DENY",
        "r",
        "{any: true}",
        "principals: [{remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]",
    );
    let direct = policy(
        "DENY",
        "d",
        "{url_path: {path: {prefix: /direct}}}",
        "principals: [{direct_remote_ip: {address_prefix: 127.0.0.1, prefix_len: 32}}]",
    );
    let filters = [
        filter("a", "rbac.v3.RBAC", &format!("rules: {remote}")),
        filter("b", "rbac.v3.RBAC", &format!("rules: {direct}")),
    ];
    Scene { filters: &filters, config: "", host: "", routes: &[route("/", &[])] }.run(|_, port| {
        assert_eq!(get(port, "/", &[]).status, 200);
        assert_eq!(get(port, "/", &[("x-forwarded-for", "10.1.1.1")]).status, 403);
        assert_eq!(get(port, "/", &[("x-forwarded-for", "10.1.1.1, 11.1.1.1")]).status, 200);
        assert_eq!(get(port, "/direct", &[("x-forwarded-for", "11.1.1.1")]).status, 403);
    });
}

#[test]
fn rules_may_look_at_metadata_of_the_route() {
    let rules = policy(
        "ALLOW",
        "m",
        "{sourced_metadata: {metadata_source: ROUTE, metadata_matcher: {filter: app, path: [{key: open}], value: \
         {bool_match: true}}}}",
        ANYBODY,
    );
    let filters = [filter("a", "rbac.v3.RBAC", &format!("rules: {rules}"))];
    let open =
        "{match: {prefix: /open}, metadata: {filter_metadata: {app: {open: true}}}, route: {cluster: up}}";
    let routes = [open.to_owned(), route("/", &[])];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|_, port| {
        assert_eq!(get(port, "/open", &[]).status, 200);
        assert_eq!(get(port, "/other", &[]).status, 403);
    });
}

#[test]
fn a_matcher_of_headers() {
    let action = |action: &str| {
        format!(
            "action: {{name: x, typed_config: {{\"@type\": type.googleapis.com/envoy.config.rbac.v3.Action, name: \
             {action}, action: {action}}}}}"
        )
    };
    let matcher = format!(
        "matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: \
         {{\"@type\": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-who}}}}, \
         value_match: {{exact: me}}}}}}, on_match: {{{}}}}}]}}, on_no_match: {{{}}}}}",
        action("ALLOW"),
        action("DENY")
    );
    let filters = [filter("a", "rbac.v3.RBAC", &matcher)];
    Scene { filters: &filters, config: "", host: "", routes: &[route("/", &[])] }.run(|_, port| {
        assert_eq!(get(port, "/", &[("x-who", "me")]).status, 200);
        assert_eq!(get(port, "/", &[("x-who", "you")]).status, 403);
    });
}
