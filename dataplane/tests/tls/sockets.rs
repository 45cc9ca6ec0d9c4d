//! Endpoints of one cluster that are reached with different transport sockets.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    thread,
};

use rustls::{ServerConnection, StreamOwned};

use crate::{
    own, peer,
    pki::{Ca, Identity, Leaf},
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, free_port, indent, put},
        upstream::{Upstream, ok, read_request},
    },
    trusting, upstream,
};

const ROUTES: &str = "- {match: {prefix: /}, route: {cluster: up, timeout: 0s}}";

/// `transport_socket_matches` as Istio sends them: TLS with a client certificate where the endpoint says so.
fn istio(ca: &Ca, client: &Identity) -> String {
    let tls = indent(&upstream(&(own(client) + &trusting(ca, "")), "sni: a.test\n"), 2);
    format!(
        "transport_socket_matches:\n- name: mtls\n  match: {{tlsMode: istio}}\n{tls}- name: plain\n  match: {{}}\n  \
         transport_socket:\n    name: raw\n    typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}\n"
    )
}

/// `lb_endpoints` with this metadata; empty for none.
fn endpoints(all: &[(SocketAddr, &str)]) -> String {
    let mut text = String::new();
    for (address, labels) in all {
        let metadata =
            format!("metadata: {{filter_metadata: {{envoy.transport_socket_match: {{{labels}}}}}}}, ");
        let _ = writeln!(
            text,
            "- {{{}endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            if labels.is_empty() { "" } else { &metadata },
            address.ip(),
            address.port()
        );
    }
    text
}

fn fixed(all: &[(SocketAddr, &str)], more: &str) -> String {
    format!(
        "- name: up\n  connect_timeout: 2s\n  load_assignment:\n    cluster_name: up\n    endpoints:\n    - \
         lb_endpoints:\n{}{}",
        indent(&endpoints(all), 6),
        indent(more, 2)
    )
}

#[test]
fn each_endpoint_gets_the_socket_that_its_metadata_asks_for() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let client = ca.issue(&Leaf { dns: &["client.test"], ..Leaf::default() });
    let encrypted = peer::server(&server, Some(&ca), &[], peer::mirror);
    let plain = Upstream::answering(|_| ok(b"plain"));
    for driver in DRIVERS {
        let both = [(encrypted.address, "tlsMode: istio, other: 1"), (plain.address, "tlsMode: disabled")];
        let (admin, port) = (free_port(), free_port());
        let clusters = fixed(&both, &istio(&ca, &client));
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", ROUTES, &clusters));
        let mut client = Client::connect(port);
        let answers: Vec<String> = (0..8).map(|_| client.get("/").text()).collect();
        assert_eq!(answers.iter().filter(|answer| *answer == "plain").count(), 4, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.starts_with("sni=a.test\n")).count(), 4);
        let matched = |name: &str| culvert.stat(&format!("cluster.up.{name}.total_match_count"));
        assert_eq!((matched("mtls"), matched("plain"), matched("default")), (1, 1, 0));
        assert_eq!(culvert.stat("cluster.up.ssl.handshake"), 1);
    }
}

#[test]
fn what_matches_nothing_gets_the_socket_of_the_cluster() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test", "b.test"], ..Leaf::default() });
    let backend = peer::server(&server, None, &[], peer::mirror);
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let matched = format!(
            "transport_socket_matches:\n- name: m\n  match: {{mode: m}}\n{}{}",
            indent(&upstream(&trusting(&ca, ""), "sni: a.test\n"), 2),
            upstream(&trusting(&ca, ""), "sni: b.test\n")
        );
        let clusters = fixed(&[(backend.address, "mode: other")], &matched);
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", ROUTES, &clusters));
        assert!(Client::connect(port).get("/").text().starts_with("sni=b.test\n"));
        assert_eq!(culvert.stat("cluster.up.default.total_match_count"), 1);
    }
}

