//! The trace of a request: decided before its filters run, told to its upstreams, recorded when it is over.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use culvert_model::{Fraction, Route, RouteTracing, TraceSampling, TrafficDirection};
use culvert_proto::{
    ResponseHead,
    route::Match,
    trace::{Reason, RequestIds, Sampling, SpanContext, decide},
};
use culvert_ring::time;

use crate::{
    http::{exchange::Exchange, log::Held},
    observe::{
        access::{Facts, LogType, Runtime},
        trace::{Attempt, Span, Started, Tags, TraceIds, attempt_tags, custom_tags, operation, request_tags},
    },
    upstream::Host,
};

const OPERATION: &str = "x-envoy-decorator-operation";

/// What is known of the trace of one request.
pub(super) struct Trace {
    reason: Reason,
    /// `None` without a tracer, and where the request came with something that is no context.
    started: Option<Started>,
    /// The listener is an outbound one.
    egress: bool,
    /// What the span is called, where something says so and it is collected.
    name: RefCell<Option<Box<[u8]>>>,
    /// What the client is told about it.
    told: Option<Box<str>>,
    /// The route whose settings count, if it has any and the span is collected.
    route: Option<Arc<Route>>,
    attempt: Cell<Option<Attempted>>,
    status: Cell<u16>,
}

/// An attempt that has a span.
#[derive(Clone, Copy)]
struct Attempted {
    context: SpanContext,
    from: Instant,
}

impl Trace {
    fn settings(&self) -> Option<&RouteTracing> {
        self.route.as_ref().and_then(|route| route.tracing.as_deref())
    }

    fn rename(&self, name: &[u8]) {
        if self.started.is_some_and(|started| started.context.sampled) {
            self.name.replace(Some(name.into()));
        }
    }
}

