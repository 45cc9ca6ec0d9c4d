//! The spans that collectors get.

use std::net::SocketAddr;

use prost::Message as _;
use serde_json::Value as Json;

use super::{
    PARENT, Requests, Scene, TRACE, ZIPKIN, get, http_collector,
    otlp::{Collector, Export, Span, find},
    provider, seen,
    support::{
        client::Client,
        culvert::{Culvert, cluster, indent},
    },
};

fn clusters(address: SocketAddr, http2: bool) -> String {
    let text = cluster("collector", &[address]);
    let text = match http2 {
        true => text.replacen("name: collector", "name: collector\n  http2_protocol_options: {}", 1),
        false => text,
    };
    indent(&text, 2)
}

const GRPC: &str = "service_name: me, grpc_service: {envoy_grpc: {cluster_name: collector}, initial_metadata: \
                    [{key: x-key, value: secret}]}";

/// Waits for the span of the request to this path, and the spans of its attempts.
fn collected(culvert: &Culvert, collector: &Collector, path: &str) -> (Span, Vec<Span>) {
    let is = |span: &Span| span.attribute("http.url") == Some(&format!("http://test{path}"));
    culvert.wait_until(path, |_| collector.spans().iter().any(is));
    let spans = collector.spans();
    let span = spans.iter().find(|span| is(span)).unwrap().clone();
    let attempts = spans.into_iter().filter(|other| other.parent_span_id == span.span_id);
    let attempts = attempts.collect();
    (span, attempts)
}

#[test]
fn spans_go_to_open_telemetry_over_grpc() {
    let tags = "custom_tags: [{tag: lit, literal: {value: v}}, {tag: head, request_header: {name: x-tag}}, {tag: \
                none, request_header: {name: x-none}}, {tag: else, request_header: {name: x-none, default_value: \
                d}}, {tag: form, value: '%REQ(x-tag)%/%PROTOCOL%'}]";
    let tracing = format!("{}, max_path_tag_length: 8, {tags}", provider("OpenTelemetryConfig", GRPC));
    let collector = Collector::default();
    let clusters = clusters(collector.serve(), true);
    Scene {
        tracing: &tracing,
        clusters: &clusters,
        route: "tracing: {custom_tags: [{tag: lit, literal: {value: of-route}}]},",
        ..Scene::default()
    }
    .run(|culvert, port| {
        let parent = format!("{PARENT}01");
        let fields = [
            ("traceparent", parent.as_str()),
            ("tracestate", "a=b"),
            ("x-tag", "t"),
            ("user-agent", "me"),
            ("x-client-trace-id", "c"),
        ];
        let response = get(port, "/a?q=12345", &fields);
        let (span, attempts) = collected(culvert, &collector, "/a?q=123");
        assert!(attempts.is_empty());
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(hex(&span.parent_span_id), &PARENT[36..52]);
        assert_eq!((span.name.as_str(), span.kind, span.trace_state.as_str()), ("ingress", 2, "a=b"));
        assert_eq!((span.flags, &span.status), (0x301, &None));
        assert!(span.start > 1 << 60 && span.end > span.start);
        let id = seen(&response, "x-request-id").unwrap();
        for (key, value) in [
            ("node_id", "node"),
            ("zone", "z"),
            ("guid:x-request-id", &id),
            ("guid:x-client-trace-id", "c"),
            ("http.method", "GET"),
            ("http.protocol", "HTTP/1.1"),
            ("http.status_code", "200"),
            ("user_agent", "me"),
            ("downstream_cluster", "-"),
            ("peer.address", "127.0.0.1"),
            ("component", "proxy"),
            ("upstream_cluster", "up"),
            ("upstream_cluster.name", "up"),
            ("response_flags", "-"),
            ("request_size", "0"),
            ("response_size", &response.text().len().to_string()),
            ("lit", "of-route"),
            ("head", "t"),
            ("else", "d"),
            ("form", "t/HTTP/1.1"),
        ] {
            assert_eq!(span.attribute(key), Some(value), "{key}");
        }
        assert_eq!((span.attribute("error"), span.attribute("none")), (None, None));
        collector.0.lock().unwrap().clear();
        assert_eq!(get(port, "/direct", &[]).status, 503);
        let (span, _) = collected(culvert, &collector, "/direct");
        assert_eq!((span.attribute("error"), span.attribute("lit")), (Some("true"), Some("v")));
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
        assert_eq!(span.attribute("upstream_cluster"), None);
        let (metadata, export) = collector.0.lock().unwrap()[0].clone();
        assert_eq!(metadata.get("x-key").unwrap(), "secret");
        let resource = &export.resource_spans[0];
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(find(attributes, "service.name"), Some("me"));
        assert_eq!(find(attributes, "telemetry.sdk.name"), Some("culvert"));
        assert_eq!(resource.scope_spans[0].scope.as_ref().unwrap().name, "culvert");
        culvert.wait_until("two spans are counted", |culvert| {
            culvert.stat("tracing.opentelemetry.spans_sent") == 2
        });
        assert!(culvert.stat("tracing.opentelemetry.timer_flushed") > 0);
        collector.0.lock().unwrap().clear();
    });
}