/// Serves what comes, encrypted or not, and says which it was and on which connection.
fn either(server: &Identity) -> Upstream {
    let encrypted = peer::server(server, None, &[], |mut stream| {
        while peer::request(&mut stream).is_some() {
            if stream.write_all(&ok(b"encrypted")).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
    });
    Upstream::start(move |mut stream| {
        let mut first = [0];
        if stream.peek(&mut first).is_err() {
            return;
        }
        if first[0] == 22 {
            let other = TcpStream::connect(encrypted.address).expect("connected");
            let (mut up, mut back) = (other.try_clone().expect("a handle"), other);
            let mut client = stream.try_clone().expect("a handle");
            thread::spawn(move || std::io::copy(&mut back, &mut client));
            let _ = std::io::copy(&mut stream, &mut up);
            let _ = up.shutdown(std::net::Shutdown::Both);
            return;
        }
        while read_request(&mut stream).is_some() {
            if stream.write_all(&ok(b"plain")).is_err() {
                return;
            }
        }
    })
}

#[test]
fn another_label_moves_the_endpoint_to_another_socket() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let client = ca.issue(&Leaf { dns: &["client.test"], ..Leaf::default() });
    let backend = either(&server);
    for driver in DRIVERS {
        let dir = tempfile::tempdir().expect("a directory");
        let eds = dir.path().join("eds.yaml");
        let say = |labels: &str| {
            let text = format!(
                "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  \
                 cluster_name: up\n  endpoints:\n  - lb_endpoints:\n{}",
                indent(&endpoints(&[(backend.address, labels)]), 4)
            );
            put(&eds, &text);
        };
        say("");
        let clusters = format!(
            "- name: up\n  type: EDS\n  connect_timeout: 2s\n  eds_cluster_config: {{eds_config: {{path_config_source: \
             {{path: {}}}}}}}\n{}",
            eds.display(),
            indent(&istio(&ca, &client), 2)
        );
        let (admin, port) = (free_port(), free_port());
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", ROUTES, &clusters));
        let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(port)).collect();
        let mut all = |expected: &str| {
            // Every client, and with that every worker that has one, comes to the new socket and stays there.
            for client in &mut clients {
                culvert.wait_until("the socket is the new one", |_| {
                    let mut fresh = Client::connect(port);
                    fresh.get("/").text() == expected
                });
                let mut answers = (0..200).map(|_| client.get("/").text());
                assert!(answers.any(|answer| answer == expected), "{driver}: {expected}");
                assert!(
                    answers.all(|answer| answer == expected),
                    "{driver}: {expected}, and never again the old one"
                );
            }
        };
        all("plain");
        say("tlsMode: istio");
        all("encrypted");
        say("tlsMode: none");
        all("plain");
    }
}

#[test]
fn a_header_of_the_proxy_protocol_comes_before_the_handshake() {
    let ca = Ca::new("ca");
    let config = peer::server_config(&ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() }), None, &[]);
    let told = Upstream::start(move |mut stream| {
        let mut header = [0; 28];
        if std::io::Read::read_exact(&mut stream, &mut header).is_err() {
            return;
        }
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).expect("a server"), stream);
        while peer::request(&mut tls).is_some() {
            if tls.write_all(&ok(&header)).is_err() {
                return;
            }
        }
    });
    let plain = Upstream::answering(|_| ok(b"plain"));
    let socket = "transport_socket:\n  name: p\n  typed_config:\n    \"@type\": \
                  type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport\n    \
                  config: {version: V2}\n";
    let socket = socket.to_owned() + &indent(&upstream(&trusting(&ca, ""), "sni: a.test\n"), 4);
    let matches =
        format!("transport_socket_matches:\n- name: m\n  match: {{mode: told}}\n{}", indent(&socket, 2));
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let clusters = fixed(&[(told.address, "mode: told"), (plain.address, "")], &matches);
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", ROUTES, &clusters));
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let from = stream.local_addr().expect("an address").port();
        let mut client = Client::over(stream);
        let answers: Vec<Vec<u8>> = (0..2).map(|_| client.get("/").body).collect();
        assert!(answers.contains(&b"plain".to_vec()), "{answers:?}");
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
        header.extend_from_slice(&from.to_be_bytes());
        header.extend_from_slice(&port.to_be_bytes());
        assert!(answers.contains(&header), "{answers:?}");
        assert_eq!(culvert.stat("cluster.up.ssl.handshake"), 1);
    }
}
