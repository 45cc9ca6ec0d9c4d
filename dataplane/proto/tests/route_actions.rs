//! What a route says about path, host, location and headers, as measured on Envoy 1.40.

use std::sync::Arc;

use culvert_model::{
    Action, AppendAction, DirectResponse, FormatPart, FullRegex, HeaderMutations, HeaderValueOption,
    HostRewrite, PathMatch, PathRewrite, Redirect, RegexSubstitution, Route, RouteConfiguration, RouteMatch,
    VirtualHost, WeightedCluster,
};
use culvert_proto::{
    Headers,
    route::{
        Formatter, Mutations, RequestView, Table, redirect_location, rewrite_host, rewrite_path, tls_location,
    },
};

fn prefix(value: &str) -> PathMatch {
    PathMatch::Prefix { value: value.to_owned(), ignore_case: false }
}

fn substitution(pattern: &str, replacement: &str) -> RegexSubstitution {
    RegexSubstitution {
        pattern: regex::bytes::Regex::new(pattern).unwrap(),
        replacement: replacement.as_bytes().to_vec(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn view<'a>(authority: &'a str, path: &'a str, headers: &'a Headers) -> RequestView<'a> {
    RequestView {
        method: b"GET",
        scheme: b"http",
        authority: authority.as_bytes(),
        path: path.as_bytes(),
        headers,
    }
}

#[test]
fn paths_are_rewritten() {
    let exact = PathMatch::Exact { value: "/fw3".to_owned(), ignore_case: false };
    let separated = |value: &str| PathMatch::SeparatedPrefix { value: value.to_owned(), ignore_case: false };
    let ignoring_case = PathMatch::Prefix { value: "/fwb".to_owned(), ignore_case: true };
    let regex = || PathMatch::Regex(FullRegex::new("/fw5/.*").unwrap());
    let to = |value: &str| PathRewrite::Prefix(value.to_owned());
    let by = |pattern: &str, replacement: &str| PathRewrite::Regex(substitution(pattern, replacement));
    for (rewrite, matched, path, expected) in [
        (to("/n"), prefix("/fw1"), "/fw1/y?q", "/n/y?q"),
        (to("/n"), prefix("/fw1"), "/fw1", "/n"),
        (to("/n"), prefix("/fw1"), "/fw1y", "/ny"),
        (to("/"), prefix("/fw2/"), "/fw2/y", "/y"),
        (to("/n"), exact, "/fw3?q", "/n?q"),
        (to("/n"), separated("/fw4"), "/fw4/y?q", "/n/y?q"),
        (to("/n"), separated("/fw4"), "/fw4?q", "/n?q"),
        (to("/n"), regex(), "/fw5/y?q", "/n?q"),
        (by("^/fw6/([a-z]+)/", "/${1}-"), prefix("/fw6"), "/fw6/abc/d?q=/fw6/x/", "/abc-d?q=/fw6/x/"),
        (by("a", "bb"), prefix("/fwa"), "/fwa/aa?aa", "/fwbb/bbbb?aa"),
        (to("/N"), ignoring_case, "/FWB/x", "/N/x"),
        (to("/"), separated("/fwc"), "/fwc/", "//"),
        (to("/"), separated("/fwc"), "/fwc", "/"),
    ] {
        let mut out = b"left over".to_vec();
        assert!(rewrite_path(&rewrite, &matched, path.as_bytes(), &mut out));
        assert_eq!(text(&out), expected, "{path}");
    }
    let mut out = b"left over".to_vec();
    assert!(!rewrite_path(&PathRewrite::None, &prefix("/"), b"/a?b", &mut out));
    assert_eq!(out, b"/a?b");
}

#[test]
fn hosts_are_rewritten() {
    let mut headers = Headers::new();
    headers.push("x-h", "hh");
    headers.push("x-empty", "");
    let by_path = || HostRewrite::PathRegex(substitution("^/fw9/(.+)/.*$", "${1}"));
    for (rewrite, path, expected) in [
        (HostRewrite::None, "/", None),
        (HostRewrite::Literal("lit".to_owned()), "/", Some("lit")),
        (HostRewrite::Header("x-h".to_owned()), "/", Some("hh")),
        (HostRewrite::Header("x-none".to_owned()), "/", None),
        (HostRewrite::Header("x-empty".to_owned()), "/", None),
        (HostRewrite::Auto, "/", Some("endpoint.example")),
        (by_path(), "/fw9/ho.st/z?q", Some("ho.st")),
        (by_path(), "/fw9/", Some("/fw9/")),
    ] {
        let mut out = b"left over".to_vec();
        let rewritten = rewrite_host(&rewrite, &view("h", path, &headers), "endpoint.example", &mut out);
        assert_eq!(rewritten.then(|| text(&out)).as_deref(), expected, "{rewrite:?}");
        assert_eq!(out.is_empty(), !rewritten);
    }
    assert!(!rewrite_host(&HostRewrite::Auto, &view("h", "/", &headers), "", &mut Vec::new()));
}

#[test]
fn redirects() {
    let plain = || Redirect {
        scheme: None,
        host: None,
        port: None,
        path: PathRewrite::None,
        status: 301,
        strip_query: false,
    };
    let https = || Redirect { scheme: Some("https".to_owned()), ..plain() };
    let host = |host: &str| Redirect { host: Some(host.to_owned()), ..plain() };
    let full = |path: &str| Redirect { path: PathRewrite::Full(path.to_owned()), ..plain() };
    let regex = PathRewrite::Regex(substitution("^/rd/(.*)$", "/z/${1}"));
    let cases: Vec<(Redirect, [&str; 3])> = vec![
        (https(), ["https://h/rd/y?q=1", "https://h/rd/y?q=1", "https://[::1]/rd/y?q=1"]),
        (host("x.y"), ["http://x.y/rd/y?q=1"; 3]),
        (full("/new"), ["http://h/new?q=1", "http://h:80/new?q=1", "http://[::1]:80/new?q=1"]),
        (full("/new?z"), ["http://h/new?z", "http://h:80/new?z", "http://[::1]:80/new?z"]),
        (
            Redirect { path: PathRewrite::Prefix("/np".to_owned()), ..plain() },
            ["http://h/np/y?q=1", "http://h:80/np/y?q=1", "http://[::1]:80/np/y?q=1"],
        ),
        (Redirect { strip_query: true, ..host("x") }, ["http://x/rd/y"; 3]),
        (
            Redirect { port: Some(8443), ..plain() },
            ["http://h:8443/rd/y?q=1", "http://h:8443/rd/y?q=1", "http://[::1]:8443/rd/y?q=1"],
        ),
        (
            Redirect { scheme: Some("ftp".to_owned()), ..plain() },
            ["ftp://h/rd/y?q=1", "ftp://h/rd/y?q=1", "ftp://[::1]/rd/y?q=1"],
        ),
        (
            Redirect { strip_query: true, ..full("/new") },
            ["http://h/new", "http://h:80/new", "http://[::1]:80/new"],
        ),
        (
            Redirect { path: regex, ..plain() },
            ["http://h/z/y?q=1", "http://h:80/z/y?q=1", "http://[::1]:80/z/y?q=1"],
        ),
        (
            Redirect { port: Some(8443), ..https() },
            ["https://h:8443/rd/y?q=1", "https://h:8443/rd/y?q=1", "https://[::1]:8443/rd/y?q=1"],
        ),
        (
            Redirect { strip_query: true, ..full("/new?z") },
            ["http://h/new?z", "http://h:80/new?z", "http://[::1]:80/new?z"],
        ),
        (Redirect { port: Some(1), ..host("x.y:99") }, ["http://x.y:99:1/rd/y?q=1"; 3]),
    ];
    let headers = Headers::new();
    for (redirect, expected) in cases {
        for (authority, expected) in ["h", "h:80", "[::1]:80"].into_iter().zip(expected) {
            let mut out = b"left over".to_vec();
            redirect_location(&redirect, &prefix("/rd"), &view(authority, "/rd/y?q=1", &headers), &mut out);
            assert_eq!(text(&out), expected, "{redirect:?}");
        }
    }
    let mut out = Vec::new();
    tls_location(&view("h:80", "/a?b", &headers), &mut out);
    assert_eq!(out, b"https://h:80/a?b");
}

/// `%REQ(name)%` alone, on the headers being changed.
struct Requested;

impl Formatter for Requested {
    fn write(&self, part: &FormatPart, headers: &Headers, out: &mut Vec<u8>) {
        if let FormatPart::RequestHeader { name, .. } = part {
            out.extend_from_slice(headers.get(name).unwrap_or_default());
        }
    }
}

fn option(name: &str, value: &str, action: AppendAction) -> HeaderValueOption {
    // "a$name" is the text "a" and %REQ(name)%.
    let mut parts = value.split('$');
    let mut format = vec![FormatPart::Text(parts.next().unwrap_or_default().to_owned())];
    if let Some(name) = parts.next() {
        format.push(FormatPart::RequestHeader { name: name.to_owned(), alternative: None, max: None });
    }
    HeaderValueOption { name: name.to_owned(), value: format, action, keep_empty: name.contains("keep") }
}

fn mutated(
    config: HeaderMutations,
    route: HeaderMutations,
    wins: bool,
    incoming: &[(&str, &str)],
) -> Vec<String> {
    let matcher =
        RouteMatch { path: prefix("/"), headers: vec![], query: vec![], fraction_ppm: None, grpc: false };
    let action = Action::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]), format: None });
    let route = Route {
        name: String::new(),
        matcher,
        action,
        headers: route,
        filters: Vec::new(),
        metadata: None,
        request_buffer: None,
        tracing: None,
        stat_prefix: String::new(),
    };
    let vhost = VirtualHost {
        domains: vec!["*".to_owned()],
        routes: vec![Arc::new(route)],
        ..VirtualHost::default()
    };
    let table = Table::compile(&RouteConfiguration {
        virtual_hosts: vec![vhost],
        headers: config,
        most_specific_wins: wins,
        ..RouteConfiguration::default()
    });
    let mut headers = Headers::new();
    for (name, value) in incoming {
        headers.push(name, value);
    }
    let asked = Headers::new();
    let matched = table.route(&view("h", "/", &asked), 0).unwrap();
    let mutations = Mutations::new(&table, &matched, None);
    mutations.apply_to_request(&mut headers, &Requested, &mut b"left over".to_vec());
    headers.iter().map(|(name, value)| format!("{}={}", text(name), text(value))).collect()
}

