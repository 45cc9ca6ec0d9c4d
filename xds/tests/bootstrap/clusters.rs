//! Clusters and endpoints.

use std::{path::Path, sync::Arc, time::Duration};

use culvert_model::{Cluster, Discovery, DnsFamily, HeaderCase, Health, LbPolicy};

use crate::{good, http, seconds};

fn of(text: &str) -> Arc<Cluster> {
    good(&http(&[("CLUSTER", text)])).bootstrap.config.clusters[0].clone()
}

#[test]
fn endpoints() {
    let endpoint = |port: u16| {
        format!(
            "endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}, \
             hostname: h}}"
        )
    };
    let statuses = ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"];
    let entries: Vec<_> = statuses
        .iter()
        .zip(1..)
        .map(|(status, port)| {
            format!("{{health_status: {status}, load_balancing_weight: {port}, {}}}", endpoint(port))
        })
        .collect();
    let cluster = of(&format!(
        "load_assignment: {{cluster_name: x, endpoints: [{{priority: 1, lb_endpoints: [{{{}}}]}}, \
         {{lb_endpoints: [{}]}}]}}",
        endpoint(9),
        entries.join(", ")
    ));
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("not static") };
    let health: Vec<_> = assignment.endpoints.iter().map(|endpoint| endpoint.health).collect();
    let [healthy, unhealthy, degraded] = [Health::Healthy, Health::Unhealthy, Health::Degraded];
    assert_eq!(health, [healthy, healthy, unhealthy, unhealthy, unhealthy, degraded, healthy]);
    let last = &assignment.endpoints[6];
    assert_eq!((last.priority, last.weight, last.hostname.as_str()), (1, 1, "h"));
    assert_eq!(assignment.endpoints[4].weight, 5);
}

#[test]
fn dns() {
    let cluster = of("type: strict_dns
    dns_refresh_rate: 7s
    respect_dns_ttl: true
    dns_lookup_family: V4_PREFERRED
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: \
    {socket_address: {address: svc, port_value: 80}}}}]}]}");
    let Discovery::StrictDns { assignment, refresh, respect_ttl: true, family: DnsFamily::V4Preferred } =
        &cluster.discovery
    else {
        panic!("{:?}", cluster.discovery)
    };
    assert_eq!(
        (*refresh, assignment.names[0].host.as_str(), assignment.names[0].port),
        (Duration::from_secs(7), "svc", 80)
    );
    for (name, family) in [
        ("AUTO", DnsFamily::Auto),
        ("V4_ONLY", DnsFamily::V4Only),
        ("V6_ONLY", DnsFamily::V6Only),
        ("ALL", DnsFamily::All),
    ] {
        let cluster = of(&format!("type: STRICT_DNS\n    dns_lookup_family: {name}"));
        assert!(matches!(cluster.discovery, Discovery::StrictDns { family: found, .. } if found == family));
    }
}

#[test]
fn eds() {
    let cluster = of("type: EDS\n    eds_cluster_config: {eds_config: {path: /e}, service_name: s}");
    let Discovery::Eds { service_name, source } = &cluster.discovery else { panic!("not EDS") };
    assert_eq!(
        (service_name.as_str(), source.file().and_then(Path::to_str), source.initial_fetch_timeout),
        ("s", Some("/e"), seconds(15))
    );
}

#[test]
fn load_balancing() {
    let policy = |name: &str, config: &str| {
        format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: n, typed_config: \
             {{'@type': EXT/load_balancing_policies.{name}, {config}}}}}}}]}}"
        )
    };
    for (text, expected) in [
        ("lb_policy: ROUND_ROBIN".to_owned(), LbPolicy::RoundRobin),
        ("lb_policy: LEAST_REQUEST".to_owned(), LbPolicy::LeastRequest { choices: 2 }),
        (
            "lb_policy: least_request\n    least_request_lb_config: {choice_count: 5}".to_owned(),
            LbPolicy::LeastRequest { choices: 5 },
        ),
        ("lb_policy: Random".to_owned(), LbPolicy::Random),
        (policy("round_robin.v3.RoundRobin", ""), LbPolicy::RoundRobin),
        (policy("least_request.v3.LeastRequest", "choice_count: 3"), LbPolicy::LeastRequest { choices: 3 }),
        (policy("random.v3.Random", ""), LbPolicy::Random),
        (format!("lb_policy: MAGLEV\n    {}", policy("random.v3.Random", "")), LbPolicy::Random),
    ] {
        assert_eq!(of(&text).lb_policy, expected, "{text}");
    }
}

#[test]
fn limits_and_protocol() {
    let cluster = of("alt_stat_name: s
    connect_timeout: 0.25s
    per_connection_buffer_limit_bytes: 1000
    circuit_breakers: {thresholds: [{priority: HIGH, max_requests: 9}, {max_connections: 1, \
    max_pending_requests: 2, max_requests: 3, max_retries: 4}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': EXT/upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {idle_timeout: 2s, max_requests_per_connection: 8, \
        max_response_headers_kb: 1}
        explicit_http_config: {http_protocol_options: {enable_trailers: true, header_key_format: \
        {proper_case_words: {}}}}");
    let breakers = cluster.circuit_breakers;
    assert_eq!((cluster.stat_name.as_str(), cluster.connect_timeout), ("s", Duration::from_millis(250)));
    assert_eq!(
        [
            breakers.max_connections,
            breakers.max_pending_requests,
            breakers.max_requests,
            breakers.max_retries
        ],
        [1, 2, 3, 4]
    );
    assert_eq!((cluster.idle_timeout, cluster.max_requests_per_connection), (seconds(2), Some(8)));
    assert_eq!((cluster.max_response_headers_bytes, cluster.buffer_limit_bytes), (1_024, 1_000));
    assert!(cluster.enable_trailers && cluster.header_case == HeaderCase::Proper);

    let cluster = of("max_requests_per_connection: 4
    common_http_protocol_options: {idle_timeout: 0s}
    http_protocol_options: {enable_trailers: true}");
    assert_eq!(
        (cluster.max_requests_per_connection, cluster.idle_timeout, cluster.enable_trailers),
        (Some(4), None, true)
    );
}

#[test]
fn localities_share_by_weight_where_asked() {
    let endpoints = "load_assignment: {cluster_name: a, endpoints: [
      {load_balancing_weight: 1, lb_endpoints: [ONE, ONE2]}, {load_balancing_weight: 3, lb_endpoints: \
      [TWO]}]}"
        .replace("ONE2", "{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}}")
        .replace("ONE", "{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1}}}}")
        .replace("TWO", "{endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 1}}}}");
    let weights = |config: &str| {
        let loaded = good(&http(&[("CLUSTER", &format!("{config}\n    {endpoints}"))]));
        match &loaded.bootstrap.config.clusters[0].discovery {
            Discovery::Static(assignment) => {
                assignment.endpoints.iter().map(|e| e.weight).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(weights(""), [1, 1, 1]);
    assert_eq!(weights("common_lb_config: {locality_weighted_lb_config: {}}"), [1, 1, 6]);
    let typed = "load_balancing_policy: {policies: [{typed_extension_config: {name: n, typed_config: \
    {'@type': \
        EXT/load_balancing_policies.random.v3.Random, locality_lb_config: {locality_weighted_lb_config: \
        {}}}}}]}";
    assert_eq!(weights(typed), [1, 1, 6]);
}
