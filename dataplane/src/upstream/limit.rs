//! Circuit breaker accounting: one unit of a limit, given back when dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use culvert_model::{RetryBudget, RoutePriority};
use culvert_ring::time;

use crate::{snapshot::Limits, upstream::Cluster};

/// Which limit a [`Credit`] counts against (`CircuitBreakers.Thresholds`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// `max_connections`
    Connections,
    /// `max_pending_requests`
    Pending,
    /// `max_requests`
    Requests,
    /// `max_retries`, `retry_budget`
    Retries,
}

impl Limit {
    fn of(self, limits: &Limits) -> &AtomicU32 {
        match self {
            Self::Connections => &limits.connections,
            Self::Pending => &limits.pending,
            Self::Requests => &limits.requests,
            Self::Retries => &limits.retries,
        }
    }
}

/// One unit of a limit.
pub struct Credit {
    limits: Arc<Limits>,
    limit: Limit,
}

impl Credit {
    /// Takes one unit if fewer than `max` are taken. Who is refused leaves no trace: a unit that was only tried for
    /// would keep another worker from one that is free.
    pub fn take(limits: &Arc<Limits>, limit: Limit, max: u32) -> Option<Self> {
        let word = limit.of(limits);
        let more = |taken| if taken < max { Some(taken + 1) } else { None };
        word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { limits: limits.clone(), limit })
    }

    /// Takes a retry if there are fewer than `max_retries`, or than the budget has at the moment.
    pub fn take_retry(cluster: &Cluster, priority: RoutePriority) -> Option<Self> {
        let (breakers, limits) = cluster.breakers(priority);
        let max = match &breakers.retry_budget {
            None => breakers.max_retries,
            Some(budget) => retries_of(budget, limits),
        };
        Self::take(limits, Limit::Retries, max)
    }

    /// Takes a request if there are fewer than `max_requests`.
    pub fn take_request(cluster: &Cluster, priority: RoutePriority) -> Option<Self> {
        let (breakers, limits) = cluster.breakers(priority);
        Self::take(limits, Limit::Requests, breakers.max_requests)
    }

    /// Takes a place among those who wait for a connection, if there are fewer than `max_pending_requests`.
    pub(super) fn take_pending(cluster: &Cluster, priority: RoutePriority) -> Option<Self> {
        let (breakers, limits) = cluster.breakers(priority);
        Self::take(limits, Limit::Pending, breakers.max_pending_requests)
    }

    /// Takes one unit whatever the limit. As in Envoy, every pool may have one connection, so that a limit does not become
    /// an outage of the endpoints that came too late: with connections of HTTP, a worker that has none to an endpoint opens
    /// one even where `max_connections` (or `per_host_thresholds`) is reached. So the limit can be exceeded by as many
    /// connections as there are endpoints and workers, and by none as long as requests meet endpoints they are connected
    /// to. TCP proxies, whose connections nobody waits for, are refused instead: there the limit is exact.
    pub fn force(limits: &Arc<Limits>, limit: Limit) -> Self {
        limit.of(limits).fetch_add(1, Ordering::Relaxed);
        Self { limits: limits.clone(), limit }
    }
}

/// How many retries a budget allows at the moment.
fn retries_of(budget: &RetryBudget, limits: &Limits) -> u32 {
    let active =
        limits.requests.load(Ordering::Relaxed).saturating_add(limits.pending.load(Ordering::Relaxed));
    let counted = if budget.interval.is_zero() {
        active
    } else {
        active.max(limits.recent.count(budget.interval, time::now()))
    };
    let share = u64::from(counted) * u64::from(budget.per_million) / 1_000_000;
    u32::try_from(share).unwrap_or(u32::MAX).max(budget.min)
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

    /// One thread of two holds a unit less than the limit for good: the other one has to get the last unit whenever it
    /// asks, whatever a third one, which is always refused, tries meanwhile.
    #[test]
    fn a_refusal_takes_nothing_from_others() {
        for max in 1..=10 {
            let limits = Arc::new(Limits::default());
            let held: Vec<_> =
                (1..max).map(|_| Credit::take(&limits, Limit::Requests, max).unwrap()).collect();
            let done = AtomicU32::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while done.load(Ordering::Relaxed) == 0 {
                        assert!(Credit::take(&limits, Limit::Requests, max - 1).is_none());
                    }
                });
                for turn in 0..20_000 {
                    let last = Credit::take(&limits, Limit::Requests, max);
                    if last.is_none() {
                        done.store(1, Ordering::Relaxed);
                    }
                    assert!(last.is_some(), "limit {max}, turn {turn}");
                }
                done.store(1, Ordering::Relaxed);
            });
            drop(held);
            assert_eq!(limits.requests.load(Ordering::Relaxed), 0);
        }
    }
}
