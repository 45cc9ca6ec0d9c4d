//! The choice of the filter chain.

use crate::support::culvert::{Culvert, free_port};
use crate::{answered, chain, connect, filter, hello, listener, records, who};

#[test]
fn by_server_name_and_protocol() {
    let chains = [
        chain("a", "filter_chain_match: {server_names: [a.test, '*.w.test'], transport_protocol: tls}"),
        chain("b", "filter_chain_match: {application_protocols: [h2], transport_protocol: tls}"),
    ];
    let fields = format!(
        "filter_chains: [{}], default_filter_chain: {}, listener_filters: [{}]",
        chains.join(", "),
        chain("c", ""),
        filter("tls_inspector", "")
    );
    crate::with_listener(&fields, |culvert, port| {
        let tls =
            |name: &str, protocols: &[&str]| answered(port, &records(&hello(name, protocols, 0), 4_096));
        assert_eq!(tls("a.test", &[]), "a");
        assert_eq!(tls("A.Test", &["h2"]), "a");
        assert_eq!(tls("x.y.w.test", &[]), "a");
        assert_eq!(tls("w.test", &[]), "c");
        assert_eq!(tls("other", &["h2"]), "b");
        // A name that was found is not taken back for the protocol, and nothing else is looked for.
        assert_eq!(tls("", &["http/1.1"]), "c");
        assert_eq!(answered(port, b"plain"), "c");
        assert_eq!(culvert.stat("tls_inspector.tls_found"), 6);
        assert_eq!(culvert.stat("tls_inspector.sni_found"), 5);
        assert_eq!(culvert.stat("tls_inspector.alpn_found"), 3);
        assert_eq!(culvert.stat("tls_inspector.tls_not_found"), 1);
        assert_eq!(culvert.stat("listener.l.downstream_cx_total"), 7);
    });
}

#[test]
fn no_chain_closes() {
    let fields = format!(
        "filter_chains: [{}, {{filter_chain_match: {{destination_port: 1}}}}]",
        chain("a", "filter_chain_match: {source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}")
    );
    crate::with_listener(&fields, |culvert, port| {
        assert_eq!(answered(port, b""), "");
        assert_eq!(culvert.stat("listener.l.no_filter_chain_match"), 1);
        assert_eq!(culvert.stat("listener.l.downstream_cx_total"), 0);
    });
    // A chain without filters takes the connection, and closes it.
    crate::with_listener("filter_chains: [{name: nothing}]", |culvert, port| {
        assert_eq!(answered(port, b""), "");
        assert_eq!(culvert.stat("listener.l.no_filter_chain_match"), 0);
        assert_eq!(culvert.stat("listener.l.downstream_cx_destroy"), 1);
    });
}

#[test]
fn by_a_matcher() {
    let go = |name: &str| {
        format!(
            "action: {{name: x, typed_config: {{\"@type\": type.googleapis.com/google.protobuf.StringValue, value: {name}}}}}"
        )
    };
    let input = |name: &str| {
        format!(
            "input: {{name: i, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{name}}}}}"
        )
    };
    let fields = format!(
        "filter_chains: [{}, {}], default_filter_chain: {}, listener_filters: [{}], filter_chain_matcher: \
         {{matcher_tree: {{{}, exact_match_map: {{map: {{one.test: {{{}}}, two.test: {{{}}}, nobody.test: {{{}}}}}}}}}}}",
        chain("a", "name: first"),
        chain("b", "name: second"),
        chain("c", ""),
        filter("tls_inspector", ""),
        input("ServerNameInput"),
        go("first"),
        go("second"),
        go("missing"),
    );
    crate::with_listener(&fields, |_, port| {
        let tls = |name: &str| answered(port, &records(&hello(name, &[], 0), 4_096));
        assert_eq!(tls("one.test"), "a");
        assert_eq!(tls("two.test"), "b");
        assert_eq!(tls("three.test"), "c", "no match is the default chain's");
        assert_eq!(tls("nobody.test"), "", "a name that no chain has is nobody's");
    });
}

#[test]
fn a_unix_socket() {
    let three = crate::Three::start();
    for driver in crate::support::DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.sock");
        let fields = format!(
            "filter_chains: [{}]",
            chain("a", "filter_chain_match: {source_type: SAME_IP_OR_LOOPBACK}")
        );
        let port = free_port();
        let text = crate::bootstrap(&[listener("l", port, &fields)], &three.clusters()).replace(
            &format!("socket_address: {{address: 127.0.0.1, port_value: {port}}}"),
            &format!("pipe: {{path: {}}}", path.display()),
        );
        let _culvert = Culvert::start(driver, 0, &text);
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        let mut name = [0];
        std::io::Read::read_exact(&mut stream, &mut name).unwrap();
        assert_eq!(&name, b"a");
    }
}

#[test]
fn a_server_that_speaks_first_is_not_delayed() {
    // The inspector would wait for ever, but no chain for this destination asks about the first bytes.
    let fields = format!(
        "filter_chains: [{}, {}], listener_filters: [{}, {}], listener_filters_timeout: 0s",
        chain("a", "filter_chain_match: {destination_port: 1, server_names: [a.test]}"),
        chain("b", ""),
        filter("tls_inspector", ""),
        filter("http_inspector", "")
    );
    crate::with_listener(&fields, |_, port| assert_eq!(who(&mut connect(port)), "b"));
}
