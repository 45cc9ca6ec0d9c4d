//! Network filters: what they become, and the words in which they are refused.

use culvert_model::{NetworkFilter, RbacAction, RbacRule, RbacRules, TcpHash, TerminalFilter};

use crate::{bad, good, listener, terminal};

const PROXY: &str = "{name: t, typed_config: {'@type': EXT/filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: a}}";

fn text(filters: &str) -> String {
    format!(
        "static_resources: {{listeners: [{{name: l, address: {{pipe: {{path: /x}}}}, filter_chains: [{{filters: \
         [{filters}]}}]}}]}}"
    )
}

fn filter(kind: &str, fields: &str) -> String {
    format!("{{name: f, typed_config: {{'@type': EXT/filters.network.{kind}, {fields}}}}}")
}

/// The first filter before the TCP proxy.
fn first(kind: &str, fields: &str) -> NetworkFilter {
    let loaded = good(&text(&format!("{}, {PROXY}", filter(kind, fields))));
    listener(&loaded).filter_chains[0].filters[0].clone()
}

/// What is wrong with it there, below `typed_config`.
fn wrong(kind: &str, fields: &str) -> String {
    let errors = bad(&text(&format!("{}, {PROXY}", filter(kind, fields))));
    assert_eq!(errors.len(), 1, "{errors:?}");
    let prefix = "listener \"l\": filter_chains[0].filters[0].typed_config.";
    errors[0].strip_prefix(prefix).unwrap_or_else(|| panic!("{errors:?}")).to_owned()
}

#[test]
fn terminal_filters_come_last() {
    assert_eq!(
        bad(&text(&format!("{PROXY}, {PROXY}"))),
        [
            "listener \"l\": filter_chains[0].filters[0]: terminal filter named t must be the last filter in a network \
          filter chain"
        ]
    );
    assert_eq!(
        bad(&text(&filter("sni_cluster.v3.SniCluster", ""))),
        [
            "listener \"l\": filter_chains[0].filters[0]: non-terminal filter named f is the last filter in a network \
          filter chain"
        ]
    );
    let direct = good(&text(&filter("direct_response.v3.Config", "response: {inline_string: hi}")));
    assert!(matches!(terminal(&direct), TerminalFilter::DirectResponse(bytes) if &**bytes == b"hi"));
    assert!(matches!(terminal(&good(&text(&filter("echo.v3.Echo", "")))), TerminalFilter::Echo));
}

#[test]
fn access_control() {
    let NetworkFilter::Rbac(rbac) = first(
        "rbac.v3.RBAC",
        "stat_prefix: p, delay_deny: 1s, shadow_rules_stat_prefix: d, rules: {}, shadow_rules: {action: DENY, policies: \
         {b: {permissions: [{destination_port: 80}, {destination_port_range: {start: 1, end: 3}}], principals: \
         [{authenticated: {}}]}}}",
    ) else {
        panic!("not RBAC")
    };
    let Some(RbacRules::Policies { action, policies }) = &rbac.rules else { panic!("no rules") };
    assert_eq!((*action, policies.len()), (RbacAction::Allow, 0), "rules that are there and empty");
    let Some(RbacRules::Policies { action: RbacAction::Deny, policies }) = &rbac.shadow_rules else {
        panic!("no shadow rules")
    };
    let policy = &policies["b"];
    assert!(matches!(
        policy.permissions[..],
        [RbacRule::DestinationPorts(80, 81), RbacRule::DestinationPorts(1, 3)]
    ));
    assert!(matches!(policy.principals[..], [RbacRule::Authenticated(None)]));
    let NetworkFilter::Rbac(none) = first("rbac.v3.RBAC", "stat_prefix: p") else { panic!("not RBAC") };
    assert!(none.rules.is_none() && none.shadow_rules.is_none());
}

#[test]
fn access_control_that_cannot_be() {
    let rules = |permission: &str, principal: &str| {
        wrong(
            "rbac.v3.RBAC",
            &format!(
                "stat_prefix: p, rules: {{policies: {{a: {{permissions: [{permission}], principals: [{principal}]}}}}}}"
            ),
        )
    };
    let any = "{any: true}";
    assert_eq!(
        rules("{not_rule: {header: {name: x}}}", any),
        "rules.policies[\"a\"].permissions[0].not_rule.header: Found header(x) rule, not supported by RBAC network filter"
    );
    assert_eq!(
        rules("{destination_port_range: {start: 5, end: 5}}", any),
        "rules.policies[\"a\"].permissions[0].destination_port_range: 5..5 is not a range of ports"
    );
    assert_eq!(
        rules(any, "{remote_ip: {address_prefix: nowhere}}"),
        "rules.policies[\"a\"].principals[0].remote_ip.address_prefix: malformed IP address: nowhere"
    );
    assert_eq!(
        rules(
            "{uri_template: {name: x, typed_config: {'@type': EXT/path.match.uri_template.v3.UriTemplateMatchConfig, path_template: /a}}}",
            any
        ),
        "rules.policies[\"a\"].permissions[0].uri_template: templates of paths are not supported"
    );
}

