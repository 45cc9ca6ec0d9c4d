//! Connection managers.

use std::time::Duration;

use culvert_model::{
    Action, Address, Discovery, EscapedSlashes, Format, FormatPart, HeaderCase, LbPolicy, LogFormat, LogSink,
    ServerHeader, StripPort, TrafficDirection, UnderscoresAction,
};

use crate::{bad, good, http, listener, manager, route_action, routes, seconds};

#[test]
fn defaults_are_envoys() {
    let loaded = good(&http(&[]));
    let listener = listener(&loaded);
    assert_eq!(listener.name, "ingress");
    assert_eq!(listener.address, Address::Ip("127.0.0.1:10000".parse().unwrap()));
    assert!(listener.bind_to_port && listener.reuse_port && listener.backlog.is_none());
    assert_eq!((listener.buffer_limit_bytes, listener.direction), (1 << 20, TrafficDirection::Unspecified));

    let manager = manager(&loaded);
    assert_eq!(manager.idle_timeout, seconds(3_600));
    assert_eq!(manager.stream_idle_timeout, seconds(300));
    assert_eq!((manager.request_timeout, manager.request_headers_timeout), (None, None));
    assert_eq!((manager.delayed_close_timeout, manager.drain_timeout), (seconds(1), Duration::from_secs(5)));
    assert_eq!((manager.max_request_headers_bytes, manager.max_headers_count), (61_440, 100));
    assert_eq!((manager.max_connection_duration, manager.max_requests_per_connection), (None, None));
    assert!(manager.generate_request_id && !manager.use_remote_address && !manager.normalize_path);
    assert_eq!((manager.server_name.as_str(), manager.server_header), ("envoy", ServerHeader::Overwrite));
    assert!(
        manager.http1.allow_absolute_url && !manager.http1.enable_trailers && !manager.http1.accept_http_10
    );
    assert_eq!(manager.http1.header_case, HeaderCase::Lower);

    let action = route_action(&loaded);
    assert_eq!(
        (action.timeout, action.idle_timeout, action.cluster_not_found_status),
        (seconds(15), None, 503)
    );

    let cluster = &loaded.bootstrap.config.clusters[0];
    assert!(matches!(&cluster.discovery, Discovery::Static(assignment) if assignment.endpoints.is_empty()));
    assert_eq!((cluster.lb_policy, cluster.stat_name.as_str()), (LbPolicy::RoundRobin, "a"));
    assert_eq!((cluster.connect_timeout, cluster.idle_timeout), (Duration::from_secs(5), seconds(3_600)));
    assert_eq!((cluster.buffer_limit_bytes, cluster.max_response_headers_bytes), (1 << 20, 61_440));
    assert_eq!(cluster.circuit_breakers, culvert_model::CircuitBreakers::default());
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
}

