//! HTTP filters and what routes say about them: what they become, and the words in which they are refused.

use culvert_model::{FaultAnswer, FilterSettings, HeaderChange, HttpFilter};

use crate::{bad, good, manager, routes};

const ROUTER: &str = "{name: router, typed_config: {'@type': EXT/filters.http.router.v3.Router}}";

/// A bootstrap with these HTTP filters before the router, and these settings of the only route.
fn text(filters: &str, per_route: &str) -> String {
    format!(
        "static_resources: {{listeners: [{{name: l, address: {{pipe: {{path: /x}}}}, filter_chains: [{{filters: [{{name: \
         h, typed_config: {{'@type': EXT/filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: \
         s, http_filters: [{filters} {ROUTER}], route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: \
         [{{match: {{prefix: /}}, direct_response: {{status: 200}}, typed_per_filter_config: {{{per_route}}}}}]}}]}}}}}}]\
         }}]}}]}}"
    )
}

fn filter(kind: &str, fields: &str) -> String {
    format!("{{name: f, typed_config: {{'@type': EXT/filters.http.{kind}, {fields}}}}},")
}

fn wrong(filters: &str, per_route: &str) -> String {
    let errors = bad(&text(filters, per_route));
    assert_eq!(errors.len(), 1, "{errors:?}");
    let prefix = "listener \"l\": filter_chains[0].filters[0].typed_config.";
    errors[0].strip_prefix(prefix).unwrap_or_else(|| panic!("{errors:?}")).to_owned()
}

#[test]
fn the_list_keeps_its_order_and_ends_with_the_router() {
    let list = filter("cors.v3.Cors", "")
        + "{name: g, disabled: true, typed_config: {'@type': EXT/filters.http.fault.v3.HTTPFault}},";
    let loaded = good(&text(&list, ""));
    let filters = &manager(&loaded).filters;
    let shown: Vec<_> = filters.iter().map(|filter| (filter.name.as_str(), filter.disabled)).collect();
    assert_eq!(shown, [("f", false), ("g", true), ("router", false)]);
    assert!(
        matches!(filters[0].filter, HttpFilter::Cors) && matches!(filters[1].filter, HttpFilter::Fault(_))
    );
}

#[test]
fn what_is_disabled_and_not_supported_stands_in_the_way() {
    let lua = "{name: f, disabled: true, typed_config: {'@type': EXT/filters.http.lua.v3.Lua}},";
    let loaded =
        good(&text(lua, "f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}"));
    assert!(matches!(manager(&loaded).filters[0].filter, HttpFilter::Unsupported));
    let route = &routes(&loaded).virtual_hosts[0].routes[0];
    assert!(
        matches!(&route.filters[..], [(name, it)] if name == "f" && !it.disabled && it.settings.is_none())
    );
}

#[test]
fn settings_of_a_route() {
    let loaded = good(&text(
        "",
        "b: {'@type': EXT/filters.http.rbac.v3.RBACPerRoute}, a: {'@type': \
         type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}, c: {'@type': \
         type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {'@type': \
         EXT/filters.http.fault.v3.HTTPFault, abort: {grpc_status: 5}}}, d: {'@type': \
         type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {'@type': \
         EXT/filters.http.lua.v3.LuaPerRoute, disabled: true}}",
    ));
    let filters = &routes(&loaded).virtual_hosts[0].routes[0].filters;
    let shown: Vec<_> = filters.iter().map(|(name, it)| (name.as_str(), it.disabled)).collect();
    assert_eq!(shown, [("a", true), ("b", false), ("c", false), ("d", false)]);
    let settings = |index: usize| filters[index].1.settings.as_ref();
    assert!(matches!(settings(1), Some(FilterSettings::Rbac(rbac)) if rbac.rules.is_none()));
    let Some(FilterSettings::Fault(fault)) = settings(2) else { panic!("{filters:?}") };
    assert_eq!(fault.abort.as_ref().unwrap().answer, FaultAnswer::Grpc(5));
    assert!(settings(3).is_none());
}

#[test]
fn header_changes_keep_their_order() {
    let mutations = "mutations: {request_mutations: [{remove: A}, {append: {header: {key: B, value: x}}}, \
                     {remove_on_match: {key_matcher: {prefix: c}}}]}";
    let loaded = good(&text(&filter("header_mutation.v3.HeaderMutation", mutations), ""));
    let HttpFilter::HeaderMutation { changes, .. } = &manager(&loaded).filters[0].filter else { panic!() };
    let [HeaderChange::Remove(a), HeaderChange::Add(b), HeaderChange::RemoveMatching(_)] =
        &changes.request[..]
    else {
        panic!("{changes:?}")
    };
    assert_eq!((a.as_str(), b.name.as_str()), ("a", "b"));
}

#[test]
fn refusals_name_the_field() {
    let limit =
        |fields: &str| filter("local_ratelimit.v3.LocalRateLimit", &format!("stat_prefix: s, {fields}"));
    for (filters, expected) in [
        (
            filter("health_check.v3.HealthCheck", "pass_through_mode: true"),
            "http_filters[0].typed_config.pass_through_mode: health checks are answered, not passed on",
        ),
        (
            filter("fault.v3.HTTPFault", "response_rate_limit: {fixed_limit: {limit_kbps: 1}}"),
            "http_filters[0].typed_config.response_rate_limit: the rate of responses is not limited",
        ),
        (
            limit("token_bucket: {max_tokens: 1, fill_interval: 0.01s}"),
            "http_filters[0].typed_config.token_bucket.fill_interval: local rate limit token bucket fill timer must be \
             >= 50ms",
        ),
        (
            limit("filter_enabled: {default_value: {numerator: 1}}"),
            "http_filters[0].typed_config.token_bucket: local rate limit token bucket must be set for per filter configs",
        ),
        (
            filter(
                "header_mutation.v3.HeaderMutation",
                "mutations: {request_mutations: [{remove: ':path'}]}",
            ),
            "http_filters[0].typed_config.mutations.request_mutations[0].remove: :-prefixed or host headers may not be \
             removed",
        ),
    ] {
        let found = wrong(&filters, "");
        assert!(found.starts_with(expected), "{found}");
    }
    let place = "route_config.virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]";
    for (per_route, expected) in [
        (
            "f: {'@type': EXT/filters.http.cors.v3.Cors}",
            ": envoy.extensions.filters.http.cors.v3.Cors is not what a",
        ),
        (
            "f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig}",
            ".config: value is required unless the filter is disabled",
        ),
        (
            "f: {'@type': EXT/filters.http.lua.v3.LuaPerRoute, disabled: true}",
            ": envoy.extensions.filters.http.lua.v3.LuaPerRoute is not supported",
        ),
    ] {
        let found = wrong("", per_route);
        let rest = found.strip_prefix(place).unwrap_or_else(|| panic!("{found}"));
        assert!(rest.starts_with(expected), "{found}");
    }
}
