//! TCP proxies behind TLS: who may connect, what upstreams are called, and ends without close_notify.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    sync::{Arc, mpsc},
};

use crate::{
    VERSIONS, downstream, own, peer,
    pki::{Ca, Leaf},
    support::{
        DRIVERS,
        culvert::{Culvert, cluster, free_port, indent},
        upstream::Upstream,
    },
    trusting, upstream,
};

/// A listener with this transport socket and these network filters before a TCP proxy to `up`.
fn with_filters(port: u16, socket: &str, filters: &str, clusters: &str) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  listeners:\n  \
         - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n    \
         - {}      filters: [{filters} {{name: t, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: \
         up}}}}]\n  clusters:\n{}",
        indent(socket, 6).trim_start(),
        indent(clusters, 2)
    )
}

#[test]
fn access_by_certificate() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let friend = ca.issue(&Leaf { uri: &["spiffe://td/ns/friend"], serial: 1, ..Leaf::default() });
    let other = ca.issue(&Leaf { uri: &["spiffe://td/ns/other"], serial: 2, ..Leaf::default() });
    let backend = Upstream::start(|mut stream| {
        let _ = stream.write_all(b"welcome");
    });
    let rbac = "{name: r, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, \
                stat_prefix: p, rules: {action: ALLOW, policies: {friends: {permissions: [{any: true}], principals: \
                [{authenticated: {principal_name: {exact: 'spiffe://td/ns/friend'}}}]}}}}},";
    for driver in DRIVERS {
        let port = free_port();
        let socket = downstream(&(own(&server) + &trusting(&ca, "")), "require_client_certificate: true");
        let text = with_filters(port, &socket, rbac, &cluster("up", &[backend.address]));
        let culvert = Culvert::start(driver, 0, &text);
        for version in VERSIONS {
            let said = |identity| {
                let config = Arc::new(peer::client_config(&ca, Some(identity), &[version]));
                let mut stream = peer::connect(&config, port, "a.test").expect("a connection");
                let mut text = String::new();
                let _ = stream.read_to_string(&mut text);
                text
            };
            assert_eq!((said(&friend).as_str(), said(&other).as_str()), ("welcome", ""));
        }
        assert_eq!((culvert.stat("p.rbac.allowed"), culvert.stat("p.rbac.denied")), (2, 2));
    }
}

#[test]
fn filter_state_names_the_upstream() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["configured.test", "chosen.test"], ..Leaf::default() });
    let backend = peer::server(&server, None, &[], |mut stream| {
        let name = stream.conn.server_name().unwrap_or("-").to_owned();
        let _ = stream.write_all(name.as_bytes()).and_then(|()| stream.flush());
        stream.conn.send_close_notify();
        let _ = stream.conn.complete_io(&mut stream.sock);
    });
    let set = "{name: s, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config, on_new_connection: \
               [{object_key: envoy.network.upstream_server_name, format_string: {text_format_source: {inline_string: \
               chosen.test}}}]}},";
    for driver in DRIVERS {
        for (filters, expected) in [("", "configured.test"), (set, "chosen.test")] {
            let port = free_port();
            let clusters = cluster("up", &[backend.address])
                + &indent(&upstream(&trusting(&ca, ""), "sni: configured.test"), 2);
            let _culvert = Culvert::start(driver, 0, &with_filters(port, "name: c\n", filters, &clusters));
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an orderly end");
            assert_eq!(text, expected);
        }
    }
}

/// What may be cut short arrives as far as it came, and its end is no orderly one.
#[test]
fn an_end_without_close_notify_is_passed_on_behind_the_bytes() {
    const SOME: usize = 200_000;
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let (sender, received) = mpsc::channel();
    let backend = Upstream::start(move |mut stream| {
        let mut bytes = Vec::new();
        let orderly = stream.read_to_end(&mut bytes).is_ok();
        let _ = sender.send((bytes.len(), orderly));
    });
    for driver in DRIVERS {
        let port = free_port();
        let text = with_filters(port, &downstream(&own(&server), ""), "", &cluster("up", &[backend.address]));
        let _culvert = Culvert::start(driver, 0, &text);
        for version in VERSIONS {
            let config = Arc::new(peer::client_config(&ca, None, &[version]));
            let mut stream = peer::connect(&config, port, "a.test").expect("a connection");
            stream.write_all(&vec![b'x'; SOME]).and_then(|()| stream.flush()).expect("sent");
            stream.sock.shutdown(Shutdown::Write).expect("shut down");
            assert_eq!(received.recv().expect("what was received"), (SOME, false));
        }
    }
}