#[test]
fn filter_state() {
    let value = |key: &str, more: &str| {
        format!(
            "on_new_connection: [{{object_key: {key}, {more}, format_string: {{text_format_source: {{inline_string: x}}}}}}]"
        )
    };
    let kind = "set_filter_state.v3.Config";
    let set = first(kind, &value("envoy.tcp_proxy.cluster", "skip_if_empty: true"));
    let NetworkFilter::SetFilterState(values) = set else { panic!("not state") };
    assert_eq!((values[0].key.as_str(), values[0].skip_if_empty), ("envoy.tcp_proxy.cluster", true));
    assert!(matches!(
        first(kind, &value("own", "factory_key: envoy.string")),
        NetworkFilter::SetFilterState(_)
    ));
    for (text, expected) in [
        (
            value("own", "skip_if_empty: true"),
            "on_new_connection[0].object_key: \"own\" does not have an object factory",
        ),
        (
            value("envoy.upstream.dynamic_host", "skip_if_empty: true"),
            "on_new_connection[0].object_key: nothing looks for an object called \"envoy.upstream.dynamic_host\"",
        ),
        (
            value("own", "factory_key: envoy.network.ip"),
            "on_new_connection[0].factory_key: only texts are supported, not what \"envoy.network.ip\" makes",
        ),
        (
            value("own", "factory_key: envoy.string, shared_with_upstream: ONCE"),
            "on_new_connection[0].shared_with_upstream: upstream connections have no filter state",
        ),
    ] {
        assert_eq!(wrong(kind, &text), expected);
    }
    let fixed = filter(kind, &value("own", "factory_key: envoy.string, read_only: true"));
    let errors = bad(&text(&format!("{fixed}, {fixed}, {PROXY}")));
    assert_eq!(
        errors,
        ["listener \"l\": filter_chains[0].filters[1]: \"own\" is read-only and is set again"]
    );
}

#[test]
fn limits() {
    let NetworkFilter::ConnectionLimit(limit) =
        first("connection_limit.v3.ConnectionLimit", "stat_prefix: c, max_connections: 5, delay: 1s")
    else {
        panic!("not a limit")
    };
    assert_eq!((limit.max, limit.delay, limit.enabled.default), (5, crate::seconds(1), true));
    let bucket = |interval: &str| {
        format!(
            "stat_prefix: r, token_bucket: {{max_tokens: 2, tokens_per_fill: 3, fill_interval: {interval}}}"
        )
    };
    let kind = "local_ratelimit.v3.LocalRateLimit";
    let NetworkFilter::LocalRateLimit(limit) = first(kind, &bucket("1s")) else { panic!("not a limit") };
    assert_eq!((limit.max_tokens, limit.tokens_per_fill), (2, 3));
    assert_eq!(
        wrong(kind, &bucket("0.01s")),
        "token_bucket.fill_interval: local rate limit token bucket fill timer must be >= 50ms"
    );
}

#[test]
fn tcp_proxies_in_full() {
    let proxy = |fields: &str| text(&PROXY.replace("cluster: a", &format!("cluster: a, {fields}")));
    let loaded = good(&proxy(
        "max_connect_attempts: 3, max_downstream_connection_duration: 9s, \
         max_downstream_connection_duration_jitter_percentage: {value: 50}, hash_policy: [{filter_state: {key: k}}], \
         access_log_options: {flush_access_log_on_start: true, flush_access_log_on_connected: true, \
         access_log_flush_interval: 2s}",
    ));
    let TerminalFilter::Tcp(tcp) = terminal(&loaded) else { panic!("not TCP") };
    assert_eq!((tcp.max_connect_attempts, tcp.max_duration), (3, crate::seconds(9)));
    assert!((tcp.max_duration_jitter - 0.5).abs() < f64::EPSILON);
    assert_eq!(tcp.hash, Some(TcpHash::FilterState("k".to_owned())));
    assert_eq!((tcp.log_on_start, tcp.log_on_connected, tcp.log_interval), (true, true, crate::seconds(2)));
    let errors = bad(&proxy("flush_access_log_on_connected: true, access_log_options: {}"));
    assert!(errors[0].contains("or access_log_options can be given"), "{errors:?}");
}