fn adding(options: Vec<HeaderValueOption>) -> HeaderMutations {
    HeaderMutations { request_add: options, ..HeaderMutations::default() }
}

#[test]
fn one_level_of_header_changes() {
    use AppendAction::{AddIfAbsent, Append, OverwriteIfExists, OverwriteOrAdd};
    let mutations = || HeaderMutations {
        request_remove: vec!["x-rm".to_owned(), "x-rmadd".to_owned()],
        ..adding(vec![
            option("x-app", "r", Append),
            option("x-rmadd", "r", Append),
            option("x-abs", "r", AddIfAbsent),
            option("x-ow", "r", OverwriteOrAdd),
            option("x-owe", "r", OverwriteIfExists),
            option("x-empty", "", Append),
            option("x-keep", "", Append),
            option("x-req", "$x-in", Append),
            option("x-miss", "$x-nope", Append),
            option("x-mix", "a$x-nope", Append),
            option("x-twoabs", "1", AddIfAbsent),
            option("x-twoabs", "2", AddIfAbsent),
            option("x-addow", "1", Append),
            option("x-addow", "2", OverwriteOrAdd),
            option("x-self", "n-$x-self", OverwriteOrAdd),
        ])
    };
    let incoming = [
        ("x-rm", "1"),
        ("x-rmadd", "1"),
        ("x-abs", "1"),
        ("x-app", "1"),
        ("x-owe", "1"),
        ("x-ow", "1"),
        ("x-ow", "2"),
        ("x-in", "i"),
        ("x-self", "s"),
    ];
    assert_eq!(
        mutated(HeaderMutations::default(), mutations(), false, &incoming),
        [
            "x-abs=1",
            "x-app=1",
            "x-in=i",
            "x-ow=r",
            "x-owe=r",
            "x-addow=2",
            "x-self=n-s",
            "x-app=r",
            "x-rmadd=r",
            "x-keep=",
            "x-req=i",
            "x-mix=a",
            "x-twoabs=1",
            "x-twoabs=2",
            "x-addow=1",
        ]
    );
    assert_eq!(
        mutated(HeaderMutations::default(), mutations(), false, &[]),
        [
            "x-ow=r",
            "x-addow=2",
            "x-self=n-",
            "x-app=r",
            "x-rmadd=r",
            "x-abs=r",
            "x-keep=",
            "x-mix=a",
            "x-twoabs=1",
            "x-twoabs=2",
            "x-addow=1",
        ]
    );
}

