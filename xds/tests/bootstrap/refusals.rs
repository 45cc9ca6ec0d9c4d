//! What is wrong, where, and the words for it.

use crate::{bad, http};

/// Place of the template, what is written there, and the beginning of the first error. `@` stands for the connection
/// manager, `$` for its virtual host and `#` for the route in that.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "CONFIG",
        "virtual_hosts: [{name: x, domains: [a, A]}]",
        "@route_config.virtual_hosts: given beside its other spelling",
    ),
    ("HOST", "bogus: 1", "$bogus: unknown field of envoy.config.route.v3.VirtualHost"),
    ("MANAGER", "codec_type: HTTP3", "@codec_type: HTTP/3 is not supported"),
    (
        "MANAGER",
        "http2_protocol_options: {max_concurrent_streams: 0}",
        "@http2_protocol_options.max_concurrent_streams: value must be inside range [1, 2147483647]",
    ),
    (
        "MANAGER",
        "http2_protocol_options: {initial_stream_window_size: 65534}",
        "@http2_protocol_options.initial_stream_window_size: value must be inside range [65535, 2147483647]",
    ),
    (
        "MANAGER",
        "http2_protocol_options: {connection_keepalive: {interval: 1s}}",
        "@http2_protocol_options.connection_keepalive.timeout: value is required",
    ),
    (
        "MANAGER",
        "http2_protocol_options: {allow_metadata: true}",
        "@http2_protocol_options.allow_metadata: true is not supported; only the default is",
    ),
    ("MANAGER", "codec_type: HTTP7", "@codec_type: unknown enum value: \"HTTP7\""),
    ("MANAGER", "drain_timeout: -1s", "@drain_timeout: expected a positive duration"),
    ("MANAGER", "drain_timeout: 5", "@drain_timeout: expected a duration such as \"0.25s\", not 5"),
    (
        "MANAGER",
        "tracing: {provider: {name: t, typed_config: {'@type': \
         type.googleapis.com/envoy.config.trace.v3.DatadogConfig, collector_cluster: up, service_name: s}}}",
        "@tracing.provider.typed_config: envoy.config.trace.v3.DatadogConfig is not supported",
    ),
    ("MANAGER", "max_request_headers_kb: 0", "@max_request_headers_kb: value must be inside range (0, 8192]"),
    ("MANAGER", "max_request_headers_kb: lots", "@max_request_headers_kb: expected an integer, not \"lots\""),
    (
        "MANAGER",
        "proxy_100_continue: true",
        "@proxy_100_continue: true is not supported; only the default is",
    ),
    ("MANAGER", "add_user_agent: true", "@add_user_agent: true is not supported; only the default is"),
    (
        "MANAGER",
        "set_current_client_cert_details: {issuer: true}",
        "@set_current_client_cert_details.issuer: true is not supported; only the default is",
    ),
    (
        "MANAGER",
        "strip_any_host_port: true\n          strip_matching_host_port: true",
        "@strip_matching_host_port: cannot enable both strip_matching_host_port and strip_any_host_port",
    ),
    (
        "MANAGER",
        "upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]",
        "@upgrade_configs[1]: multiple upgrade configs with the same name: \"a\"",
    ),
    (
        "MANAGER",
        "access_log: [{name: f, typed_config: {'@type': EXT/access_loggers.file.v3.FileAccessLog, path: \
         /x, format: '%BOGUS%'}}]",
        "@access_log[0].typed_config.format: %BOGUS% is not a supported operator",
    ),
    (
        "MANAGER",
        "access_log: [{name: f, typed_config: {'@type': \
         EXT/access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig}}]",
        "@access_log[0].typed_config: exactly one of http_service, grpc_service and common_config is required",
    ),
    (
        "MANAGER",
        "access_log: [{name: f, typed_config: {'@type': \
         EXT/access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, grpc_service: {envoy_grpc: {cluster_name: a}}, \
         resource_attributes: {values: [{key: a, value: {kvlist_value: {}}}]}}}]",
        "@access_log[0].typed_config.resource_attributes.values[0].value: only texts are supported",
    ),
    (
        "MANAGER",
        "scheme_header_transformation: {scheme_to_overwrite: ftp}",
        "@scheme_header_transformation.scheme_to_overwrite",
    ),
    (
        "MANAGER",
        "early_header_mutation_extensions: [{name: e, typed_config: {'@type': \
         EXT/http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [{remove: ':path'}]}}]",
        "@early_header_mutation_extensions[0].typed_config.mutations[0].remove: :-prefixed or host headers may not be removed",
    ),
    (
        "MANAGER",
        "access_log: [{name: f, typed_config: {'@type': type.googleapis.com/a.B}}]",
        "@access_log[0].typed_config: unknown extension type \"type.googleapis.com/a.B\"",
    ),
    (
        "MANAGER",
        "access_log: [{name: f, typed_config: {a: 1}}]",
        "@access_log[0].typed_config: @type is missing",
    ),
    (
        "FILTER",
        "respect_expected_rq_timeout: true",
        "@http_filters[0].typed_config.respect_expected_rq_timeout: \
         true is not supported; only the default is",
    ),
    (
        "CONFIG",
        "request_headers_to_remove: [Host]",
        "@route_config.request_headers_to_remove[0]: :-prefixed or host headers may not be removed",
    ),
    (
        "CONFIG",
        "request_headers_to_add: [{header: {key: ':path', value: x}}]",
        "@route_config.request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
    ),
    (
        "CONFIG",
        "request_headers_to_add: [{header: {key: a, value: '%X'}}]",
        "@route_config.request_headers_to_add[0].header.value: no valid command at position 0 of \"%X\"",
    ),
    (
        "CONFIG",
        "request_headers_to_add: [{header: {key: a, value: x}, append: true, append_action: ADD_IF_ABSENT}]",
        "@route_config.request_headers_to_add[0]: both append and append_action are set",
    ),
    ("CONFIG", "vhds: {}", "@route_config.vhds.config_source: value is required"),
    (
        "HOST",
        "retry_policy: {retry_back_off: {base_interval: 2s, max_interval: 1s}}",
        "$retry_policy.retry_back_off.max_interval: must be greater than or equal to the base_interval",
    ),
    (
        "HOST",
        "retry_policy: {retry_priority: {name: a}}",
        "$retry_policy.retry_priority.typed_config: value is required",
    ),
    (
        "HOST",
        "retry_policy: {retry_priority: {name: a, typed_config: {'@type': \
         EXT/retry.priority.previous_priorities.v3.PreviousPrioritiesConfig}}}",
        "$retry_policy.retry_priority.typed_config.update_frequency: value must be greater than 0",
    ),
    (
        "HOST",
        "virtual_clusters: [{name: a}]",
        "$virtual_clusters[0].headers: virtual clusters must define headers",
    ),
    (
        "HOST",
        "hedge_policy: {}",
        "$hedge_policy: a request is sent again only after the attempt before has ended",
    ),
    (
        "HOST",
        "per_request_buffer_limit_bytes: 1\n              request_body_buffer_limit: 1",
        "$request_body_buffer_limit: only one of per_request_buffer_limit_bytes and request_body_buffer_limit may be set",
    ),
    ("HOST", "require_tls: 9", "$require_tls: value must be one of the defined enum values"),
    ("MATCH", "prefix: /, path: /", "#match.path: given beside prefix, of which there can be only one"),
    ("MATCH", "case_sensitive: false", "#match.path_specifier: one of prefix, path, safe_regex"),
    (
        "MATCH",
        "safe_regex: {regex: 'a('}",
        "#match.safe_regex.regex: invalid regular expression: unclosed group",
    ),
    (
        "MATCH",
        "prefix: /, headers: [{name: a, string_match: {exact: [b]}}]",
        "#match.headers[0].string_match.exact: expected a string, not a list",
    ),
    (
        "MATCH",
        "prefix: /, cookies: [{name: a, string_match: {exact: b}}]",
        "#match.cookies: cookies have to be matched as the cookie header",
    ),
    ("ROUTE", "route: {cluster: c}", "#route.cluster: unknown cluster \"c\""),
    (
        "ROUTE",
        "route: {}",
        "#route.cluster_specifier: one of cluster, cluster_header, weighted_clusters, \
         cluster_specifier_plugin, inline_cluster_specifier_plugin is required",
    ),
    (
        "ROUTE",
        "route: {cluster: a, prefix_rewrite: /, regex_rewrite: {pattern: {regex: a}}}",
        "#route: only one of prefix_rewrite and regex_rewrite can be given",
    ),
    (
        "ROUTE",
        "route: {cluster: a, regex_rewrite: {pattern: {regex: a}, substitution: '\\1'}}",
        "#route.regex_rewrite.substitution: \"\\\\1\" refers to more groups than the pattern has, 0",
    ),
    (
        "ROUTE",
        "route: {cluster: a, hash_policy: [{header: {header_name: a, regex_rewrite: {pattern: {regex: a}, substitution: '\\1'}}}]}",
        "#route.hash_policy[0].header.regex_rewrite.substitution: \"\\\\1\" refers to more groups than the pattern has, 0",
    ),
    (
        "ROUTE",
        "route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}",
        "#route.weighted_clusters: sum of weights must be greater than 0",
    ),
    (
        "ROUTE",
        "route: {weighted_clusters: {clusters: [{name: a}]}}",
        "#route.weighted_clusters.clusters[0].weight: value is required",
    ),
    (
        "ROUTE",
        "route: {weighted_clusters: {clusters: [{name: c, weight: 1}]}}",
        "#route.weighted_clusters.clusters[0].name: unknown cluster \"c\"",
    ),
    (
        "ROUTE",
        "direct_response: {status: 99}",
        "#direct_response.status: value must be inside range [200, 600)",
    ),
    (
        "ROUTE",
        "direct_response: {status: 200, body: {filename: /nonexistent}}",
        "#direct_response.body.filename: \"/nonexistent\": No such file or directory (os error 2)",
    ),
    ("ROUTE", "redirect: {port_redirect: 65536}", "#redirect.port_redirect: not a port"),
    (
        "ROUTE",
        "typed_per_filter_config: {}\n                filter_action: {}",
        "#filter_action: not supported",
    ),
    (
        "LISTENER",
        "enable_mptcp: true",
        "listener \"ingress\": enable_mptcp: true is not supported; only the default is",
    ),
    (
        "LISTENER",
        "per_connection_buffer_limit_bytes: 0",
        "listener \"ingress\": per_connection_buffer_limit_bytes: buffers without limit are not supported",
    ),
    (
        "LISTENER",
        "additional_addresses: [{address: {socket_address: {address: 127.0.0.1, port_value: 10000}}}]",
        "listener \"ingress\": additional_addresses[0]: duplicate address 127.0.0.1:10000",
    ),
    (
        "LISTENER",
        "traffic_direction: 7",
        "listener \"ingress\": traffic_direction: 7 is not a value of envoy.config.core.v3.TrafficDirection",
    ),
    (
        "LISTENER",
        "listener_filters: [{name: t, typed_config: {'@type': \
         EXT/filters.listener.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, token_bucket: {max_tokens: 1, \
         fill_interval: 1s}}}]",
        "listener \"ingress\": listener_filters[0].typed_config: \
         envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit is not supported",
    ),
    (
        "LISTENER",
        "listener_filters: [{name: t, typed_config: {'@type': EXT/filters.http.router.v3.Router}}]",
        "listener \"ingress\": listener_filters[0].typed_config: envoy.extensions.filters.http.router.v3.Router is not a supported listener filter",
    ),
    ("CLUSTER", "type: EDS", "cluster \"a\": eds_cluster_config: value is required"),
    (
        "CLUSTER",
        "eds_cluster_config: {eds_config: {path: /x}}",
        "cluster \"a\": eds_cluster_config: cannot be given for a cluster that is not of type EDS",
    ),
    (
        "CLUSTER",
        "type: EDS\n    eds_cluster_config: {eds_config: {self: {}}}",
        "cluster \"a\": eds_cluster_config.eds_config.self: it is for resources that name their own control plane",
    ),
    (
        "CLUSTER",
        "lb_policy: MAGLEV\n    maglev_lb_config: {table_size: 12}",
        "cluster \"a\": maglev_lb_config.table_size: the table size of maglev must be prime number",
    ),
    (
        "CLUSTER",
        "lb_policy: cluster_provided",
        "cluster \"a\": lb_policy: CLUSTER_PROVIDED is for clusters that choose by themselves",
    ),
    (
        "CLUSTER",
        "type: LOGICAL_DNS",
        "cluster \"a\": load_assignment: a cluster of LOGICAL_DNS must have a single",
    ),
    (
        "CLUSTER",
        "common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}}",
        "cluster \"a\": common_lb_config.consistent_hashing_lb_config.hash_balance_factor: value must be",
    ),
    (
        "CLUSTER",
        "round_robin_lb_config: {slow_start_config: {slow_start_window: 1s, aggression: {default_value: 0, runtime_key: a}}}",
        "cluster \"a\": round_robin_lb_config.slow_start_config.aggression: must be greater than 0",
    ),
    (
        "CLUSTER",
        "lb_policy: LEAST_REQUEST\n    least_request_lb_config: {active_request_bias: {default_value: -1, runtime_key: a}}",
        "cluster \"a\": least_request_lb_config.active_request_bias: must not be negative",
    ),
    (
        "CLUSTER",
        "load_balancing_policy: {policies: [{typed_extension_config: {name: n, typed_config: {'@type': \
         EXT/load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin}}}]}",
        "cluster \"a\": load_balancing_policy.policies: not supported: envoy.extensions.load_balancing_policies\
         .client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
    ),
    (
        "CLUSTER",
        "upstream_bind_config: {socket_options: [{level: 1, name: 2, int_value: 3, state: STATE_BOUND}]}",
        "cluster \"a\": upstream_bind_config.socket_options[0].state: only STATE_PREBIND is supported",
    ),
    (
        "CLUSTER",
        "http2_protocol_options: {custom_settings_parameters: [{identifier: 9, value: 1}]}",
        "cluster \"a\": http2_protocol_options.custom_settings_parameters: settings of one's own are not sent",
    ),
    (
        "CLUSTER",
        "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
         EXT/upstreams.http.v3.HttpProtocolOptions, auto_config: {}}}",
        "cluster \"a\": typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]\
         .auto_config: needs a TLS transport socket",
    ),
    ("CLUSTER", "connect_timeout: 0s", "cluster \"a\": connect_timeout: value must be greater than 0s"),
    ("CLUSTER", "bogus: 1", "cluster \"a\": bogus: unknown field of envoy.config.cluster.v3.Cluster"),
    (
        "CLUSTER",
        "load_balancing_policy: {policies: [{typed_extension_config: {name: m, typed_config: {'@type': \
         EXT/load_balancing_policies.subset.v3.Subset}}}]}",
        "cluster \"a\": load_balancing_policy.policies[0].typed_extension_config.typed_config.subset_lb_policy: value is \
         required",
    ),
    (
        "CLUSTER",
        "load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: \
         {socket_address: {address: svc, port_value: 1}}}}]}]}",
        "cluster \"a\": load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address \"svc\"; only clusters of type STRICT_DNS resolve names",
    ),
    (
        "CLUSTER",
        "transport_socket: {name: tls, typed_config: {'@type': \
         EXT/transport_sockets.tls.v3.DownstreamTlsContext}}",
        "cluster \"a\": transport_socket.typed_config: \
         envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext is not a supported transport socket",
    ),
    (
        "CLUSTER",
        "transport_socket: {name: a, typed_config: {'@type': EXT/transport_sockets.alts.v3.Alts, handshaker_service: a}}",
        "cluster \"a\": transport_socket.typed_config: envoy.extensions.transport_sockets.alts.v3.Alts is not supported",
    ),
    (
        "CLUSTER",
        "transport_socket: {name: a, typed_config: {'@type': \
         EXT/transport_sockets.starttls.v3.UpstreamStartTlsConfig}}",
        "cluster \"a\": transport_socket.typed_config: \
         envoy.extensions.transport_sockets.starttls.v3.UpstreamStartTlsConfig is not supported",
    ),
    (
        "CLUSTER",
        "transport_socket_matches: [{name: m, transport_socket: {name: a, typed_config: {'@type': \
         EXT/transport_sockets.internal_upstream.v3.InternalUpstreamTransport}}}]",
        "cluster \"a\": transport_socket_matches[0].transport_socket.typed_config: \
         envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport is not supported",
    ),
    (
        "CLUSTER",
        "transport_socket_matches: [{name: m, match: {}}]",
        "cluster \"a\": transport_socket_matches[0].transport_socket: value is required",
    ),
    (
        "CLUSTER",
        "transport_socket_matcher: {on_no_match: {action: {name: a}}}",
        "cluster \"a\": transport_socket_matcher: transport_socket_matches choose transport sockets",
    ),
];

