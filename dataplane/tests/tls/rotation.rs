//! Certificates that change, and sessions that do not outlive what they rest on.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::HandshakeKind;

use crate::{
    VERSIONS, downstream, own, peer,
    pki::{Ca, Leaf, put},
    support::{
        DRIVERS,
        culvert::{Culvert, cluster},
        upstream::Upstream,
    },
    with_socket,
};

fn leaf(serial: u64) -> Leaf<'static> {
    Leaf { dns: &["a.test"], serial, ..Leaf::default() }
}

/// The serial number in the certificate that the server showed.
pub fn shown(client: &peer::ClientStream) -> Vec<u8> {
    let chain = client.conn.peer_certificates().expect("a chain");
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
    parsed.raw_serial().to_vec()
}

#[test]
fn certificate_files_rotate_under_load_without_a_failed_request() {
    let ca = Ca::new("ca");
    let backend = Upstream::mirror();
    for driver in DRIVERS {
        let dir = tempfile::tempdir().expect("a directory");
        ca.issue(&leaf(1)).write(dir.path(), "tls");
        let common = format!(
            "tls_certificates:\n- certificate_chain: {{filename: {0}/tls.crt}}\n  private_key: {{filename: \
             {0}/tls.key}}\n  watched_directory: {{path: {0}}}\n",
            dir.path().display()
        );
        let (admin, port, config) =
            with_socket("", &cluster("up", &[backend.address]), &downstream(&common, ""));
        let culvert = Culvert::start(driver, admin, &config);
        let client_config = Arc::new(peer::client_config(&ca, None, &VERSIONS));
        let mut old = peer::connect(&client_config, port, "a.test").expect("a connection");
        let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let load: Vec<_> = (0..2)
            .map(|_| {
                let (config, done, served) = (client_config.clone(), done.clone(), served.clone());
                thread::spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        let mut client = peer::connect(&config, port, "a.test").expect("a connection");
                        for _ in 0..5 {
                            peer::get(&mut client, "/", "").expect("an answer");
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        for serial in 2..5 {
            // A certificate whose key has not come yet is not used.
            ca.issue(&leaf(serial)).write(dir.path(), "tls");
            let fresh = || Arc::new(peer::client_config(&ca, None, &VERSIONS));
            culvert.wait_until("the new certificate is shown", |_| {
                let client = peer::connect(&fresh(), port, "a.test").expect("a connection");
                shown(&client) == [serial as u8]
            });
        }
        // What cannot be used changes nothing.
        put(&dir.path().join("tls.crt"), "no certificate");
        culvert.wait_until("the error is logged", |it| it.log().contains("the last good context serves on"));
        let before = served.load(Ordering::SeqCst);
        culvert.wait_until("requests are served on", |_| served.load(Ordering::SeqCst) > before + 20);
        done.store(true, Ordering::SeqCst);
        load.into_iter().for_each(|thread| thread.join().expect("no failed request"));
        peer::get(&mut old, "/", "").expect("an old connection goes on");
        assert_eq!(culvert.stat("http.ingress.downstream_rq_5xx"), 0);
    }
}

/// Connects twice with one client; the kind of the second handshake.
fn second_handshake(
    config: &Arc<rustls::ClientConfig>,
    port: u16,
    between: impl FnOnce(),
) -> Option<HandshakeKind> {
    let mut first = peer::connect(config, port, "a.test").expect("a connection");
    peer::get(&mut first, "/", "").expect("an answer");
    between();
    let mut second = peer::connect(config, port, "a.test").expect("a second connection");
    peer::get(&mut second, "/", "").expect("an answer");
    second.conn.handshake_kind()
}

#[test]
fn sessions_are_resumed_only_under_the_trust_they_began_with() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let (server, client) = (ca.issue(&leaf(1)), ca.issue(&leaf(2)));
    let backend = Upstream::mirror();
    for driver in DRIVERS {
        for (more, tls13) in [("", true), ("disable_stateless_session_resumption: true\n", true)] {
            let dir = tempfile::tempdir().expect("a directory");
            let bundle = dir.path().join("ca.pem");
            fs::write(&bundle, ca.pem()).expect("written");
            let common = format!(
                "{}validation_context: {{trusted_ca: {{filename: {}}}}}\n",
                own(&server),
                bundle.display()
            );
            let more = format!("require_client_certificate: true\n{more}");
            let (admin, port, config) =
                with_socket("", &cluster("up", &[backend.address]), &downstream(&common, &more));
            let culvert = Culvert::start(driver, admin, &config);
            let updates = || {
                culvert.stat(&format!(
                    "listener.127.0.0.1_{port}.server_ssl_socket_factory.ssl_context_update_by_sds"
                ))
            };
            for version in VERSIONS {
                let fresh = || Arc::new(peer::client_config(&ca, Some(&client), &[version]));
                assert_eq!(second_handshake(&fresh(), port, || ()), Some(HandshakeKind::Resumed), "{more}");
                let before = updates();
                let kind = second_handshake(&fresh(), port, || {
                    // Still trusted, but no longer by the same bundle.
                    put(&bundle, &format!("{}{}{}", ca.pem(), other.pem(), "\n".repeat(before as usize)));
                    culvert.wait_until("the bundle is used", |_| updates() > before);
                });
                assert_ne!(kind, Some(HandshakeKind::Resumed), "{more} {version:?}");
            }
            assert!(tls13 && culvert.stat(&format!("listener.127.0.0.1_{port}.ssl.session_reused")) >= 2);
        }
        let off = "disable_stateless_session_resumption: true\ndisable_stateful_session_resumption: true\n";
        let (admin, port, config) =
            with_socket("", &cluster("up", &[backend.address]), &downstream(&own(&server), off));
        let _culvert = Culvert::start(driver, admin, &config);
        for version in VERSIONS {
            let config = Arc::new(peer::client_config(&ca, None, &[version]));
            assert_ne!(second_handshake(&config, port, || ()), Some(HandshakeKind::Resumed));
        }
    }
}

/// A listener whose secret never comes serves nobody, least of all in the clear.
#[test]
fn without_its_secret_a_listener_serves_nobody() {
    let ca = Ca::new("ca");
    let backend = Upstream::mirror();
    for driver in DRIVERS {
        let dir = tempfile::tempdir().expect("a directory");
        let common = format!(
            "tls_certificates:\n- certificate_chain: {{filename: {0}/tls.crt}}\n  private_key: {{filename: {0}/tls.key}}\n",
            dir.path().display()
        );
        let (admin, port, config) =
            with_socket("", &cluster("up", &[backend.address]), &downstream(&common, ""));
        let culvert = Culvert::start(driver, admin, &config);
        let client = Arc::new(peer::client_config(&ca, None, &VERSIONS));
        assert!(peer::connect(&client, port, "a.test").is_err());
        let name = format!(
            "listener.127.0.0.1_{port}.server_ssl_socket_factory.downstream_context_secrets_not_ready"
        );
        culvert.wait_until("it is counted", |it| it.stat(&name) == 1);
        ca.issue(&leaf(1)).write(dir.path(), "tls");
        culvert.wait_until("it serves when the files have come", |_| {
            thread::sleep(Duration::from_millis(50));
            peer::connect(&client, port, "a.test").is_ok()
        });
    }
}

/// Whether a session that began at `from` is resumed at `to`.
fn is_resumed(ca: &Ca, version: &'static rustls::SupportedProtocolVersion, from: u16, to: u16) -> bool {
    let config = Arc::new(peer::client_config(ca, None, &[version]));
    let mut first = peer::connect(&config, from, "a.test").expect("a connection");
    peer::get(&mut first, "/", "").expect("an answer");
    let mut second = peer::connect(&config, to, "a.test").expect("a second connection");
    peer::get(&mut second, "/", "").expect("an answer");
    second.conn.handshake_kind() == Some(HandshakeKind::Resumed)
}

#[test]
fn whoever_has_the_ticket_keys_resumes_sessions() {
    let ca = Ca::new("ca");
    let server = ca.issue(&leaf(1));
    let backend = Upstream::mirror();
    let keys = |names: &[char]| {
        let keys: Vec<_> =
            names.iter().map(|name| format!("{{inline_string: {}}}", name.to_string().repeat(80))).collect();
        format!(
            "disable_stateful_session_resumption: true\nsession_ticket_keys: {{keys: [{}]}}\n",
            keys.join(", ")
        )
    };
    for driver in DRIVERS {
        let start = |names: &[char]| {
            let (admin, port, config) =
                with_socket("", &cluster("up", &[backend.address]), &downstream(&own(&server), &keys(names)));
            (Culvert::start(driver, admin, &config), port)
        };
        // One key; the next one, with the old one still known; only the next one.
        let (old, both, new) = (start(&['a']), start(&['b', 'a']), start(&['b']));
        for version in VERSIONS {
            let resumes = |from: &(Culvert, u16), to: &(Culvert, u16)| is_resumed(&ca, version, from.1, to.1);
            assert!(resumes(&old, &old) && resumes(&old, &both), "{driver}: a known key decrypts");
            assert!(resumes(&both, &new), "the first key encrypts");
            assert!(!resumes(&old, &new) && !resumes(&both, &old), "what has no key for it is no ticket");
        }
    }
}
