//! Spans: what workers encoded is gathered into requests to collectors, over gRPC or HTTP.
//!
//! A tracer's pipes are emptied many times a second, so a worker never has to wake the control thread. What a collector
//! does not take in time is kept up to a limit, then dropped and counted.

use std::{
    cell::Cell,
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use culvert_model::{OpenTelemetry, TraceProvider, Zipkin};
use culvert_xds::remote::Dialer;
use http::StatusCode;

use super::otlp::{OtlpCall, Post, REQUEST_TIMEOUT, Sending};
use crate::{
    control::Shared,
    observe::{
        access::{message, put_bytes, put_varint},
        stats::{Registry, StatSet},
        trace::pipe::{Opened, SpanPipe, SpanPipes, scope},
    },
    stat_set,
};

stat_set! {
    /// Scope `tracing.opentelemetry`.
    struct OtlpStats {
        /// Not taken by the collector, or too many.
        counter spans_dropped,
        /// Sent.
        counter spans_sent,
        /// How often the interval of sending has passed.
        counter timer_flushed,
    }
}

stat_set! {
    /// Scope `tracing.zipkin`.
    struct ZipkinStats {
        /// Not taken by the collector.
        counter reports_dropped,
        /// Without an answer.
        counter reports_failed,
        /// Taken by the collector.
        counter reports_sent,
        /// There is no such cluster.
        counter reports_skipped_no_cluster,
        /// Too many.
        counter spans_dropped,
        /// Sent.
        counter spans_sent,
        /// How often the interval of sending has passed.
        counter timer_flushed,
    }
}

/// How often pipes are emptied.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Most spans that wait for a Zipkin collector besides those that are on their way.
const ZIPKIN_SPANS_MAX: usize = 4_096;
/// Most spans of one request, so that collectors with limits take it.
const BATCH_MAX: usize = 512;
/// Envoy's defaults of `tracing.*.min_flush_spans` and `flush_interval_ms`.
const MIN_FLUSH_SPANS: u64 = 5;
const FLUSH_INTERVAL_MS: u64 = 5_000;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// All tracers' ways to their collectors.
pub(super) struct Spans {
    pipes: SpanPipes,
    dialer: Arc<dyn Dialer>,
    shared: Rc<Shared>,
    otlp: Option<Arc<OtlpStats>>,
    zipkin: Option<Arc<ZipkinStats>>,
    exporters: Vec<Exporter>,
}

impl Spans {
    pub(super) fn new(pipes: SpanPipes, dialer: Arc<dyn Dialer>, shared: Rc<Shared>) -> Self {
        Self { pipes, dialer, shared, otlp: None, zipkin: None, exporters: Vec::new() }
    }

    /// Gathers and sends until it is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            while let Some(opened) = self.pipes.next() {
                self.adopt(opened);
            }
            let pace = Pace::now(&self.shared);
            for exporter in &mut self.exporters {
                exporter.collect(&pace);
            }
            self.exporters.retain(|exporter| !exporter.pipes.is_empty() || !exporter.waiting.is_empty());
        }
    }

    fn adopt(&mut self, opened: Opened) {
        if let Some(known) = self.exporters.iter_mut().find(|known| known.provider == opened.provider) {
            known.pipes.push(opened.pipe);
            return;
        }
        let registry = self.shared.process.registry.clone();
        let sender = match opened.provider.as_ref() {
            TraceProvider::OpenTelemetry(config) => {
                let Some(exporter) = config.exporter.clone() else { return };
                let stats = self.otlp.get_or_insert_with(|| registered(&registry, &opened.provider)).clone();
                let call = OtlpCall::new(&exporter, &self.dialer);
                Sender::Otlp { call, stats, config: Box::new(config.clone()) }
            }
            TraceProvider::Zipkin(config) => {
                let stats =
                    self.zipkin.get_or_insert_with(|| registered(&registry, &opened.provider)).clone();
                Sender::Zipkin { post: Rc::new(zipkin_post(config, &self.dialer)), stats }
            }
        };
        self.exporters.push(Exporter {
            provider: opened.provider,
            pipes: vec![opened.pipe],
            waiting: VecDeque::new(),
            flushed: Instant::now(),
            sender,
            sending: Rc::default(),
        });
    }
}

/// Statistics of all exporters of one kind.
fn registered<S: StatSet + Default + Send + Sync + 'static>(
    registry: &Registry,
    provider: &TraceProvider,
) -> Arc<S> {
    let stats = Arc::new(S::default());
    registry.register(scope(provider), stats.clone());
    stats
}

/// When spans are sent, as the runtime says now.
struct Pace {
    otlp: (usize, Duration),
    zipkin: (usize, Duration),
    zipkin_timeout: Duration,
}

