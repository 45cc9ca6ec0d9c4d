//! Listener filters.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use crate::{answered, chain, connect, filter, hello, records, who};

fn by_name(timeout: &str) -> String {
    format!(
        "filter_chains: [{}], default_filter_chain: {}, listener_filters: [{}], {timeout}",
        chain("a", "filter_chain_match: {server_names: [a.test]}"),
        chain("c", ""),
        filter("tls_inspector", "")
    )
}

#[test]
fn what_was_received_is_handed_on() {
    crate::with_listener(&by_name(""), |_, port| {
        let bytes = records(&hello("a.test", &[], 3_000), 100);
        let mut stream = connect(port);
        // In many segments, of which no one holds a whole record.
        for piece in bytes.chunks(53) {
            stream.write_all(piece).unwrap();
            thread::sleep(Duration::from_micros(500));
        }
        assert_eq!(who(&mut stream), "a");
        let mut echo = vec![0; bytes.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, bytes);
    });
}

#[test]
fn a_hello_without_end_is_not_waited_for() {
    crate::with_listener(&by_name("listener_filters_timeout: 0s"), |culvert, port| {
        assert_eq!(answered(port, &records(&hello("a.test", &[], 30_000), 16_000)), "c");
        assert_eq!(culvert.stat("tls_inspector.client_hello_too_large"), 1);
    });
}

#[test]
fn a_silent_client_is_closed_or_goes_on() {
    crate::with_listener(&by_name("listener_filters_timeout: 0.2s"), |culvert, port| {
        assert_eq!(who(&mut connect(port)), "");
        assert_eq!(culvert.stat("listener.l.downstream_pre_cx_timeout"), 1);
        assert_eq!(culvert.stat("listener.l.downstream_pre_cx_active"), 0);
    });
    let goes_on = by_name("listener_filters_timeout: 0.2s, continue_on_listener_filters_timeout: true");
    crate::with_listener(&goes_on, |culvert, port| {
        assert_eq!(who(&mut connect(port)), "c");
        assert_eq!(culvert.stat("listener.l.downstream_pre_cx_timeout"), 1);
    });
    // Not TLS from the first byte on: nothing to wait for.
    crate::with_listener(&by_name("listener_filters_timeout: 0s"), |_, port| {
        assert_eq!(answered(port, b"S"), "c");
    });
}

#[test]
fn an_inspector_may_be_disabled_for_a_destination() {
    let fields = |rule: &str| {
        by_name("").replace("typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener", &format!(
            "filter_disabled: {rule}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener"
        ))
    };
    let bytes = records(&hello("a.test", &[], 0), 4_096);
    crate::with_listener(&fields("{destination_port_range: {start: 1, end: 65536}}"), |_, port| {
        assert_eq!(answered(port, &bytes), "c");
    });
    crate::with_listener(&fields("{not_match: {any_match: true}}"), |_, port| {
        assert_eq!(answered(port, &bytes), "a");
    });
}

#[test]
fn http_is_told_apart() {
    let fields = format!(
        "filter_chains: [{}, {}], default_filter_chain: {}, listener_filters: [{}]",
        chain("a", "filter_chain_match: {application_protocols: [http/1.1, http/1.0]}"),
        chain("b", "filter_chain_match: {application_protocols: [h2c]}"),
        chain("c", ""),
        filter("http_inspector", "")
    );
    crate::with_listener(&fields, |culvert, port| {
        assert_eq!(answered(port, b"GET / HTTP/1.1\r\n"), "a");
        assert_eq!(answered(port, b"POST /x HTTP/1.0\r\n\r\n"), "a");
        assert_eq!(answered(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "b");
        assert_eq!(answered(port, b"\x00\x01"), "c");
        assert_eq!(culvert.stat("http_inspector.http11_found"), 1);
        assert_eq!(culvert.stat("http_inspector.http10_found"), 1);
        assert_eq!(culvert.stat("http_inspector.http2_found"), 1);
        assert_eq!(culvert.stat("http_inspector.http_not_found"), 1);
    });
}

#[test]
fn a_proxy_header_tells_both_addresses() {
    let matches = "filter_chain_match: {destination_port: 22, prefix_ranges: [{address_prefix: 5.6.7.8, prefix_len: \
                   32}], source_prefix_ranges: [{address_prefix: 1.2.3.0, prefix_len: 24}], source_ports: [11], \
                   direct_source_prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}], source_type: EXTERNAL}";
    let fields = |options: &str| {
        format!(
            "filter_chains: [{}], default_filter_chain: {}, listener_filters: [{}]",
            chain("a", matches),
            chain("c", ""),
            filter("proxy_protocol", options)
        )
    };
    let v1 = b"PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\nrest".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\x01\x02\x03\x04\x05\x06\x07\x08\0\x0b\0\x16".to_vec();
    v2.extend(b"\x04\0\x01xrest");
    crate::with_listener(&fields(""), |culvert, port| {
        for header in [&v1, &v2] {
            let mut stream = connect(port);
            for byte in header {
                stream.write_all(&[*byte]).unwrap();
            }
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"arest", "the header is consumed");
        }
        assert_eq!(answered(port, b"PROXY UNKNOWN\r\n"), "c");
        assert_eq!(answered(port, b"GET / HTTP/1.1\r\n"), "");
        assert_eq!(answered(port, b"PROXY TCP4 1.2.3.4\r\n"), "");
        assert_eq!(culvert.stat("proxy_proto.versions.v1.found"), 2);
        assert_eq!(culvert.stat("proxy_proto.versions.v2.found"), 1);
        assert_eq!(culvert.stat("proxy_proto.versions.v1.error"), 1);
        assert_eq!(culvert.stat("proxy_proto.not_found_disallowed"), 1);
        assert_eq!(culvert.stat("downstream_cx_proxy_proto_error"), 2);
    });
    crate::with_listener(&fields("disallowed_versions: [V1], stat_prefix: z"), |culvert, port| {
        assert_eq!(answered(port, &v2), "a");
        assert_eq!(answered(port, &v1), "");
        assert_eq!(culvert.stat("proxy_proto.z.versions.v1.disallowed"), 1);
    });
    crate::with_listener(&fields("allow_requests_without_proxy_protocol: true"), |culvert, port| {
        assert_eq!(answered(port, &v1), "a");
        assert_eq!(answered(port, b"GET / HTTP/1.1\r\n"), "c");
        assert_eq!(culvert.stat("proxy_proto.not_found_allowed"), 1);
    });
}
