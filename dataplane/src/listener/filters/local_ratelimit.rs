//! `envoy.filters.network.local_ratelimit`: so many new connections in a time, over all workers.

use std::sync::Arc;

use culvert_ring::time;

use super::{Verdict, is_enabled};
use crate::{
    listener::Downstream,
    observe::{
        access::Flags,
        stats::{LocalRateLimitStats, Registry},
    },
    snapshot::RateLimitSpec,
    worker::Worker,
};

/// The filter on one worker.
pub struct RateLimiter {
    spec: Arc<RateLimitSpec>,
    stats: Arc<LocalRateLimitStats>,
}

impl RateLimiter {
    pub(super) fn new(spec: Arc<RateLimitSpec>, registry: &Registry) -> Self {
        let stats = Arc::new(LocalRateLimitStats::default());
        registry.register(format!("local_rate_limit.{}", spec.config.stat_prefix), stats.clone());
        Self { spec, stats }
    }

    pub(super) fn begin(&self, worker: &Worker, who: &mut Downstream) -> Verdict {
        let since = time::now().saturating_duration_since(self.spec.since);
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        if !is_enabled(&self.spec.config.enabled, worker) || self.spec.bucket.take(now) {
            return Verdict::Continue;
        }
        self.stats.rate_limited.inc();
        who.note().flag(Flags::UPSTREAM_RETRY_LIMIT);
        Verdict::Close(None)
    }
}
