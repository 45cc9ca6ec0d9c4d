//! Network filters before the TCP proxy, and terminal ones beside it.

use std::io::Write as _;

use crate::{
    connect, echo, echoed, filter, from, lines, log_to, named, proxy, rest, said, support::culvert::cluster,
    up, with,
};

fn rbac(fields: &str) -> String {
    filter("rbac.v3.RBAC", &format!("stat_prefix: p, {fields}"))
}

/// A policy of that name for everybody whose principal is one of these.
fn policies(action: &str, name: &str, principals: &str) -> String {
    format!(
        "{{action: {action}, policies: {{\"{name}\": {{permissions: [{{any: true}}], principals: [{principals}]}}}}}}"
    )
}

const SECOND: &str = "direct_remote_ip: {address_prefix: 127.0.0.2, prefix_len: 32}";

#[test]
fn access_by_address() {
    let upstream = echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = log_to(&path, "%CONNECTION_TERMINATION_DETAILS% %RESPONSE_FLAGS%");
    let denied = policies("DENY", "not him", &format!("{{{SECOND}}}"));
    let filters = [rbac(&format!("rules: {denied}")), proxy(&log)];
    with(&filters, "", &up(&[upstream.address]), |culvert, port| {
        let _ = std::fs::write(&path, "");
        assert_eq!(echoed(&mut connect(port), "yes"), "yes");
        assert_eq!(echoed(&mut from([127, 0, 0, 2], port), "no"), "");
        let mut log = lines(culvert, &path, 2);
        log.sort();
        assert_eq!(log, ["- -", "rbac_access_denied_matched_policy[not_him] -"]);
        assert_eq!((culvert.stat("p.rbac.allowed"), culvert.stat("p.rbac.denied")), (1, 1));
        assert_eq!(culvert.stat("tcp.t.downstream_cx_total"), 2);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1, "who is denied reaches nobody");
    });
}

#[test]
fn shadows_only_count() {
    let upstream = echo();
    let shadow = policies("ALLOW", "a", &format!("{{{SECOND}}}"));
    let filters = [rbac(&format!("shadow_rules: {shadow}, shadow_rules_stat_prefix: dry_")), proxy("")];
    with(&filters, "", &up(&[upstream.address]), |culvert, port| {
        assert_eq!(echoed(&mut connect(port), "x"), "x");
        assert_eq!(echoed(&mut from([127, 0, 0, 2], port), "x"), "x");
        assert_eq!(culvert.stat("p.rbac.dry_.shadow_allowed"), 1);
        assert_eq!(culvert.stat("p.rbac.dry_.shadow_denied"), 1);
        assert_eq!((culvert.stat("p.rbac.allowed"), culvert.stat("p.rbac.denied")), (0, 0));
    });
}

#[test]
fn rules_without_policies_deny_and_may_take_their_time() {
    let upstream = named("x");
    let filters = [rbac("rules: {}, delay_deny: 0.3s"), proxy("")];
    with(&filters, "", &up(&[upstream.address]), |culvert, port| {
        let mut stream = connect(port);
        culvert.wait_until("the denial", |c| c.stat("p.rbac.denied") == 1);
        assert_eq!(culvert.stat("listener.l.downstream_cx_active"), 1, "it is kept open");
        assert_eq!(rest(&mut stream), (String::new(), true));
    });
}

#[test]
fn access_by_a_matcher() {
    let upstream = echo();
    let action = |action: &str| {
        format!(
            "action: {{name: x, typed_config: {{\"@type\": type.googleapis.com/envoy.config.rbac.v3.Action, name: \
             {action}, action: {action}}}}}"
        )
    };
    let matcher = format!(
        "matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: \
         {{\"@type\": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput}}}}, \
         custom_match: {{name: m, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, stat_prefix: s, cidr_ranges: \
         [{{address_prefix: 127.0.0.2, prefix_len: 32}}]}}}}}}}}, on_match: {{{}}}}}]}}, on_no_match: {{{}}}}}",
        action("DENY"),
        action("ALLOW")
    );
    with(&[rbac(&matcher), proxy("")], "", &up(&[upstream.address]), |culvert, port| {
        assert_eq!(echoed(&mut connect(port), "yes"), "yes");
        assert_eq!(echoed(&mut from([127, 0, 0, 2], port), "no"), "");
        assert_eq!((culvert.stat("p.rbac.allowed"), culvert.stat("p.rbac.denied")), (1, 1));
    });
}

/// Sets one object from a format.
fn set(key: &str, factory: &str, format: &str) -> String {
    filter(
        "set_filter_state.v3.Config",
        &format!(
            "on_new_connection: [{{object_key: {key}, factory_key: {factory}, format_string: {{text_format_source: \
             {{inline_string: \"{format}\"}}}}}}]"
        ),
    )
}

