//! The way of encoded spans from a worker to the control thread.

use std::sync::Arc;

use crossbeam_queue::{ArrayQueue, SegQueue};
use culvert_model::TraceProvider;

use crate::{observe::stats::Registry, stat_set};

stat_set! {
    /// Scope `tracing.opentelemetry` or `tracing.zipkin`. Each worker's tracers have one.
    pub struct PipeStats {
        /// Spans that were lost because the collector did not keep up, or was not there.
        counter spans_dropped,
    }
}

/// Spans of one tracer on one worker that the control thread may have left to take.
const SPANS_MAX: usize = 4_096;

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

/// A bounded queue of encoded spans, from one worker to the control thread.
pub struct SpanPipe {
    spans: ArrayQueue<Vec<u8>>,
    stats: Arc<PipeStats>,
}

impl SpanPipes {
    /// Pipes whose statistics are registered there.
    pub fn new(registry: &Registry) -> Self {
        Self { opened: Arc::default(), registry: registry.clone() }
    }

    /// A way to the collector, for one worker.
    pub fn open(&self, provider: &Arc<TraceProvider>) -> Arc<SpanPipe> {
        let stats = Arc::new(PipeStats::default());
        self.registry.register(scope(provider), stats.clone());
        let pipe = Arc::new(SpanPipe { spans: ArrayQueue::new(SPANS_MAX), stats });
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

impl SpanPipe {
    /// Hands a span over, or drops it and counts that. To be called by the worker that opened the pipe.
    pub(super) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.spans.is_full() {
            self.stats.spans_dropped.inc();
            return;
        }
        let mut span = Vec::with_capacity(SPAN_BYTES);
        encode(&mut span);
        if self.spans.push(span).is_err() {
            self.stats.spans_dropped.inc();
        }
    }

    /// The oldest span.
    pub fn pop(&self) -> Option<Vec<u8>> {
        self.spans.pop()
    }

    /// Whether the worker has let go of it and nothing is left in it.
    pub fn is_finished(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.spans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::Zipkin;

    use super::*;

    #[test]
    fn a_full_pipe_drops_and_counts() {
        let zipkin = Zipkin {
            cluster: "c".to_owned(),
            path: "/".to_owned(),
            authority: "c".to_owned(),
            wide_ids: false,
            shared: true,
            split: false,
        };
        let pipes = SpanPipes::default();
        let pipe = pipes.open(&Arc::new(TraceProvider::Zipkin(zipkin)));
        (0..SPANS_MAX + 3).for_each(|_| pipe.push(|out| out.push(1)));
        assert_eq!(pipe.stats.spans_dropped.value(), 3);
        assert_eq!(pipe.pop(), Some(vec![1]));
        let opened = pipes.next().unwrap();
        drop(pipe);
        assert!(!opened.pipe.is_finished());
        while opened.pipe.pop().is_some() {}
        assert!(opened.pipe.is_finished());
    }
}