/// A connection manager that says something else than the default everywhere.
const EVERY_FIELD: &str = "codec_type: http1
          common_http_protocol_options:
            idle_timeout: 0s
            max_connection_duration: 60s
            max_headers_count: 7
            headers_with_underscores_action: reject_request
            max_requests_per_connection: 9
          http_protocol_options:
            allow_absolute_url: false
            accept_http_10: true
            default_host_for_http_10: old
            header_key_format: {proper_case_words: {}}
            enable_trailers: true
            allow_chunked_length: true
          server_name: me
          server_header_transformation: PASS_THROUGH
          max_request_headers_kb: 96
          stream_idle_timeout: {seconds: 2}
          request_timeout: 3s
          request_headers_timeout: 0.25s
          drain_timeout: 0s
          delayed_close_timeout: 0s
          use_remote_address: true
          xff_num_trusted_hops: 2
          skip_xff_append: true
          via: relay
          generate_request_id: false
          preserve_external_request_id: true
          always_set_request_id_in_response: true
          upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: spdy/3.1, enabled: false}]
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT
          strip_matching_host_port: true
          strip_trailing_host_dot: true
          append_x_forwarded_port: true
          access_log:
          - name: file
            typed_config:
              '@type': EXT/access_loggers.file.v3.FileAccessLog
              path: /dev/null
              log_format: {text_format_source: {inline_string: \"%REQ(A)% 1%%\\n\"}}
          - name: out
            typed_config: {'@type': EXT/access_loggers.stream.v3.StdoutAccessLog}
          - name: err
            typed_config: {'@type': EXT/access_loggers.stream.v3.StderrAccessLog}";

#[test]
fn every_field_of_a_connection_manager_takes_effect() {
    let loaded = good(&http(&[("MANAGER", EVERY_FIELD), ("FILTER", "suppress_envoy_headers: true")]));
    let manager = manager(&loaded);
    assert_eq!((manager.idle_timeout, manager.max_connection_duration), (None, seconds(60)));
    assert_eq!((manager.max_headers_count, manager.max_requests_per_connection), (7, Some(9)));
    assert_eq!(manager.underscores, UnderscoresAction::Reject);
    let http1 = &manager.http1;
    assert!(
        !http1.allow_absolute_url
            && http1.accept_http_10
            && http1.enable_trailers
            && http1.allow_chunked_length
    );
    assert_eq!((http1.default_host_for_http_10.as_str(), http1.header_case), ("old", HeaderCase::Proper));
    assert_eq!((manager.server_name.as_str(), manager.server_header), ("me", ServerHeader::PassThrough));
    assert_eq!((manager.max_request_headers_bytes, manager.stream_idle_timeout), (98_304, seconds(2)));
    assert_eq!(manager.request_timeout, seconds(3));
    assert_eq!(manager.request_headers_timeout, Some(Duration::from_millis(250)));
    assert_eq!((manager.drain_timeout, manager.delayed_close_timeout), (Duration::ZERO, None));
    assert!(manager.use_remote_address && manager.skip_xff_append && manager.append_forwarded_port);
    assert_eq!((manager.xff_num_trusted_hops, manager.via.as_str()), (2, "relay"));
    assert!(!manager.generate_request_id && manager.preserve_external_request_id);
    assert!(manager.always_set_request_id_in_response && manager.normalize_path && manager.merge_slashes);
    assert_eq!(manager.upgrades, [("websocket".to_owned(), true), ("spdy/3.1".to_owned(), false)]);
    assert_eq!(manager.escaped_slashes, EscapedSlashes::UnescapeAndRedirect);
    assert_eq!((manager.strip_port, manager.strip_trailing_host_dot), (StripPort::Matching, true));
    assert!(manager.suppress_envoy_headers);
    let parts: Format = vec![
        FormatPart::RequestHeader { name: "a".to_owned(), alternative: None, max: None },
        FormatPart::Text(" 1%".to_owned()),
    ];
    let logs: Vec<_> = manager
        .access_log
        .iter()
        .map(|log| match &log.sink {
            LogSink::File { path, format } => (path.as_str(), format.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        ("/dev/null", LogFormat::Text { parts, omit_empty: false }),
        ("/dev/stdout", LogFormat::Default),
        ("/dev/stderr", LogFormat::Default),
    ];
    assert_eq!(logs, expected);
}

#[test]
fn enums_of_a_connection_manager() {
    let of = |text: &str| good(&http(&[("MANAGER", text)]));
    for (name, value) in [
        ("APPEND_IF_ABSENT", ServerHeader::AppendIfAbsent),
        ("overwrite", ServerHeader::Overwrite),
        ("Pass_Through", ServerHeader::PassThrough),
    ] {
        let loaded = of(&format!("server_header_transformation: {name}"));
        assert_eq!(manager(&loaded).server_header, value);
    }
    for (name, value) in [
        ("IMPLEMENTATION_SPECIFIC_DEFAULT", EscapedSlashes::Keep),
        ("KEEP_UNCHANGED", EscapedSlashes::Keep),
        ("REJECT_REQUEST", EscapedSlashes::Reject),
        ("UNESCAPE_AND_REDIRECT", EscapedSlashes::UnescapeAndRedirect),
        ("UNESCAPE_AND_FORWARD", EscapedSlashes::UnescapeAndForward),
    ] {
        let loaded = of(&format!("path_with_escaped_slashes_action: {name}"));
        assert_eq!(manager(&loaded).escaped_slashes, value);
    }
    for (name, value) in [
        ("ALLOW", UnderscoresAction::Allow),
        ("REJECT_REQUEST", UnderscoresAction::Reject),
        ("DROP_HEADER", UnderscoresAction::Drop),
    ] {
        let loaded =
            of(&format!("common_http_protocol_options: {{headers_with_underscores_action: {name}}}"));
        assert_eq!(manager(&loaded).underscores, value);
    }
    for (text, value) in [
        ("strip_any_host_port: true", StripPort::Any),
        ("strip_any_host_port: false", StripPort::No),
        ("strip_matching_host_port: true", StripPort::Matching),
    ] {
        assert_eq!(manager(&of(text)).strip_port, value, "{text}");
    }
    let preserve = "http_protocol_options: {header_key_format: {stateful_formatter: {name: p, typed_config: \
        {'@type': EXT/http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}";
    assert_eq!(manager(&of(preserve)).http1.header_case, HeaderCase::Preserve);
}

#[test]
fn both_spellings_mean_the_same() {
    let snake = http(&[("MANAGER", "use_remote_address: true"), ("ROUTE", "direct_response: {status: 204}")]);
    let camel = snake
        .replace("static_resources", "staticResources")
        .replace("socket_address", "socketAddress")
        .replace("port_value", "portValue")
        .replace("filter_chains", "filterChains")
        .replace("typed_config", "typedConfig")
        .replace("stat_prefix", "statPrefix")
        .replace("use_remote_address", "useRemoteAddress")
        .replace("http_filters", "httpFilters")
        .replace("route_config:", "routeConfig:")
        .replace("virtual_hosts", "virtualHosts")
        .replace("direct_response", "directResponse");
    for text in [snake, camel] {
        let loaded = good(&text);
        assert!(manager(&loaded).use_remote_address);
        let Action::Direct(direct) = &routes(&loaded).virtual_hosts[0].routes[0].action else {
            panic!("{text}")
        };
        assert_eq!((direct.status, &*direct.body), (204, &b""[..]));
    }
    let errors = bad(&http(&[("MANAGER", "useRemoteAddress: true\n          use_remote_address: true")]));
    assert_eq!(
        errors,
        ["listener \"ingress\": filter_chains[0].filters[0].typed_config.use_remote_address: \
          given beside its other spelling, of which there can be only one"]
    );
}

#[test]
fn extensions_may_come_as_typed_struct() {
    let router = "{'@type': EXT/filters.http.router.v3.Router,  }";
    for kind in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let wrapped = format!(
            "{{'@type': type.googleapis.com/{kind}, type_url: EXT/filters.http.router.v3.Router, \
             value: {{suppressEnvoyHeaders: true}}}}"
        );
        let text = http(&[]).replace(router, &wrapped);
        assert!(text.contains(kind));
        assert!(manager(&good(&text)).suppress_envoy_headers);
    }
}

#[test]
fn filters_that_may_be_missing_are_passed_over() {
    let limit = "{name: f, FLAG: true, typed_config: {'@type': EXT/filters.http.bandwidth_limit.v3.BandwidthLimit, stat_prefix: a}}";
    for flag in ["is_optional", "disabled"] {
        let text = http(&[]).replacen(
            "- name: router",
            &format!("- {}\n          - name: router", limit.replace("FLAG", flag)),
            1,
        );
        let loaded = good(&text);
        let note = loaded.notes[0].to_string();
        assert!(
            note.contains("envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit is not supported"),
            "{note}"
        );
    }
}
