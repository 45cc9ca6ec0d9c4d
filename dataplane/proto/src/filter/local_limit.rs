//! `local_ratelimit`: tokens that all workers take from, also by descriptor.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use culvert_model::{HttpRateLimit, LocalDescriptor};

use super::descriptor::{Descriptor, Descriptors};
use crate::bucket::Bucket;

/// A limit of requests.
#[derive(Debug)]
pub struct RateLimit {
    /// As configured.
    pub config: Arc<HttpRateLimit>,
    /// No other limit ever had it.
    id: u64,
    /// Tokens of requests that no descriptor says anything about.
    bucket: Tokens,
    /// The one that fills slowest first.
    described: Vec<Described>,
}

/// The tokens of a descriptor.
#[derive(Debug)]
struct Described {
    descriptor: LocalDescriptor,
    tokens: Tokens,
    /// Where a value may be any: tokens by values.
    by_value: Option<Mutex<HashMap<Values, Arc<OfValue>>>>,
}

/// Tokens, and how many there may be.
#[derive(Debug)]
struct Tokens {
    bucket: Bucket,
    max: u32,
}

/// Tokens of one value of a descriptor whose values may be any.
#[derive(Debug)]
struct OfValue {
    tokens: Tokens,
    /// When they were taken from last.
    used: AtomicU64,
    /// Others have taken the place.
    dropped: AtomicBool,
}

type Values = Vec<String>;

static IDS: AtomicU64 = AtomicU64::new(0);

/// What one worker remembers of values, so that it does not have to ask the others.
#[derive(Debug, Default)]
pub struct Remembered(HashMap<(u64, usize, Values), Arc<OfValue>>);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Decision {
    /// There was a token everywhere.
    pub allowed: bool,
    /// There was none in a limit that is only tried.
    pub shadowed: bool,
    /// Most tokens of the limit that decided.
    pub limit: u32,
    /// Tokens that are left there.
    pub remaining: u32,
    /// Seconds until there is one, if there is none.
    pub reset: u64,
}

impl Tokens {
    fn new(max: u32, per_fill: u32, interval: std::time::Duration, now: u64) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self { bucket: Bucket::new(max, per_fill, interval, now), max }
    }

    fn told(&self, allowed: bool, now: u64) -> Decision {
        let remaining = u32::try_from(self.bucket.remaining(now)).unwrap_or(u32::MAX);
        let reset = if remaining > 0 { 0 } else { self.bucket.next(now).div_ceil(1_000_000_000) };
        Decision { allowed, shadowed: false, limit: self.max, remaining, reset }
    }
}

impl RateLimit {
    /// Full buckets.
    #[must_use]
    pub fn new(config: Arc<HttpRateLimit>) -> Self {
        let bucket = Tokens::new(config.max_tokens, config.tokens_per_fill, config.fill_interval, 0);
        let mut described: Vec<_> = config.descriptors.iter().cloned().map(Described::new).collect();
        described.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
        Self { config, id: IDS.fetch_add(1, Ordering::Relaxed), bucket, described }
    }

    /// Takes the tokens of a request with these descriptors, on a clock in nanoseconds. Each takes as many as it counts.
    pub fn take(&self, descriptors: &Descriptors<'_>, remembered: &mut Remembered, now: u64) -> Decision {
        let mut first = None;
        let mut shadowed = false;
        for (index, described) in self.described.iter().enumerate() {
            for descriptor in descriptors.iter().filter(|descriptor| described.matches(descriptor)) {
                let hits = descriptor.hits.unwrap_or(1);
                let (took, told) = described.take(
                    (self.id, index),
                    descriptor,
                    hits,
                    self.config.max_dynamic,
                    remembered,
                    now,
                );
                if !took && !described.descriptor.shadow {
                    return Decision { shadowed, ..told };
                }
                shadowed |= !took;
                first.get_or_insert(Decision { allowed: true, ..told });
            }
        }
        if first.is_some() && !self.config.always_default {
            return Decision { shadowed, ..first.unwrap_or_default() };
        }
        let took = self.bucket.bucket.take_several(1, now);
        let own = self.bucket.told(took, now);
        match first {
            Some(first) if took => Decision { shadowed, ..first },
            _ => Decision { shadowed, ..own },
        }
    }
}

impl Described {
    fn new(descriptor: LocalDescriptor) -> Self {
        let tokens =
            Tokens::new(descriptor.max_tokens, descriptor.tokens_per_fill, descriptor.fill_interval, 0);
        let any = descriptor.entries.iter().any(|(_, value)| value.is_empty());
        Self { descriptor, tokens, by_value: any.then(Mutex::default) }
    }

    fn rate(&self) -> f64 {
        f64::from(self.descriptor.tokens_per_fill) / self.descriptor.fill_interval.as_secs_f64()
    }

    fn matches(&self, descriptor: &Descriptor<'_>) -> bool {
        let own = &self.descriptor.entries;
        own.len() == descriptor.entries.len()
            && own
                .iter()
                .zip(&descriptor.entries)
                .all(|((key, value), (asked, with))| key == asked && (value.is_empty() || value == with))
    }

