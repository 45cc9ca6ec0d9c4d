//! Access logs of a running culvert, on both drivers: JSON lines in files, and entries at a collector that restarts.

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use envoy_types::pb::envoy::{
    data::accesslog::v3::HttpAccessLogEntry,
    service::accesslog::v3::{
        StreamAccessLogsMessage, StreamAccessLogsResponse,
        access_log_service_server::{AccessLogService, AccessLogServiceServer},
        stream_access_logs_message::LogEntries,
    },
};
use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, bootstrap, cluster, free_port},
    upstream::Upstream,
};
use tokio::{runtime, sync::oneshot};
use tonic::{Request, Response, Status, Streaming, transport::Server};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    names: Vec<String>,
    nodes: Vec<String>,
    entries: Vec<HttpAccessLogEntry>,
}

#[tonic::async_trait]
impl AccessLogService for Collector {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            let mut collected = self.0.lock().unwrap();
            if let Some(identifier) = message.identifier {
                collected.names.push(identifier.log_name);
                collected.nodes.push(identifier.node.unwrap_or_default().id);
            }
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                collected.entries.extend(logs.log_entry);
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

/// A collector on a thread of its own, until it is dropped.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start(address: SocketAddr, collector: Collector) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serving =
                    Server::builder().add_service(AccessLogServiceServer::new(collector)).serve(address);
                // Dropped at once, so that open streams break.
                tokio::select! {
                    served = serving => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn entries_reach_a_collector_that_restarts() {
    let upstream = Upstream::mirror();
    for driver in DRIVERS {
        let (admin, port, als) = (free_port(), free_port(), free_port());
        let manager = "access_log: [{name: als, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, \
             common_config: {log_name: echo, transport_api_version: V3, buffer_flush_interval: 0.1s, \
             grpc_stream_retry_policy: {retry_back_off: {base_interval: 0.05s, max_interval: 0.1s}}, \
             custom_tags: [{tag: t, literal: {value: v}}], \
             grpc_service: {envoy_grpc: {cluster_name: als}}}, \
             additional_request_headers_to_log: [x-request-id]}}]";
        let http2 =
            cluster("als", &[local(als)]).replacen("name: als", "name: als\n  http2_protocol_options: {}", 1);
        let clusters = format!("{}\n{http2}", cluster("up", &[upstream.address]));
        let routes = "- {name: r, match: {prefix: /}, route: {cluster: up}}";
        let culvert = Culvert::start(driver, admin, &bootstrap(admin, port, manager, routes, &clusters));
        let collector = Collector::default();
        let path_arrives = |path: &str| {
            culvert.wait_until("an entry", |_| {
                let collected = collector.0.lock().unwrap();
                let is = |entry: &&HttpAccessLogEntry| entry.request.as_ref().is_some_and(|r| r.path == path);
                collected.entries.iter().any(|entry| is(&entry))
            });
        };
        let mut client = Client::connect(port);
        // Nobody listens yet: the entry waits.
        assert_eq!(client.get("/early").status, 200);
        let running = Running::start(local(als), collector.clone());
        path_arrives("/early");
        drop(running);
        // A dead collector does not hold requests up.
        assert_eq!(client.get("/between").status, 200);
        let running = Running::start(local(als), collector.clone());
        let n = std::cell::Cell::new(0);
        culvert.wait_until("entries after the restart", |_| {
            n.set(n.get() + 1);
            let path = format!("/late{}", n.get());
            assert_eq!(Client::connect(port).get(&path).status, 200);
            collector
                .0
                .lock()
                .unwrap()
                .entries
                .iter()
                .any(|entry| entry.request.as_ref().is_some_and(|request| request.path.starts_with("/late")))
        });
        drop(running);
        let collected = collector.0.lock().unwrap();
        assert!(collected.names.len() >= 2, "each stream begins with an identifier");
        assert!(collected.names.iter().all(|name| name == "echo"));
        let entry = &collected.entries[0];
        let common = entry.common_properties.as_ref().unwrap();
        assert_eq!((common.upstream_cluster.as_str(), common.route_name.as_str()), ("up", "r"));
        assert_eq!(common.custom_tags["t"], "v");
        assert!(common.upstream_local_address.is_some() && common.duration.is_some());
        let request = entry.request.as_ref().unwrap();
        assert_eq!(request.request_headers["x-request-id"], request.request_id);
        assert_eq!(entry.response.as_ref().unwrap().response_code.unwrap().value, 200);
        assert!(culvert.stat("access_logs.grpc_access_log.logs_written") >= 2);
        assert_eq!(culvert.stat("access_logs.grpc_access_log.logs_dropped"), 0);
    }
}

#[test]
fn json_lines_and_filters() {
    let upstream = Upstream::mirror();
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let manager = format!(
            "access_log: [{{name: f, filter: {{header_filter: {{header: {{name: x-log, present_match: true}}}}}}, \
             typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
             log_format: {{omit_empty_values: true, json_format: {{code: '%RESPONSE_CODE%', none: '%REQ(no)%', \
             path: '%REQ(:path)%', took: '%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%', \
             in: {{q: '%QUERY_PARAM(q)%'}}}}}}}}}}]",
            path.display()
        );
        let routes = "- {match: {prefix: /}, route: {cluster: up}}";
        let clusters = cluster("up", &[upstream.address]);
        let config = bootstrap(admin, port, &manager, routes, &clusters);
        let culvert = Culvert::start_with(driver, admin, &config, &["--file-flush-interval-msec", "50"]);
        let mut client = Client::connect(port);
        assert_eq!(client.get("/unlogged").status, 200);
        client.send("GET /a?q=1%22 HTTP/1.1\r\nhost: h\r\nx-log: 1\r\n\r\n");
        assert_eq!(client.response("GET").status, 200);
        let text = || std::fs::read_to_string(&path).unwrap_or_default();
        culvert.wait_until("a line", |_| text().ends_with('\n'));
        thread::sleep(Duration::from_millis(120));
        let lines = text();
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let took = lines[0].split_once("\"took\":").unwrap().1.trim_end_matches('}');
        assert!(took.parse::<u64>().is_ok(), "{}", lines[0]);
        let expected = format!(r#"{{"code":200,"in":{{"q":"1\""}},"path":"/a?q=1%22","took":{took}}}"#);
        assert_eq!(lines[0], expected);
    }
}
