//! A token bucket that threads share without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// `type.v3.TokenBucket`, full at first. It fills continuously, at `tokens_per_fill` in every `fill_interval`.
///
/// What is kept is the moment since which it would have filled to what it holds: one word, and one exchange for each token.
#[derive(Debug)]
pub struct Bucket {
    /// In nanoseconds of the caller's clock, as is everything here; full while that is `full` ago.
    since: AtomicU64,
    /// What one token takes to come.
    per_token: u64,
    /// What all of them take.
    full: u64,
}

impl Bucket {
    /// A bucket of `max` tokens at the moment `now`; `interval` in nanoseconds, at least 1.
    #[must_use]
    pub fn new(max: u32, per_fill: u32, interval: u64, now: u64) -> Self {
        let per_token = (interval / u64::from(per_fill.max(1))).max(1);
        let full = per_token.saturating_mul(u64::from(max));
        // Moments are counted from `full` before the clock's own beginning, so that none is negative.
        Self { since: AtomicU64::new(now), per_token, full }
    }

    /// Takes a token, if there is one at the moment `now`.
    pub fn take(&self, now: u64) -> bool {
        self.take_several(1, now)
    }

    /// Tokens that there are at the moment `now`.
    pub fn remaining(&self, now: u64) -> u64 {
        let until = now.saturating_add(self.full);
        let since = self.since.load(Ordering::Relaxed).max(now);
        until.saturating_sub(since) / self.per_token
    }

    /// How long it takes from the moment `now` until there is another token than those there are.
    pub fn next(&self, now: u64) -> u64 {
        let until = now.saturating_add(self.full);
        let since = self.since.load(Ordering::Relaxed).max(now);
        self.per_token - until.saturating_sub(since) % self.per_token
    }

    /// Takes so many tokens, if there are as many at the moment `now`; none otherwise.
    pub fn take_several(&self, tokens: u64, now: u64) -> bool {
        let take = |since: u64| {
            let after = since.max(now).saturating_add(self.per_token.saturating_mul(tokens));
            (after <= now.saturating_add(self.full)).then_some(after)
        };
        self.since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_and_fills_up_to_that() {
        const START: u64 = 1_000_000;
        let bucket = Bucket::new(2, 1, 100, START);
        let took: Vec<_> =
            [0, 0, 0, 99, 100, 150, 200, 1_000, 1_000, 1_000].map(|after| bucket.take(START + after)).into();
        assert_eq!(took, [true, true, false, false, true, false, true, true, true, false]);
    }

    #[test]
    fn it_tells_what_is_left() {
        let bucket = Bucket::new(3, 1, 100, 0);
        assert_eq!(bucket.remaining(1_000), 3);
        assert!(bucket.take_several(2, 1_000) && !bucket.take_several(2, 1_000));
        assert_eq!((bucket.remaining(1_000), bucket.next(1_000)), (1, 100));
        assert_eq!((bucket.remaining(1_130), bucket.next(1_130)), (2, 70));
    }

    #[test]
    fn without_tokens_it_stays_empty() {
        let bucket = Bucket::new(0, 1, 100, 5_000);
        assert!(!bucket.take(5_000) && !bucket.take(1_000_000));
    }

    #[test]
    fn several_tokens_come_in_one_interval() {
        let bucket = Bucket::new(4, 4, 100, 10_000);
        assert_eq!((0..9).filter(|_| bucket.take(10_000)).count(), 4);
        assert_eq!((0..9).filter(|_| bucket.take(10_050)).count(), 2);
    }
}
