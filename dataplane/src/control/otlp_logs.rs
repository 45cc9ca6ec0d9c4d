//! Access logs of OpenTelemetry: records that workers encoded are gathered into requests and sent.
//!
//! A logger's pipes are emptied many times a second, so a worker never has to wake the control thread. What a collector
//! does not take in time is kept up to a limit, then dropped and counted.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use culvert_model::OtlpLog;
use culvert_xds::remote::Dialer;
use envoy_types::pb::envoy::config::core::v3::Node;

use super::otlp::{OtlpCall, Sending};
use crate::observe::{
    access::{
        message,
        pipe::{GrpcLogStats, OpenedOtlp, Pipe, Pipes, otlp_scope},
        put_bytes, put_varint,
    },
    stats::Registry,
};

/// How often pipes are emptied.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Most bytes that wait for a collector besides those that are on their way.
const WAITING_MAX: usize = 1 << 20;

const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// All loggers' ways to their collectors.
pub(super) struct OtlpLogs {
    pipes: Pipes,
    dialer: Arc<dyn Dialer>,
    node: Node,
    registry: Registry,
    exporters: Vec<Exporter>,
}

impl OtlpLogs {
    pub(super) fn new(pipes: Pipes, dialer: Arc<dyn Dialer>, node: Node, registry: &Registry) -> Self {
        Self { pipes, dialer, node, registry: registry.clone(), exporters: Vec::new() }
    }

    /// Gathers and sends until it is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            while let Some(opened) = self.pipes.next_otlp() {
                self.adopt(opened);
            }
            self.exporters.iter_mut().for_each(Exporter::collect);
            self.exporters.retain(|exporter| !exporter.pipes.is_empty() || !exporter.waiting.is_empty());
        }
    }

    fn adopt(&mut self, opened: OpenedOtlp) {
        if let Some(known) = self.exporters.iter_mut().find(|known| known.config == opened.config) {
            known.pipes.push(opened.pipe);
            return;
        }
        let stats = Arc::new(GrpcLogStats::default());
        self.registry.register(otlp_scope(&opened.config), stats.clone());
        self.exporters.push(Exporter {
            call: OtlpCall::new(&opened.config.exporter, &self.dialer),
            resource: resource(&opened.config, &self.node),
            config: opened.config,
            pipes: vec![opened.pipe],
            waiting: Vec::new(),
            count: 0,
            since: Instant::now(),
            sending: Rc::default(),
            stats,
        });
    }
}

/// The records of equal loggers, over all workers.
struct Exporter {
    config: Arc<OtlpLog>,
    /// The `Resource`, encoded.
    resource: Vec<u8>,
    call: OtlpCall,
    pipes: Vec<Arc<Pipe>>,
    /// The records of the next request, encoded as `log_records` of `ScopeLogs`.
    waiting: Vec<u8>,
    /// How many those are.
    count: u64,
    /// When the first of them came.
    since: Instant,
    /// A request is on its way: the next one waits for it.
    sending: Rc<Cell<bool>>,
    stats: Arc<GrpcLogStats>,
}

impl Exporter {
    fn collect(&mut self) {
        for pipe in std::mem::take(&mut self.pipes) {
            pipe.take_all(|record| self.take(record));
            if !pipe.is_finished() {
                self.pipes.push(pipe);
            }
        }
        if !self.waiting.is_empty()
            && (self.since.elapsed() >= self.config.flush_interval || self.pipes.is_empty())
        {
            self.send();
        }
    }

    fn take(&mut self, record: &[u8]) {
        if self.waiting.len() + record.len() > WAITING_MAX {
            self.stats.logs_dropped.inc();
            return;
        }
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        put_varint(2 << 3 | 2, &mut self.waiting);
        put_varint(record.len() as u64, &mut self.waiting);
        self.waiting.extend_from_slice(record);
        self.count += 1;
        if self.waiting.len() >= self.config.buffer_size_bytes {
            self.send();
        }
    }

    /// Sends what waits, unless the last request still is on its way.
    fn send(&mut self) {
        if self.sending.get() {
            return;
        }
        let count = std::mem::take(&mut self.count);
        let message = export_request(&self.resource, &std::mem::take(&mut self.waiting));
        let sending = Sending::new(&self.sending);
        let (call, stats) = (self.call.clone(), self.stats.clone());
        tokio::task::spawn_local(async move {
            match call.export(EXPORT, message).await {
                Ok(()) => stats.logs_written.add(count),
                Err(error) => {
                    stats.logs_dropped.add(count);
                    log::debug!(target: "access_log", "records were not taken: {error}");
                }
            }
            drop(sending);
        });
    }
}

/// A `Resource`: what is configured comes before what is known anyway.
fn resource(config: &OtlpLog, node: &Node) -> Vec<u8> {
    let mut out = Vec::new();
    let zone = node.locality.as_ref().map_or("", |locality| locality.zone.as_str());
    let known = [
        ("log_name", config.log_name.as_str()),
        ("zone_name", zone),
        ("cluster_name", &node.cluster),
        ("node_name", &node.id),
    ];
    let is_given = |name: &str| config.resource.iter().any(|(key, _)| key == name);
    let known = known.into_iter().filter(|(key, _)| config.builtin_labels && !is_given(key));
    let given = config.resource.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in known.chain(given) {
        message(1, &mut out, |out| {
            put_bytes(1, key.as_bytes(), out);
            message(2, out, |out| put_bytes(1, value.as_bytes(), out));
        });
    }
    out
}

/// An `ExportLogsServiceRequest`.
fn export_request(resource: &[u8], records: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(resource.len() + records.len() + 32);
    message(1, &mut out, |out| {
        message(1, out, |out| out.extend_from_slice(resource));
        message(2, out, |out| out.extend_from_slice(records));
    });
    out.into()
}
