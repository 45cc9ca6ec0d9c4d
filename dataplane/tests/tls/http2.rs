//! What handshakes agree to speak.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
};

use crate::{
    downstream, h2_peer, own, peer,
    pki::{Ca, Leaf},
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, cluster, free_port, indent},
        upstream::Upstream,
    },
    trusting, upstream, with_socket,
};

/// The status that a client of that ALPN gets, over what was agreed on.
fn ask(ca: &Ca, port: u16, offer: &[&str]) -> (u16, Option<Vec<u8>>) {
    let mut config = peer::client_config(ca, None, rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = offer.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    h2_peer::block_on(async {
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let status = match agreed.as_deref() {
            Some(b"h2") => h2_peer::Conn::over(stream).await.get("/").await.status,
            _ => 0,
        };
        (status, agreed)
    })
}

#[test]
fn clients_speak_what_the_handshake_agreed_on() {
    let (ca, upstream) = (Ca::new("ca"), Upstream::mirror());
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for driver in DRIVERS {
        let common = own(&server) + "alpn_protocols: [h2, http/1.1]\n";
        let (admin, port, text) =
            with_socket("", &cluster("up", &[upstream.address]), &downstream(&common, ""));
        let culvert = Culvert::start(driver, admin, &text);
        assert_eq!(ask(&ca, port, &["h2", "http/1.1"]), (200, Some(b"h2".to_vec())));
        assert_eq!(culvert.stat("http.ingress.downstream_cx_http2_total"), 1);
        assert_eq!(ask(&ca, port, &["http/1.1"]).1, Some(b"http/1.1".to_vec()));
        let config = Arc::new(peer::client_config(&ca, None, rustls::DEFAULT_VERSIONS));
        let mut stream = peer::connect(&config, port, "a.test").unwrap();
        assert!(peer::get(&mut stream, "/", "").unwrap().0.starts_with("HTTP/1.1 200"));
        assert_eq!(culvert.stat("http.ingress.downstream_cx_http1_total"), 1);
    }
}

/// As in Envoy: no GOAWAY, for what came was not HTTP/2; and the end is one that the client can tell from an attack.
#[test]
fn a_client_that_does_not_speak_what_was_agreed_on_is_told_of_the_end() {
    let (ca, upstream) = (Ca::new("ca"), Upstream::mirror());
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for driver in DRIVERS {
        let common = own(&server) + "alpn_protocols: [h2]\n";
        let (admin, port, text) =
            with_socket("", &cluster("up", &[upstream.address]), &downstream(&common, ""));
        let culvert = Culvert::start(driver, admin, &text);
        let mut config = peer::client_config(&ca, None, rustls::DEFAULT_VERSIONS);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        for turn in 1..=5 {
            let mut stream = peer::connect(&config, port, "a.test").expect("a handshake");
            // Far more than is read before it is clear that this is none.
            stream.write_all(&vec![b'x'; 300_000]).expect("sent");
            let mut said = Vec::new();
            stream.read_to_end(&mut said).expect("close_notify");
            assert_eq!(culvert.stat("http.ingress.downstream_cx_protocol_error"), turn);
        }
    }
}

fn options(config: &str) -> String {
    format!(
        "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    {config}\n"
    )
}

#[test]
fn upstreams_are_spoken_to_as_the_handshake_agreed_on() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for driver in DRIVERS {
        for (config, version) in [
            ("auto_config: {}", 2),
            ("auto_config: {}", 1),
            ("explicit_http_config: {http2_protocol_options: {}}", 2),
            ("explicit_http_config: {http_protocol_options: {}}", 1),
        ] {
            let of_http1;
            let of_http2;
            let address = if version == 2 {
                let tls = peer::server_config(&server, None, &["h2"]);
                of_http2 =
                    h2_peer::Server::start_with(h2::server::Builder::new(), Some(tls), h2_peer::mirror);
                of_http2.address
            } else {
                of_http1 = peer::server(&server, None, &["http/1.1"], peer::mirror);
                of_http1.address
            };
            let (admin, port) = (free_port(), free_port());
            let more = upstream(&trusting(&ca, ""), "sni: a.test\n") + &options(config);
            let clusters = cluster("up", &[address]) + &indent(&more, 2);
            let routes = "- {match: {prefix: /}, route: {cluster: up}}";
            let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", routes, &clusters));
            let mut client = Client::connect(port);
            for _ in 0..3 {
                assert_eq!(client.get("/").status, 200, "{config} {version}");
            }
            let stat = |name: &str| culvert.stat(&format!("cluster.up.upstream_cx_{name}_total"));
            assert_eq!(
                (stat("http1"), stat("http2")),
                if version == 1 { (1, 0) } else { (0, 1) },
                "{config}"
            );
        }
    }
}
