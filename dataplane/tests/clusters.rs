//! Clusters over real sockets, on both drivers: where connections are made from and to.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, PATIENCE, cluster, free_port},
    dns::NameServer,
    upstream::{Upstream, ok, read_request, read_until},
};

/// A TCP proxy on `port` to the cluster `up`.
fn bootstrap(admin: u16, port: u16, clusters: &str) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: up
  clusters:
{}"#,
        support::culvert::indent(clusters, 2)
    )
}

fn on_each(clusters: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, clusters));
        test(&culvert, port);
    }
}

/// A server that says who its client is and closes.
fn who() -> Upstream {
    Upstream::start(|mut stream| {
        let text = stream.peer_addr().expect("a peer").ip().to_string();
        let _ = stream.write_all(text.as_bytes());
    })
}

/// A server that says its name and closes.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
    })
}

/// All that a connection to `port` says.
fn said(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut text = String::new();
    // A reset says nothing.
    let _ = stream.read_to_string(&mut text);
    text
}

/// An address that nobody listens at.
fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address")
}

#[test]
fn connections_are_made_from_the_bound_address() {
    let upstream = who();
    let bind = "  upstream_bind_config: {source_address: {address: 127.0.0.77, port_value: 0}}\n";
    on_each(&(cluster("up", &[upstream.address]) + bind), |_, port| assert_eq!(said(port), "127.0.0.77"));
}

#[test]
fn an_additional_address_is_tried_when_the_first_fails() {
    let upstream = named("second");
    let clusters = cluster("up", &[dead()]).replace(
        "}}}",
        &format!(
            "}}}}, additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}]}}",
            upstream.address.port()
        ),
    );
    on_each(&clusters, |_, port| assert_eq!(said(port), "second"));
}

#[test]
fn an_aggregate_falls_to_the_next_cluster_without_healthy_endpoints() {
    let (first, second) = (named("first"), named("second"));
    let aggregate = "- name: up\n  lb_policy: CLUSTER_PROVIDED\n  cluster_type:\n    name: aggregate\n    typed_config:\n      \
         \"@type\": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig\n      clusters: [a, b]\n";
    let both = format!("{aggregate}{}{}", cluster("a", &[first.address]), cluster("b", &[second.address]));
    on_each(&both, |_, port| assert_eq!(said(port), "first"));
    let down = both.replacen("- endpoint:", "- health_status: UNHEALTHY\n        endpoint:", 1);
    on_each(&down, |_, port| assert_eq!(said(port), "second"));
}

#[test]
fn without_panic_unhealthy_endpoints_get_nothing() {
    let upstream = named("x");
    let down = cluster("up", &[upstream.address]).replacen(
        "- endpoint:",
        "- health_status: UNHEALTHY\n        endpoint:",
        1,
    );
    on_each(&down, |_, port| assert_eq!(said(port), "x"));
    let off = format!("{down}  common_lb_config: {{healthy_panic_threshold: {{}}}}\n");
    on_each(&off, |culvert, port| {
        assert_eq!(said(port), "");
        assert_eq!(culvert.stat("cluster.up.upstream_cx_none_healthy"), 1);
    });
}

#[test]
fn a_cluster_of_original_destinations_has_none_for_direct_connections() {
    let clusters = "- name: up\n  type: ORIGINAL_DST\n  lb_policy: CLUSTER_PROVIDED\n";
    on_each(clusters, |culvert, port| {
        assert_eq!(said(port), "");
        assert_eq!(culvert.stat("cluster.up.upstream_cx_none_healthy"), 1);
    });
}

#[test]
fn names_are_asked_of_the_bootstraps_resolver_where_a_cluster_has_none() {
    let (upstream, server) = (named("found"), NameServer::start());
    let resolver = server.resolver() + "\n";
    let cluster = format!(
        "- name: up\n  type: STRICT_DNS\n  dns_lookup_family: V4_ONLY\n  load_assignment: {{cluster_name: up, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: some.example, port_value: {}}}}}}}}}]}}]}}\n",
        upstream.address.port()
    );
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let _culvert = Culvert::start(driver, admin, &(resolver.clone() + &bootstrap(admin, port, &cluster)));
        assert_eq!(said(port), "found");
    }
}

/// A `transport_socket` that begins with a header of the PROXY protocol.
fn proxied(version: &str) -> String {
    format!(
        "  transport_socket:\n    name: proxy\n    typed_config:\n      \"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport\n      \
         config: {{version: {version}}}\n      transport_socket: {{name: raw, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}\n"
    )
}

#[test]
fn servers_are_told_whose_connections_they_get() {
    // It says what it was told, once a request stands behind it.
    let echo = Upstream::start(|mut stream| {
        let mut header = [0; 28];
        let mut request = [0; 2];
        if stream.read_exact(&mut header).is_ok() && stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&[&header[..], &request].concat());
        }
    });
    on_each(&(cluster("up", &[echo.address]) + &proxied("V2")), |_, port| {
        let mut client = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.write_all(b"hi").expect("written");
        let mut seen = Vec::new();
        let _ = client.read_to_end(&mut seen);
        let from = client.local_addr().expect("an address").port();
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
        expected.extend_from_slice(&from.to_be_bytes());
        expected.extend_from_slice(&port.to_be_bytes());
        expected.extend_from_slice(b"hi");
        assert_eq!(seen, expected);
    });
}

#[test]
fn requests_of_one_client_alone_share_a_connection_that_names_it() {
    let lines = Upstream::start(|mut stream| {
        let Some(line) = read_until(&mut stream, b"\r\n") else { return };
        while read_request(&mut stream).is_some() {
            if stream.write_all(&ok(&line)).is_err() {
                return;
            }
        }
    });
    let checks = "  health_checks: [{timeout: 20s, interval: 600s, unhealthy_threshold: 1, healthy_threshold: 1, \
                  http_health_check: {path: /}}]\n";
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let clusters = cluster("up", &[lines.address]) + &proxied("V1") + checks;
        let routes = "- {match: {prefix: /}, route: {cluster: up}}";
        let config = support::culvert::bootstrap(admin, port, "", routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &config, &["--concurrency", "1"]);
        culvert.wait_until("a check passes, which has a header too", |it| {
            it.stat("cluster.up.health_check.success") == 1
        });
        let before = culvert.stat("cluster.up.upstream_cx_total");
        let said = |client: &mut Client| client.get("/").text().trim().to_owned();
        let names = |stream: &TcpStream| {
            let from = stream.local_addr().expect("an address").port();
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {port}")
        };
        let open = || TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let (a, b) = (open(), open());
        let (name_a, name_b) = (names(&a), names(&b));
        let (mut a, mut b) = (Client::over(a), Client::over(b));
        assert_eq!(said(&mut a), name_a);
        assert_eq!(said(&mut b), name_b);
        assert_eq!(said(&mut a), name_a);
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total") - before, 2, "one each");
    }
}
