//! Route tables against a linear search, and against what Envoy 1.40 did with the same table.

use std::sync::Arc;

use culvert_model::{
    Action, DirectResponse, FullRegex, HeaderMatcher, HeaderMutations, HeaderRule, PathMatch, RequireTls,
    Route, RouteConfiguration, RouteMatch, StringMatcher, VirtualHost,
};
use culvert_proto::{
    Headers,
    route::{NoRoute, RequestView, Table},
};

fn route(name: impl Into<String>, path: PathMatch) -> Route {
    Route {
        name: name.into(),
        matcher: RouteMatch { path, headers: Vec::new(), query: Vec::new(), fraction_ppm: None, grpc: false },
        action: Action::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]), format: None }),
        headers: HeaderMutations::default(),
        filters: Vec::new(),
        metadata: None,
        request_buffer: None,
        tracing: None,
        stat_prefix: String::new(),
    }
}

fn exact(value: &str) -> PathMatch {
    PathMatch::Exact { value: value.to_owned(), ignore_case: false }
}

fn prefix(value: &str) -> PathMatch {
    PathMatch::Prefix { value: value.to_owned(), ignore_case: false }
}

fn separated(value: &str) -> PathMatch {
    PathMatch::SeparatedPrefix { value: value.to_owned(), ignore_case: false }
}

fn regex(source: &str) -> PathMatch {
    PathMatch::Regex(FullRegex::new(source).unwrap())
}

fn vhost(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
        routes: routes.into_iter().map(Arc::new).collect(),
        ..VirtualHost::default()
    }
}

fn table(vhosts: Vec<VirtualHost>) -> Table {
    Table::compile(&RouteConfiguration { virtual_hosts: vhosts, ..RouteConfiguration::default() })
}

fn ask(
    table: &Table,
    method: &str,
    authority: &str,
    path: &str,
    headers: &Headers,
    random: u64,
) -> Result<String, NoRoute> {
    let request = RequestView {
        method: method.as_bytes(),
        scheme: b"http",
        authority: authority.as_bytes(),
        path: path.as_bytes(),
        headers,
    };
    table.route(&request, random).map(|matched| matched.route.name.clone())
}

fn get(table: &Table, authority: &str, path: &str) -> Result<String, NoRoute> {
    ask(table, "GET", authority, path, &Headers::new(), 0)
}

/// Measured on Envoy 1.40 with these domains.
#[test]
fn virtual_hosts() {
    let host = |name: &str, domains: &[&str]| vhost(name, domains, vec![route(name, prefix("/"))]);
    let vhosts = || {
        vec![
            host("ex", &["a.b.c"]),
            host("suf", &["*.b.c"]),
            host("suf2", &["*.c"]),
            host("suf3", &["*-x.c"]),
            host("pre", &["a.b.*"]),
            host("pre2", &["a.*"]),
            host("port", &["p.q:80"]),
            host("sufport", &["*.q:80"]),
            host("v6", &["[::1]"]),
            host("v6p", &["[::2]:80"]),
            host("star", &["*"]),
        ]
    };
    let with_port = table(vhosts());
    let without = Table::compile(&RouteConfiguration {
        virtual_hosts: vhosts(),
        ignore_port: true,
        ..RouteConfiguration::default()
    });
    for (authority, expected, ignoring_port) in [
        ("a.b.c", "ex", "ex"),
        ("A.B.C", "ex", "ex"),
        ("x.b.c", "suf", "suf"),
        (".b.c", "suf2", "suf2"),
        ("b.c", "suf2", "suf2"),
        ("x.y.b.c", "suf", "suf"),
        ("y-x.c", "suf3", "suf3"),
        ("-x.c", "suf2", "suf2"),
        ("a.b.d", "pre", "pre"),
        ("a.b.", "pre2", "pre2"),
        ("a.x", "pre2", "pre2"),
        ("a.b.c:80", "pre", "ex"),
        ("x.b.c:80", "star", "suf"),
        ("p.q", "star", "star"),
        ("p.q:80", "port", "star"),
        ("p.q:81", "star", "star"),
        ("z.q:80", "sufport", "star"),
        ("[::1]", "v6", "v6"),
        ("[::1]:80", "star", "v6"),
        ("[::2]:80", "v6p", "star"),
        ("a.b.c.", "pre", "pre"),
        ("zz", "star", "star"),
        ("", "star", "star"),
    ] {
        assert_eq!(get(&with_port, authority, "/").as_deref(), Ok(expected), "{authority}");
        assert_eq!(
            get(&without, authority, "/").as_deref(),
            Ok(ignoring_port),
            "{authority}, ignoring the port"
        );
    }
    let no_star = table(vec![host("ex", &["a.b.c"])]);
    assert_eq!(get(&no_star, "x", "/"), Err(NoRoute::VirtualHost));
    assert_eq!(get(&no_star, &"A".repeat(1_000), "/"), Err(NoRoute::VirtualHost));
    assert_eq!(get(&table(vec![]), "x", "/"), Err(NoRoute::VirtualHost));
}

