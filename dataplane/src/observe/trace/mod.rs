//! Spans: where they begin, what they say, and how they leave a worker.
//!
//! A connection manager that traces has a [`Tracer`] on each worker. A request's [`Started`] span is made from its
//! headers; when the request is over, and somebody collects its trace, the span is encoded here and handed to the
//! control thread through a bounded queue ([`pipe`]). Nothing waits.

mod otlp;
pub mod pipe;
mod tags;
mod zipkin;

use std::{sync::Arc, time::Instant};

use culvert_model::{TraceProvider, TraceSampler, Tracing};
use culvert_proto::{
    Headers,
    trace::{Reason, SpanContext, b3, w3c},
};

use crate::{listener::Peer, observe::stats::Registry, stat_set};
use pipe::{SpanPipe, SpanPipes};
pub use tags::{Attempt, Tags, attempt_tags, custom_tags, operation, request_tags};

stat_set! {
    /// Scope `http.<stat_prefix>.tracing`: requests by why they are traced.
    pub struct TracingStats {
        /// For `x-client-trace-id`.
        counter client_enabled,
        /// Health checks; they are not.
        counter health_check,
        /// Not at all.
        counter not_traceable,
        /// They were drawn.
        counter random_sampling,
        /// For `x-envoy-force-trace`.
        counter service_forced,
    }
}

/// What a connection manager traces with, on one worker.
pub struct Tracer {
    stats: Arc<TracingStats>,
    provider: Option<Arc<TraceProvider>>,
    spawns: bool,
    pipe: Option<Arc<SpanPipe>>,
}

/// The span of a request.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Where it is.
    pub context: SpanContext,
    /// The span above it is somebody else's.
    pub remote_parent: bool,
    /// Its context came in a single `b3`.
    pub single: bool,
    /// It is that of a client: the request leaves the mesh's member here.
    pub client: bool,
    /// It is the client's own span, which goes on here.
    pub shared: bool,
}

/// A span that is over.
pub struct Span<'a> {
    /// Where it is.
    pub started: Started,
    /// What it is called.
    pub name: &'a [u8],
    /// When it began.
    pub from: Instant,
    /// When it ended.
    pub to: Instant,
    /// `tracestate`
    pub state: &'a [u8],
    /// What happened in between.
    pub events: &'a [(&'static str, Instant)],
    /// What is known of it.
    pub tags: &'a Tags<'a>,
    /// Where the request was received.
    pub local: Peer,
}

impl Tracer {
    /// The tracer of a connection manager whose `stat_prefix` is given.
    pub fn new(tracing: &Tracing, stat_prefix: &str, registry: &Registry, pipes: &SpanPipes) -> Self {
        let stats = Arc::new(TracingStats::default());
        registry.register(format!("http.{stat_prefix}.tracing"), stats.clone());
        let provider = tracing.provider.clone();
        let exported = provider.as_ref().filter(|provider| match provider.as_ref() {
            TraceProvider::OpenTelemetry(config) => config.exporter.is_some(),
            TraceProvider::Zipkin(_) => true,
        });
        let pipe = exported.map(|provider| pipes.open(provider));
        Self { stats, provider, spawns: tracing.spawn_upstream_span, pipe }
    }

    /// Counts a decision.
    pub fn count(&self, reason: Reason) {
        let stats = &self.stats;
        match reason {
            Reason::NotTraceable => stats.not_traceable.inc(),
            Reason::Sampled => stats.random_sampling.inc(),
            Reason::ServiceForced => stats.service_forced.inc(),
            Reason::ClientForced => stats.client_enabled.inc(),
        }
    }

