//! What servers are called in handshakes, and what they have to be.

use crate::{
    peer,
    pki::{Ca, Leaf},
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, bootstrap, cluster, free_port, indent},
        upstream::Upstream,
    },
    trusting, upstream,
};

const ROUTES: &str = "- {match: {prefix: /lit}, route: {cluster: up, host_rewrite_literal: \"b.test\"}}\n- {match: \
                      {prefix: /auto}, route: {cluster: up, auto_host_rewrite: true}}\n- {match: {prefix: /}, route: \
                      {cluster: up}}";

/// `typed_extension_protocol_options` with these `upstream_http_protocol_options`.
fn options(names: &str) -> String {
    format!(
        "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
         upstream_http_protocol_options: {{{names}}}\n    explicit_http_config: {{http_protocol_options: {{}}}}\n"
    )
}

fn start(driver: &str, backend: &Upstream, more: &str) -> (Culvert, Client) {
    let (admin, port) = (free_port(), free_port());
    let clusters = (cluster("up", &[backend.address]) + &indent(more, 2))
        .replace("- endpoint: {", "- endpoint: {hostname: host.test, ");
    let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, "", ROUTES, &clusters));
    (culvert, Client::connect(port))
}

/// The status and the SNI that the upstream saw.
fn ask(client: &mut Client, path: &str, host: &str, headers: &str) -> (u16, String) {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n"));
    let answer = client.response("GET");
    let text = answer.text();
    let sni = text.lines().next().and_then(|line| line.strip_prefix("sni=")).unwrap_or_default();
    (answer.status, sni.to_owned())
}

fn seen(sni: &str) -> (u16, String) {
    (200, sni.to_owned())
}

#[test]
fn the_host_of_a_request_is_the_sni_of_its_connection() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for driver in DRIVERS {
        let backend = peer::server(&server, None, &[], peer::mirror);
        let more = upstream(&trusting(&ca, ""), "sni: configured.test\n")
            + &options("auto_sni: true, override_auto_sni_header: X-Sni");
        let (culvert, mut client) = start(driver, &backend, &more);
        for _ in 0..3 {
            assert_eq!(ask(&mut client, "/", "a.test:8443", ""), seen("a.test"));
            assert_eq!(ask(&mut client, "/", "b.test", ""), seen("b.test"));
            assert_eq!(ask(&mut client, "/lit", "a.test", ""), seen("b.test"), "the host as it is rewritten");
            assert_eq!(ask(&mut client, "/auto", "a.test", ""), seen("a.test"), "but not to the endpoint's");
            assert_eq!(
                ask(&mut client, "/", "10.0.0.1", ""),
                seen("configured.test"),
                "no address is an SNI"
            );
            assert_eq!(ask(&mut client, "/", "a.test", "x-sni: c.test\r\n"), seen("c.test"));
        }
        assert_eq!(backend.accepted(), 4, "one connection for each name, used again");
        assert_eq!(culvert.stat("cluster.up.ssl.handshake"), 4);
    }
}

#[test]
fn the_certificate_has_to_be_for_the_host_of_the_request() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test", "*.b.test"], ..Leaf::default() });
    for driver in DRIVERS {
        for names in ["auto_sni: true, auto_san_validation: true", "auto_san_validation: true"] {
            let backend = peer::server(&server, None, &[], peer::mirror);
            let more = upstream(&trusting(&ca, ""), "sni: a.test\n") + &options(names);
            let (culvert, mut client) = start(driver, &backend, &more);
            assert_eq!(ask(&mut client, "/", "a.test", "").0, 200);
            assert_eq!(ask(&mut client, "/", "x.b.test", "").0, 200);
            assert_eq!(culvert.stat("cluster.up.ssl.fail_verify_san"), 0);
            // A connection that was good for another name is not used.
            assert_eq!(ask(&mut client, "/", "other.test", "").0, 503, "{names}");
            assert_eq!(ask(&mut client, "/", "10.0.0.1", "").0, 503, "{names}");
            assert_eq!(culvert.stat("cluster.up.ssl.fail_verify_san"), 2, "{names}");
            assert_eq!(ask(&mut client, "/", "a.test", "").0, 200);
            assert_eq!(backend.accepted(), 4);
        }
        // Names of the policy are expected besides.
        let policy = "match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: nobody.test}}]\n";
        let backend = peer::server(&server, None, &[], peer::mirror);
        let more = upstream(&trusting(&ca, policy), "sni: a.test\n") + &options("auto_san_validation: true");
        let (_culvert, mut client) = start(driver, &backend, &more);
        assert_eq!(ask(&mut client, "/", "a.test", "").0, 503);
    }
}

/// A resumed session shows no certificate: one that was good for a name is not taken for another.
#[test]
fn sessions_are_resumed_for_the_name_they_are_of() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["a.test"], ..Leaf::default() });
    for driver in DRIVERS {
        let backend = peer::server(&server, None, &[], peer::mirror);
        let more = upstream(&trusting(&ca, ""), "sni: a.test\nmax_session_keys: 10\n")
            + &options("auto_sni: true, auto_san_validation: true")
            + "  common_http_protocol_options: {max_requests_per_connection: 1}\n"
                .replace("  common", "    common")
                .as_str();
        let (culvert, mut client) = start(driver, &backend, &more);
        for _ in 0..3 {
            assert_eq!(ask(&mut client, "/", "a.test", "").0, 200);
            assert_eq!(ask(&mut client, "/", "other.test", "").0, 503);
        }
        assert_eq!(backend.accepted(), 6);
        let stat = |name: &str| culvert.stat(&format!("cluster.up.ssl.{name}"));
        assert_eq!((stat("handshake"), stat("session_reused"), stat("fail_verify_san")), (3, 2, 3));
    }
}

#[test]
fn the_hostname_of_an_endpoint_is_its_sni() {
    let ca = Ca::new("ca");
    for driver in DRIVERS {
        for (name, status) in [("host.test", 200), ("configured.test", 503)] {
            let server = ca.issue(&Leaf { dns: &[name], ..Leaf::default() });
            let backend = peer::server(&server, None, &[], peer::mirror);
            let policy = "match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: nobody.test}}]\n";
            let context = "sni: configured.test\nauto_host_sni: true\nauto_sni_san_validation: true\n";
            let (culvert, mut client) = start(driver, &backend, &upstream(&trusting(&ca, policy), context));
            let (seen, sni) = ask(&mut client, "/", "a.test", "");
            assert_eq!(seen, status, "the name that is asked for, instead of the policy's");
            assert_eq!(culvert.stat("cluster.up.ssl.fail_verify_san"), u64::from(status != 200));
            assert!(status != 200 || sni == "host.test", "{sni}");
        }
    }
}
