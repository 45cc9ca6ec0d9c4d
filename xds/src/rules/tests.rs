//! Rules read from the real descriptors, on values on both sides of each.

use serde_json::json;

use crate::{
    at::Sink,
    decode::{self, UnknownFields},
    descriptor, walk,
};

/// What is wrong with a message, without what the support tables say.
fn violations(message: &str, value: serde_json::Value) -> Vec<String> {
    let sink = Sink::new("m");
    let decoded =
        decode::decode(&sink.root(), &descriptor::message(message).unwrap(), &value, UnknownFields::Refuse);
    walk::walk(&sink.root(), &decoded.unwrap_or_else(|| panic!("{value} does not decode")));
    sink.into_parts().0.iter().map(|e| format!("{}: {}", e.field, e.reason)).collect()
}

/// Message, value, and what is wrong with it.
fn violated() -> Vec<(&'static str, serde_json::Value, &'static str)> {
    vec![
        (
            "envoy.config.core.v3.Address",
            json!({}),
            "address: one of socket_address, pipe, envoy_internal_address is required",
        ),
        (
            "envoy.config.core.v3.SocketAddress",
            json!({"port_value": 1}),
            "address: value length must be at least 1 characters",
        ),
        (
            "envoy.config.core.v3.SocketAddress",
            json!({"address": "a", "port_value": 65_536}),
            "port_value: value must be less than or equal to 65535",
        ),
        (
            "envoy.config.core.v3.SocketAddress",
            json!({"address": "a", "port_value": 1, "protocol": 7}),
            "protocol: value must be one of the defined enum values",
        ),
        (
            "envoy.config.route.v3.DirectResponseAction",
            json!({"status": 600}),
            "status: value must be inside range [200, 600)",
        ),
        (
            "envoy.config.route.v3.DirectResponseAction",
            json!({}),
            "status: value must be inside range [200, 600)",
        ),
        (
            "envoy.config.route.v3.VirtualHost",
            json!({"name": "a"}),
            "domains: value must contain at least 1 item(s)",
        ),
        (
            "envoy.config.route.v3.VirtualHost",
            json!({"name": "a", "domains": ["a", "b\n"]}),
            "domains[1]: value must not contain NUL, CR or LF",
        ),
        ("envoy.config.route.v3.Route", json!({"redirect": {}}), "match: value is required"),
        (
            "envoy.config.route.v3.RouteMatch",
            json!({"path_separated_prefix": "/a/"}),
            "path_separated_prefix: value does not match regex pattern \"^[^?#]+[^?#/]$\"",
        ),
        (
            "envoy.config.core.v3.HeaderValue",
            json!({"key": "a", "value": "v".repeat(16_385)}),
            "value: value length must be at most 16384 bytes",
        ),
        (
            "envoy.config.cluster.v3.Cluster",
            json!({"name": "a", "connect_timeout": "0s"}),
            "connect_timeout: value must be greater than 0s",
        ),
        (
            "envoy.config.cluster.v3.Cluster",
            json!({"name": "a", "dns_refresh_rate": "0.001s"}),
            "dns_refresh_rate: value must be greater than 0.001s",
        ),
        (
            "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
            json!({"choice_count": 1}),
            "choice_count: value must be greater than or equal to 2",
        ),
        (
            "culvert.v1.Capture",
            json!({"exclude_inbound_ports": [22, 0]}),
            "exclude_inbound_ports[1]: value must be inside range [1, 65535]",
        ),
        (
            "culvert.v1.Capture",
            json!({"exclude_outbound_cidrs": [""]}),
            "exclude_outbound_cidrs[0]: value length must be at least 1 characters",
        ),
        (
            "envoy.config.listener.v3.AdditionalAddress",
            json!({"address": {"pipe": {"path": "/a", "mode": 512}}}),
            "address.pipe.mode: value must be less than or equal to 511",
        ),
    ]
}

#[test]
fn constraints_of_envoy() {
    for (message, value, expected) in violated() {
        assert_eq!(violations(message, value.clone()), [expected], "{message} {value}");
    }
    for (message, value) in [
        ("envoy.config.core.v3.Address", json!({"pipe": {"path": "/a"}})),
        ("envoy.config.route.v3.DirectResponseAction", json!({"status": 200})),
        ("envoy.config.route.v3.RouteMatch", json!({"path_separated_prefix": "/a"})),
        ("envoy.config.cluster.v3.Cluster", json!({"name": "a", "connect_timeout": "0.000000001s"})),
        ("envoy.config.cluster.v3.Cluster.LeastRequestLbConfig", json!({})),
        ("culvert.v1.Capture", json!({"exclude_inbound_ports": [1, 65_535]})),
    ] {
        assert_eq!(violations(message, value.clone()), Vec::<String>::new(), "{message} {value}");
    }
}

#[test]
fn constraints_hold_below_fields_without_effect() {
    let admin = json!({
        "address": {"pipe": {"path": "/a"}},
        "access_log": [{
            "name": "x",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            },
        }],
    });
    assert_eq!(
        violations("envoy.config.bootstrap.v3.Admin", admin),
        ["access_log[0].typed_config.path: value length must be at least 1 characters"]
    );
}

#[test]
fn every_rule_compiles() {
    for message in descriptor::everything().all_messages() {
        let schema = crate::schema::Schema::of(&message);
        assert_eq!(schema.fields.len(), message.fields().len());
    }
}