    /// The span of a request; `None` when there is no tracer, or what the request says of its trace is not valid.
    pub fn start(
        &self,
        headers: &Headers,
        traced: bool,
        egress: bool,
        mut random: impl FnMut() -> u64,
    ) -> Option<Started> {
        // An id is not zero.
        let mut id = || random().max(1);
        match self.provider.as_deref()? {
            TraceProvider::OpenTelemetry(config) => {
                let parent = match headers.get(w3c::TRACEPARENT) {
                    Some(value) => Some(w3c::parse(value)?),
                    None => None,
                };
                let trace = parent.map_or_else(|| wide(id(), id()), |parent| parent.trace);
                let wanted = match &config.sampler {
                    None => parent.is_none_or(|parent| parent.sampled),
                    Some(sampler) => samples(sampler, parent, trace),
                };
                Some(Started {
                    context: SpanContext {
                        trace,
                        span: id(),
                        parent: parent.map(|parent| parent.span),
                        sampled: traced && wanted,
                    },
                    remote_parent: parent.is_some(),
                    single: false,
                    client: egress && !self.spawns,
                    shared: false,
                })
            }
            TraceProvider::Zipkin(config) => {
                let found = b3::extract(headers).ok()?;
                let sampled = found.sampled.unwrap_or(traced);
                let client = egress && !self.spawns && !config.split;
                let shared = config.shared && !client;
                let context = match found.from {
                    Some(from) if shared => from,
                    Some(from) => from.child(id()),
                    None => {
                        let span = id();
                        let trace = if config.wide_ids { wide(id(), span) } else { u128::from(span) };
                        SpanContext { trace, span, parent: None, sampled }
                    }
                };
                Some(Started {
                    context: SpanContext { sampled, ..context },
                    remote_parent: found.from.is_some(),
                    single: found.single,
                    client,
                    shared,
                })
            }
        }
    }

    /// Tells what comes after a span of it.
    pub fn inject(&self, context: &SpanContext, single: bool, headers: &mut Headers) {
        match self.provider.as_deref() {
            Some(TraceProvider::OpenTelemetry(_)) => headers.set(w3c::TRACEPARENT, w3c::format(context)),
            Some(TraceProvider::Zipkin(_)) => b3::inject(context, single, headers),
            None => {}
        }
    }

    /// Ids as logs show them: digits of the trace's, and whether the span's is shown.
    pub fn ids(&self, context: &SpanContext) -> TraceIds {
        let zipkin = matches!(self.provider.as_deref(), Some(TraceProvider::Zipkin(_)));
        TraceIds {
            trace: context.trace,
            digits: if zipkin && context.trace >> 64 == 0 { 16 } else { 32 },
            span: (!zipkin).then_some(context.span),
        }
    }

    /// What spans of requests are called when nothing says so.
    pub fn default_name<'a>(&self, egress: bool, host: &'a [u8]) -> &'a [u8] {
        match self.provider.as_deref() {
            Some(TraceProvider::Zipkin(_)) => host,
            _ if egress => b"egress",
            _ => b"ingress",
        }
    }

    /// Whether spans go somewhere.
    pub fn exports(&self) -> bool {
        self.pipe.is_some()
    }

    /// Hands a span over.
    pub fn export(&self, span: &Span<'_>, service: &str) {
        let Some(pipe) = &self.pipe else { return };
        pipe.push(|out| match self.provider.as_deref() {
            Some(TraceProvider::OpenTelemetry(_)) => otlp::span(span, out),
            Some(TraceProvider::Zipkin(_)) => zipkin::span(span, service, out),
            None => {}
        });
    }
}

/// What logs show of a trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceIds {
    /// The trace's.
    pub trace: u128,
    /// In so many digits.
    pub digits: u32,
    /// The span's, which Zipkin's tracer does not tell.
    pub span: Option<u64>,
}

fn wide(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

fn samples(sampler: &TraceSampler, parent: Option<SpanContext>, trace: u128) -> bool {
    match sampler {
        TraceSampler::AlwaysOn => true,
        TraceSampler::ParentBased(root) => match parent {
            Some(parent) => parent.sampled,
            None => samples(root, None, trace),
        },
        TraceSampler::Ratio(fraction) => fraction.hits(trace as u64),
    }
}
