use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use culvert_bpf::{DirectFlow, DirectRule};
use culvert_model::Config;
use culvert_xds::Changes;

use super::{
    needs::Needs,
    plan::{Plan, Planner},
    qualify::Policy,
};
use crate::{
    capture::{DirectPod, PodHandle},
    control::snapshot::{Builder, Resolved},
    observe::stats::Registry,
    snapshot::{HealthFlag, Snapshot},
    tls::Contexts,
};

/// Cookies of the pods.
const CLIENT: u64 = 1;
const SERVER: u64 = 2;

const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Two listeners of one TCP proxy each, and the service, at the address of a pod.
const BASE: &str = r#"
static_resources:
  listeners:
  - name: out
    address: {socket_address: {address: 127.0.0.1, port_value: 1}}
    bind_to_port: false
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": TCP, stat_prefix: out, cluster: service}
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 2}}
    bind_to_port: false
    traffic_direction: INBOUND
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": TCP, stat_prefix: in, cluster: app}
  clusters:
  - name: service
    type: STATIC
    load_assignment:
      cluster_name: service
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}
  - name: app
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
"#;

const ENDPOINT: &str =
    "        - endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}\n";
const OUT_CHAIN: &str = "stat_prefix: out, cluster: service}";
const SERVICE: &str = "  - name: service\n";

fn snapshot(text: &str) -> Arc<Snapshot> {
    let text = text.replace("TCP,", &format!("\"{TCP}\","));
    let options = culvert_xds::LoadOptions { config_yaml: Some(text), ..Default::default() };
    let config = match culvert_xds::load_bootstrap(&options) {
        Ok(loaded) => loaded.bootstrap.config,
        Err(errors) => panic!("{errors}\n{}", options.config_yaml.unwrap()),
    };
    let (tripped, _) = tokio::sync::mpsc::unbounded_channel();
    let mut builder = Builder::new(1, Registry::new(), Arc::new(Contexts::default()), tripped);
    builder.build(&config, &all_of(&config), &Resolved::new(), None)
}

fn all_of(config: &Config) -> Changes {
    Changes {
        listeners: config.listeners.iter().map(|listener| listener.name.clone()).collect(),
        clusters: config.clusters.iter().map(|cluster| cluster.name.to_string()).collect(),
        ..Changes::default()
    }
}

fn pod(name: &str, cookie: u64, addresses: &[&str]) -> DirectPod {
    DirectPod {
        name: name.into(),
        cookie,
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        outbound: Some("out".into()),
        inbound: Some("in".into()),
        direct: true,
        handle: Arc::new(PodHandle::of_nobody()),
    }
}

fn pods() -> Vec<DirectPod> {
    vec![pod("client", CLIENT, &["10.0.0.1", "fd00::1"]), pod("server", SERVER, &["10.0.0.2", "fd00::2"])]
}

fn plan_of(snapshot: &Snapshot, pods: &[DirectPod]) -> Plan {
    let policy = Policy::new(snapshot, false);
    Planner { policy, pods, excluded_inbound: &[], full: &HashSet::new() }.plan()
}

/// What the rules make of a connection: the endpoints with their weights.
fn asked(plan: &Plan, netns: u64, to: &str) -> Vec<(String, u32)> {
    let to: SocketAddr = to.parse().unwrap();
    let of_port = |port: u16| {
        let fits =
            |rule: &&DirectRule| rule.netns == netns && rule.port == port && rule.prefix.contains(&to.ip());
        plan.rules.iter().filter(fits).max_by_key(|rule| rule.prefix.prefix_len())
    };
    let rule = of_port(to.port()).or_else(|| of_port(0));
    let endpoints = rule.into_iter().flat_map(|rule| rule.endpoints.iter());
    endpoints.map(|end| (end.address.to_string(), end.weight)).collect()
}

fn is_direct(plan: &Plan, to: &str) -> bool {
    asked(plan, CLIENT, to).iter().any(|(_, weight)| *weight > 0)
}

/// Why connections to IPv4 addresses go through the proxy.
fn reasons(plan: &Plan) -> HashSet<Needs> {
    let v4 = plan.proxied.iter().filter(|(_, to, _)| !to.starts_with("::/0"));
    v4.map(|(_, _, reason)| reason.needs).collect()
}

