//! `envoy.filters.http.health_check`: questions about the health of this server, answered here.

use std::sync::{Arc, atomic::Ordering};

use culvert_model::HeaderMatcher;
use culvert_proto::route::header_matches;

use super::{Response, State, Verdict};
use crate::{
    http::{exchange::Exchange, log::Flags, reply::Reply},
    observe::{
        stats::{HealthAnswerStats, Registry},
        trace::TracingStats,
    },
};

/// The filter on one worker.
pub(super) struct HealthCheck {
    /// What a question looks like.
    matchers: Arc<Vec<HeaderMatcher>>,
    stats: Arc<HealthAnswerStats>,
    /// Envoy counts them here also where nothing is traced.
    tracing: Arc<TracingStats>,
}

impl HealthCheck {
    pub(super) fn new(matchers: Arc<Vec<HeaderMatcher>>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(HealthAnswerStats::default());
        registry.register(format!("http.{stat_prefix}.health_check"), stats.clone());
        let tracing = Arc::new(TracingStats::default());
        registry.register(format!("http.{stat_prefix}.tracing"), tracing.clone());
        Self { matchers, stats, tracing }
    }

    pub(super) fn decode(&self, exchange: &Exchange<'_>, state: &mut State) -> Verdict {
        let view = exchange.head.view();
        if !self.matchers.iter().all(|matcher| header_matches(matcher, &view)) {
            return Verdict::Continue;
        }
        *state = State::HealthCheck;
        exchange.record.health_check.set(true);
        self.stats.request_total.inc();
        self.tracing.health_check.inc();
        Verdict::Reply(if is_failing(exchange) {
            self.stats.failed.inc();
            Reply::new(503, "").flag(Flags::FAILED_LOCAL_HEALTH_CHECK).details("health_check_failed")
        } else {
            self.stats.ok.inc();
            Reply::new(200, "").details("health_check_ok")
        })
    }
}

pub(super) fn encode(exchange: &Exchange<'_>, state: &State, response: &mut Response<'_>) {
    if matches!(state, State::HealthCheck) {
        let cluster = &exchange.conn.worker.process.service_cluster;
        response.headers.set("x-envoy-upstream-healthchecked-cluster", cluster);
    }
    if is_failing(exchange) {
        response.headers.set("x-envoy-immediate-health-check-fail", "true");
    }
}

fn is_failing(exchange: &Exchange<'_>) -> bool {
    exchange.conn.worker.process.fails_health_checks.load(Ordering::Relaxed)
}
