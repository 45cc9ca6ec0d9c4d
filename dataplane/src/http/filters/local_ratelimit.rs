//! `envoy.filters.http.local_ratelimit`: so many requests in a time, over all workers.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Instant,
};

use culvert_proto::{
    filter::{
        RateLimit, Settings,
        descriptor::{Descriptors, describe},
        local_limit::{Decision, Remembered},
    },
    h1::Decimal,
    route::change_header,
};
use culvert_ring::time;

use super::{Response, Scope, State, Verdict, describing};
use crate::{
    http::{exchange::Exchange, format::Values, log::Flags, reply::Reply},
    observe::stats::{HttpRateLimitStats, Registry},
};

/// Where the clock of all buckets begins.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The filter on one worker.
pub(super) struct RateLimiter {
    limit: Arc<RateLimit>,
    remembered: RefCell<Remembered>,
    /// By `stat_prefix`: levels of routes have their own.
    stats: RefCell<HashMap<String, Arc<HttpRateLimitStats>>>,
}

/// What was taken for a request.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    decision: Decision,
    /// There was too little, and this filter has answered.
    refused: bool,
}

impl RateLimiter {
    pub(super) fn new(limit: Arc<RateLimit>, registry: &Registry) -> Self {
        LazyLock::force(&BEGINNING);
        let filter = Self { limit, remembered: RefCell::default(), stats: RefCell::default() };
        filter.stats(registry, &filter.limit.config.stat_prefix);
        filter
    }

    pub(super) fn decode(
        &self,
        exchange: &mut Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let limit = self.limit(scope);
        let config = &limit.config;
        if !exchange.draws(config.enabled) {
            return Verdict::Continue;
        }
        let stats = self.stats(&exchange.conn.worker.process.registry, &config.stat_prefix);
        stats.enabled.inc();
        let decision = self.take(limit, exchange, scope);
        if decision.shadowed {
            stats.shadow_mode.inc();
        }
        *state = State::Limited(Taken { decision, refused: false });
        if decision.allowed {
            stats.ok.inc();
            return Verdict::Continue;
        }
        stats.rate_limited.inc();
        if !exchange.draws(config.enforced) {
            let mut headers = std::mem::take(&mut exchange.head.headers);
            let values = Values::for_filter(exchange);
            let mut scratch = Vec::new();
            for option in &config.request_add {
                change_header(option, &mut headers, &values, &mut scratch);
            }
            exchange.head.headers = headers;
            return Verdict::Continue;
        }
        stats.enforced.inc();
        *state = State::Limited(Taken { decision, refused: true });
        let reply = Reply::new(config.status, "local_rate_limited").flag(Flags::RATE_LIMITED);
        let reply = reply.details("local_rate_limited");
        Verdict::Reply(if config.resource_exhausted { reply.grpc_status("8") } else { reply })
    }

    pub(super) fn encode(
        &self,
        exchange: &Exchange<'_>,
        scope: &Scope<'_>,
        state: &State,
        response: &mut Response<'_>,
    ) {
        let State::Limited(taken) = state else { return };
        let config = &self.limit(scope).config;
        if config.limit_headers {
            let Decision { limit, remaining, reset, .. } = taken.decision;
            response.headers.set("x-ratelimit-limit", Decimal::new(limit.into()));
            response.headers.set("x-ratelimit-remaining", Decimal::new(remaining.into()));
            response.headers.set("x-ratelimit-reset", Decimal::new(reset));
        }
        if taken.refused {
            let values = Values::for_response(exchange, None);
            let mut scratch = Vec::new();
            for option in &config.response_add {
                change_header(option, response.headers, &values, &mut scratch);
            }
        }
    }

    fn take(&self, limit: &RateLimit, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Decision {
        let config = &limit.config;
        let mut descriptors = Descriptors::new();
        if !config.descriptors.is_empty() {
            let inputs = describing(exchange, scope);
            if config.rules.is_empty() {
                scope.describe(config.stage, config.host_rules, &inputs, &mut descriptors);
            } else {
                describe(&config.rules, &inputs, &mut descriptors);
            }
        }
        let since = time::now().saturating_duration_since(*BEGINNING);
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        limit.take(&descriptors, &mut self.remembered.borrow_mut(), now)
    }

    /// That of the route, if it has one.
    fn limit<'a>(&'a self, scope: &Scope<'a>) -> &'a RateLimit {
        match scope.settings() {
            Some(Settings::LocalRateLimit(limit)) => limit,
            _ => &self.limit,
        }
    }

    fn stats(&self, registry: &Registry, stat_prefix: &str) -> Arc<HttpRateLimitStats> {
        if let Some(stats) = self.stats.borrow().get(stat_prefix) {
            return stats.clone();
        }
        let stats = Arc::new(HttpRateLimitStats::default());
        let scope = format!("{stat_prefix}.http_local_rate_limit");
        registry.register(scope, stats.clone());
        self.stats.borrow_mut().insert(stat_prefix.to_owned(), stats.clone());
        stats
    }
}
