//! Routes.

use std::{fs, time::Duration};

use culvert_model::{
    Action, AppendAction, ClusterSpecifier, FormatPart, HeaderRule, HostRewrite, PathMatch, PathRewrite,
    QueryRule, RequireTls, RouteMatch, StringMatcher,
};

use crate::{good, http, route_action, routes};

fn route_match(text: &str) -> RouteMatch {
    let loaded = good(&http(&[("MATCH", text)]));
    routes(&loaded).virtual_hosts[0].routes[0].matcher.clone()
}

#[test]
fn route_matches() {
    let of = route_match;
    assert!(
        matches!(of("prefix: /A").path, PathMatch::Prefix { value, ignore_case: false } if value == "/A")
    );
    assert!(
        matches!(of("path: /A, case_sensitive: false").path, PathMatch::Exact { value, ignore_case: true } if value == "/a")
    );
    assert!(
        matches!(of("path_separated_prefix: /a").path, PathMatch::SeparatedPrefix { value, .. } if value == "/a")
    );
    assert!(matches!(of("connect_matcher: {}").path, PathMatch::Connect));
    let PathMatch::Regex(regex) = of(r"safe_regex: {regex: '/\d+'}").path else { panic!("not a regex") };
    assert!(regex.is_match(b"/12") && !regex.is_match(b"/12/"));

    assert!(of("prefix: /, grpc: {}").grpc);
    for (fraction, ppm) in [
        ("{numerator: 50}", 500_000),
        ("{numerator: 5, denominator: TEN_THOUSAND}", 500),
        ("{numerator: 5, denominator: million}", 5),
        ("{numerator: 200}", 1_000_000),
    ] {
        let matcher = of(&format!("prefix: /, runtime_fraction: {{default_value: {fraction}}}"));
        assert_eq!(matcher.fraction_ppm, Some(ppm));
    }

    let query = of("prefix: /, query_parameters: [{name: A}, {name: b, present_match: true}, {name: c, \
    string_match: {exact: X}}]")
    .query;
    assert!(matches!((&query[0].rule, query[0].name.as_str()), (QueryRule::Present(true), "A")));
    assert!(matches!(&query[2].rule, QueryRule::String(StringMatcher::Exact { value, .. }) if value == "X"));
}

#[test]
fn header_matchers() {
    let of = route_match;
    let headers = of("prefix: /, headers: [{name: A}, {name: b, present_match: false}, {name: c, \
    range_match: {start: -1, end: 5}}, \
        {name: d, exact_match: X, invert_match: true}, {name: e, prefix_match: x}, {name: f, \
        suffix_match: x}, {name: g, contains_match: x}, \
        {name: h, safe_regex_match: {google_re2: {}, regex: 'a|b'}}, {name: i, string_match: {exact: X, \
        ignore_case: true}, treat_missing_header_as_empty: true}, \
        {name: j, string_match: {prefix: x}}, {name: k, string_match: {suffix: x}}, {name: l, \
        string_match: {contains: x}}, \
        {name: cookie, string_match: {safe_regex: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}]")
    .headers;
    let shown: Vec<_> = headers
        .iter()
        .map(|header| {
            let rule = match &header.rule {
                HeaderRule::Present(present) => format!("present {present}"),
                HeaderRule::Range(start, end) => format!("{start}..{end}"),
                HeaderRule::String(StringMatcher::Exact { value, ignore_case }) => {
                    format!("={value} {ignore_case}")
                }
                HeaderRule::String(StringMatcher::Prefix { value, .. }) => format!("{value}*"),
                HeaderRule::String(StringMatcher::Suffix { value, .. }) => format!("*{value}"),
                HeaderRule::String(StringMatcher::Contains { value, .. }) => format!("*{value}*"),
                HeaderRule::String(StringMatcher::Regex(regex)) => format!("~{}", regex.as_str()),
            };
            format!("{} {rule}", header.name)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "a present true",
            "b present false",
            "c -1..5",
            "d =X false",
            "e x*",
            "f *x",
            "g *x*",
            "h ~a|b",
            "i =x true",
            "j x*",
            "k *x",
            "l *x*",
            "cookie ~^(.*?;)?(user=jason)(;.*)?$",
        ]
    );
    assert!(headers[3].invert && headers[8].missing_is_empty);
}