#[test]
fn a_tcp_proxy_to_a_pod_of_the_node_is_direct() {
    let plan = plan_of(&snapshot(BASE), &pods());
    for to in ["10.96.0.1:80", "10.0.0.9:1234"] {
        assert_eq!(asked(&plan, CLIENT, to), [("10.0.0.2:80".to_owned(), 1 << 31)], "{to}");
    }
    assert!(!is_direct(&plan, "[fd00::9]:80"), "the endpoint is of the other IP version");
    assert_eq!(plan.counted.len(), 1);
    let counted = plan.counted.values().next().unwrap();
    assert_eq!(counted.proxies.iter().map(|it| &**it).collect::<Vec<_>>(), ["out", "in"]);
    assert_eq!(counted.clusters.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["service", "app"]);
    assert_eq!(counted.idle_timeout, Some(Duration::from_secs(3600)));
    // The numbers are the same in another process, or connections would be lost sight of.
    let again = plan_of(&snapshot(BASE), &pods());
    assert_eq!(plan.counted.keys().collect::<Vec<_>>(), again.counted.keys().collect::<Vec<_>>());
}

#[test]
fn everything_that_needs_the_proxy_keeps_it() {
    let two = |more: &str| format!("{ENDPOINT}{}", ENDPOINT.replace("10.0.0.2", more));
    let cluster = |fields: &str| format!("{SERVICE}    {fields}\n");
    let chain = |fields: &str| format!("stat_prefix: out, cluster: service, {fields}}}");
    let listener = |fields: &str| format!("    traffic_direction: OUTBOUND\n    {fields}\n");
    let log = "access_log: [{name: l, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]";
    let rbac = "      - {name: r, typed_config: {\"@type\": \
                type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, rules: {}}}\n";
    let filter = |name: &str, fields: &str| {
        listener(&format!(
            "listener_filters: [{{name: f, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.listener.{name}, {fields}}}}}]"
        ))
    };
    let chain_match = |fields: &str| {
        format!(
            "    - filter_chain_match: {{{fields}}}\n      filters:\n      - name: tcp\n        typed_config: {{\"@type\": TCP, {OUT_CHAIN}"
        )
    };
    let out = "    - filters:\n      - name: tcp\n        typed_config: {\"@type\": TCP, stat_prefix: out, cluster: service}";
    let outbound = "    traffic_direction: OUTBOUND\n";
    let tls = "transport_socket: {name: tls, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}";
    let proxied = "transport_socket: {name: p, typed_config: {\"@type\": \
                   type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
                   config: {}, transport_socket: {name: raw, typed_config: {\"@type\": \
                   type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}";
    let echo = "typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}";
    let matcher = format!(
        "{outbound}    filter_chain_matcher: {{on_no_match: {{action: {{name: a, typed_config: {{\"@type\": \
         type.googleapis.com/google.protobuf.StringValue, value: x}}}}}}}}\n"
    );
    let named = out.replace("- filters:", "- name: x\n      filters:");
    /// What is needed, in which case, and what is replaced in the configuration for it.
    type Case<'c> = (Needs, &'c str, Vec<(&'c str, String)>);
    let cases: Vec<Case<'_>> = vec![
        (Needs::AccessLog, "of the listener", vec![(outbound, listener(log))]),
        (Needs::AccessLog, "of the TCP proxy", vec![(OUT_CHAIN, chain(log))]),
        (
            Needs::Addresses,
            "more than one",
            vec![(
                "port_value: 80}}}",
                "port_value: 80}}, additional_addresses: [{address: {socket_address: {address: 10.0.0.2, \
                 port_value: 81}}}]}"
                    .into(),
            )],
        ),
        (Needs::Balancing, "by hash", vec![(SERVICE, cluster("lb_policy: RING_HASH"))]),
        (Needs::Balancing, "by hash", vec![(SERVICE, cluster("lb_policy: MAGLEV"))]),
        (
            Needs::Bind,
            "another source",
            vec![(
                SERVICE,
                cluster("upstream_bind_config: {source_address: {address: 10.0.0.1, port_value: 0}}"),
            )],
        ),
        (
            Needs::Breakers,
            "connections",
            vec![(SERVICE, cluster("circuit_breakers: {thresholds: [{max_connections: 100}]}"))],
        ),
        (
            Needs::Breakers,
            "pending",
            vec![(SERVICE, cluster("circuit_breakers: {thresholds: [{max_pending_requests: 100}]}"))],
        ),
        (
            Needs::Breakers,
            "requests",
            vec![(SERVICE, cluster("circuit_breakers: {thresholds: [{max_requests: 100}]}"))],
        ),
        (
            Needs::Breakers,
            "of each host",
            vec![(SERVICE, cluster("circuit_breakers: {per_host_thresholds: [{max_connections: 100}]}"))],
        ),
        (Needs::ChainMatcher, "of the listener", vec![(outbound, matcher), (out, named)]),
        (
            Needs::Closing,
            "of the cluster",
            vec![(SERVICE, cluster("common_lb_config: {close_connections_on_host_set_change: true}"))],
        ),
        (Needs::Discovery, "of the service", vec![(OUT_CHAIN, "stat_prefix: out, cluster: app}".into())]),
        (
            Needs::Drops,
            "of the assignment",
            vec![(
                "      cluster_name: service\n",
                "      cluster_name: service\n      policy: {drop_overloads: [{category: x, drop_percentage: \
                 {numerator: 1}}]}\n"
                    .into(),
            )],
        ),
        (
            Needs::Duration,
            "of the TCP proxy",
            vec![(OUT_CHAIN, chain("max_downstream_connection_duration: 60s"))],
        ),
        (
            Needs::Elsewhere,
            "another port",
            vec![(
                "  - name: app\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n",
                format!(
                    "  - name: app\n    type: STATIC\n    load_assignment:\n      cluster_name: app\n      endpoints:\n      \
                     - lb_endpoints:\n{}",
                    ENDPOINT.replace("port_value: 80", "port_value: 8080")
                ),
            )],
        ),
        (
            Needs::Elsewhere,
            "where the application may listen alone",
            vec![(
                "  - name: app\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n",
                format!(
                    "  - name: app\n    type: STATIC\n    load_assignment:\n      cluster_name: app\n      endpoints:\n      \
                     - lb_endpoints:\n{}",
                    ENDPOINT.replace("10.0.0.2", "127.0.0.1")
                ),
            )],
        ),
        (Needs::FirstBytes, "a server name", vec![(out, chain_match("server_names: [a.example]"))]),
        (Needs::FirstBytes, "TLS", vec![(out, chain_match("transport_protocol: tls"))]),
        (Needs::FirstBytes, "a protocol", vec![(out, chain_match("application_protocols: [h2]"))]),
        (Needs::Hashing, "of the TCP proxy", vec![(OUT_CHAIN, chain("hash_policy: [{source_ip: {}}]"))]),
        (
            Needs::Health,
            "nobody is healthy",
            vec![(
                ENDPOINT,
                ENDPOINT.replace("- endpoint", "- health_status: UNHEALTHY\n          endpoint"),
            )],
        ),
        (
            Needs::Health,
            "degraded",
            vec![(ENDPOINT, ENDPOINT.replace("- endpoint", "- health_status: DEGRADED\n          endpoint"))],
        ),
        (
            Needs::Inspection,
            "what is no TLS is closed",
            vec![(
                outbound,
                filter(
                    "tls_inspector.v3.TlsInspector",
                    "close_connection_on_client_hello_parsing_errors: true",
                ),
            )],
        ),
        (
            Needs::Keepalive,
            "of the cluster",
            vec![(SERVICE, cluster("upstream_connection_options: {tcp_keepalive: {keepalive_time: 10}}"))],
        ),
        (
            Needs::Localities,
            "of the cluster",
            vec![(SERVICE, cluster("common_lb_config: {locality_weighted_lb_config: {}}"))],
        ),
        (
            Needs::NetworkFilters,
            "of the client",
            vec![(out, out.replace("    - filters:\n", &format!("    - filters:\n{rbac}")))],
        ),
        (
            Needs::NetworkFilters,
            "of the endpoint",
            vec![(
                "    traffic_direction: INBOUND\n    filter_chains:\n    - filters:\n",
                format!("    traffic_direction: INBOUND\n    filter_chains:\n    - filters:\n{rbac}"),
            )],
        ),
        (
            Needs::NoChain,
            "of the client",
            vec![(out, chain_match("prefix_ranges: [{address_prefix: 192.0.2.0, prefix_len: 24}]"))],
        ),
        (Needs::NoCluster, "none", vec![(OUT_CHAIN, "stat_prefix: out, cluster: nobody}".into())]),
        (Needs::Outliers, "of the cluster", vec![(SERVICE, cluster("outlier_detection: {}"))]),
        (
            Needs::Pipe,
            "an endpoint",
            vec![(ENDPOINT, format!("{ENDPOINT}        - endpoint: {{address: {{pipe: {{path: /x}}}}}}\n"))],
        ),
        (
            Needs::Priorities,
            "of endpoints",
            vec![(
                "      - lb_endpoints:\n",
                format!(
                    "      - lb_endpoints:\n{}      - priority: 1\n        lb_endpoints:\n",
                    ENDPOINT.replace("port_value: 80", "port_value: 81")
                ),
            )],
        ),
        (
            Needs::ProxyHeader,
            "from the client",
            vec![(outbound, filter("proxy_protocol.v3.ProxyProtocol", "stat_prefix: x"))],
        ),
        (Needs::ProxyHeader, "to the endpoint", vec![(SERVICE, cluster(proxied))]),
        (Needs::Remote, "an address of nobody", vec![(ENDPOINT, ENDPOINT.replace("10.0.0.2", "10.0.0.7"))]),
        (Needs::Remote, "one of two is elsewhere", vec![(ENDPOINT, two("10.0.0.7"))]),
        (Needs::Retries, "of the TCP proxy", vec![(OUT_CHAIN, chain("max_connect_attempts: 2"))]),
        (
            Needs::SlowStart,
            "of the cluster",
            vec![(SERVICE, cluster("round_robin_lb_config: {slow_start_config: {slow_start_window: 10s}}"))],
        ),
        (
            Needs::SourceMatch,
            "addresses",
            vec![(out, chain_match("source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]"))],
        ),
        (Needs::SourceMatch, "ports", vec![(out, chain_match("source_ports: [80]"))]),
        (Needs::SourceMatch, "type", vec![(out, chain_match("source_type: EXTERNAL"))]),
        (
            Needs::SourceMatch,
            "addresses of sockets",
            vec![(
                out,
                chain_match("direct_source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]"),
            )],
        ),
        (
            Needs::Subsets,
            "of the cluster",
            vec![(
                SERVICE,
                cluster("lb_subset_config: {subset_selectors: [{keys: [v]}], fallback_policy: ANY_ENDPOINT}"),
            )],
        ),
        (
            Needs::Subsets,
            "of the TCP proxy",
            vec![(OUT_CHAIN, chain("metadata_match: {filter_metadata: {envoy.lb: {v: a}}}"))],
        ),
        (
            Needs::Terminal,
            "echo",
            vec![("typed_config: {\"@type\": TCP, stat_prefix: out, cluster: service}", echo.to_owned())],
        ),
        (Needs::Tls, "to the endpoint", vec![(SERVICE, cluster(tls))]),
        (
            Needs::Tls,
            "to some endpoints",
            vec![(
                SERVICE,
                cluster(&format!("transport_socket_matches: [{{name: m, match: {{a: b}}, {tls}}}]")),
            )],
        ),
        (Needs::Version, "an endpoint of each", vec![(ENDPOINT, two("\"fd00::2\""))]),
    ];
    let mut seen = HashSet::new();
    for (needs, what, changes) in cases {
        let mut text = BASE.to_owned();
        for (from, to) in &changes {
            assert!(text.contains(from), "{needs:?} {what}: nothing like {from:?}");
            text = text.replacen(from, to, 1);
        }
        let plan = plan_of(&snapshot(&text), &pods());
        assert!(!is_direct(&plan, "10.96.0.1:80"), "{needs:?} {what}");
        assert_eq!(reasons(&plan), HashSet::from([needs]), "{what}");
        seen.insert(needs);
    }
    // The limit is not part of a resource.
    let snapshot = snapshot(BASE);
    let policy = Policy::new(&snapshot, true);
    let pods = pods();
    let plan = Planner { policy, pods: &pods, excluded_inbound: &[], full: &HashSet::new() }.plan();
    assert_eq!(reasons(&plan), HashSet::from([Needs::ConnectionLimit]));
    seen.insert(Needs::ConnectionLimit);
    let unseen: Vec<_> = Needs::ALL.iter().filter(|needs| !seen.contains(needs)).collect();
    assert!(unseen.is_empty(), "no case for {unseen:?}");
}

#[test]
fn both_pods_have_to_allow_it() {
    let snapshot = snapshot(BASE);
    for (at, needs) in [(0, None), (1, Some(Needs::Remote))] {
        let mut pods = pods();
        pods[at].direct = false;
        let plan = plan_of(&snapshot, &pods);
        assert!(!is_direct(&plan, "10.96.0.1:80"));
        if let Some(needs) = needs {
            assert_eq!(reasons(&plan), HashSet::from([needs]));
        }
    }
    // Whose address it is must be certain.
    let mut three = pods();
    three.push(pod("namesake", 3, &["10.0.0.2"]));
    assert_eq!(reasons(&plan_of(&snapshot, &three)), HashSet::from([Needs::Remote]));
    // An inbound proxy that is not there has nothing to say.
    let mut open = pods();
    open[1].inbound = None;
    assert!(is_direct(&plan_of(&snapshot, &open), "10.96.0.1:80"));
}

#[test]
fn the_chain_is_that_of_the_destination() {
    let more = r#"
    - filter_chain_match: {destination_port: 90}
      filters:
      - name: echo
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}
    - filter_chain_match: {prefix_ranges: [{address_prefix: 10.96.0.0, prefix_len: 16}]}
      filters:
      - name: echo
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}
    - filter_chain_match: {prefix_ranges: [{address_prefix: 10.96.7.0, prefix_len: 24}]}
      filters:
      - name: tcp
        typed_config: {"@type": TCP, stat_prefix: out, cluster: service}
"#;
    let text = BASE.replacen("    filter_chains:\n", &format!("    filter_chains:{more}"), 1);
    let plan = plan_of(&snapshot(&text), &pods());
    assert!(is_direct(&plan, "10.97.0.1:80") && is_direct(&plan, "10.96.7.1:80"));
    for to in ["10.96.6.255:80", "10.96.8.0:80", "10.97.0.1:90", "10.96.7.1:90"] {
        assert!(!is_direct(&plan, to), "{to}");
    }
}

