//! How often a control plane is told that what it sent cannot be used.
//!
//! One that sends the same again at once, and is told so at once, keeps both sides busy for nothing. `rate_limit_settings`
//! are for that, and few set them.

use std::{collections::BTreeMap, time::Instant};

use culvert_model::RateLimit;

use super::{pace::Limiter, types::ResourceType};

/// Refusals of a type that go out at once, and how many a second after that: far more than a control plane has that sends
/// something else each time.
const LIMIT: RateLimit = RateLimit { max_tokens: 20, fill_rate_milli: 1_000 };

/// Refusals on one stream. No clock: the time is told.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    limiters: BTreeMap<ResourceType, Limiter>,
    paused: BTreeMap<ResourceType, Instant>,
}

impl Refusals {
    /// Something of this type was refused. Returns whether the answer has to wait.
    pub(super) fn refused(&mut self, resource_type: ResourceType, now: Instant) -> bool {
        if self.paused.contains_key(&resource_type) {
            return true;
        }
        let limiter = self.limiters.entry(resource_type).or_insert_with(|| Limiter::new(Some(LIMIT), now));
        let wait = limiter.wait(now);
        if wait.is_zero() {
            limiter.take();
            return false;
        }
        self.paused.insert(resource_type, now + wait);
        true
    }

    /// Something of this type was accepted.
    pub(super) fn accepted(&mut self, resource_type: ResourceType) {
        self.paused.remove(&resource_type);
    }

    /// When the next one has waited long enough.
    pub(super) fn next(&self) -> Option<Instant> {
        self.paused.values().min().copied()
    }

    /// One that has waited long enough.
    pub(super) fn pop(&mut self, now: Instant) -> Option<ResourceType> {
        let (resource_type, _) = self.paused.iter().find(|(_, until)| **until <= now)?;
        let resource_type = *resource_type;
        self.paused.remove(&resource_type);
        if let Some(limiter) = self.limiters.get_mut(&resource_type) {
            limiter.wait(now);
            limiter.take();
        }
        Some(resource_type)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn few_go_out_at_once_and_many_one_by_one() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        for _ in 0..LIMIT.max_tokens {
            assert!(!refusals.refused(ResourceType::Cluster, start));
        }
        assert!(refusals.refused(ResourceType::Cluster, start));
        assert!(!refusals.refused(ResourceType::Listener, start), "another type");
        assert_eq!(refusals.pop(start), None);
        let until = refusals.next().unwrap();
        assert_eq!(until - start, Duration::from_millis(1_001));
        assert!(refusals.refused(ResourceType::Cluster, start), "still the same");
        assert_eq!(refusals.next(), Some(until));
        assert_eq!(refusals.pop(until), Some(ResourceType::Cluster));
        assert_eq!((refusals.pop(until), refusals.next()), (None, None));
        assert!(refusals.refused(ResourceType::Cluster, until));
        refusals.accepted(ResourceType::Cluster);
        assert_eq!(refusals.next(), None);
    }
}