    fn take(
        &self,
        (limit, index): (u64, usize),
        descriptor: &Descriptor<'_>,
        hits: u64,
        max_values: usize,
        remembered: &mut Remembered,
        now: u64,
    ) -> (bool, Decision) {
        let Some(by_value) = &self.by_value else {
            let took = self.tokens.bucket.take_several(hits, now);
            return (took, self.tokens.told(took, now));
        };
        let values: Values = descriptor.entries.iter().map(|(_, value)| value.to_string()).collect();
        let key = (limit, index, values);
        let known = remembered.0.get(&key).filter(|known| !known.dropped.load(Ordering::Relaxed));
        let found = match known {
            Some(known) => known.clone(),
            None => {
                // Once per value and worker: all of them have to take from the same tokens.
                let mut shared = by_value.lock().unwrap_or_else(PoisonError::into_inner);
                let found = self.of_value(&mut shared, &key.2, max_values, now);
                drop(shared);
                remembered.0.retain(|_, known| !known.dropped.load(Ordering::Relaxed));
                remembered.0.insert(key, found.clone());
                found
            }
        };
        found.used.store(now, Ordering::Relaxed);
        let took = found.tokens.bucket.take_several(hits, now);
        (took, found.tokens.told(took, now))
    }

    /// The tokens of values, which take the place of those that were not used for longest when there are too many.
    fn of_value(
        &self,
        shared: &mut HashMap<Values, Arc<OfValue>>,
        values: &Values,
        max: usize,
        now: u64,
    ) -> Arc<OfValue> {
        if let Some(known) = shared.get(values) {
            return known.clone();
        }
        if shared.len() >= max {
            let oldest = shared.iter().min_by_key(|(_, known)| known.used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(|(values, _)| values.clone())
                && let Some(gone) = shared.remove(&oldest)
            {
                gone.dropped.store(true, Ordering::Relaxed);
            }
        }
        let own = &self.descriptor;
        let tokens = Tokens::new(own.max_tokens, own.tokens_per_fill, own.fill_interval, 0);
        let made = Arc::new(OfValue { tokens, used: AtomicU64::new(now), dropped: AtomicBool::new(false) });
        shared.insert(values.clone(), made.clone());
        made
    }
}

/// Workers forget what they remember of it.
impl Drop for Described {
    fn drop(&mut self) {
        let shared =
            self.by_value.take().map(|shared| shared.into_inner().unwrap_or_else(PoisonError::into_inner));
        shared.into_iter().flatten().for_each(|(_, known)| known.dropped.store(true, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::Duration};

    use culvert_model::Fraction;
    use smallvec::smallvec;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn own(entries: &[(&str, &str)], max_tokens: u32, interval: Duration) -> LocalDescriptor {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LocalDescriptor { entries, max_tokens, tokens_per_fill: 1, fill_interval: interval, shadow: false }
    }

    fn limit(descriptors: Vec<LocalDescriptor>, max_tokens: u32, always_default: bool) -> RateLimit {
        RateLimit::new(Arc::new(HttpRateLimit {
            max_tokens,
            fill_interval: HOUR,
            descriptors,
            always_default,
            enabled: Fraction::NONE,
            max_dynamic: 2,
            ..HttpRateLimit::default()
        }))
    }

    fn asked<'a>(entries: &[(&'a str, &'a str)]) -> Descriptors<'a> {
        let entries = entries.iter().map(|(key, value)| (*key, Cow::Borrowed(*value))).collect();
        smallvec![Descriptor { entries, ..Descriptor::default() }]
    }

    #[test]
    fn the_slowest_limit_decides_first() {
        let limit = limit(vec![own(&[("a", "b")], 5, HOUR / 2), own(&[("a", "")], 2, HOUR)], 100, true);
        let mut remembered = Remembered::default();
        let mut take = || limit.take(&asked(&[("a", "b")]), &mut remembered, 0);
        assert_eq!(take(), Decision { allowed: true, limit: 2, remaining: 1, ..Decision::default() });
        assert_eq!(take().reset, 3_600);
        assert_eq!(take(), Decision { limit: 2, reset: 3_600, ..Decision::default() });
    }

    #[test]
    fn values_that_may_be_any_have_tokens_of_their_own() {
        let limit = limit(vec![own(&[("a", "")], 1, HOUR)], 1, false);
        let (mut one, mut other) = (Remembered::default(), Remembered::default());
        let took = |remembered: &mut Remembered, value: &str, now| {
            limit.take(&asked(&[("a", value)]), remembered, now).allowed
        };
        assert!(took(&mut one, "x", 1) && took(&mut one, "y", 2));
        assert!(!took(&mut other, "x", 3), "workers share them");
        assert!(took(&mut one, "z", 4), "which takes the place of y");
        assert!(!took(&mut one, "x", 5) && took(&mut one, "y", 6), "y begins anew");
        assert_eq!(one.0.len(), 2, "what others took the place of is forgotten");
        assert!(took(&mut one, "", 7) && limit.take(&Descriptors::new(), &mut one, 7).allowed);
        assert!(!limit.take(&Descriptors::new(), &mut one, 8).allowed, "the filter's own tokens");
    }

    #[test]
    fn limits_on_trial_refuse_nobody() {
        let shadow = LocalDescriptor { shadow: true, ..own(&[("a", "b")], 1, HOUR) };
        let limit = limit(vec![shadow], 2, true);
        let mut remembered = Remembered::default();
        let mut take = || limit.take(&asked(&[("a", "b")]), &mut remembered, 0);
        assert_eq!((take().shadowed, take().shadowed), (false, true));
        let third = take();
        assert_eq!((third.allowed, third.limit), (false, 2), "the filter's own tokens count too");
    }
}