#[test]
fn the_listener_of_the_destination_takes_over() {
    let more = r#"
  - name: of-one
    address: {socket_address: {address: 10.96.0.1, port_value: 80}}
    bind_to_port: false
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": TCP, stat_prefix: one, cluster: service}
  - name: of-a-port
    address: {socket_address: {address: 0.0.0.0, port_value: 81}}
    bind_to_port: false
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": TCP, stat_prefix: port, cluster: service}
  clusters:
"#;
    let echo = "typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}";
    let own = "typed_config: {\"@type\": TCP, stat_prefix: out, cluster: service}";
    let text = BASE.replacen("  clusters:\n", &more[1..], 1).replacen(own, echo, 1);
    let unused = plan_of(&snapshot(&text), &pods());
    assert!(!is_direct(&unused, "10.96.0.1:80"), "nothing is handed over");
    let text = text.replacen(
        "    bind_to_port: false\n",
        "    bind_to_port: false\n    use_original_dst: true\n",
        1,
    );
    let plan = plan_of(&snapshot(&text), &pods());
    assert!(is_direct(&plan, "10.96.0.1:80") && is_direct(&plan, "10.1.1.1:81"));
    for to in ["10.96.0.2:80", "10.96.0.1:82", "[fd00::9]:81"] {
        assert!(!is_direct(&plan, to), "{to}");
    }
}

