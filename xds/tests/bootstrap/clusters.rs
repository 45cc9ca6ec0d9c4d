//! Clusters and endpoints.

use std::{path::Path, sync::Arc, time::Duration};

use culvert_model::{
    Cluster, Discovery, DnsFamily, Hashing, HeaderCase, Health, LbPolicy, LocalityPolicy, SlowStart,
    ZoneAware,
};

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
    assert_eq!((last.priority, last.weight, &*last.hostname), (1, 1, "h"));
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
    let Discovery::Dns { assignment, options } = &cluster.discovery else {
        panic!("{:?}", cluster.discovery)
    };
    assert_eq!((options.respect_ttl, options.family), (true, DnsFamily::V4Preferred));
    assert_eq!(
        (options.refresh, assignment.names[0].host.as_str(), assignment.names[0].port),
        (Duration::from_secs(7), "svc", 80)
    );
    for (name, family) in [
        ("AUTO", DnsFamily::Auto),
        ("V4_ONLY", DnsFamily::V4Only),
        ("V6_ONLY", DnsFamily::V6Only),
        ("ALL", DnsFamily::All),
    ] {
        let cluster = of(&format!("type: STRICT_DNS\n    dns_lookup_family: {name}"));
        assert!(matches!(&cluster.discovery, Discovery::Dns { options, .. } if options.family == family));
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
        ("lb_policy: LEAST_REQUEST".to_owned(), LbPolicy::least_request(2)),
        (
            "lb_policy: least_request\n    least_request_lb_config: {choice_count: 5}".to_owned(),
            LbPolicy::least_request(5),
        ),
        ("lb_policy: Random".to_owned(), LbPolicy::Random),
        (policy("round_robin.v3.RoundRobin", ""), LbPolicy::RoundRobin),
        (policy("least_request.v3.LeastRequest", "choice_count: 3"), LbPolicy::least_request(3)),
        (policy("random.v3.Random", ""), LbPolicy::Random),
        (
            "lb_policy: RING_HASH\n    ring_hash_lb_config: {minimum_ring_size: 9, hash_function: MURMUR_HASH_2}".to_owned(),
            LbPolicy::RingHash { min: 9, max: 8 << 20, murmur: true, hashing: Hashing::default() },
        ),
        (
            policy("maglev.v3.Maglev", "table_size: 101, consistent_hashing_lb_config: {use_hostname_for_hashing: true}"),
            LbPolicy::Maglev { table_size: 101, hashing: Hashing { by_hostname: true, balance_factor: None } },
        ),
        (
            policy(
                "least_request.v3.LeastRequest",
                "selection_method: FULL_SCAN, active_request_bias: {default_value: 0.5, runtime_key: b}",
            ),
            LbPolicy::LeastRequest { choices: 2, full_scan: true, bias: 0.5 },
        ),
        (
            "load_balancing_policy: {policies: [{typed_extension_config: {name: n, typed_config: {'@type': \
             type.googleapis.com/culvert.v1.PeakEwma}}}]}"
                .to_owned(),
            LbPolicy::PeakEwma { decay: Duration::from_secs(10) },
        ),
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
fn what_localities_mean() {
    let typed = |policy: &str, fields: &str| {
        format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: n, typed_config: {{'@type': \
             EXT/load_balancing_policies.{policy}, {fields}}}}}}}]}}"
        )
    };
    let zones = ZoneAware::default();
    for (text, expected) in [
        (String::new(), LocalityPolicy::ZoneAware(zones)),
        ("common_lb_config: {locality_weighted_lb_config: {}}".to_owned(), LocalityPolicy::Weighted),
        (
            "common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 40}, min_cluster_size: 2, \
             fail_traffic_on_panic: true}}"
                .to_owned(),
            LocalityPolicy::ZoneAware(ZoneAware {
                percent: 40,
                min_cluster_size: 2,
                fail_on_panic: true,
                ..zones
            }),
        ),
        (
            typed("random.v3.Random", "locality_lb_config: {locality_weighted_lb_config: {}}"),
            LocalityPolicy::Weighted,
        ),
        (
            typed(
                "round_robin.v3.RoundRobin",
                "locality_lb_config: {zone_aware_lb_config: {force_local_zone: {}, locality_basis: HEALTHY_HOSTS_WEIGHT}}",
            ),
            LocalityPolicy::ZoneAware(ZoneAware { force_local: Some(1), by_weight: true, ..zones }),
        ),
        (
            typed(
                "wrr_locality.v3.WrrLocality",
                "endpoint_picking_policy: {policies: [{typed_extension_config: {name: n, typed_config: {'@type': \
                 EXT/load_balancing_policies.round_robin.v3.RoundRobin}}}]}",
            ),
            LocalityPolicy::Weighted,
        ),
    ] {
        assert_eq!(of(&text).localities, expected, "{text}");
    }
}

#[test]
fn slow_start() {
    let slow =
        |fields: &str| of(&format!("round_robin_lb_config: {{slow_start_config: {{{fields}}}}}")).slow_start;
    let expected = SlowStart { window: Duration::from_secs(9), aggression: 1.0, min_weight: 0.1 };
    assert_eq!(slow("slow_start_window: 9s"), Some(expected));
    assert_eq!(
        slow(
            "slow_start_window: 9s, aggression: {default_value: 2, runtime_key: a}, min_weight_percent: {value: 25}"
        ),
        Some(SlowStart { aggression: 2.0, min_weight: 0.25, ..expected })
    );
    assert_eq!(slow(""), None, "no window");
}

