//! Which host a connection goes to, and for how long.

use std::io::Write as _;

use crate::{connect, dead, echo, echoed, from, named, proxy, rest, said, up, with};

#[test]
fn other_hosts_are_tried() {
    let upstream = named("last");
    let clusters = up(&[dead(), dead(), upstream.address]);
    with(&[proxy("max_connect_attempts: 3")], "", &clusters, |culvert, port| {
        for _ in 0..6 {
            assert_eq!(said(port), "last");
        }
        assert_eq!(culvert.stat("cluster.up.upstream_cx_connect_attempts_exceeded"), 0);
    });
}

#[test]
fn only_so_many_hosts_are_tried() {
    with(&[proxy("max_connect_attempts: 2")], "", &up(&[dead(), dead(), dead()]), |culvert, port| {
        assert_eq!(rest(&mut connect(port)), (String::new(), false));
        assert_eq!(culvert.stat("cluster.up.upstream_cx_connect_fail"), 2);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_connect_attempts_exceeded"), 1);
    });
    with(&[proxy("")], "", &up(&[dead(), dead()]), |culvert, port| {
        assert_eq!(said(port), "");
        assert_eq!(culvert.stat("cluster.up.upstream_cx_connect_fail"), 1);
    });
}

#[test]
fn a_client_address_keeps_its_host() {
    let upstreams = ["a", "b", "c", "d"].map(named);
    let addresses = upstreams.each_ref().map(|upstream| upstream.address);
    let clusters = up(&addresses).replacen("type: STATIC", "type: STATIC\n  lb_policy: RING_HASH", 1);
    with(&[proxy("hash_policy: [{source_ip: {}}]")], "", &clusters, |_, port| {
        let mut chosen = std::collections::BTreeSet::new();
        for client in 1..=12 {
            let names: std::collections::BTreeSet<_> =
                (0..4).map(|_| rest(&mut from([127, 0, 0, client], port)).0).collect();
            assert_eq!(names.len(), 1, "one client, one host");
            chosen.extend(names);
        }
        assert!(chosen.len() > 1, "not all clients the same");
    });
}

#[test]
fn a_connection_ends_in_time() {
    let upstream = echo();
    let clusters = up(&[upstream.address]);
    with(&[proxy("max_downstream_connection_duration: 0.3s")], "", &clusters, |culvert, port| {
        let mut stream = connect(port);
        assert_eq!(echoed(&mut stream, "x"), "x");
        assert_eq!(rest(&mut stream), (String::new(), true));
        assert_eq!(culvert.stat("tcp.t.max_downstream_connection_duration"), 1);
        assert_eq!(culvert.stat("tcp.t.idle_timeout"), 0);
    });
    with(&[proxy("idle_timeout: 0.3s")], "", &clusters, |culvert, port| {
        let mut stream = connect(port);
        assert_eq!(echoed(&mut stream, "x"), "x");
        assert_eq!(rest(&mut stream), (String::new(), true));
        assert_eq!(culvert.stat("tcp.t.idle_timeout"), 1);
        assert_eq!(culvert.stat("tcp.t.max_downstream_connection_duration"), 0);
    });
}

#[test]
fn destinations_told_by_a_proxy_header_are_original_ones() {
    let upstream = echo();
    let clusters = "- name: up\n  type: ORIGINAL_DST\n  lb_policy: CLUSTER_PROVIDED\n";
    let header = "listener_filters: [{name: p, typed_config: {\"@type\": \
                  type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}]";
    with(&[proxy("")], header, clusters, |_, port| {
        let mut stream = connect(port);
        let line = format!("PROXY TCP4 1.2.3.4 127.0.0.1 11 {}\r\n", upstream.address.port());
        stream.write_all(line.as_bytes()).unwrap();
        assert_eq!(echoed(&mut stream, "there"), "there");
    });
}
