//! Whom the proxy trusts, and whom it does not.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    VERSIONS, downstream, own, peer,
    pki::{Ca, Identity, Leaf},
    quoted,
    support::{
        DRIVERS,
        culvert::{Culvert, cluster, indent},
        upstream::Upstream,
    },
    trusting, upstream, with_socket,
};

const SPIFFE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// A culvert with this downstream context in front of a mirror.
fn start(driver: &str, common: &str, more: &str) -> (Culvert, u16) {
    let backend = Upstream::mirror();
    let (admin, port, config) =
        with_socket("", &cluster("up", &[backend.address]), &downstream(common, more));
    (Culvert::start(driver, admin, &config), port)
}

/// Whether a client with this certificate is served; with TLS 1.3 it learns of a refusal only when it reads.
fn is_served(ca: &Ca, identity: Option<&Identity>, port: u16) -> bool {
    let served = VERSIONS.map(|version| {
        let config = Arc::new(peer::client_config(ca, identity, &[version]));
        peer::connect(&config, port, "a.test").and_then(|mut client| peer::get(&mut client, "/", "")).is_ok()
    });
    assert_eq!(served[0], served[1], "both versions agree");
    served[0]
}

#[test]
fn clients_have_to_show_what_is_required() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let leaf =
        |serial, uri: &'static [&'static str]| Leaf { serial, uri, dns: &["client.test"], ..Leaf::default() };
    let good = ca.issue(&leaf(7, &["spiffe://td/good"]));
    let revoked = ca.issue(&leaf(8, &["spiffe://td/good"]));
    let bad_name = ca.issue(&leaf(9, &["spiffe://td/bad"]));
    let stranger = other.issue(&leaf(7, &["spiffe://td/good"]));
    let expired = ca.issue(&Leaf { expired: true, ..leaf(10, &["spiffe://td/good"]) });
    for driver in DRIVERS {
        let policy = format!(
            "crl: {{inline_string: {}}}\nmatch_typed_subject_alt_names:\n- {{san_type: URI, matcher: {{exact: \
             \"spiffe://td/good\"}}}}\n- {{san_type: DNS, matcher: {{exact: nobody.test}}}}\n",
            quoted(&ca.crl(&[8]))
        );
        let common = own(&server) + &trusting(&ca, &policy);
        let (culvert, port) = start(driver, &common, "require_client_certificate: true\n");
        let stat = |name: &str| culvert.stat(&format!("listener.127.0.0.1_{port}.ssl.{name}"));
        assert!(is_served(&ca, Some(&good), port));
        assert_eq!(stat("handshake"), 2);
        assert!(!is_served(&ca, None, port));
        assert_eq!(stat("fail_verify_no_cert"), 2);
        assert!(!is_served(&ca, Some(&stranger), port));
        assert_eq!(stat("fail_verify_error"), 2);
        assert!(!is_served(&ca, Some(&revoked), port));
        assert!(!is_served(&ca, Some(&expired), port));
        assert_eq!(stat("fail_verify_error"), 6);
        assert!(!is_served(&ca, Some(&bad_name), port));
        assert_eq!((stat("fail_verify_san"), stat("handshake")), (2, 2));
    }
    // Each relaxation lets through what it is for, and nothing else.
    let with = |policy: &str, more: &str| start(DRIVERS[0], &(own(&server) + &trusting(&ca, policy)), more);
    let (_culvert, port) = with("", "");
    assert!(is_served(&ca, None, port) && is_served(&ca, Some(&good), port));
    assert!(!is_served(&ca, Some(&stranger), port), "one that is shown has to be good");
    let (_culvert, port) = with("allow_expired_certificate: true\n", "");
    assert!(is_served(&ca, Some(&expired), port) && !is_served(&ca, Some(&stranger), port));
    let (_culvert, port) = with("trust_chain_verification: ACCEPT_UNTRUSTED\n", "");
    assert!(is_served(&ca, Some(&stranger), port));
    let (_culvert, port) = start(DRIVERS[0], &own(&server), "require_client_certificate: true\n");
    assert!(is_served(&ca, Some(&stranger), port) && !is_served(&ca, None, port));
}

