//! Filter chains, what they match, and listener filters.

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionPredicate, ConnectionThen, ListenerFilterKind,
    ListenerPredicate, SourceType, StringMatcher,
};

use crate::{bad, good, listener, seconds};

/// A listener with these fields, in which `CHAIN` stands for filters that do something.
fn text(fields: &str) -> String {
    let filters = "filters: [{name: t, typed_config: {'@type': EXT/filters.network.tcp_proxy.v3.TcpProxy, \
                   stat_prefix: s, cluster: a}}]";
    let fields = fields.replace("CHAIN", filters);
    format!("static_resources: {{listeners: [{{name: l, address: {{pipe: {{path: /x}}}}, {fields}}}]}}")
}

fn refused(fields: &str, field: &str, reason: &str) {
    let errors = bad(&text(fields));
    assert_eq!(errors, [format!("listener \"l\": {field}: {reason}")], "{fields}");
}

#[test]
fn what_a_chain_matches() {
    let loaded = good(&text(
        "filter_chains: [{name: one, CHAIN, filter_chain_match: {destination_port: 80, prefix_ranges: \
         [{address_prefix: 10.1.2.3, prefix_len: 8}, {address_prefix: '::1', prefix_len: 128}], server_names: \
         ['*.B.c', A.b], transport_protocol: tls, application_protocols: [h2], direct_source_prefix_ranges: \
         [{address_prefix: 192.168.0.0, prefix_len: 16}], source_type: EXTERNAL, source_prefix_ranges: \
         [{address_prefix: 0.0.0.0}], source_ports: [1, 2]}}, {}], default_filter_chain: {name: last, CHAIN}",
    ));
    let listener = listener(&loaded);
    let [one, empty] = listener.filter_chains.as_slice() else { panic!("two chains") };
    let matches = &one.matches;
    let shown = |ranges: &[_]| ranges.iter().map(ToString::to_string).collect::<Vec<String>>();
    assert_eq!((one.name.as_str(), matches.destination_port), ("one", Some(80)));
    assert_eq!(shown(&matches.destination_prefixes), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(matches.server_names, ["*.b.c", "a.b"]);
    assert_eq!(matches.transport_protocol, "tls");
    assert_eq!(matches.application_protocols, ["h2"]);
    assert_eq!(shown(&matches.direct_source_prefixes), ["192.168.0.0/16"]);
    assert_eq!(matches.source_type, SourceType::External);
    assert_eq!(shown(&matches.source_prefixes), ["0.0.0.0/0"]);
    assert_eq!(matches.source_ports, [1, 2]);
    assert!(empty.terminal.is_none(), "a chain without filters closes");
    assert_eq!(listener.default_filter_chain.as_ref().unwrap().name, "last");
}

#[test]
fn chains_that_match_the_same_are_refused() {
    let pair = |first: &str, second: &str| {
        format!(
            "filter_chains: [{{CHAIN, filter_chain_match: {{{first}}}}}, {{CHAIN, filter_chain_match: {{{second}}}}}]"
        )
    };
    let overlap = "matching rules overlap with those of filter_chains[0]";
    let same = "the same matching rules as filter_chains[0]";
    let at = "filter_chains[1].filter_chain_match";
    refused(&pair("", ""), at, same);
    refused(&pair("destination_port: 80", "destination_port: 80"), at, same);
    refused(&pair("server_names: [a.b, c.d]", "server_names: [C.D]"), at, overlap);
    refused(&pair("application_protocols: [h2, x]", "application_protocols: [h2]"), at, overlap);
    let range = |ip: &str| format!("prefix_ranges: [{{address_prefix: {ip}, prefix_len: 8}}]");
    refused(&pair(&range("10.0.0.1"), &range("10.0.0.2")), at, same);
    refused(
        &pair("source_ports: [5, 5]", "destination_port: 1"),
        "filter_chains[0].filter_chain_match",
        "the same matching rule twice",
    );
    let partial = "partial wildcards are not supported in \"server_names\"";
    for name in ["'*'", "a*.b"] {
        let names = format!("server_names: [{name}]");
        refused(&pair("", &names), "filter_chains[1].filter_chain_match.server_names[0]", partial);
    }
    // Names need not be different, nor need ranges that hold each other.
    good(&text(
        "filter_chains: [{name: a, CHAIN}, {name: a, CHAIN, filter_chain_match: {destination_port: 1}}]",
    ));
    let any = "prefix_ranges: [{address_prefix: 0.0.0.0, prefix_len: 0}]";
    good(&text(&pair(any, "")));
    refused("use_original_dst: true", "filter_chains", "no filter chains specified");
}

#[test]
fn a_fingerprint_tells_chains_and_the_rest_apart() {
    let of = |fields: &str| {
        let loaded = good(&text(fields));
        let listener = listener(&loaded);
        (listener.fingerprint, listener.filter_chains[0].fingerprint)
    };
    let base = of("filter_chains: [{name: a, CHAIN}]");
    assert_eq!(of("filter_chains: [{name: a, CHAIN, metadata: {filter_metadata: {x: {}}}}]"), base);
    let chain = of("filter_chains: [{name: b, CHAIN}]");
    assert!(chain.0 == base.0 && chain.1 != base.1);
    let rest = of("filter_chains: [{name: a, CHAIN}], tcp_backlog_size: 7");
    assert!(rest.0 != base.0 && rest.1 == base.1);
    assert_eq!(of("filter_chains: [{name: a, CHAIN}], default_filter_chain: {CHAIN}"), base);
}

#[test]
fn listener_filters() {
    let loaded = good(&text(
        "filter_chains: [{CHAIN}], listener_filters_timeout: 0s, continue_on_listener_filters_timeout: true, \
         use_original_dst: true, drain_type: MODIFY_ONLY, ignore_global_conn_limit: true, listener_filters: [
         {name: o, typed_config: {'@type': EXT/filters.listener.original_dst.v3.OriginalDst}},
         {name: p, typed_config: {'@type': EXT/filters.listener.proxy_protocol.v3.ProxyProtocol,
           allow_requests_without_proxy_protocol: true, disallowed_versions: [V1], stat_prefix: z}},
         {name: t, typed_config: {'@type': EXT/filters.listener.tls_inspector.v3.TlsInspector,
           max_client_hello_size: 1000, close_connection_on_client_hello_parsing_errors: true},
           filter_disabled: {or_match: {rules: [{not_match: {any_match: true}},
             {destination_port_range: {start: 80, end: 90}}]}}},
         {name: h, typed_config: {'@type': EXT/filters.listener.http_inspector.v3.HttpInspector}}]",
    ));
    let listener = listener(&loaded);
    assert!(listener.continue_on_timeout && listener.use_original_dst);
    assert!(listener.drain_modify_only && listener.ignore_global_limit);
    assert_eq!(listener.listener_filters_timeout, None);
    let kinds: Vec<_> = listener.listener_filters.iter().map(|filter| filter.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            ListenerFilterKind::OriginalDst,
            ListenerFilterKind::ProxyProtocol {
                optional: true,
                v1: false,
                v2: true,
                stat_prefix: "z".to_owned()
            },
            ListenerFilterKind::TlsInspector { max_hello_bytes: 1_000, close_on_error: true },
            ListenerFilterKind::HttpInspector,
        ]
    );
    assert_eq!(
        listener.listener_filters[2].disabled,
        Some(ListenerPredicate::Or(vec![
            ListenerPredicate::Not(Box::new(ListenerPredicate::Always)),
            ListenerPredicate::DestinationPort(80, 90),
        ]))
    );
    let plain = good(&text("filter_chains: [{CHAIN}]"));
    assert_eq!(self::listener(&plain).listener_filters_timeout, seconds(15));
    refused(
        "filter_chains: [{CHAIN}], listener_filters: [{name: p, typed_config: {'@type': \
         EXT/filters.listener.proxy_protocol.v3.ProxyProtocol, disallowed_versions: [V1, V2]}}]",
        "listener_filters[0].typed_config.disallowed_versions",
        "all versions of the PROXY protocol are disallowed",
    );
}