#[test]
fn panic_threshold_by_presence() {
    for (text, percent) in [
        ("common_lb_config: {}", 50),
        ("common_lb_config: {healthy_panic_threshold: {}}", 0),
        ("common_lb_config: {healthy_panic_threshold: {value: 33.4}}", 33),
    ] {
        assert_eq!(of(text).panic_percent, percent, "{text}");
    }
}

#[test]
fn dns_cluster_and_its_resolver() {
    let cluster = of("cluster_type: {name: dns, typed_config: {'@type': EXT/clusters.dns.v3.DnsCluster, \
         dns_refresh_rate: 9s, respect_dns_ttl: true, dns_min_refresh_rate: 2s, dns_jitter: 1s, dns_lookup_family: ALL, \
         dns_failure_refresh_rate: {base_interval: 3s}, all_addresses_in_single_endpoint: true, \
         typed_dns_resolver_config: {name: c, typed_config: {'@type': EXT/network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
         resolvers: [{socket_address: {address: 10.0.0.53, port_value: 5353, protocol: UDP}}], query_tries: 2, \
         query_timeout_seconds: 1, rotate_nameservers: true, use_resolvers_as_fallback: true, \
         dns_resolver_options: {use_tcp_for_dns_lookups: true, no_default_search_domain: true}}}}}
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: \
    {socket_address: {address: svc, port_value: 80}}}}]}]}");
    let Discovery::Dns { options, .. } = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    let second = Duration::from_secs(1);
    assert_eq!((options.logical, options.respect_ttl, options.family), (true, true, DnsFamily::All));
    assert_eq!((options.refresh, options.min_refresh, options.jitter), (9 * second, 2 * second, second));
    assert_eq!(options.failure_refresh, Some((3 * second, 30 * second)));
    let resolver = options.resolver.as_ref().unwrap();
    assert_eq!(resolver.servers, ["10.0.0.53:5353".parse().unwrap()]);
    assert_eq!((resolver.timeout, resolver.tries), (Some(second), Some(2)));
    assert!(resolver.tcp && resolver.no_search && resolver.rotate && resolver.servers_are_fallback);
}

#[test]
fn original_destinations_and_aggregates() {
    let cluster = of("type: ORIGINAL_DST
    lb_policy: cluster_provided
    cleanup_interval: 7s
    original_dst_lb_config: {use_http_header: true, http_header_name: X-To, upstream_port_override: 99}");
    let Discovery::OriginalDst(settings) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!((settings.header.as_deref(), settings.port), (Some("x-to"), Some(99)));
    assert_eq!(settings.cleanup, Duration::from_secs(7));
    let cluster = of("lb_policy: cluster_provided
    cluster_type: {name: g, typed_config: {'@type': EXT/clusters.aggregate.v3.ClusterConfig, clusters: [b, c]}}");
    assert!(
        matches!(&cluster.discovery, Discovery::Aggregate(names) if names.len() == 2 && &*names[1] == "c")
    );
}

#[test]
fn how_connections_are_made() {
    let cluster =
        of("upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}, freebind: true, \
         extra_source_addresses: [{address: {address: '::1', port_value: 0}}], \
         socket_options: [{level: 1, name: 2, int_value: 3}]}
    upstream_connection_options: {tcp_keepalive: {keepalive_time: 10, keepalive_probes: 3}}
    circuit_breakers: {thresholds: [{track_remaining: true}, {priority: HIGH, max_requests: 5}], \
    per_host_thresholds: [{max_connections: 4}]}");
    let bind = cluster.bind.as_ref().unwrap();
    assert_eq!((bind.sources.len(), bind.freebind), (2, true));
    assert_eq!((bind.options[0].level, bind.options[0].name), (1, 2));
    assert_eq!(bind.options[0].value, 3_i32.to_ne_bytes());
    let keepalive = cluster.keepalive.unwrap();
    assert_eq!((keepalive.time, keepalive.probes), (Some(Duration::from_secs(10)), Some(3)));
    assert!(cluster.circuit_breakers.track_remaining);
    assert_eq!((cluster.high_priority_breakers.max_requests, cluster.max_connections_per_host), (5, Some(4)));
}

#[test]
fn what_an_assignment_says_besides_its_endpoints() {
    let cluster = of(
        "load_assignment: {cluster_name: a, policy: {overprovisioning_factor: 100, weighted_priority_health: true, \
    drop_overloads: [{category: c, drop_percentage: {numerator: 5}}]}, endpoints: [{metadata: {filter_metadata: \
    {envoy.transport_socket_match: {mode: raw}}}, lb_endpoints: [{metadata: {filter_metadata: {envoy.lb: {hash_key: k}}}, \
    endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}, additional_addresses: [{address: \
    {socket_address: {address: '::1', port_value: 80}}}]}}]}]}",
    );
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("not static") };
    let policy = &assignment.policy;
    assert_eq!((policy.overprovisioning, policy.weighted_priority_health), (100, true));
    assert_eq!(policy.drops[0].per_million, 50_000);
    let endpoint = &assignment.endpoints[0];
    assert_eq!(endpoint.additional.len(), 1);
    let metadata = endpoint.metadata.as_ref().unwrap();
    assert!(endpoint.locality.socket_match.as_ref().is_some_and(|criteria| criteria.contains_key("mode")));
    assert!(metadata.get("envoy.lb", ["hash_key"]).is_some());
}