#[test]
fn levels_of_header_changes() {
    let level = |name: &str| {
        adding(vec![
            option("x-ow", name, AppendAction::OverwriteOrAdd),
            option("x-app", name, AppendAction::Append),
        ])
    };
    assert_eq!(
        mutated(level("config"), level("route"), false, &[]),
        ["x-app=route", "x-ow=config", "x-app=config"]
    );
    assert_eq!(
        mutated(level("config"), level("route"), true, &[]),
        ["x-app=config", "x-ow=route", "x-app=route"]
    );
}

#[test]
fn weighted_clusters_and_responses_have_changes_too() {
    let cluster = WeightedCluster {
        name: "c".into(),
        weight: 1,
        subset: None,
        host_rewrite: None,
        headers: HeaderMutations {
            response_remove: vec!["server".to_owned()],
            response_add: vec![option("x-cluster", "c", AppendAction::Append)],
            ..HeaderMutations::default()
        },
        filters: Vec::new(),
    };
    let matcher =
        RouteMatch { path: prefix("/"), headers: vec![], query: vec![], fraction_ppm: None, grpc: false };
    let action = Action::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]), format: None });
    let route = Route {
        name: String::new(),
        matcher,
        action,
        headers: HeaderMutations::default(),
        filters: Vec::new(),
        metadata: None,
        request_buffer: None,
        tracing: None,
        stat_prefix: String::new(),
    };
    let vhost = VirtualHost {
        domains: vec!["*".to_owned()],
        routes: vec![Arc::new(route)],
        ..VirtualHost::default()
    };
    let table =
        Table::compile(&RouteConfiguration { virtual_hosts: vec![vhost], ..RouteConfiguration::default() });
    let asked = Headers::new();
    let matched = table.route(&view("h", "/", &asked), 0).unwrap();
    assert!(Mutations::new(&table, &matched, None).is_empty());
    let mutations = Mutations::new(&table, &matched, Some(&cluster));
    assert!(!mutations.is_empty());
    let mut headers = Headers::new();
    headers.push("server", "s");
    mutations.apply_to_request(&mut headers, &Requested, &mut Vec::new());
    assert_eq!(headers.len(), 1);
    mutations.apply_to_response(&mut headers, &Requested, &mut Vec::new());
    assert_eq!(headers.iter().collect::<Vec<_>>(), [(&b"x-cluster"[..], &b"c"[..])]);
}