#[test]
fn weights_are_those_of_clusters_and_endpoints() {
    let weighted = "stat_prefix: out, weighted_clusters: {clusters: [{name: service, weight: 3}, {name: other, weight: 1}]}}";
    let other = "  - name: other\n    type: STATIC\n    load_assignment:\n      cluster_name: other\n      endpoints:\n      - lb_endpoints:\n";
    let second = ENDPOINT.replace("port_value: 80", "port_value: 81");
    let third = ENDPOINT
        .replace("port_value: 80", "port_value: 82")
        .replace("- endpoint", "- load_balancing_weight: 3\n          endpoint");
    let text = BASE.replacen(OUT_CHAIN, weighted, 1).replacen(
        "  - name: app\n",
        &format!("{other}{second}{third}  - name: app\n"),
        1,
    );
    let shares: HashMap<String, u32> =
        asked(&plan_of(&snapshot(&text), &pods()), CLIENT, "10.96.0.1:80").into_iter().collect();
    let part = |port: u16| f64::from(shares[&format!("10.0.0.2:{port}")]) / 2_f64.powi(31);
    for (port, expected) in [(80, 0.75), (81, 0.0625), (82, 0.1875)] {
        assert!((part(port) - expected).abs() < 1e-6, "{port}: {shares:?}");
    }
}

