//! Control planes as sources.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    ApiKind, ApiSource, Codec, Discovery, Http2Options, RateLimit, SourceSpecifier, UpstreamProtocol,
};

use crate::{bad, good, http, manager, seconds};

const CLUSTERS: &str = "
node: {id: node-1, cluster: mesh, metadata: {role: edge}}
static_resources:
  clusters:
  - name: xds
    http2_protocol_options:
      initial_stream_window_size: 65536
      initial_connection_window_size: 1048576
      connection_keepalive: {interval: 30s, timeout: 5s}
  - name: rest
  - name: eds
    type: EDS
    eds_cluster_config: {eds_config: {ads: {}}}
dynamic_resources:
";

fn dynamic(text: &str) -> String {
    format!("{CLUSTERS}  {text}\n")
}

/// A source with `text` in it.
fn api(text: &str) -> Arc<ApiSource> {
    let loaded =
        good(&dynamic(&format!("cds_config: {{api_config_source: {{transport_api_version: V3, {text}}}}}")));
    let source = loaded.bootstrap.cds.as_ref().unwrap();
    match &source.specifier {
        SourceSpecifier::Api(api) => api.clone(),
        other => panic!("{other:?}"),
    }
}

const GRPC: &str = "grpc_services: {envoy_grpc: {cluster_name: xds}}";

#[test]
fn aggregated() {
    let text = format!(
        "ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, {GRPC}}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  cds_config: {{ads: {{}}}}"
    );
    let loaded = good(&dynamic(&text));
    let ads = loaded.bootstrap.ads.clone().unwrap();
    assert_eq!(ads.kind, ApiKind::DeltaGrpc);
    assert!(ads.node_on_first_message_only);
    assert_eq!((ads.services[0].cluster.as_str(), ads.rate_limit), ("xds", None));
    let lds = loaded.bootstrap.lds.as_ref().unwrap();
    assert_eq!((&lds.specifier, lds.initial_fetch_timeout), (&SourceSpecifier::Ads, None));
    assert_eq!(loaded.bootstrap.cds.as_ref().unwrap().initial_fetch_timeout, seconds(15));
    let Discovery::Eds { source, .. } = &loaded.bootstrap.config.clusters[2].discovery else {
        panic!("not EDS")
    };
    assert_eq!(source.specifier, SourceSpecifier::Ads);
    let node = loaded.node();
    assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("node-1", "envoy"));
    assert!(node.metadata.unwrap().fields.contains_key("role"));
}

#[test]
fn streams_and_polling() {
    let source = api(&format!("api_type: GRPC, {GRPC}"));
    assert_eq!((source.kind, source.node_on_first_message_only), (ApiKind::Grpc, false));
    let source = api(
        "api_type: DELTA_GRPC, rate_limit_settings: {}, grpc_services: [{envoy_grpc: {cluster_name: xds, \
         authority: x.example}, initial_metadata: [{key: Token, value: secret}]}]",
    );
    let service = &source.services[0];
    assert_eq!(source.kind, ApiKind::DeltaGrpc);
    assert_eq!(source.rate_limit, Some(RateLimit { max_tokens: 100, fill_rate_milli: 10_000 }));
    assert_eq!(service.authority, "x.example");
    assert_eq!(service.metadata, [("token".to_owned(), "secret".to_owned())]);
    let source = api("api_type: REST, cluster_names: [rest], refresh_delay: 2s, request_timeout: 0.5s, \
         rate_limit_settings: {max_tokens: 3, fill_rate: 0.5}");
    assert_eq!((source.kind, source.services[0].cluster.as_str()), (ApiKind::Rest, "rest"));
    assert_eq!(source.refresh_delay, Duration::from_secs(2));
    assert_eq!(source.request_timeout, Duration::from_millis(500));
    assert_eq!(source.rate_limit, Some(RateLimit { max_tokens: 3, fill_rate_milli: 500 }));
}

#[test]
fn versions_of_the_protocol() {
    let remarks = |source: &str| -> Vec<String> {
        let loaded = good(&dynamic(&format!("cds_config: {{{source}}}")));
        let notes = loaded.notes.iter().map(ToString::to_string);
        notes.filter(|note| note.contains("_api_version")).collect()
    };
    // As Envoy: AUTO and nothing at all mean V3. V2 is refused for the transport, and for resources only frowned on.
    let auto = format!(
        "api_config_source: {{transport_api_version: AUTO, api_type: GRPC, {GRPC}}}, resource_api_version: AUTO"
    );
    assert_eq!(remarks(&auto), [""; 0]);
    let nothing = format!("api_config_source: {{api_type: GRPC, {GRPC}}}");
    assert_eq!(remarks(&nothing), [""; 0]);
    let text = "bootstrap: dynamic_resources.cds_config.resource_api_version: warning: V2 is gone: resources of V3 \
                are asked for";
    assert_eq!(remarks(&format!("{nothing}, resource_api_version: V2")), [text]);
    let text =
        format!("cds_config: {{api_config_source: {{transport_api_version: V2, api_type: GRPC, {GRPC}}}}}");
    assert_eq!(bad(&dynamic(&text)).len(), 1);
}

