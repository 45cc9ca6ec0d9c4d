//! Access logs of collectors (`envoy.service.accesslog.v3`): what workers encoded is gathered into messages and sent.
//!
//! A logger's pipes are emptied many times a second, so a worker never has to wake the control thread. What a collector
//! does not take in time is kept up to a limit, then dropped and counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes};
use culvert_model::GrpcLog;
use culvert_xds::remote::{self, Dialer};
use envoy_types::pb::envoy::{
    config::core::v3::Node, service::accesslog::v3::stream_access_logs_message::Identifier,
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::observe::{
    access::{
        pipe::{GrpcLogStats, Kind, Opened, Pipe, Pipes, SCOPE},
        put_varint,
    },
    stats::Registry,
};

/// How often pipes are emptied.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Most bytes that wait for a collector besides those that are on their way.
const WAITING_MAX: usize = 1 << 20;
/// Messages that may be on their way to a stream.
const MESSAGES_MAX: usize = 4;

/// All loggers' ways to their collectors.
pub(super) struct Collectors {
    pipes: Pipes,
    dialer: Arc<dyn Dialer>,
    node: Node,
    stats: Arc<GrpcLogStats>,
    exporters: Vec<Exporter>,
}

impl Collectors {
    pub(super) fn new(pipes: Pipes, dialer: Arc<dyn Dialer>, node: Node, registry: &Registry) -> Self {
        let stats = Arc::new(GrpcLogStats::default());
        registry.register(SCOPE, stats.clone());
        Self { pipes, dialer, node, stats, exporters: Vec::new() }
    }

    /// Gathers and sends until it is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turn();
        }
    }

    fn turn(&mut self) {
        while let Some(opened) = self.pipes.next() {
            self.adopt(opened);
        }
        for exporter in &mut self.exporters {
            exporter.collect(&self.stats);
        }
        self.exporters.retain(|exporter| !exporter.pipes.is_empty() || !exporter.waiting.is_empty());
    }

    fn adopt(&mut self, opened: Opened) {
        let same = |known: &&mut Exporter| known.kind == opened.kind && known.config == opened.config;
        if let Some(known) = self.exporters.iter_mut().find(same) {
            known.pipes.push(opened.pipe);
            return;
        }
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let identifier =
            Identifier { node: Some(self.node.clone()), log_name: opened.config.log_name.clone() };
        let stream = Stream {
            config: opened.config.clone(),
            kind: opened.kind,
            identifier,
            dialer: self.dialer.clone(),
        };
        tokio::task::spawn_local(stream.run(messages));
        self.exporters.push(Exporter {
            config: opened.config,
            kind: opened.kind,
            pipes: vec![opened.pipe],
            waiting: Vec::new(),
            since: Instant::now(),
            sender,
        });
    }
}

/// The entries of equal loggers, over all workers.
struct Exporter {
    config: Arc<GrpcLog>,
    kind: Kind,
    pipes: Vec<Arc<Pipe>>,
    /// The entries of the next message.
    waiting: Vec<u8>,
    /// When the first of them came.
    since: Instant,
    sender: mpsc::Sender<Vec<u8>>,
}