#[test]
fn matchers() {
    let input = |name: &str| {
        format!("{{name: i, typed_config: {{'@type': EXT/matching.common_inputs.network.v3.{name}}}}}")
    };
    let go = |name: &str| {
        format!(
            "action: {{name: x, typed_config: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {name}}}}}"
        )
    };
    let (a, b) = (go("a"), go("b"));
    let (port, sni) = (input("DestinationPortInput"), input("ServerNameInput"));
    let loaded = good(&text(&format!(
        "filter_chains: [{{name: a, CHAIN}}, {{name: b, CHAIN}}], filter_chain_matcher: {{matcher_tree: {{input: \
         {port}, exact_match_map: {{map: {{'80': {{matcher: {{matcher_list: {{matchers: [{{predicate: \
         {{not_matcher: {{single_predicate: {{input: {sni}, value_match: {{suffix: .X, ignore_case: true}}}}}}}}, \
         on_match: {{{a}, keep_matching: true}}}}]}}}}}}}}}}}}, on_no_match: {{{b}}}}}"
    )));
    let matcher = listener(&loaded).filter_chain_matcher.as_ref().unwrap();
    let ConnectionThen::Action(name) = &matcher.otherwise.as_ref().unwrap().then else { panic!("an action") };
    assert_eq!(name, "b");
    let ConnectionMatch::Exact(ConnectionInput::DestinationPort, map) = &matcher.kind else {
        panic!("{matcher:?}");
    };
    let ConnectionThen::Matcher(nested) = &map["80"].then else { panic!("nested") };
    let ConnectionMatch::List(list) = &nested.kind else { panic!("a list") };
    let (ConnectionPredicate::Not(not), outcome) = &list[0] else { panic!("not") };
    assert!(outcome.keep_matching);
    assert!(matches!(
        &**not,
        ConnectionPredicate::Input(ConnectionInput::ServerName, StringMatcher::Suffix { value, ignore_case: true })
            if value == ".x"
    ));
    let matcher = format!("filter_chain_matcher: {{on_no_match: {{{a}}}}}");
    refused(
        &format!("filter_chains: [{{CHAIN}}], {matcher}"),
        "filter_chains[0].name",
        "is required when using a listener matcher",
    );
    refused(
        &format!("filter_chains: [{{name: a, CHAIN}}, {{name: a, CHAIN}}], {matcher}"),
        "filter_chains[1].name",
        "duplicated with value \"a\"",
    );
    // What the chains themselves match does not count then.
    good(&text(&format!("filter_chains: [{{name: a, CHAIN}}, {{name: b, CHAIN}}], {matcher}")));
}
