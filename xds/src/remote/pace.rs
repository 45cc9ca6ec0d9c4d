//! When to try again and how often to speak. No clock: the time is told.

use std::time::{Duration, Instant};

use culvert_model::RateLimit;

/// Exponential back-off with full jitter: a random time up to a bound that doubles.
#[derive(Debug)]
pub(super) struct Backoff {
    bound: Duration,
}

impl Backoff {
    /// Bound of the first wait (`RetryPolicy.retry_back_off.base_interval` of Envoy's gRPC streams).
    const BASE: Duration = Duration::from_millis(500);
    /// Bound of every wait.
    const MAX: Duration = Duration::from_secs(30);

    pub(super) fn new() -> Self {
        Self { bound: Self::BASE }
    }

    /// How long to wait now. `random` is from 0 up to and without 1.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let wait = self.bound.mul_f64(random);
        self.bound = (self.bound * 2).min(Self::MAX);
        wait
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        self.bound = Self::BASE;
    }
}

/// A token for each request (`RateLimitSettings`).
#[derive(Debug)]
pub(super) struct Limiter {
    limit: Option<RateLimit>,
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(super) fn new(limit: Option<RateLimit>, now: Instant) -> Self {
        Self { limit, tokens: limit.map_or(0.0, |limit| f64::from(limit.max_tokens)), at: now }
    }

    /// How long until there is a token; zero when there is one.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let Some(limit) = self.limit else { return Duration::ZERO };
        let rate = limit.fill_rate_milli as f64 / 1_000.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(f64::from(limit.max_tokens));
        self.at = now;
        if self.tokens >= 1.0 {
            return Duration::ZERO;
        }
        // Rounded up, so that the token is there when the time has passed.
        Duration::try_from_secs_f64((1.0 - self.tokens) / rate)
            .unwrap_or(Duration::MAX)
            .min(Duration::from_secs(3_600))
            + Duration::from_millis(1)
    }

    /// Takes the token.
    pub(super) fn take(&mut self) {
        if self.limit.is_some() {
            self.tokens -= 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.next(0.5).as_millis(), 15_000);
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 500);
    }

    #[test]
    fn tokens_come_back_at_their_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(Some(RateLimit { max_tokens: 2, fill_rate_milli: 10_000 }), start);
        for _ in 0..2 {
            assert_eq!(limiter.wait(start), Duration::ZERO);
            limiter.take();
        }
        assert_eq!(limiter.wait(start).as_millis(), 101);
        assert_eq!(limiter.wait(start + Duration::from_millis(50)).as_millis(), 51);
        assert_eq!(limiter.wait(start + Duration::from_millis(101)), Duration::ZERO);
        limiter.take();
        let later = start + Duration::from_secs(60);
        for _ in 0..2 {
            assert_eq!(limiter.wait(later), Duration::ZERO);
            limiter.take();
        }
        assert_ne!(limiter.wait(later), Duration::ZERO, "no more than max_tokens are kept");
    }

    #[test]
    fn without_settings_nothing_waits() {
        let start = Instant::now();
        let mut limiter = Limiter::new(None, start);
        for _ in 0..1_000 {
            assert_eq!(limiter.wait(start), Duration::ZERO);
            limiter.take();
        }
    }
}