#[test]
fn filter_state_chooses_cluster_access_and_timeout() {
    let (first, other) = (named("first"), named("other"));
    let clusters = up(&[first.address]) + &cluster("127.0.0.2", &[other.address]);
    let ip = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = log_to(&path, "%FILTER_STATE(who:PLAIN)% %FILTER_STATE(who:PLAIN):3% %FILTER_STATE(none)%");
    let filters = [
        set("envoy.tcp_proxy.cluster", "\"\"", ip),
        set("who", "envoy.string", ip),
        rbac(&format!(
            "rules: {}",
            policies("DENY", "x", "{filter_state: {key: who, string_match: {exact: 127.0.0.3}}}")
        )),
        proxy(&log),
    ];
    with(&filters, "", &clusters, |culvert, port| {
        let _ = std::fs::write(&path, "");
        let said = |ip: [u8; 4]| rest(&mut from(ip, port)).0;
        assert_eq!(said([127, 0, 0, 2]), "other");
        assert_eq!(lines(culvert, &path, 1), ["127.0.0.2 127 -"]);
        assert_eq!(said([127, 0, 0, 3]), "");
        assert_eq!(culvert.stat("p.rbac.denied"), 1);
        assert_eq!(said([127, 0, 0, 1]), "", "there is no such cluster");
        assert_eq!(culvert.stat("tcp.t.downstream_cx_no_route"), 1);
    });
    let upstream = echo();
    let timeout = set("envoy.tcp_proxy.per_connection_idle_timeout_ms", "\"\"", "200");
    with(&[timeout, proxy("")], "", &up(&[upstream.address]), |culvert, port| {
        assert_eq!(said(port), "");
        assert_eq!(culvert.stat("tcp.t.idle_timeout"), 1);
    });
}

#[test]
fn the_server_name_is_the_cluster() {
    let (first, other) = (named("first"), named("other"));
    let clusters = up(&[first.address]) + &cluster("other.test", &[other.address]);
    let inspector = "listener_filters: [{name: t, typed_config: {\"@type\": \
                     type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]";
    with(&[filter("sni_cluster.v3.SniCluster", ""), proxy("")], inspector, &clusters, |_, port| {
        let mut stream = connect(port);
        stream.write_all(&client_hello("other.test")).unwrap();
        assert_eq!(rest(&mut stream).0, "other");
        let mut stream = connect(port);
        stream.write_all(b"plain").unwrap();
        assert_eq!(rest(&mut stream).0, "first");
    });
}

/// A client hello with nothing but a server name (RFC 8446 section 4.1.2, RFC 6066 section 3).
fn client_hello(name: &str) -> Vec<u8> {
    fn with_length(width: usize, bytes: &[u8]) -> Vec<u8> {
        [&bytes.len().to_be_bytes()[8 - width..], bytes].concat()
    }
    let entry = [&[0][..], &with_length(2, name.as_bytes())].concat();
    let extension = [&[0, 0][..], &with_length(2, &with_length(2, &entry))].concat();
    let head = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
    let body = [head, with_length(2, &extension)].concat();
    let handshake = [&[1][..], &with_length(3, &body)].concat();
    [&[22, 3, 1][..], &with_length(2, &handshake)].concat()
}

#[test]
fn only_so_many_at_once() {
    let upstream = echo();
    let limit = filter("connection_limit.v3.ConnectionLimit", "stat_prefix: c, max_connections: 2");
    with(&[limit, proxy("")], "", &up(&[upstream.address]), |culvert, port| {
        let mut open: Vec<_> = (0..2).map(|_| connect(port)).collect();
        open.iter_mut().for_each(|stream| assert_eq!(echoed(stream, "x"), "x"));
        // Over all workers: whichever gets it.
        for _ in 0..4 {
            assert_eq!(said(port), "");
        }
        assert_eq!(culvert.stat("connection_limit.c.limited_connections"), 4);
        assert_eq!(culvert.stat("connection_limit.c.active_connections"), 2);
        open.clear();
        culvert.wait_until("a place", |c| c.stat("connection_limit.c.active_connections") == 0);
        assert_eq!(echoed(&mut connect(port), "x"), "x");
    });
}

#[test]
fn only_so_many_in_a_time() {
    let upstream = echo();
    let limit = filter(
        "local_ratelimit.v3.LocalRateLimit",
        "stat_prefix: r, token_bucket: {max_tokens: 3, fill_interval: 3600s}",
    );
    with(&[limit, proxy("")], "", &up(&[upstream.address]), |culvert, port| {
        let answered = (0..8).filter(|_| echoed(&mut connect(port), "x") == "x").count();
        assert_eq!(answered, 3);
        assert_eq!(culvert.stat("local_rate_limit.r.rate_limited"), 5);
    });
    let off = filter(
        "local_ratelimit.v3.LocalRateLimit",
        "stat_prefix: r, token_bucket: {max_tokens: 1, fill_interval: 3600s}, runtime_enabled: {default_value: false}",
    );
    with(&[off, proxy("")], "", &up(&[upstream.address]), |_, port| {
        assert_eq!((0..3).filter(|_| echoed(&mut connect(port), "x") == "x").count(), 3);
    });
}

#[test]
fn answers_without_an_upstream() {
    let direct = filter("direct_response.v3.Config", "response: {inline_string: hello}");
    with(&[direct], "", &up(&[]), |_, port| {
        assert_eq!(rest(&mut connect(port)), ("hello".to_owned(), true));
        let mut stream = connect(port);
        stream.write_all(b"whatever").unwrap();
        assert_eq!(rest(&mut stream), ("hello".to_owned(), true));
    });
    with(&[filter("echo.v3.Echo", "")], "", &up(&[]), |_, port| {
        let mut stream = connect(port);
        assert_eq!(echoed(&mut stream, "again"), "again");
        stream.write_all(b"last").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rest(&mut stream), ("last".to_owned(), true));
    });
}