#[test]
fn refusals() {
    const MANAGER: &str = "listener \"ingress\": filter_chains[0].filters[0].typed_config.";
    for (place, text, expected) in REFUSED {
        let expected = match expected.split_at(1) {
            ("@", rest) => format!("{MANAGER}{rest}"),
            ("$", rest) => format!("{MANAGER}route_config.virtual_hosts[0].{rest}"),
            ("#", rest) => format!("{MANAGER}route_config.virtual_hosts[0].routes[0].{rest}"),
            _ => (*expected).to_owned(),
        };
        // Two keys of the same name are refused by the YAML parser already.
        let text = text.replace("virtual_hosts", "virtualHosts");
        let errors = bad(&http(&[(place, &text)]));
        assert!(errors[0].starts_with(&expected), "{text}:\n{}\n{expected}", errors.join("\n"));
    }
}

#[test]
fn refusals_of_whole_bootstraps() {
    let listener = |name: &str, port: u16| {
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
             filter_chains: [{{filters: [{{name: t, \
             typed_config: {{'@type': EXT/filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, \
             cluster: a}}}}]}}]}}"
        )
    };
    for (text, expected) in [
        ("a".to_owned(), "bootstrap: expected a message, not \"a\""),
        ("a: [".to_owned(), "bootstrap: invalid YAML: "),
        (
            "static_resources: {clusters: [{name: a}, {name: a}]}".to_owned(),
            "cluster \"a\": name: duplicate cluster",
        ),
        (
            "static_resources: {clusters: [{}]}".to_owned(),
            "cluster \"\": name: \
        value length must be at least 1 characters",
        ),
        (
            format!("static_resources: {{listeners: [{}, {}]}}", listener("x", 1), listener("x", 2)),
            "listener \"x\": name: duplicate listener",
        ),
        (
            format!("static_resources: {{listeners: [{}, {}]}}", listener("x", 1), listener("y", 1)),
            "listener \"y\": address: duplicate address 127.0.0.1:1, which listener \"x\" has",
        ),
        (
            "static_resources: {listeners: [{name: x}]}".to_owned(),
            "listener \"x\": address: \
        value is required",
        ),
        (
            "static_resources: {listeners: [{name: x, address: {pipe: {path: /x}}}]}".to_owned(),
            "listener \"x\": filter_chains: no filter chains specified",
        ),
        (
            "static_resources: {listeners: [{name: x, address: {pipe: {path: '@x', mode: \
             0600}}}]}"
                .to_owned(),
            "listener \"x\": address.pipe.mode: cannot be set for an abstract Unix socket",
        ),
        (
            "static_resources: {secrets: [{name: x}]}".to_owned(),
            "bootstrap: static_resources.secrets[0]: a secret needs a type",
        ),
        (
            "dynamic_resources: {ads_config: {}}".to_owned(),
            "bootstrap: dynamic_resources.ads_config.api_type: value is required",
        ),
        (
            "dynamic_resources: {lds_config: {}}".to_owned(),
            "bootstrap: dynamic_resources.lds_config.config_source_specifier: one of path, \
             path_config_source, api_config_source, ads, self is required",
        ),
        (
            "admin: {address: {socket_address: {address: localhost, port_value: 1}}}".to_owned(),
            "bootstrap: admin.address.socket_address.address: malformed IP address \"localhost\"",
        ),
        ("admin: {allow_paths: [{exact: /}]}".to_owned(), "bootstrap: admin.allow_paths: not supported"),
        ("stats_sinks: [{name: x}]".to_owned(), "bootstrap: stats_sinks: stats sinks are not supported"),
        (
            "stats_flush_interval: 300s".to_owned(),
            "bootstrap: stats_flush_interval: \
        value must be inside range [0.001s, 300s)",
        ),
        (
            "cluster_manager: {local_cluster_name: x}".to_owned(),
            "bootstrap: \
        cluster_manager.local_cluster_name: unknown cluster \"x\"",
        ),
        (
            "layered_runtime: {layers: [{name: a, static_layer: {}}, {name: a, static_layer: \
             {}}]}"
                .to_owned(),
            "bootstrap: layered_runtime.layers[1].name: duplicate layer name: \"a\"",
        ),
        (
            "layered_runtime: {layers: [{name: a, static_layer: {overload: \
             {global_downstream_max_connections: many}}}]}"
                .to_owned(),
            "bootstrap: layered_runtime.layers[0].static_layer[\"overload.global_downstream_max_connections\"]: expected a number of connections",
        ),
        (
            "bootstrap_extensions: [{name: c, typed_config: {'@type': \
             type.googleapis.com/culvert.v1.Capture, exclude_outbound_cidrs: [10.0.0.0/33]}}]"
                .to_owned(),
            "bootstrap: bootstrap_extensions[0].typed_config.exclude_outbound_cidrs[0]: \
             \"10.0.0.0/33\" is neither an address nor a CIDR range",
        ),
        (
            "bootstrap_extensions: [{name: c, typed_config: {'@type': \
             type.googleapis.com/culvert.v1.Capture, exclude_inbound_ports: [70000]}}]"
                .to_owned(),
            "bootstrap: bootstrap_extensions[0].typed_config.exclude_inbound_ports[0]: \
             value must be inside range [1, 65535]",
        ),
        (
            "bootstrap_extensions: [{name: i, typed_config: {'@type': \
             EXT/bootstrap.internal_listener.v3.InternalListener}}]"
                .to_owned(),
            "bootstrap: bootstrap_extensions[0].typed_config: \
             envoy.extensions.bootstrap.internal_listener.v3.InternalListener is not supported",
        ),
    ] {
        let errors = bad(&text);
        assert!(errors[0].starts_with(expected), "{text}:\n{}", errors.join("\n"));
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = bad(&http(&[
        ("MANAGER", "codec_type: HTTP3"),
        ("HOST", "request_headers_to_remove: [host]"),
        ("ROUTE", "route: {cluster: nowhere, timeout: -1s}"),
        ("CLUSTER", "type: ORIGINAL_DST"),
    ]));
    let reasons: Vec<_> = errors.iter().map(|error| error.rsplit(": ").next().unwrap()).collect();
    assert_eq!(
        reasons,
        [
            "clusters of type ORIGINAL_DST have to use CLUSTER_PROVIDED",
            "HTTP/3 is not supported",
            ":-prefixed or host headers may not be removed".rsplit(": ").next().unwrap(),
            "unknown cluster \"nowhere\"",
            "expected a positive duration",
        ]
    );
}

#[test]
fn duplicate_domains_name_the_second_host() {
    let text = http(&[]).replace(
        "  clusters:\n  - name: a",
        "            - {name: more, domains: [b, '*']}\n  clusters:\n  - name: a",
    );
    assert_eq!(
        bad(&text),
        [
            "listener \"ingress\": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[1].domains: duplicate domain \"*\""
        ]
    );
}
