//! Bytes through encrypted connections.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use crate::{
    VERSIONS, downstream, own, peer,
    pki::{Ca, Leaf},
    support::{
        DRIVERS,
        culvert::{Culvert, cluster},
        upstream::Upstream,
    },
    trusting, upstream, with_socket,
};

const LARGE: usize = 5_000_000;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 1_000) as u8).collect()
}

#[test]
fn requests_pass_encrypted_on_both_sides() {
    let ca = Ca::new("ca");
    let (front, back) = (
        ca.issue(&Leaf { dns: &["front.test"], ..Leaf::default() }),
        ca.issue(&Leaf { dns: &["back.test"], ..Leaf::default() }),
    );
    let backend = peer::server(&back, None, &[], peer::mirror);
    for driver in DRIVERS {
        let clusters = cluster("up", &[backend.address])
            + &crate::support::culvert::indent(&upstream(&trusting(&ca, ""), "sni: back.test"), 2);
        let (admin, port, config) = with_socket("", &clusters, &downstream(&own(&front), ""));
        let culvert = Culvert::start(driver, admin, &config);
        for version in VERSIONS {
            let config = Arc::new(peer::client_config(&ca, None, &[version]));
            let mut client = peer::connect(&config, port, "front.test").expect("a connection");
            for n in 0..20 {
                let (head, body) = peer::get(&mut client, &format!("/{n}"), "").expect("an answer");
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                let body = String::from_utf8(body).expect("text");
                assert!(body.starts_with(&format!("sni=back.test\nGET /{n} HTTP/1.1\r\n")), "{body}");
                assert!(body.contains("x-forwarded-proto: https\r\n"), "{body}");
            }
        }
        assert_eq!(culvert.stat("cluster.up.ssl.handshake"), culvert.stat("cluster.up.upstream_cx_total"));
        assert!(culvert.stat("cluster.up.upstream_cx_total") <= 2, "idle connections are used again");
        let stat = |name: &str| culvert.stat(&format!("listener.127.0.0.1_{port}.ssl.{name}"));
        assert_eq!((stat("handshake"), stat("connection_error")), (2, 0));
        assert_eq!((stat("versions.TLSv1.3"), stat("versions.TLSv1.2")), (1, 1));
        assert_eq!(stat("ciphers.TLS_AES_128_GCM_SHA256"), 1);
        assert_eq!(stat("no_certificate"), 2);
        // What is not TLS is turned away, and never served.
        let mut plain = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        culvert.wait_until("the error is counted", |it| {
            it.stat(&format!("listener.127.0.0.1_{port}.ssl.connection_error")) == 1
        });
    }
}

#[test]
fn large_bodies_arrive_byte_for_byte_both_ways() {
    let ca = Ca::new("ca");
    let identity = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let backend = peer::server(&identity, None, &[], |mut stream| {
        while let Some((_, body)) = peer::request(&mut stream) {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
                return;
            }
        }
    });
    for driver in DRIVERS {
        let clusters = cluster("up", &[backend.address])
            + &crate::support::culvert::indent(&upstream(&trusting(&ca, ""), "sni: a.test"), 2);
        let (admin, port, config) = with_socket("", &clusters, &downstream(&own(&identity), ""));
        let _culvert = Culvert::start(driver, admin, &config);
        for version in VERSIONS {
            let config = Arc::new(peer::client_config(&ca, None, &[version]));
            let mut client = peer::connect(&config, port, "a.test").expect("a connection");
            let body = pattern(LARGE);
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n");
            client.write_all(head.as_bytes()).expect("sent");
            client.write_all(&body).expect("sent");
            client.flush().expect("sent");
            let (_, answer) = peer::response(&mut client).expect("an answer");
            assert!(answer == body, "{driver}: {} bytes", answer.len());
        }
    }
}

/// A TCP proxy between TLS and TLS passes the end of each direction on.
#[test]
fn half_closes_pass_as_close_notify() {
    let ca = Ca::new("ca");
    let identity = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let backend = peer::server(&identity, None, &[], |mut stream| {
        let mut all = Vec::new();
        // An orderly end, or this is an error.
        stream.read_to_end(&mut all).expect("close_notify");
        all.reverse();
        stream.write_all(&all).expect("sent");
        stream.conn.send_close_notify();
        stream.flush().expect("sent");
    });
    for driver in DRIVERS {
        let clusters = cluster("up", &[backend.address])
            + &crate::support::culvert::indent(&upstream(&trusting(&ca, ""), "sni: a.test"), 2);
        let (admin, port, text) = with_socket("", &clusters, &downstream(&own(&identity), ""));
        let begin = text.find("      filters:").expect("filters");
        let end = text.find("  clusters:").expect("clusters");
        let proxy = "      filters:\n      - name: tcp\n        typed_config:\n          \"@type\": \
                     type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          \
                     stat_prefix: t\n          cluster: up\n";
        let config = format!("{}{proxy}{}", &text[..begin], &text[end..]);
        let _culvert = Culvert::start(driver, admin, &config);
        for version in VERSIONS {
            let config = Arc::new(peer::client_config(&ca, None, &[version]));
            let mut client = peer::connect(&config, port, "a.test").expect("a connection");
            let sent = pattern(300_000);
            client.write_all(&sent).expect("sent");
            client.conn.send_close_notify();
            client.flush().expect("sent");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("close_notify");
            answer.reverse();
            assert!(answer == sent, "{driver}: {} bytes", answer.len());
        }
    }
}

/// A body that ends with the connection and without close_notify may be cut short.
#[test]
fn a_truncated_body_does_not_look_complete() {
    let ca = Ca::new("ca");
    let identity = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for (orderly, driver) in
        [(true, DRIVERS[0]), (false, DRIVERS[0]), (true, DRIVERS[1]), (false, DRIVERS[1])]
    {
        let backend = peer::server(&identity, None, &[], move |mut stream| {
            let _ = peer::request(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart of it").expect("sent");
            if orderly {
                stream.conn.send_close_notify();
            }
            stream.flush().expect("sent");
            let _ = stream.sock.shutdown(Shutdown::Write);
            let _ = stream.sock.read(&mut [0; 1024]);
        });
        let clusters = cluster("up", &[backend.address])
            + &crate::support::culvert::indent(&upstream(&trusting(&ca, ""), "sni: a.test"), 2);
        let (admin, port, config) = with_socket("", &clusters, &downstream(&own(&identity), ""));
        let _culvert = Culvert::start(driver, admin, &config);
        let config = Arc::new(peer::client_config(&ca, None, &VERSIONS));
        let mut client = peer::connect(&config, port, "a.test").expect("a connection");
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").expect("sent");
        client.flush().expect("sent");
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        // Chunked: the last chunk says that it is complete.
        assert_eq!(text.ends_with("0\r\n\r\n"), orderly, "{driver} {end:?} {text}");
    }
}

#[test]
fn a_handshake_that_is_never_finished_is_ended() {
    let ca = Ca::new("ca");
    let identity = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let backend = Upstream::mirror();
    for driver in DRIVERS {
        let socket = format!("{}transport_socket_connect_timeout: 0.3s\n", downstream(&own(&identity), ""));
        let (admin, port, config) = with_socket("", &cluster("up", &[backend.address]), &socket);
        let _culvert = Culvert::start(driver, admin, &config);
        let mut slow = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        slow.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        slow.write_all(&[22, 3, 1, 2, 0]).expect("sent");
        // An end or a reset; not the timeout of the read.
        let outcome = slow.read(&mut [0; 16]);
        let ended = matches!(outcome, Ok(0))
            || matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended, "{outcome:?}");
    }
}