/// Measured on Envoy 1.40.
#[test]
fn paths() {
    let ignoring_case = |path: PathMatch| match path {
        PathMatch::Prefix { value, .. } => PathMatch::Prefix { value, ignore_case: true },
        PathMatch::Exact { value, .. } => PathMatch::Exact { value, ignore_case: true },
        PathMatch::SeparatedPrefix { value, .. } => PathMatch::SeparatedPrefix { value, ignore_case: true },
        other => other,
    };
    let table = table(vec![vhost(
        "v",
        &["*"],
        vec![
            route("sep", separated("/sep")),
            route("pre", prefix("/pre")),
            route("exact", exact("/exact")),
            route("cipre", ignoring_case(prefix("/cipre"))),
            route("ciexact", ignoring_case(exact("/ciexact"))),
            route("cisep", ignoring_case(separated("/cisep"))),
            route("rx", regex("/rx/[0-9]+")),
        ],
    )]);
    for (path, expected) in [
        ("/sep", Some("sep")),
        ("/sep/", Some("sep")),
        ("/sep/x", Some("sep")),
        ("/sepx", None),
        ("/sep?x", Some("sep")),
        ("/SEP", None),
        ("/pre", Some("pre")),
        ("/prex", Some("pre")),
        ("/pr", None),
        ("/exact", Some("exact")),
        ("/exact?x", Some("exact")),
        ("/exact/", None),
        ("/CIPREx", Some("cipre")),
        ("/ciexact", Some("ciexact")),
        ("/CISEP/x", Some("cisep")),
        ("/cisepx", None),
        ("/rx/12", Some("rx")),
        ("/rx/12?x", Some("rx")),
        ("/rx/12a", None),
        ("/rx/", None),
        ("*", None),
    ] {
        assert_eq!(get(&table, "h", path).ok().as_deref(), expected, "{path}");
    }
}

#[test]
fn the_first_match_wins_across_kinds() {
    let kinds =
        || vec![route("regex", regex("/a.*")), route("exact", exact("/ab")), route("prefix", prefix("/a"))];
    for rotation in 0..3 {
        let mut routes = kinds();
        routes.rotate_left(rotation);
        let first = routes[0].name.clone();
        assert_eq!(get(&table(vec![vhost("v", &["*"], routes)]), "h", "/ab"), Ok(first));
    }
}

#[test]
fn connect_matches_connect_only() {
    let table =
        table(vec![vhost("v", &["*"], vec![route("any", prefix("")), route("connect", PathMatch::Connect)])]);
    assert_eq!(ask(&table, "CONNECT", "h:80", "", &Headers::new(), 0).as_deref(), Ok("connect"));
    assert_eq!(get(&table, "h", "/").as_deref(), Ok("any"));
}

#[test]
fn other_conditions_let_the_next_route_try() {
    let mut with_header = route("header", prefix("/"));
    with_header.matcher.headers.push(HeaderMatcher {
        name: "x".to_owned(),
        rule: HeaderRule::String(StringMatcher::Exact { value: "1".to_owned(), ignore_case: false }),
        invert: false,
        missing_is_empty: false,
    });
    let mut half = route("half", prefix("/"));
    half.matcher.fraction_ppm = Some(500_000);
    let table = table(vec![vhost("v", &["*"], vec![with_header, half, route("rest", prefix("/"))])]);
    let mut headers = Headers::new();
    assert_eq!(ask(&table, "GET", "h", "/", &headers, 499_999).as_deref(), Ok("half"));
    assert_eq!(ask(&table, "GET", "h", "/", &headers, 500_000).as_deref(), Ok("rest"));
    assert_eq!(ask(&table, "GET", "h", "/", &headers, 1_499_999).as_deref(), Ok("half"));
    headers.push("x", "1");
    assert_eq!(ask(&table, "GET", "h", "/", &headers, 0).as_deref(), Ok("header"));
}

/// Measured on Envoy 1.40.
#[test]
fn tls_can_be_required() {
    let host = |name: &str, require_tls| VirtualHost {
        require_tls,
        ..vhost(name, &[name], vec![route(name, prefix("/"))])
    };
    let table = table(vec![host("all", RequireTls::All), host("external", RequireTls::ExternalOnly)]);
    let ask = |authority: &str, scheme: &str, internal: bool| {
        let mut headers = Headers::new();
        if internal {
            headers.push("x-envoy-internal", "true");
        }
        let request = RequestView {
            method: b"GET",
            scheme: scheme.as_bytes(),
            authority: authority.as_bytes(),
            path: b"/",
            headers: &headers,
        };
        table.route(&request, 0).map(|_| ()).err()
    };
    assert_eq!(ask("all", "http", true), Some(NoRoute::TlsRequired));
    assert_eq!(ask("all", "https", false), None);
    assert_eq!(ask("external", "http", false), Some(NoRoute::TlsRequired));
    assert_eq!(ask("external", "http", true), None);
    assert_eq!(ask("external", "https", false), None);
}

#[test]
fn the_last_of_many_routes_is_found() {
    const COUNT: usize = 5_000;
    type Kind = fn(usize) -> PathMatch;
    let kinds: [(&str, Kind); 4] = [
        ("prefix", |index| prefix(&format!("/service-{index:04}/"))),
        ("exact", |index| exact(&format!("/service-{index:04}/x"))),
        ("separated", |index| separated(&format!("/service-{index:04}"))),
        ("regex", |index| regex(&format!("/service-{index:04}/[a-z]+"))),
    ];
    for (kind, path) in kinds {
        let count = if kind == "regex" { 200 } else { COUNT };
        let routes = (0..count).map(|index| route(index.to_string(), path(index))).collect();
        let table = table(vec![vhost("v", &["*"], routes)]);
        for index in [0, count / 2, count - 1] {
            assert_eq!(get(&table, "h", &format!("/service-{index:04}/x")), Ok(index.to_string()), "{kind}");
        }
        assert_eq!(get(&table, "h", "/service-x/"), Err(NoRoute::Route));
    }
}
