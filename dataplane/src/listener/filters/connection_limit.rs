//! `envoy.filters.network.connection_limit`: so many connections at once, over all workers.

use std::sync::{Arc, atomic::Ordering};

use super::{Verdict, is_enabled};
use crate::{
    listener::Downstream,
    observe::stats::{ConnectionLimitStats, Registry},
    snapshot::ConnectionLimitSpec,
    worker::Worker,
};

/// The filter on one worker.
pub struct ConnectionLimiter {
    spec: Arc<ConnectionLimitSpec>,
    stats: Arc<ConnectionLimitStats>,
}

impl ConnectionLimiter {
    pub(super) fn new(spec: Arc<ConnectionLimitSpec>, registry: &Registry) -> Self {
        let stats = Arc::new(ConnectionLimitStats::default());
        registry.register(format!("connection_limit.{}", spec.config.stat_prefix), stats.clone());
        Self { spec, stats }
    }

    pub(super) fn begin(&self, worker: &Worker, who: &mut Downstream) -> Verdict {
        let config = &self.spec.config;
        if !is_enabled(&config.enabled, worker) {
            return Verdict::Continue;
        }
        if self.spec.open.fetch_add(1, Ordering::Relaxed) >= config.max {
            self.spec.open.fetch_sub(1, Ordering::Relaxed);
            self.stats.limited_connections.inc();
            return Verdict::Close(config.delay);
        }
        self.stats.active_connections.inc();
        who.note().hold(Open { spec: self.spec.clone(), stats: self.stats.clone() });
        Verdict::Continue
    }
}

/// A connection under the limit.
struct Open {
    spec: Arc<ConnectionLimitSpec>,
    stats: Arc<ConnectionLimitStats>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.spec.open.fetch_sub(1, Ordering::Relaxed);
        self.stats.active_connections.dec();
    }
}