impl Exchange<'_> {
    /// Decides whether the request is traced, once its route is known for the first time.
    pub(super) fn begin_trace(&mut self, found: Option<&Match<'_>>) {
        let conn = self.conn;
        let config = &conn.manager.spec.config;
        let (Some(tracer), Some(tracing), None) = (&conn.manager.tracer, &config.tracing, &self.trace) else {
            return;
        };
        let settings = found.and_then(|found| found.route.tracing.as_deref());
        let sampling = settings.and_then(|settings| settings.sampling).unwrap_or(tracing.sampling);
        let sampling = current(sampling, &conn.worker.runtime());
        let ids = RequestIds { pack: config.pack_trace_reason, draw: config.sample_by_request_id };
        let random = || conn.worker.rng.borrow_mut().u64(..);
        let headers = &mut self.head.headers;
        let reason = decide(headers, ids, sampling, random);
        tracer.count(reason);
        let egress = conn.downstream.listener.spec.config.direction == TrafficDirection::Outbound;
        let started = tracer.start(headers, reason != Reason::NotTraceable, egress, random);
        let sampled = tracer.exports() && started.is_some_and(|started| started.context.sampled);
        let decorator = settings.and_then(|settings| settings.decorator.as_ref());
        let decorator = decorator.filter(|decorator| !decorator.operation.is_empty());
        let mut trace = Trace {
            reason,
            started,
            egress,
            name: RefCell::default(),
            told: None,
            route: None,
            attempt: Cell::default(),
            status: Cell::default(),
        };
        if sampled && let Some(found) = found.filter(|_| settings.is_some()) {
            trace.route = Some(found.route.clone());
        }
        if let Some(decorator) = decorator {
            trace.rename(decorator.operation.as_bytes());
        }
        let propagated = decorator.filter(|decorator| decorator.propagate);
        if egress {
            if let Some(decorator) = propagated {
                headers.set(OPERATION, &decorator.operation);
            }
        } else {
            trace.told = propagated.map(|decorator| decorator.operation.as_str().into());
            if let Some(given) = headers.get(OPERATION) {
                if !given.is_empty() {
                    trace.rename(given);
                    trace.told = None;
                }
                headers.remove(OPERATION);
            }
        }
        self.trace = Some(trace);
    }

    /// Tells the upstream of the present attempt, which may have a span of its own.
    pub(super) fn begin_attempt(&mut self) {
        let Some(trace) = &self.trace else { return };
        let manager = &self.conn.manager;
        let (Some(tracer), Some(tracing), Some(started)) =
            (&manager.tracer, &manager.spec.config.tracing, trace.started)
        else {
            return;
        };
        let mut context = started.context;
        if tracing.spawn_upstream_span {
            context = context.child(self.conn.worker.rng.borrow_mut().u64(..).max(1));
            trace.attempt.set(Some(Attempted { context, from: time::now() }));
            trace.status.set(0);
        }
        if tracing.propagate {
            tracer.inject(&context, started.single, &mut self.head.headers);
        }
    }

    /// The present attempt was answered.
    pub(super) fn attempt_answered(&self, status: u16) {
        if let Some(trace) = &self.trace {
            trace.status.set(status);
        }
    }

    /// Records the span of the present attempt, if it has one. `retried`: there is another one.
    pub(super) fn end_attempt(&self, host: &Rc<Host>, retried: bool) {
        let Some(trace) = &self.trace else { return };
        let (Some(attempt), Some(started)) = (trace.attempt.take(), trace.started) else { return };
        let Some(tracing) = &self.conn.manager.spec.config.tracing else { return };
        if !started.context.sampled {
            return;
        }
        let started = Started {
            context: attempt.context,
            remote_parent: false,
            client: true,
            shared: false,
            ..started
        };
        let status = trace.status.get();
        let canceled = status != 0 && retried;
        let number = self.record.attempts.get();
        self.with_facts(LogType::DownstreamEnd, Some(host), Held::default(), |facts| {
            let tags = attempt_tags(facts, Attempt { status, number, canceled });
            let settings = trace.settings();
            let format = settings.and_then(|settings| settings.upstream_operation.as_ref());
            let name = match format.or(tracing.upstream_operation.as_ref()) {
                Some(format) => operation(format, facts),
                None => {
                    let cluster = facts.cluster.map_or("", |(name, _)| name);
                    format!("router {cluster} egress").into_bytes()
                }
            };
            let times = &facts.times;
            let events = [
                ("first_upstream_tx_byte_sent", times.upstream_tx_begin),
                ("last_upstream_tx_byte_sent", times.upstream_tx_end),
                ("first_upstream_rx_byte_received", times.upstream_rx_begin),
                ("last_upstream_rx_byte_received", times.upstream_rx_end),
            ];
            self.record_span(trace, started, &name, attempt.from, &events, tags, facts);
        });
    }

    /// Records the span of the request.
    pub(super) fn finish_trace(&self) {
        let Some(trace) = &self.trace else { return };
        let Some(started) = trace.started.filter(|started| started.context.sampled) else { return };
        let manager = &self.conn.manager;
        let (Some(tracer), Some(tracing)) = (&manager.tracer, &manager.spec.config.tracing) else { return };
        if self.record.health_check.get() || !tracer.exports() {
            return;
        }
        let process = &self.conn.worker.process;
        self.with_facts(LogType::DownstreamEnd, None, Held::default(), |facts| {
            let tags = request_tags(facts, &process.node_id, &process.node_zone, tracing.max_path_tag_length);
            let settings = trace.settings();
            let format = settings.and_then(|settings| settings.operation.as_ref());
            let given = trace.name.borrow();
            let host = self.head.authority();
            let name = match (format.or(tracing.operation.as_ref()), given.as_deref()) {
                (Some(format), _) => operation(format, facts),
                (None, Some(given)) => given.to_vec(),
                (None, None) => tracer.default_name(trace.egress, host).to_vec(),
            };
            let times = &facts.times;
            let events = [
                ("last_downstream_rx_byte_received", times.rx_end),
                ("first_upstream_tx_byte_sent", times.upstream_tx_begin),
                ("last_upstream_tx_byte_sent", times.upstream_tx_end),
                ("first_upstream_rx_byte_received", times.upstream_rx_begin),
                ("last_upstream_rx_byte_received", times.upstream_rx_end),
                ("first_downstream_tx_byte_sent", times.tx_begin),
                ("last_downstream_tx_byte_sent", times.tx_end),
            ];
            self.record_span(trace, started, &name, self.record.started, &events, tags, facts);
        });
    }

    #[expect(clippy::too_many_arguments, reason = "what both kinds of spans have")]
    fn record_span<'f>(
        &'f self,
        trace: &'f Trace,
        started: Started,
        name: &[u8],
        from: Instant,
        events: &[(&'static str, Option<Instant>)],
        mut tags: Tags<'f>,
        facts: &Facts<'f>,
    ) {
        let manager = &self.conn.manager;
        let (Some(tracer), Some(tracing)) = (&manager.tracer, &manager.spec.config.tracing) else { return };
        let metadata = self.filters.metadata.get();
        custom_tags(&tracing.custom_tags, facts, metadata, &mut tags);
        if let Some(settings) = trace.settings() {
            custom_tags(&settings.custom_tags, facts, metadata, &mut tags);
        }
        let events: Vec<_> = if tracing.verbose {
            events.iter().filter_map(|(name, at)| Some((*name, (*at)?))).collect()
        } else {
            Vec::new()
        };
        let state = facts.request_headers.and_then(|headers| headers.joined("tracestate"));
        let span = Span {
            started,
            name,
            from,
            to: time::now(),
            state: state.as_deref().unwrap_or_default(),
            events: &events,
            tags: &tags,
            local: self.conn.downstream.local,
        };
        tracer.export(&span, &self.conn.worker.process.service_cluster);
    }

    /// What the head of a response says about operations.
    pub(super) fn decorate(&self, head: &mut ResponseHead) {
        let Some(trace) = &self.trace else { return };
        if !trace.egress {
            if let Some(told) = &trace.told {
                head.headers.set(OPERATION, told.as_bytes());
            }
        } else if let Some(given) = head.headers.get(OPERATION) {
            if !given.is_empty() {
                trace.rename(given);
            }
            head.headers.remove(OPERATION);
        }
    }

    /// What logs show of the trace, and whether a service has asked for it.
    pub(super) fn trace_facts(&self) -> (Option<TraceIds>, bool) {
        let Some(trace) = &self.trace else { return (None, false) };
        let tracer = self.conn.manager.tracer.as_ref();
        let ids = tracer.and_then(|tracer| Some(tracer.ids(&trace.started?.context)));
        (ids, trace.reason == Reason::ServiceForced)
    }
}

/// How many requests are traced now.
fn current(sampling: TraceSampling, runtime: &Runtime) -> Sampling {
    let of = |key: &str, configured: Fraction| {
        let percent = runtime.get(key).and_then(|value| value.parse::<u32>().ok());
        percent.map_or(configured, |percent| Fraction { numerator: percent.min(100), denominator: 100 })
    };
    Sampling {
        client: of("tracing.client_enabled", sampling.client),
        random: of("tracing.random_sampling", sampling.random),
        overall: of("tracing.global_enabled", sampling.overall),
    }
}