impl Exporter {
    fn collect(&mut self, stats: &GrpcLogStats) {
        for pipe in std::mem::take(&mut self.pipes) {
            pipe.take_all(|entry| self.take(entry, stats));
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

    fn take(&mut self, entry: &[u8], stats: &GrpcLogStats) {
        if self.waiting.len() + entry.len() > WAITING_MAX {
            stats.logs_dropped.inc();
            return;
        }
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        // Field 1 of both lists of entries.
        self.waiting.push(1 << 3 | 2);
        put_varint(entry.len() as u64, &mut self.waiting);
        self.waiting.extend_from_slice(entry);
        stats.logs_written.inc();
        if self.waiting.len() >= self.config.buffer_size_bytes {
            self.send();
        }
    }

    /// Sends what waits, unless the stream is behind.
    fn send(&mut self) {
        if let Ok(permit) = self.sender.try_reserve() {
            permit.send(std::mem::take(&mut self.waiting));
        }
    }
}

/// The stream to a collector, opened again whenever it ends.
struct Stream {
    config: Arc<GrpcLog>,
    kind: Kind,
    identifier: Identifier,
    dialer: Arc<dyn Dialer>,
}

const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

impl Stream {
    async fn run(self, mut batches: mpsc::Receiver<Vec<u8>>) {
        let (base, max) = self.config.retry_back_off;
        let mut wait = base;
        // A stream is opened when there is something to send.
        let mut unsent = None;
        loop {
            let first = match unsent.take() {
                Some(batch) => batch,
                None => match batches.recv().await {
                    Some(batch) => batch,
                    None => return,
                },
            };
            let opened = Instant::now();
            match self.once(first, &mut batches).await {
                Ended::Finished => return,
                Ended::Failed { status, batch } => {
                    log::debug!(target: "access_log", "{}: {status}", self.config.service.cluster);
                    unsent = batch;
                }
            }
            if opened.elapsed() > max {
                wait = base;
            }
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(max);
        }
    }

    /// One stream, which begins with `first`.
    async fn once(&self, first: Vec<u8>, batches: &mut mpsc::Receiver<Vec<u8>>) -> Ended {
        let (sender, messages) = mpsc::channel(1);
        let taken = Arc::new(AtomicBool::new(false));
        // The channel is empty.
        let _ = sender.try_send(self.message(true, &first));
        let marker = taken.clone();
        let messages = ReceiverStream::new(messages).map(move |message: Bytes| {
            marker.store(true, Ordering::Relaxed);
            message
        });
        let mut request = Request::new(messages);
        for (name, value) in &self.config.service.metadata {
            let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, value.parse()) {
                request.metadata_mut().append(name, value);
            }
        }
        if let Some(timeout) = self.config.service.timeout {
            request.set_timeout(timeout);
        }
        let service = &self.config.service;
        let channel = remote::channel(&self.dialer, &service.cluster, &service.authority);
        let call = async move {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.client_streaming(request, PathAndQuery::from_static(METHOD), Raw).await
        };
        let mut call = std::pin::pin!(call);
        let status = loop {
            let next = async {
                let permit = sender.reserve().await.ok()?;
                Some((permit, batches.recv().await))
            };
            tokio::select! {
                answer = &mut call => break Some(answer.err()),
                next = next => match next {
                    Some((permit, Some(batch))) => permit.send(self.message(false, &batch)),
                    // The loggers are gone.
                    Some((_, None)) => break None,
                    None => break Some((&mut call).await.err()),
                },
            }
        };
        let Some(status) = status else {
            // What was sent still leaves.
            drop(sender);
            let _ = tokio::time::timeout(Duration::from_secs(5), call).await;
            return Ended::Finished;
        };
        let status = status.unwrap_or_else(|| Status::unavailable("the collector ended the stream"));
        let batch = (!taken.load(Ordering::Relaxed)).then_some(first);
        Ended::Failed { status, batch }
    }

    /// A `StreamAccessLogsMessage`; the first one of a stream says whose logs they are.
    fn message(&self, first: bool, entries: &[u8]) -> Bytes {
        let mut message = Vec::with_capacity(entries.len() + 16);
        if first {
            let identifier = self.identifier.encode_to_vec();
            message.push(1 << 3 | 2);
            put_varint(identifier.len() as u64, &mut message);
            message.extend_from_slice(&identifier);
        }
        let field = match self.kind {
            Kind::Http => 2,
            Kind::Tcp => 3,
        };
        message.push(field << 3 | 2);
        put_varint(entries.len() as u64, &mut message);
        message.extend_from_slice(entries);
        message.into()
    }
}

/// How a stream ended.
enum Ended {
    /// There is nothing more to send.
    Finished,
    /// It failed; `batch` was not taken.
    Failed { status: Status, batch: Option<Vec<u8>> },
}

/// Messages that are encoded already; answers are empty.
#[derive(Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        use bytes::Buf as _;
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
