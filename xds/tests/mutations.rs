//! Whatever a configuration says, it is accepted or refused in words, and the process lives.

use culvert_xds::{LoadOptions, load_bootstrap};
use serde_json::{Value, json};

/// Enough to reach every converter many times over; a second or two.
const ROUNDS: usize = 6_000;

/// One of everything that is supported.
const BOOTSTRAP: &str = "
node: {id: n, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
dynamic_resources:
  lds_config: {path_config_source: {path: /l, watched_directory: {path: /w}}, initial_fetch_timeout: 1s}
  cds_config: {path: /c}
layered_runtime: {layers: [{name: a, static_layer: {overload: {global_downstream_max_connections: 5}}}]}
bootstrap_extensions:
- name: capture
  typed_config: {'@type': type.googleapis.com/culvert.v1.Capture, exclude_outbound_cidrs: ['::1/8'], exclude_inbound_ports: [1]}
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    additional_addresses: [{address: {pipe: {path: /x, mode: 7}}}]
    listener_filters: [{name: o, typed_config: {'@type': EXT/filters.listener.original_dst.v3.OriginalDst}}]
    filter_chains:
    - filter_chain_match: {}
      transport_socket: {name: raw, typed_config: {'@type': EXT/transport_sockets.raw_buffer.v3.RawBuffer}}
      filters:
      - name: http
        typed_config:
          '@type': EXT/filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          codec_type: AUTO
          stream_idle_timeout: 1.5s
          common_http_protocol_options: {idle_timeout: {seconds: 1, nanos: 5}, max_headers_count: 7}
          http_protocol_options: {header_key_format: {proper_case_words: {}}}
          upgrade_configs: [{upgrade_type: websocket}]
          access_log:
          - name: f
            typed_config:
              '@type': EXT/access_loggers.file.v3.FileAccessLog
              path: /dev/null
              log_format: {text_format_source: {inline_string: '%REQ(A?B):5% %START_TIME%'}}
          http_filters:
          - name: router
            typed_config:
              '@type': type.googleapis.com/udpa.type.v1.TypedStruct
              type_url: EXT/filters.http.router.v3.Router
              value: {suppress_envoy_headers: true}
          route_config:
            request_headers_to_add: [{header: {key: a, value: '%PROTOCOL%'}, append_action: ADD_IF_ABSENT}]
            virtual_hosts:
            - name: all
              domains: ['*', a.b]
              require_tls: ALL
              routes:
              - match:
                  safe_regex: {regex: '/(a|b)+'}
                  headers: [{name: h, string_match: {prefix: x, ignore_case: true}}, {name: i, range_match: {start: 1, end: 2}}]
                  query_parameters: [{name: q, string_match: {exact: x}}]
                  runtime_fraction: {default_value: {numerator: 5, denominator: MILLION}}
                route:
                  weighted_clusters: {clusters: [{name: eds, weight: 3}, {name: dns, weight: 1}]}
                  regex_rewrite: {pattern: {regex: (a)}, substitution: '\\1'}
                  timeout: 0s
              - {match: {prefix: /}, redirect: {https_redirect: true, port_redirect: 1, response_code: FOUND}}
              - {match: {path: /}, direct_response: {status: 200, body: {inline_bytes: aGVsbG8=}}}
  - name: tcp
    address: {pipe: {path: '@t'}}
    filter_chains:
    - filters:
      - name: t
        typed_config:
          '@type': EXT/filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          weighted_clusters: {clusters: [{name: eds, weight: 1}]}
  clusters:
  - name: eds
    type: EDS
    eds_cluster_config: {service_name: s, eds_config: {path_config_source: {path: /e}}}
    circuit_breakers: {thresholds: [{max_connections: 1}]}
  - name: dns
    type: STRICT_DNS
    dns_lookup_family: V4_ONLY
    dns_refresh_rate: 5s
    common_lb_config: {locality_weighted_lb_config: {}}
    load_balancing_policy:
      policies: [{typed_extension_config: {name: l, typed_config: {'@type': EXT/load_balancing_policies.least_request.v3.LeastRequest, choice_count: 2}}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': EXT/upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http_protocol_options: {enable_trailers: true}}
    load_assignment:
      cluster_name: d
      endpoints:
      - load_balancing_weight: 2
        lb_endpoints:
        - {load_balancing_weight: 3, health_status: DEGRADED, endpoint: {address: {socket_address: {address: a, port_value: 1}}}}
";

/// All places in a tree, as paths of indices.
fn places(tree: &Value, path: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
    found.push(path.clone());
    let children: Vec<&Value> = match tree {
        Value::Array(values) => values.iter().collect(),
        Value::Object(entries) => entries.values().collect(),
        _ => return,
    };
    for (index, child) in children.into_iter().enumerate() {
        path.push(index);
        places(child, path, found);
        path.pop();
    }
}

fn at<'a>(tree: &'a mut Value, path: &[usize]) -> &'a mut Value {
    path.iter().fold(tree, |tree, index| match tree {
        Value::Array(values) => &mut values[*index],
        Value::Object(entries) => entries.values_mut().nth(*index).unwrap(),
        _ => unreachable!("a place that was found"),
    })
}

/// A value that is likely to be wrong, or part of the tree itself in another place.
fn replacement(random: &mut fastrand::Rng, tree: &mut Value, all: &[Vec<usize>]) -> Value {
    match random.u32(..16) {
        0 => Value::Null,
        1 => json!(random.bool()),
        2 => json!(random.u64(..)),
        3 => json!(-random.i64(0..)),
        4 => json!(random.f64() * 1e12),
        5 => json!(""),
        6 => json!([]),
        7 => json!({}),
        8 => json!("%"),
        9 => json!("\u{0}(\\Q[é"),
        10 => json!("-1s"),
        11 => json!(random.u32(..300)),
        12 => json!("x".repeat(random.usize(..20_000))),
        _ => at(tree, &all[random.usize(..all.len())]).clone(),
    }
}

fn mutate(random: &mut fastrand::Rng, tree: &mut Value) {
    let mut all = Vec::new();
    places(tree, &mut Vec::new(), &mut all);
    let value = replacement(random, tree, &all);
    let place = at(tree, &all[random.usize(..all.len())]);
    match (random.u32(..4), place) {
        (0, Value::Object(entries)) if !entries.is_empty() => {
            let key = entries.keys().nth(random.usize(..entries.len())).cloned().unwrap();
            entries.shift_remove(&key);
        }
        (1, Value::Array(values)) if !values.is_empty() => {
            let again = values[random.usize(..values.len())].clone();
            values.push(again);
        }
        (_, place) => *place = value,
    }
}

#[test]
fn mutated_bootstraps_are_accepted_or_refused() {
    let text = BOOTSTRAP.replace("EXT/", "type.googleapis.com/envoy.extensions.");
    let tree: Value = serde_yaml_ng::from_str(&text).unwrap();
    let mut random = fastrand::Rng::with_seed(0xC01_7E27);
    let mut outcomes = [0; 2];
    for round in 0..ROUNDS {
        let mut mutated = tree.clone();
        for _ in 0..random.usize(..4) {
            mutate(&mut random, &mut mutated);
        }
        let json = mutated.to_string();
        let options = LoadOptions {
            config_yaml: Some(json.clone()),
            allow_unknown_static_fields: random.bool(),
            ..LoadOptions::default()
        };
        match load_bootstrap(&options) {
            Ok(_) => outcomes[0] += 1,
            Err(errors) => {
                outcomes[1] += 1;
                assert!(!errors.as_slice().is_empty(), "round {round}: {json}");
                for error in errors.as_slice() {
                    assert!(
                        !error.reason.is_empty() && !error.resource.is_empty(),
                        "round {round}: {error:?}"
                    );
                    // The words for a converter that gave up without any.
                    assert!(
                        !error.field.is_empty() || error.reason != "not supported",
                        "round {round}: {error}\n{json}"
                    );
                }
            }
        }
    }
    let [accepted, refused] = outcomes;
    assert!(accepted > ROUNDS / 10 && refused > ROUNDS / 10, "{accepted} accepted, {refused} refused");
}