#[test]
fn servers_have_to_be_who_they_should_be() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let identity = ca.issue(&Leaf { dns: &["*.test"], uri: &["spiffe://td/server"], ..Leaf::default() });
    let client = ca.issue(&Leaf { dns: &["proxy.test"], ..Leaf::default() });
    let backend = peer::server(&identity, None, &[], peer::mirror);
    let strict = peer::server(&identity, Some(&ca), &[], peer::mirror);
    let status = |driver, address, common: &str, more: &str| {
        let clusters = cluster("up", &[address]) + &indent(&upstream(common, more), 2);
        let (admin, port, config) = with_socket("", &clusters, "");
        let config =
            config.replace("    filter_chains:\n    -       filters:", "    filter_chains:\n    - filters:");
        let culvert = Culvert::start(driver, admin, &config);
        let status = crate::support::client::Client::connect(port).get("/").status;
        let count = |name: &str| culvert.stat(&format!("cluster.up.ssl.{name}"));
        (status, count("fail_verify_error"), count("fail_verify_san"))
    };
    let san = |value: &str| {
        format!("match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: \"{value}\"}}}}]\n")
    };
    for driver in DRIVERS {
        let at = backend.address;
        assert_eq!(status(driver, at, "", "sni: x.test\n"), (200, 0, 0), "nothing is asked for");
        assert_eq!(status(driver, at, &trusting(&ca, ""), "sni: x.test\n"), (200, 0, 0));
        assert_eq!(status(driver, at, &trusting(&other, ""), "sni: x.test\n"), (503, 1, 0));
        assert_eq!(status(driver, at, &trusting(&ca, &san("spiffe://td/")), ""), (200, 0, 0));
        assert_eq!(status(driver, at, &trusting(&ca, &san("spiffe://other/")), ""), (503, 0, 1));
        let auto = |sni| format!("sni: {sni}\nauto_sni_san_validation: true\n");
        assert_eq!(status(driver, at, &trusting(&ca, ""), &auto("x.test")), (200, 0, 0));
        assert_eq!(status(driver, at, &trusting(&ca, ""), &auto("x.y.test")), (503, 0, 1));
        let both = own(&client) + &trusting(&ca, "");
        assert_eq!(status(driver, strict.address, &both, "sni: x.test\n"), (200, 0, 0));
        assert_eq!(status(driver, strict.address, &trusting(&ca, ""), "sni: x.test\n").0, 503);
    }
}

#[test]
fn each_trust_domain_of_spiffe_has_its_own_authority() {
    let (one, two) = (Ca::new("one"), Ca::new("two"));
    let server = one.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    let validator = format!(
        "validation_context:\n  custom_validator_config:\n    name: spiffe\n    typed_config:\n      \"@type\": \
         {SPIFFE}\n      trust_domains:\n      - {{name: one, trust_bundle: {{inline_string: {}}}}}\n      - {{name: \
         two, trust_bundle: {{inline_string: {}}}}}\n",
        quoted(&one.pem()),
        quoted(&two.pem())
    );
    let svid = |ca: &Ca, uri: &[&str]| ca.issue(&Leaf { uri, ..Leaf::default() });
    for driver in DRIVERS {
        let common = own(&server) + &validator;
        let (_culvert, port) = start(driver, &common, "require_client_certificate: true\n");
        assert!(is_served(&one, Some(&svid(&one, &["spiffe://one/a"])), port));
        assert!(is_served(&one, Some(&svid(&two, &["spiffe://two/a"])), port));
        assert!(!is_served(&one, Some(&svid(&two, &["spiffe://one/a"])), port), "signed by another domain's");
        assert!(!is_served(&one, Some(&svid(&one, &["spiffe://three/a"])), port));
        assert!(!is_served(&one, Some(&svid(&one, &["spiffe://one/a", "spiffe://one/b"])), port));
        assert!(!is_served(&one, Some(&svid(&one, &[])), port));
    }
}