#[test]
fn route_actions() {
    let of = |text: &str| {
        let loaded = good(&http(&[("ROUTE", &format!("route: {{{text}}}"))]));
        route_action(&loaded).clone()
    };
    assert!(
        matches!(&of("cluster_header: X-Cluster").cluster, ClusterSpecifier::Header(name) if name == "x-cluster")
    );
    let weighted = of(
        "weighted_clusters: {clusters: [{name: a, weight: 99, host_rewrite_literal: h}, {name: b, weight: 1, \
        response_headers_to_remove: [X-A]}]}",
    );
    let ClusterSpecifier::Weighted(weighted) = &weighted.cluster else { panic!("not weighted") };
    assert_eq!((weighted.total, weighted.clusters[0].host_rewrite.as_deref()), (100, Some("h")));
    assert_eq!(weighted.clusters[1].headers.response_remove, ["x-a"]);

    for (code, status) in [("SERVICE_UNAVAILABLE", 503), ("NOT_FOUND", 404), ("INTERNAL_SERVER_ERROR", 500)] {
        let action = of(&format!("cluster: a, cluster_not_found_response_code: {code}"));
        assert_eq!(action.cluster_not_found_status, status);
    }
    assert!(matches!(of("cluster: a, prefix_rewrite: /x").path, PathRewrite::Prefix(path) if path == "/x"));
    let action = of(r"cluster: a, regex_rewrite: {pattern: {regex: '^/a/(.*)$'}, substitution: '/\1$'}");
    let PathRewrite::Regex(rewrite) = &action.path else { panic!("not a regex") };
    assert_eq!(rewrite.pattern.replace(b"/a/b", &rewrite.replacement[..]), &b"/b$"[..]);

    assert!(
        matches!(of("cluster: a, host_rewrite_literal: h").host, HostRewrite::Literal(host) if host == "h")
    );
    assert!(matches!(of("cluster: a, auto_host_rewrite: true").host, HostRewrite::Auto));
    assert!(matches!(of("cluster: a, auto_host_rewrite: false").host, HostRewrite::None));
    assert!(
        matches!(of("cluster: a, host_rewrite_header: X-H").host, HostRewrite::Header(name) if name == "x-h")
    );
    assert!(matches!(
        of("cluster: a, host_rewrite_path_regex: {pattern: {regex: a}, substitution: b}").host,
        HostRewrite::PathRegex(_)
    ));

    let action =
        of("cluster: a, timeout: 0s, idle_timeout: 0s, append_x_forwarded_host: true, upgrade_configs: \
         [{upgrade_type: Websocket, enabled: false}]");
    assert_eq!((action.timeout, action.idle_timeout), (None, Some(Duration::ZERO)));
    assert!(action.append_forwarded_host);
    assert_eq!(action.upgrades, [("websocket".to_owned(), false)]);
}