#[test]
fn attempts_have_spans_of_their_own() {
    let tracing =
        format!("{}, spawn_upstream_span: true, verbose: true", provider("OpenTelemetryConfig", GRPC));
    let collector = Collector::default();
    let clusters = clusters(collector.serve(), true);
    Scene { tracing: &tracing, clusters: &clusters, ..Scene::default() }.run(|culvert, port| {
        let told = seen(&get(port, "/ok", &[]), "traceparent").unwrap();
        let (span, attempts) = collected(culvert, &collector, "/ok");
        let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
        assert_eq!(
            (hex(&attempt.trace_id), hex(&attempt.span_id)),
            (told[3..35].into(), told[36..52].into())
        );
        assert_eq!((attempt.name.as_str(), attempt.kind, attempt.flags), ("router up egress", 3, 0x101));
        assert_eq!(attempt.attribute("upstream_address"), attempt.attribute("peer.address"));
        assert_eq!(attempt.attribute("http.status_code"), Some("200"));
        assert_eq!((attempt.attribute("retry.count"), attempt.attribute("canceled")), (None, None));
        let named = |span: &Span, name: &str| span.events.iter().any(|event| event.name == name);
        assert!(named(attempt, "first_upstream_tx_byte_sent"));
        assert!(named(&span, "last_downstream_tx_byte_sent"));
        assert_eq!(get(port, "/again", &[("x-answer", "500")]).status, 500);
        let (span, attempts) = collected(culvert, &collector, "/again");
        assert_eq!(span.attribute("error"), Some("true"));
        let [first, second] = &attempts[..] else { panic!("{attempts:?}") };
        assert_eq!((first.attribute("canceled"), first.attribute("retry.count")), (Some("true"), None));
        assert_eq!((second.attribute("canceled"), second.attribute("retry.count")), (None, Some("1")));
        assert!(attempts.iter().all(|attempt| attempt.attribute("http.status_code") == Some("500")));
        collector.0.lock().unwrap().clear();
    });
}

#[test]
fn who_is_not_sampled_has_no_span() {
    let check = "{name: hc, typed_config: {'@type': \
                 type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck, pass_through_mode: \
                 false, headers: [{name: ':path', exact_match: /health}]}},";
    let tracing = provider("OpenTelemetryConfig", GRPC);
    let collector = Collector::default();
    let clusters = clusters(collector.serve(), true);
    Scene { tracing: &tracing, clusters: &clusters, filters: check, ..Scene::default() }.run(
        |culvert, port| {
            let parent = format!("{PARENT}00");
            let mut client = Client::connect(port);
            assert_eq!(client.get("/health").status, 200);
            assert_eq!(get(port, "/not", &[("traceparent", &parent)]).status, 200);
            assert_eq!(client.get("/last").status, 200);
            collected(culvert, &collector, "/last");
            assert_eq!(collector.spans().len(), 1);
            collector.0.lock().unwrap().clear();
        },
    );
}

