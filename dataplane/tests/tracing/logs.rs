//! Access logs of OpenTelemetry, at collectors over gRPC and HTTP.

use prost::Message;

use crate::{
    Scene, TRACE, get, http_collector,
    otlp::{Exportable, KeyValue, Receiver, Resource, find},
    provider,
    support::culvert::{Culvert, cluster, indent},
};

#[derive(Clone, PartialEq, Message)]
struct Logs {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    time: u64,
    #[prost(message, optional, tag = "5")]
    body: Option<crate::otlp::AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    span_id: Vec<u8>,
}

impl Exportable for Logs {
    const SERVICE: &'static str = "opentelemetry.proto.collector.logs.v1.LogsService";
}

impl Logs {
    fn records(&self) -> impl Iterator<Item = &LogRecord> {
        self.resource_logs.iter().flat_map(|it| &it.scope_logs).flat_map(|it| &it.log_records)
    }
}

/// A logger to the cluster `logs`, besides those of the connection manager.
fn logger(fields: &str) -> String {
    format!(
        "{{name: o, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, \
         buffer_flush_interval: 0.05s, {fields}}}}},"
    )
}

const FIELDS: &str = "log_name: mine, body: {string_value: 'B %PROTOCOL% %REQ(none)%'}, attributes: {values: [{key: code, value: \
     {string_value: '%RESPONSE_CODE%'}}, {key: missing, value: {string_value: '%REQ(none)%'}}, {key: deep, value: \
     {kvlist_value: {values: [{key: path, value: {string_value: '%REQ(:PATH)%'}}]}}}, {key: several, value: {array_value: \
     {values: [{string_value: a}, {string_value: ''}]}}}]}, resource_attributes: {values: [{key: own, value: {string_value: \
     'x%PROTOCOL%'}}, {key: node_name, value: {string_value: other}}]}, custom_tags: [{tag: t, literal: {value: v}}, {tag: h, \
     request_header: {name: x-h, default_value: d}}]";

/// What both kinds of collectors get.
fn check(logs: &Logs, from: u64) {
    let resource = &logs.resource_logs[0].resource.as_ref().unwrap().attributes;
    let keys: Vec<_> = resource.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["log_name", "zone_name", "cluster_name", "node_name", "own"]);
    for (key, value) in
        [("log_name", "mine"), ("zone_name", "z"), ("node_name", "other"), ("own", "x%PROTOCOL%")]
    {
        assert_eq!(find(resource, key), Some(value), "{key}");
    }
    let record = logs.records().next().unwrap();
    let now = from + 600_000_000_000;
    assert!((from..now).contains(&record.time), "{}", record.time);
    assert_eq!(record.body.as_ref().unwrap().text.as_deref(), Some("B HTTP/1.1 -"));
    let attributes = &record.attributes;
    for (key, value) in [("code", "200"), ("missing", "-"), ("t", "v"), ("h", "given")] {
        assert_eq!(find(attributes, key), Some(value), "{key}");
    }
    let of = |key: &str| attributes.iter().find(|it| it.key == key).unwrap().value.clone().unwrap();
    assert_eq!(find(&of("deep").map.unwrap().values, "path"), Some("/a?b"));
    let several: Vec<_> = of("several").list.unwrap().values.into_iter().map(|it| it.text).collect();
    assert_eq!(several, [Some("a".to_owned()), Some(String::new())]);
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// Runs `test` with a listener that logs so, and a cluster `logs`.
fn with_logger(fields: &str, logs: &str, test: impl Fn(&Culvert, u16)) {
    let listener = logger(fields);
    let tracing = provider("OpenTelemetryConfig", "service_name: s");
    Scene { logs: &listener, tracing: &tracing, clusters: &indent(logs, 2), ..Scene::default() }.run(test);
}

