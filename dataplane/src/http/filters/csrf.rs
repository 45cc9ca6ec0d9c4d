//! `envoy.filters.http.csrf`: requests that other sites have browsers make.

use std::sync::Arc;

use culvert_model::CsrfPolicy;
use culvert_proto::filter::{
    Settings,
    csrf::{self, Origin},
};

use super::{Scope, Verdict};
use crate::{
    http::{exchange::Exchange, reply::Reply},
    observe::stats::{CsrfStats, Registry},
};

/// The filter on one worker.
pub(super) struct Csrf {
    policy: Arc<CsrfPolicy>,
    stats: Arc<CsrfStats>,
}

impl Csrf {
    pub(super) fn new(policy: Arc<CsrfPolicy>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(CsrfStats::default());
        registry.register(format!("http.{stat_prefix}.csrf"), stats.clone());
        Self { policy, stats }
    }

    pub(super) fn decode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        let policy = match scope.settings() {
            Some(Settings::Csrf(own)) => own,
            _ => &self.policy,
        };
        let enabled = exchange.draws(policy.enabled);
        if !enabled && !exchange.draws(policy.shadow) || !csrf::concerns(&exchange.head.method) {
            return Verdict::Continue;
        }
        match csrf::judge(policy, &exchange.head.headers, exchange.head.authority()) {
            Origin::Valid => {
                self.stats.request_valid.inc();
                return Verdict::Continue;
            }
            Origin::Invalid => self.stats.request_invalid.inc(),
            Origin::Missing => self.stats.missing_source_origin.inc(),
        }
        if !enabled {
            return Verdict::Continue;
        }
        Verdict::Reply(Reply::new(403, "Invalid origin").details("csrf_origin_mismatch"))
    }
}
