//! The bootstrap that Envoy and Culvert are both started with.

use std::net::SocketAddrV4;

use serde_json::{Value, json};

use super::super::contender::Contender;
use super::super::workload::Scenario;
use super::Job;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// No limit that a measurement reaches.
const UNLIMITED: u32 = 100_000;

/// One listener, one route, one cluster; the admin page on a port of the system's choice.
pub(super) fn bootstrap(job: &Job<'_>, contender: Contender) -> Value {
    let mut bootstrap = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [listener(job)], "clusters": [cluster(job)]},
    });
    if let Some((name, config)) = socket_interface(contender) {
        bootstrap["bootstrap_extensions"] = json!([{"name": name, "typed_config": config}]);
        bootstrap["default_socket_interface"] = json!(name);
    }
    bootstrap
}

fn listener(job: &Job<'_>) -> Value {
    let manager = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "codec_type": if job.scenario.is_http2() { "HTTP2" } else { "HTTP1" },
        "route_config": {"name": "bench", "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}],
        }]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
        }],
    });
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }]});
    if job.scenario == Scenario::Tls {
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": {
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                    "alpn_protocols": ["http/1.1"],
                    "tls_certificates": [{
                        "certificate_chain": {"filename": job.pem},
                        "private_key": {"filename": job.pem},
                    }],
                },
            },
        });
    }
    json!({"name": "bench", "address": address(job.listen), "filter_chains": [chain]})
}

fn cluster(job: &Job<'_>) -> Value {
    let limits =
        json!({"max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED});
    let mut cluster = json!({
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": address(job.backend)}},
        ]}]},
    });
    if job.scenario.is_http2() {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    cluster
}

/// Envoy's other ways to its sockets, by the name of the extension.
fn socket_interface(contender: Contender) -> Option<(&'static str, Value)> {
    match contender {
        Contender::EnvoyUring => Some((
            "envoy.extensions.network.socket_interface.default_socket_interface",
            json!({
                "@type": format!("{TYPES}.network.socket_interface.v3.DefaultSocketInterface"),
                "io_uring_options": {},
            }),
        )),
        Contender::EnvoySockmap => Some((
            "envoy.extensions.network.socket_interface.sockmap",
            json!({"@type": format!("{TYPES}.network.socket_interface.sockmap.v3.Sockmap")}),
        )),
        _ => None,
    }
}

fn address(address: SocketAddrV4) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
