//! `envoy.filters.http.cors`: requests across origins.

use std::{borrow::Cow, sync::Arc};

use culvert_model::{Action, CorsPolicy, Fraction};
use culvert_proto::{
    Method,
    filter::{Settings, cors},
};

use super::{Response, Scope, State, Verdict};
use crate::{
    http::{exchange::Exchange, reply::Reply},
    observe::stats::{CorsStats, Registry},
};

/// The filter on one worker.
pub(super) struct Cors {
    stats: Arc<CorsStats>,
}

impl Cors {
    pub(super) fn new(stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(CorsStats::default());
        registry.register(format!("http.{stat_prefix}.cors"), stats.clone());
        Self { stats }
    }

    pub(super) fn decode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>, state: &mut State) -> Verdict {
        // Envoy looks for policies where requests are forwarded.
        let forwarded = scope.route.is_some_and(|route| matches!(route.action, Action::Forward(_)));
        let Some(policy) = forwarded.then(|| policy(scope)).flatten() else { return Verdict::Continue };
        let policy = &*policy;
        let enabled = draws(exchange, policy.enabled_ppm);
        if !enabled && !draws(exchange, policy.shadow_ppm) {
            return Verdict::Continue;
        }
        let headers = &exchange.head.headers;
        let Some(origin) = headers.get("origin").filter(|origin| !origin.is_empty()) else {
            return Verdict::Continue;
        };
        let allowed = cors::allows(policy, origin);
        if allowed { &self.stats.origin_valid } else { &self.stats.origin_invalid }.inc();
        if !enabled {
            return Verdict::Continue;
        }
        match cors::judge(policy, exchange.head.method == Method::Options, headers, allowed) {
            cors::Verdict::Plain => Verdict::Continue,
            cors::Verdict::Allowed => {
                *state = State::CrossOrigin;
                Verdict::Continue
            }
            cors::Verdict::Preflight(allowed) => {
                *state = State::Preflight(allowed);
                Verdict::Reply(Reply::new(200, "").details("cors_response"))
            }
        }
    }

    pub(super) fn encode(
        &self,
        exchange: &Exchange<'_>,
        scope: &Scope<'_>,
        state: &State,
        response: &mut Response<'_>,
    ) {
        if !matches!(state, State::CrossOrigin | State::Preflight(true)) {
            return;
        }
        let Some(policy) = policy(scope) else { return };
        let policy = &*policy;
        let request = &exchange.head.headers;
        match state {
            State::CrossOrigin => cors::mark_response(policy, request, response.headers),
            State::Preflight(true) => {
                cors::answer_preflight(policy, request, response.headers);
                cors::mark_response(policy, request, response.headers);
            }
            _ => {}
        }
    }
}

fn policy<'s>(scope: &'s Scope<'_>) -> Option<Cow<'s, CorsPolicy>> {
    cors::inherited(scope.overrides().filter_map(|level| match level.settings.as_ref()? {
        Settings::Cors(policy) => Some(&**policy),
        _ => None,
    }))
}

fn draws(exchange: &Exchange<'_>, ppm: u32) -> bool {
    match ppm {
        0 => false,
        1_000_000.. => true,
        _ => {
            let fraction = Fraction { numerator: ppm, denominator: 1_000_000 };
            fraction.hits(exchange.conn.worker.rng.borrow_mut().u64(..))
        }
    }
}
