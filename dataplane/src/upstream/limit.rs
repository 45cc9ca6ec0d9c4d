//! Circuit breaker accounting: one unit of a limit, given back when dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::snapshot::Limits;

/// Which limit a [`Credit`] counts against (`CircuitBreakers.Thresholds`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// `max_connections`
    Connections,
    /// `max_pending_requests`
    Pending,
    /// `max_requests`
    Requests,
}

impl Limit {
    fn of(self, limits: &Limits) -> &AtomicU32 {
        match self {
            Self::Connections => &limits.connections,
            Self::Pending => &limits.pending,
            Self::Requests => &limits.requests,
        }
    }
}

/// One unit of a limit.
pub struct Credit {
    limits: Arc<Limits>,
    limit: Limit,
}

impl Credit {
    /// Takes one unit if fewer than `max` are taken.
    pub fn take(limits: &Arc<Limits>, limit: Limit, max: u32) -> Option<Self> {
        let word = limit.of(limits);
        if word.fetch_add(1, Ordering::Relaxed) >= max {
            word.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { limits: limits.clone(), limit })
    }

    /// Takes one unit whatever the limit: every pool may have one connection, else a limit of 0 would be an outage.
    pub fn force(limits: &Arc<Limits>, limit: Limit) -> Self {
        limit.of(limits).fetch_add(1, Ordering::Relaxed);
        Self { limits: limits.clone(), limit }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.limit.of(&self.limits).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_exact_and_given_back() {
        let limits = Arc::new(Limits::default());
        let first = Credit::take(&limits, Limit::Requests, 2);
        let second = Credit::take(&limits, Limit::Requests, 2);
        assert!(first.is_some() && second.is_some());
        assert!(Credit::take(&limits, Limit::Requests, 2).is_none());
        drop(first);
        assert!(Credit::take(&limits, Limit::Requests, 2).is_some());
        assert!(Credit::take(&limits, Limit::Pending, 0).is_none());
        let forced = Credit::force(&limits, Limit::Connections);
        assert_eq!(limits.connections.load(Ordering::Relaxed), 1);
        drop(forced);
        assert_eq!(limits.connections.load(Ordering::Relaxed), 0);
    }
}
