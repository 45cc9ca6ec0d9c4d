//! The way of encoded spans from a worker to the control thread.

use std::sync::Arc;

use crossbeam_queue::SegQueue;
use culvert_model::TraceProvider;

use crate::{
    observe::{
        pipe::{Drops, Pipe},
        stats::{Counter, Registry},
    },
    stat_set,
};

stat_set! {
    /// Scope `tracing.opentelemetry` or `tracing.zipkin`. Each worker's tracers have one.
    pub struct PipeStats {
        /// Spans that were lost because the collector did not keep up, or was not there.
        counter spans_dropped,
    }
}

impl Drops for PipeStats {
    fn dropped(&self) -> &Counter {
        &self.spans_dropped
    }
}

/// Most spans fit.
const SPAN_BYTES: usize = 1_024;

/// Where tracers are announced to the control thread. Cheap to clone.
#[derive(Clone, Default)]
pub struct SpanPipes {
    opened: Arc<SegQueue<Opened>>,
    registry: Registry,
}

/// A tracer that was made on a worker.
pub struct Opened {
    /// As configured.
    pub provider: Arc<TraceProvider>,
    /// Where its spans come out.
    pub pipe: Arc<SpanPipe>,
}

/// The way of the encoded spans of one tracer on one worker.
pub type SpanPipe = Pipe<PipeStats>;

impl SpanPipes {
    /// Pipes whose statistics are registered there.
    pub fn new(registry: &Registry) -> Self {
        Self { opened: Arc::default(), registry: registry.clone() }
    }

    /// A way to the collector, for one worker.
    pub fn open(&self, provider: &Arc<TraceProvider>) -> Arc<SpanPipe> {
        let stats = Arc::new(PipeStats::default());
        self.registry.register(scope(provider), stats.clone());
        let pipe = Arc::new(Pipe::new(stats, SPAN_BYTES));
        self.opened.push(Opened { provider: provider.clone(), pipe: pipe.clone() });
        pipe
    }

    /// The next tracer that control has not seen.
    pub fn next(&self) -> Option<Opened> {
        self.opened.pop()
    }
}

/// Scope of the statistics of a provider.
pub fn scope(provider: &TraceProvider) -> &'static str {
    match provider {
        TraceProvider::OpenTelemetry(_) => "tracing.opentelemetry",
        TraceProvider::Zipkin(_) => "tracing.zipkin",
    }
}