/// What is known of a client reaches upstreams and logs.
#[test]
fn upstreams_and_logs_learn_who_the_client_is() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], uri: &["spiffe://td/proxy"], ..Leaf::default() });
    let uris = ["spiffe://td/one", "spiffe://td/two"];
    let client = ca.issue(&Leaf { uri: &uris, dns: &["client.test"], serial: 77, ..Leaf::default() });
    let backend = Upstream::mirror();
    for driver in DRIVERS {
        let logs = tempfile::tempdir().expect("a directory");
        let log = logs.path().join("log");
        let manager = format!(
            "forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: {{subject: true, uri: true, \
             dns: true}}\naccess_log:\n- name: file\n  typed_config:\n    \"@type\": \
             type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: {}\n    \
             log_format: {{text_format_source: {{inline_string: \"%DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME% \
             %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_LOCAL_URI_SAN%\\n\"}}}}",
            log.display()
        );
        let common = own(&server) + &trusting(&ca, "");
        let socket = downstream(&common, "require_client_certificate: true\n");
        let (admin, port, config) = with_socket(&manager, &cluster("up", &[backend.address]), &socket);
        let culvert = Culvert::start(driver, admin, &config);
        let config = Arc::new(peer::client_config(&ca, Some(&client), &VERSIONS));
        let mut stream = peer::connect(&config, port, "a.test").expect("a connection");
        let forged = "x-forwarded-client-cert: By=me\r\n";
        let (_, body) = peer::get(&mut stream, "/", forged).expect("an answer");
        let body = String::from_utf8(body).expect("text");
        assert!(!body.contains("By=me"), "{body}");
        let line =
            body.lines().find(|line| line.starts_with("x-forwarded-client-cert: ")).expect("the header");
        assert!(line.contains(": By=spiffe://td/proxy;Hash="), "{line}");
        let names = ";URI=spiffe://td/one;URI=spiffe://td/two;DNS=client.test";
        assert!(line.contains(";Subject=\"") && line.ends_with(names), "{line}");
        culvert.post("/reopen_logs");
        culvert.wait_until("the line is written", |_| {
            std::fs::read_to_string(&log).is_ok_and(|text| {
                text == "TLSv1.3 a.test spiffe://td/one,spiffe://td/two 4d spiffe://td/proxy\n"
            })
        });
        let certs = culvert.get("/certs").expect("certificates");
        assert!(certs.contains("\"uri\": \"spiffe://td/proxy\""), "{certs}");
        assert!(certs.contains("<inline>") && certs.contains("days_until_expiration"), "{certs}");
    }
}

/// `verify_certificate_hash` and `verify_certificate_spki` of a certificate.
fn pins(identity: &Identity) -> (String, String) {
    let der = CertificateDer::from_pem_slice(identity.chain.as_bytes()).expect("PEM");
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    let hash = digest::digest(&digest::SHA256, &der);
    let spki = digest::digest(&digest::SHA256, parsed.public_key().raw);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    (hex, base64(spki.as_ref()))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let digits = bits.as_bytes().chunks(6).map(|chunk| {
        let bits = format!("{:0<6}", std::str::from_utf8(chunk).expect("digits"));
        char::from(DIGITS[usize::from_str_radix(&bits, 2).expect("a number")])
    });
    let mut text: String = digits.collect();
    text.push_str(&"=".repeat((4 - text.len() % 4) % 4));
    text
}

#[test]
fn only_what_is_pinned_is_trusted() {
    let ca = Ca::new("ca");
    let leaf = |serial| Leaf { dns: &["a.test"], serial, ..Leaf::default() };
    let (pinned, other) = (ca.issue(&leaf(1)), ca.issue(&leaf(2)));
    let (hash, spki) = pins(&pinned);
    let policies = [
        format!("verify_certificate_hash: [\"{hash}\"]\n"),
        format!("verify_certificate_spki: [\"{spki}\"]\n"),
        // Either is enough.
        format!("verify_certificate_hash: [\"{}\"]\nverify_certificate_spki: [\"{spki}\"]\n", pins(&other).0),
    ];
    for driver in DRIVERS {
        for (index, policy) in policies.iter().enumerate() {
            let common = own(&pinned) + &trusting(&ca, policy);
            let (culvert, port) = start(driver, &common, "require_client_certificate: true\n");
            assert!(is_served(&ca, Some(&pinned), port), "{policy}");
            assert_eq!(is_served(&ca, Some(&other), port), index == 2, "{policy}");
            let failed = culvert.stat(&format!("listener.127.0.0.1_{port}.ssl.fail_verify_cert_hash"));
            assert_eq!(failed, if index == 2 { 0 } else { 2 });
        }
        // The same for servers, also without an authority.
        for (server, status) in [(&pinned, 200), (&other, 503)] {
            let backend = peer::server(server, None, &[], peer::mirror);
            let common = format!("validation_context: {{{}}}\n", policies[1].trim_end());
            let clusters =
                cluster("up", &[backend.address]) + &indent(&upstream(&common, "sni: a.test\n"), 2);
            let (admin, port, config) = with_socket("", &clusters, "");
            let config = config
                .replace("    filter_chains:\n    -       filters:", "    filter_chains:\n    - filters:");
            let culvert = Culvert::start(driver, admin, &config);
            assert_eq!(crate::support::client::Client::connect(port).get("/").status, status);
            assert_eq!(culvert.stat("cluster.up.ssl.fail_verify_cert_hash"), u64::from(status != 200));
        }
    }
}