#[test]
fn records_arrive_over_grpc() {
    let collector = Receiver::<Logs>::default();
    let address = collector.serve();
    let http2 =
        cluster("logs", &[address]).replacen("name: logs", "name: logs\n  http2_protocol_options: {}", 1);
    let fields = format!(
        "grpc_service: {{envoy_grpc: {{cluster_name: logs}}, initial_metadata: [{{key: x-who, value: me}}]}}, stat_prefix: \
         own, {FIELDS}"
    );
    let from = now();
    with_logger(&fields, &http2, |culvert, port| {
        collector.0.lock().unwrap().clear();
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        assert_eq!(get(port, "/a?b", &[("x-h", "given"), ("traceparent", &parent)]).status, 200);
        culvert.wait_until("it arrives", |_| !collector.0.lock().unwrap().is_empty());
        {
            let got = collector.0.lock().unwrap();
            let (metadata, logs) = &got[0];
            assert_eq!(metadata.get("x-who").unwrap(), "me");
            check(logs, from);
            let record = logs.records().next().unwrap();
            assert_eq!(
                record.trace_id,
                (0..16)
                    .map(|at| u8::from_str_radix(&TRACE[2 * at..2 * at + 2], 16).unwrap())
                    .collect::<Vec<_>>()
            );
            assert_eq!(record.span_id.len(), 8);
        }
        let stat = |name: &str| culvert.stat(&format!("access_logs.open_telemetry_access_log.own.{name}"));
        culvert.wait_until("it is counted", |_| stat("logs_written") == 1);
        assert_eq!(stat("logs_dropped"), 0);
        for _ in 0..20 {
            assert_eq!(get(port, "/b", &[]).status, 200);
        }
        culvert.wait_until("all of them arrive", |_| {
            let got = collector.0.lock().unwrap();
            got.iter().map(|(_, logs)| logs.records().count()).sum::<usize>() == 21
        });
    });
}

#[test]
fn records_arrive_over_http() {
    let fields = format!(
        "http_service: {{http_uri: {{uri: \"http://logs.example/v1/logs\", cluster: logs, timeout: 20s}}, \
         request_headers_to_add: [{{header: {{key: x-who, value: me}}}}]}}, {FIELDS}"
    );
    let from = now();
    let (taking, got) = http_collector("200");
    with_logger(&fields, &cluster("logs", &[taking.address]), |culvert, port| {
        got.lock().unwrap().clear();
        assert_eq!(get(port, "/a?b", &[("x-h", "given")]).status, 200);
        culvert.wait_until("it arrives", |_| !got.lock().unwrap().is_empty());
        let (head, body) = got.lock().unwrap()[0].clone();
        assert!(head.starts_with("POST /v1/logs HTTP/1.1\r\nhost: logs.example\r\n"), "{head}");
        assert!(head.contains("x-who: me\r\n") && head.contains("application/x-protobuf"), "{head}");
        check(&Logs::decode(&body[..]).unwrap(), from);
    });

    let (refusing, got) = http_collector("500");
    with_logger(&fields, &cluster("logs", &[refusing.address]), |culvert, port| {
        got.lock().unwrap().clear();
        assert_eq!(get(port, "/a?b", &[]).status, 200);
        let dropped = "access_logs.open_telemetry_access_log.logs_dropped";
        culvert.wait_until("it is given up", |it| it.stat(dropped) == 1);
        assert_eq!(culvert.stat("access_logs.open_telemetry_access_log.logs_written"), 0);
    });
}

#[test]
fn the_resource_is_only_what_is_configured() {
    let (taking, got) = http_collector("200");
    let fields = "http_service: {http_uri: {uri: \"http://logs.example/\", cluster: logs, timeout: 20s}}, \
                  disable_builtin_labels: true, resource_attributes: {values: [{key: a, value: {string_value: b}}]}";
    with_logger(fields, &cluster("logs", &[taking.address]), |culvert, port| {
        got.lock().unwrap().clear();
        assert_eq!(get(port, "/", &[]).status, 200);
        culvert.wait_until("it arrives", |_| !got.lock().unwrap().is_empty());
        let logs = Logs::decode(&got.lock().unwrap()[0].1[..]).unwrap();
        let resource = &logs.resource_logs[0].resource.as_ref().unwrap().attributes;
        assert_eq!(resource.len(), 1);
        let record = logs.records().next().unwrap();
        assert!(record.body.is_none() && record.attributes.is_empty());
    });
}