#[test]
fn spans_go_to_open_telemetry_over_http() {
    let fields = "http_service: {http_uri: {uri: 'http://otel.test/v1/traces', cluster: collector, timeout: 1s}, \
                  request_headers_to_add: [{header: {key: x-key, value: secret}}]}, \
                  set_telemetry_sdk_resource_attributes: false, set_service_name_resource_attribute: false, \
                  set_instrumentation_scope: false, resource_detectors: [{name: d, typed_config: {'@type': \
                  type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.\
                  StaticConfigResourceDetectorConfig, attributes: {a: b}}}]";
    let (collector, requests) = http_collector("200");
    let clusters = clusters(collector.address, false);
    let tracing = provider("OpenTelemetryConfig", fields);
    Scene { tracing: &tracing, clusters: &clusters, ..Scene::default() }.run(|culvert, port| {
        get(port, "/", &[]);
        let (head, body) = taken(culvert, &requests);
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\nhost: otel.test\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/x-protobuf\r\n") && head.contains("x-key: secret\r\n")
        );
        let export = Export::decode(body.as_slice()).unwrap();
        let resource = &export.resource_spans[0];
        assert_eq!(resource.resource.as_ref().unwrap().attributes.len(), 1);
        assert_eq!(find(&resource.resource.as_ref().unwrap().attributes, "a"), Some("b"));
        assert_eq!((&resource.scope_spans[0].scope, resource.scope_spans[0].spans.len()), (&None, 1));
    });
}

#[test]
fn spans_go_to_zipkin() {
    let (collector, requests) = http_collector("202");
    let clusters = clusters(collector.address, false);
    let fields = format!("{ZIPKIN}, collector_hostname: zipkin.test");
    let tracing = format!("{}, spawn_upstream_span: true", provider("ZipkinConfig", &fields));
    Scene { tracing: &tracing, clusters: &clusters, ..Scene::default() }.run(|culvert, port| {
        let fields = [
            ("x-b3-traceid", "48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-parentspanid", "0020000000000001"),
            ("x-b3-sampled", "1"),
        ];
        let response = get(port, "/\"q\"", &fields);
        let (head, body) = taken(culvert, &requests);
        assert!(head.starts_with("POST /api/v2/spans HTTP/1.1\r\nhost: zipkin.test\r\n"), "{head}");
        assert!(head.contains("content-type: application/json\r\n"));
        let spans: Json = serde_json::from_slice(&body).unwrap();
        let of = |kind: &str| spans.as_array().unwrap().iter().find(|span| span["kind"] == kind).unwrap();
        let (server, client) = (of("SERVER"), of("CLIENT"));
        assert_eq!(server["traceId"], "48485a3953bb6124");
        assert_eq!(
            (&server["id"], &server["parentId"]),
            (&"a2fb4a1d1a96d312".into(), &"0020000000000001".into())
        );
        assert_eq!((&server["shared"], &client["shared"]), (&true.into(), &Json::Null));
        assert_eq!((&server["name"], &client["name"]), (&"test".into(), &"router up egress".into()));
        assert_eq!(client["parentId"], "a2fb4a1d1a96d312");
        assert_eq!(client["id"].as_str(), seen(&response, "x-b3-spanid").as_deref());
        assert_eq!(server["localEndpoint"]["serviceName"], "service");
        assert_eq!(server["localEndpoint"]["ipv4"], "127.0.0.1");
        assert_eq!(server["annotations"][0]["value"], "ss");
        assert_eq!(client["annotations"][0]["value"], "cr");
        assert!(server["timestamp"].as_u64().unwrap() > 1 << 50 && server["duration"].as_u64().unwrap() > 0);
        assert_eq!(server["tags"]["http.url"], "http://test/\"q\"");
        assert_eq!(server["tags"]["http.status_code"], "200");
        culvert
            .wait_until("the report is counted", |culvert| culvert.stat("tracing.zipkin.reports_sent") > 0);
        assert_eq!(culvert.stat("tracing.zipkin.spans_sent"), 2);
    });
}

#[test]
fn a_collector_that_is_away_is_counted() {
    let tracing = provider("ZipkinConfig", ZIPKIN);
    Scene { tracing: &tracing, ..Scene::default() }.run(|culvert, port| {
        assert_eq!(get(port, "/", &[]).status, 200);
        culvert.wait_until("a report is skipped", |culvert| {
            culvert.stat("tracing.zipkin.reports_skipped_no_cluster") == 1
        });
    });
    let (collector, _) = http_collector("500");
    let clusters = clusters(collector.address, false);
    Scene { tracing: &tracing, clusters: &clusters, ..Scene::default() }.run(|culvert, port| {
        assert_eq!(get(port, "/", &[]).status, 200);
        culvert
            .wait_until("a report is dropped", |culvert| culvert.stat("tracing.zipkin.reports_dropped") == 1);
    });
}

/// Waits for a request, and takes it.
fn taken(culvert: &Culvert, requests: &Requests) -> (String, Vec<u8>) {
    culvert.wait_until("a request of spans", |_| !requests.lock().unwrap().is_empty());
    requests.lock().unwrap().remove(0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