#[test]
fn what_is_not_chosen_now_is_not_closed() {
    let flow = |plan: &Plan| DirectFlow {
        cookie: 1,
        netns: CLIENT,
        peer: SERVER,
        client: "10.0.0.1:5000".parse().unwrap(),
        endpoint: "10.0.0.2:80".parse().unwrap(),
        meant: "10.96.0.1:80".parse().unwrap(),
        tally: plan.counted.keys().next().copied().unwrap_or_default(),
    };
    let healthy = snapshot(BASE);
    let plan = plan_of(&healthy, &pods());
    assert!(plan.allows(&flow(&plan)));
    assert!(!plan.allows(&DirectFlow { netns: 9, ..flow(&plan) }), "of another pod");
    assert!(!plan.allows(&DirectFlow { peer: 9, ..flow(&plan) }), "to another pod");
    // An endpoint that fails its checks gets nothing new.
    healthy.clusters["service"].hosts[0].state.set(HealthFlag::FailedActive, true);
    let fresh = ENDPOINT.replace("- endpoint", "- health_status: UNHEALTHY\n          endpoint");
    let unhealthy = plan_of(&snapshot(&BASE.replacen(ENDPOINT, &fresh, 1)), &pods());
    assert!(!is_direct(&unhealthy, "10.96.0.1:80") && unhealthy.allows(&flow(&plan)));
    // Nor does one whose cluster has as many connections as it may.
    let base = snapshot(BASE);
    let policy = Policy::new(&base, false);
    let full = HashSet::from([Arc::from("service")]);
    let full = Planner { policy, pods: &pods(), excluded_inbound: &[], full: &full }.plan();
    assert!(!is_direct(&full, "10.96.0.1:80") && full.allows(&flow(&plan)));
    assert_eq!(reasons(&full), HashSet::from([Needs::Breakers]));
    // Another weight is no reason either; an endpoint that is gone is.
    let heavier = ENDPOINT.replace("- endpoint", "- load_balancing_weight: 9\n          endpoint");
    assert!(plan_of(&snapshot(&BASE.replacen(ENDPOINT, &heavier, 1)), &pods()).allows(&flow(&plan)));
    let moved = ENDPOINT.replace("port_value: 80", "port_value: 81");
    assert!(!plan_of(&snapshot(&BASE.replacen(ENDPOINT, &moved, 1)), &pods()).allows(&flow(&plan)));
}

#[test]
fn excluded_inbound_ports_meet_no_listener() {
    let text = BASE.replacen("stat_prefix: in, cluster: app}", "stat_prefix: in, cluster: nobody}", 1);
    let snapshot = snapshot(&text);
    assert_eq!(reasons(&plan_of(&snapshot, &pods())), HashSet::from([Needs::NoCluster]));
    let policy = Policy::new(&snapshot, false);
    let plan = Planner { policy, pods: &pods(), excluded_inbound: &[80], full: &HashSet::new() }.plan();
    assert!(is_direct(&plan, "10.96.0.1:80"));
}