#[test]
fn redirects_and_direct_responses() {
    let of = |text: &str| match &routes(&good(&http(&[("ROUTE", text)]))).virtual_hosts[0].routes[0].action {
        Action::Redirect(redirect) => redirect.clone(),
        _ => panic!("not a redirect: {text}"),
    };
    for (code, status) in [
        ("MOVED_PERMANENTLY", 301),
        ("FOUND", 302),
        ("SEE_OTHER", 303),
        ("TEMPORARY_REDIRECT", 307),
        ("PERMANENT_REDIRECT", 308),
    ] {
        assert_eq!(of(&format!("redirect: {{response_code: {code}}}")).status, status);
    }
    let redirect =
        of("redirect: {https_redirect: true, host_redirect: h, port_redirect: 8443, path_redirect: '/a?b', \
         strip_query: true}");
    assert_eq!((redirect.scheme.as_deref(), redirect.host.as_deref()), (Some("https"), Some("h")));
    assert_eq!((redirect.port, redirect.strip_query), (Some(8_443), true));
    assert!(matches!(redirect.path, PathRewrite::Full(path) if path == "/a?b"));
    let redirect = of("redirect: {scheme_redirect: ftp, prefix_rewrite: /b}");
    assert!(matches!(redirect.path, PathRewrite::Prefix(path) if path == "/b"));
    assert_eq!(redirect.scheme.as_deref(), Some("ftp"));
    let redirect = of("redirect: {regex_rewrite: {pattern: {regex: a}, substitution: b}}");
    assert!(matches!(redirect.path, PathRewrite::Regex(_)));
    assert_eq!((redirect.scheme, redirect.host, redirect.port, redirect.status), (None, None, None, 301));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    fs::write(&file, "from a file").unwrap();
    for (body, expected) in [
        ("{inline_string: hello}".to_owned(), "hello"),
        ("{inline_bytes: aGVsbG8=}".to_owned(), "hello"),
        (format!("{{filename: {}}}", file.display()), "from a file"),
        ("{environment_variable: CARGO_PKG_NAME}".to_owned(), "culvert-xds"),
    ] {
        let loaded = good(&http(&[("ROUTE", &format!("direct_response: {{status: 503, body: {body}}}"))]));
        let Action::Direct(direct) = &routes(&loaded).virtual_hosts[0].routes[0].action else {
            panic!("{body}")
        };
        assert_eq!((direct.status, &*direct.body), (503, expected.as_bytes()));
    }
}

#[test]
fn header_changes_and_virtual_hosts() {
    let loaded = good(&http(&[
        (
            "CONFIG",
            "name: r
            ignore_port_in_host_matching: true
            most_specific_header_mutations_wins: true
            request_headers_to_add:
            - {header: {key: X-A, value: '%REQ(b)%'}}
            - {header: {key: b, value: v}, append: false}
            - {header: {key: c, value: v}, append: true}
            - {header: {key: d, value: v}, append_action: ADD_IF_ABSENT}
            - {header: {key: e, value: v}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
            - {header: {key: f, raw_value: dg==}, append_action: OVERWRITE_IF_EXISTS, keep_empty_value: true}
            request_headers_to_remove: [X-R]
            response_headers_to_add: {header: {key: s, value: 50%%}}
            response_headers_to_remove: [X-S]",
        ),
        (
            "HOST",
            "require_tls: external_only
              include_request_attempt_count: true
              include_attempt_count_in_response: true
              request_headers_to_remove: [Y]",
        ),
    ]));
    let routes = routes(&loaded);
    assert!(routes.ignore_port && routes.most_specific_wins && routes.name == "r");
    let actions: Vec<_> = routes.headers.request_add.iter().map(|h| (h.name.as_str(), h.action)).collect();
    assert_eq!(
        actions,
        [
            ("x-a", AppendAction::Append),
            ("b", AppendAction::OverwriteOrAdd),
            ("c", AppendAction::Append),
            ("d", AppendAction::AddIfAbsent),
            ("e", AppendAction::OverwriteOrAdd),
            ("f", AppendAction::OverwriteIfExists),
        ]
    );
    assert_eq!(routes.headers.request_add[5].value, [FormatPart::Text("v".to_owned())]);
    assert!(routes.headers.request_add[5].keep_empty);
    assert_eq!(routes.headers.request_remove, ["x-r"]);
    assert_eq!(routes.headers.response_add[0].value, [FormatPart::Text("50%".to_owned())]);
    assert_eq!(routes.headers.response_remove, ["x-s"]);
    let host = &routes.virtual_hosts[0];
    assert_eq!((host.require_tls, host.headers.request_remove.len()), (RequireTls::ExternalOnly, 1));
    assert!(host.include_request_attempt_count && host.include_attempt_count_in_response);
    for (name, value) in [("NONE", RequireTls::No), ("ALL", RequireTls::All)] {
        let loaded = good(&http(&[("HOST", &format!("require_tls: {name}"))]));
        assert_eq!(crate::routes(&loaded).virtual_hosts[0].require_tls, value);
    }
}