impl Pace {
    fn now(shared: &Shared) -> Self {
        let snapshot = shared.snapshot.borrow();
        let of = |key: &str, default| {
            snapshot.runtime.get(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(default)
        };
        let of_kind = |kind: &str| {
            let spans = of(&format!("tracing.{kind}.min_flush_spans"), MIN_FLUSH_SPANS);
            let interval = of(&format!("tracing.{kind}.flush_interval_ms"), FLUSH_INTERVAL_MS);
            (usize::try_from(spans).unwrap_or(usize::MAX).max(1), Duration::from_millis(interval))
        };
        Self {
            otlp: of_kind("opentelemetry"),
            zipkin: of_kind("zipkin"),
            zipkin_timeout: Duration::from_millis(of(
                "tracing.zipkin.request_timeout",
                REQUEST_TIMEOUT.as_millis() as u64,
            )),
        }
    }
}

/// The spans of equal tracers, over all workers.
struct Exporter {
    provider: Arc<TraceProvider>,
    pipes: Vec<Arc<SpanPipe>>,
    waiting: VecDeque<Vec<u8>>,
    /// When the interval began.
    flushed: Instant,
    sender: Sender,
    /// A request is on its way: the next one waits for it.
    sending: Rc<Cell<bool>>,
}

enum Sender {
    Otlp { call: OtlpCall, stats: Arc<OtlpStats>, config: Box<OpenTelemetry> },
    Zipkin { post: Rc<Post>, stats: Arc<ZipkinStats> },
}

impl Exporter {
    fn collect(&mut self, pace: &Pace) {
        let (max, (spans, interval)) = match &self.sender {
            Sender::Otlp { config, .. } => (config.max_cache_size, pace.otlp),
            Sender::Zipkin { .. } => (ZIPKIN_SPANS_MAX, pace.zipkin),
        };
        for pipe in std::mem::take(&mut self.pipes) {
            pipe.take_all(|span| {
                if self.waiting.len() < max {
                    self.waiting.push_back(span.to_vec());
                } else {
                    match &self.sender {
                        Sender::Otlp { stats, .. } => stats.spans_dropped.inc(),
                        Sender::Zipkin { stats, .. } => stats.spans_dropped.inc(),
                    }
                }
            });
            if !pipe.is_finished() {
                self.pipes.push(pipe);
            }
        }
        let timer = self.flushed.elapsed() >= interval;
        if timer {
            self.flushed = Instant::now();
            match &self.sender {
                Sender::Otlp { stats, .. } => stats.timer_flushed.inc(),
                Sender::Zipkin { stats, .. } => stats.timer_flushed.inc(),
            }
        }
        let due = timer || self.waiting.len() >= spans || self.pipes.is_empty();
        if due && !self.waiting.is_empty() && !self.sending.get() {
            self.send(pace);
        }
    }

    fn send(&mut self, pace: &Pace) {
        let count = self.waiting.len().min(BATCH_MAX);
        let batch: Vec<_> = self.waiting.drain(..count).collect();
        let sending = Sending::new(&self.sending);
        match &self.sender {
            Sender::Otlp { call, stats, config } => {
                let (call, stats) = (call.clone(), stats.clone());
                let message = export_request(config, &batch);
                tokio::task::spawn_local(async move {
                    match call.export(EXPORT, message).await {
                        Ok(()) => stats.spans_sent.add(count as u64),
                        Err(error) => {
                            stats.spans_dropped.add(count as u64);
                            log::debug!(target: "tracing", "spans were not taken: {error}");
                        }
                    }
                    drop(sending);
                });
            }
            Sender::Zipkin { post, stats } => {
                if self.is_missing(post) {
                    stats.reports_skipped_no_cluster.inc();
                    return;
                }
                let (post, stats, timeout) = (post.clone(), stats.clone(), pace.zipkin_timeout);
                let body = [&b"["[..], &batch.join(&b','), b"]"].concat();
                stats.spans_sent.add(count as u64);
                tokio::task::spawn_local(async move {
                    match post.send(body.into(), timeout).await {
                        Ok(StatusCode::ACCEPTED) => stats.reports_sent.inc(),
                        Ok(_) => stats.reports_dropped.inc(),
                        Err(error) => {
                            stats.reports_failed.inc();
                            log::debug!(target: "tracing", "spans were not taken: {error}");
                        }
                    }
                    drop(sending);
                });
            }
        }
    }

    fn is_missing(&self, post: &Post) -> bool {
        post.dialer.settings(&post.cluster).is_none()
    }
}

/// An `ExportTraceServiceRequest`.
fn export_request(config: &OpenTelemetry, spans: &[Vec<u8>]) -> Bytes {
    let mut out = Vec::with_capacity(512 + spans.iter().map(|span| span.len() + 8).sum::<usize>());
    // resource_spans
    message(1, &mut out, |out| {
        // resource
        message(1, out, |out| {
            for (key, value) in &config.resource {
                message(1, out, |out| {
                    put_bytes(1, key.as_bytes(), out);
                    message(2, out, |out| put_bytes(1, value.as_bytes(), out));
                });
            }
        });
        // scope_spans
        message(2, out, |out| {
            if config.scope {
                message(1, out, |out| {
                    put_bytes(1, b"culvert", out);
                    put_bytes(2, env!("CARGO_PKG_VERSION").as_bytes(), out);
                });
            }
            for span in spans {
                put_varint(2 << 3 | 2, out);
                put_varint(span.len() as u64, out);
                out.extend_from_slice(span);
            }
        });
    });
    out.into()
}

fn zipkin_post(config: &Zipkin, dialer: &Arc<dyn Dialer>) -> Post {
    Post {
        dialer: dialer.clone(),
        cluster: config.cluster.clone(),
        authority: config.authority.clone(),
        path: config.path.clone(),
        kind: "application/json",
        headers: Vec::new(),
        timeout: REQUEST_TIMEOUT,
    }
}