#[test]
fn http2_options_of_clusters() {
    let loaded = good(&dynamic("{}").replace("dynamic_resources:\n  {}\n", ""));
    let http2 = loaded.bootstrap.config.clusters[0].http2.unwrap();
    assert_eq!((http2.keepalive_interval, http2.keepalive_timeout), (seconds(30), seconds(5)));
    assert_eq!((http2.stream_window, http2.connection_window), (Some(65_536), Some(1_048_576)));
    assert!(loaded.bootstrap.config.clusters[1].http2.is_none());
    let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {'@type': EXT/upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}";
    let loaded = good(&http(&[("CLUSTER", options)]));
    assert!(loaded.bootstrap.config.clusters[0].http2.is_some());
}

#[test]
fn what_is_spoken_with_clusters() {
    let spoken = |text: &str| good(&http(&[("CLUSTER", text)])).bootstrap.config.clusters[0].protocol;
    let options = |config: &str| {
        spoken(&format!(
            "typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': \
             EXT/upstreams.http.v3.HttpProtocolOptions, {config}}}}}"
        ))
    };
    assert_eq!(spoken("alt_stat_name: x"), UpstreamProtocol::Http1);
    assert_eq!(spoken("http2_protocol_options: {}"), UpstreamProtocol::Http2);
    assert_eq!(spoken("protocol_selection: USE_DOWNSTREAM_PROTOCOL"), UpstreamProtocol::Downstream);
    assert_eq!(options("explicit_http_config: {http_protocol_options: {}}"), UpstreamProtocol::Http1);
    assert_eq!(options("explicit_http_config: {http2_protocol_options: {}}"), UpstreamProtocol::Http2);
    assert_eq!(options("use_downstream_protocol_config: {}"), UpstreamProtocol::Downstream);
}

#[test]
fn http2_options_of_clients() {
    let loaded = good(&http(&[(
        "MANAGER",
        "http2_protocol_options: {hpack_table_size: 0, max_concurrent_streams: 9, \
         max_outbound_control_frames: 8, max_consecutive_inbound_frames_with_empty_payload: 7, \
         max_inbound_priority_frames_per_stream: 6, max_inbound_window_update_frames_per_data_frame_sent: 5, \
         stream_error_on_invalid_http_messaging: true, connection_keepalive: {interval: 30s, timeout: 5s, \
         interval_jitter: {value: 2.5}}}",
    )]));
    let manager = manager(&loaded);
    assert_eq!(manager.codec, Codec::Auto);
    let expected = Http2Options {
        hpack_table_size: 0,
        max_concurrent_streams: 9,
        max_outbound_control_frames: 8,
        max_empty_frames: 7,
        max_priority_frames_per_stream: 6,
        max_window_updates_per_data_frame: 5,
        stream_error_on_invalid: true,
        keepalive_interval: seconds(30),
        keepalive_timeout: seconds(5),
        keepalive_jitter: 25_000,
        ..Http2Options::default()
    };
    assert_eq!(manager.http2, expected);
    let loaded = good(&http(&[("MANAGER", "codec_type: HTTP2")]));
    assert_eq!(crate::manager(&loaded).codec, Codec::Http2);
}

#[test]
fn refused() {
    let in_cds = "bootstrap: dynamic_resources.cds_config.api_config_source";
    for (text, field, reason) in [
        (
            "api_type: AGGREGATED_GRPC",
            ".api_type",
            "aggregated streams are those of dynamic_resources.ads_config",
        ),
        ("api_type: GRPC", ".grpc_services", "value is required"),
        ("api_type: GRPC, cluster_names: [xds]", ".cluster_names", "cannot be given for a source over gRPC"),
        (
            "api_type: REST, cluster_names: [rest]",
            ".refresh_delay",
            "value is required for a source of type REST",
        ),
        (
            "api_type: REST, refresh_delay: 1s",
            ".cluster_names",
            "a source of type REST has exactly one cluster",
        ),
        (
            "api_type: GRPC, grpc_services: [{google_grpc: {target_uri: x, stat_prefix: x}}]",
            ".grpc_services[0].google_grpc",
            "only envoy_grpc is supported",
        ),
        (
            "api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: xds}, initial_metadata: [{key: 'a b', value: c}]}]",
            ".grpc_services[0].initial_metadata[0].key",
            "\"a b\" is not a header name",
        ),
    ] {
        let text = format!("cds_config: {{api_config_source: {{transport_api_version: V3, {text}}}}}");
        assert_eq!(bad(&dynamic(&text)), [format!("{in_cds}{field}: {reason}")], "{text}");
    }
    for (text, error) in [
        ("cds_config: {ads: {}}", "bootstrap: dynamic_resources.cds_config.ads: ads_config is required"),
        (
            "ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: {envoy_grpc: {cluster_name: no}}}",
            "bootstrap: dynamic_resources.ads_config: unknown cluster \"no\": it has to be in static_resources",
        ),
        (
            "ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: {envoy_grpc: {cluster_name: eds}}}",
            "bootstrap: dynamic_resources.ads_config: cluster \"eds\" cannot be of type EDS",
        ),
        (
            "ads_config: {api_type: REST, transport_api_version: V3, refresh_delay: 1s, cluster_names: [rest]}",
            "bootstrap: dynamic_resources.ads_config.api_type: aggregated discovery is done over gRPC only",
        ),
        (
            "ads_config: {api_type: GRPC, transport_api_version: V2, grpc_services: {envoy_grpc: {cluster_name: xds}}}",
            "bootstrap: dynamic_resources.ads_config.transport_api_version: only V3 is supported",
        ),
    ] {
        assert_eq!(bad(&dynamic(text)), [error], "{text}");
    }
}
