//! TLS on both sides of the proxy, with real peers, on both drivers.
#![allow(unreachable_pub)]

#[allow(dead_code)]
#[path = "../support/control_plane.rs"]
mod control_plane;
mod peer;
mod pki;
#[path = "../support/mod.rs"]
mod support;

#[path = "../http2/peer.rs"]
mod h2_peer;
mod health;
mod http2;
mod names;
mod rotation;
mod sds;
mod sockets;
mod tcp;
mod trust;
mod wire;

use pki::Identity;
use support::culvert::{bootstrap, free_port, indent};

/// Both versions of the protocol.
static VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// PEM as a YAML string.
fn quoted(pem: &str) -> String {
    format!("\"{}\"", pem.replace('\n', "\\n"))
}

/// `tls_certificates` with one certificate.
fn own(identity: &Identity) -> String {
    format!(
        "tls_certificates:\n- certificate_chain: {{inline_string: {}}}\n  private_key: {{inline_string: {}}}\n",
        quoted(&identity.chain),
        quoted(&identity.key)
    )
}

/// `validation_context` with this CA, and more of its fields.
fn trusting(ca: &pki::Ca, more: &str) -> String {
    format!(
        "validation_context:\n  trusted_ca: {{inline_string: {}}}\n{}",
        quoted(&ca.pem()),
        indent(more, 2)
    )
}

/// A `transport_socket` for a filter chain.
fn downstream(common: &str, more: &str) -> String {
    socket("DownstreamTlsContext", common, more)
}

/// A `transport_socket` for a cluster.
fn upstream(common: &str, more: &str) -> String {
    socket("UpstreamTlsContext", common, more)
}

fn socket(kind: &str, common: &str, more: &str) -> String {
    format!(
        "transport_socket:\n  name: tls\n  typed_config:\n    \"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}\n    common_tls_context:\n{}{}",
        indent(if common.is_empty() { "alpn_protocols: []" } else { common }, 6),
        indent(more, 4)
    )
}

/// A bootstrap whose listener has this transport socket; the second port is the listener's.
fn with_socket(manager: &str, clusters: &str, socket: &str) -> (u16, u16, String) {
    let (admin, port) = (free_port(), free_port());
    let routes = "- {match: {prefix: /}, route: {cluster: up, timeout: 0s}}";
    let text = bootstrap(admin, port, manager, routes, clusters);
    let chain = format!("    filter_chains:\n    - {}", indent(socket, 6).trim_start());
    (admin, port, text.replace("    filter_chains:\n    - filters:", &format!("{chain}      filters:")))
}
