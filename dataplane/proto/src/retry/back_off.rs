//! How long to wait before the next attempt.

use std::time::Duration;

use culvert_model::{BackOff, RateLimitedBackOff, ResetFormat};

use crate::Headers;

/// Intervals that grow from retry to retry, each drawn from zero to a bound (Envoy's
/// `JitteredExponentialBackOffStrategy`).
#[derive(Clone, Copy, Debug)]
pub struct BackOffState {
    bound: Duration,
    max: Duration,
}

impl BackOffState {
    /// Before the first retry.
    #[must_use]
    pub fn new(policy: BackOff) -> Self {
        Self { bound: policy.base, max: policy.max }
    }

    /// The next interval, in whole milliseconds below the bound.
    pub fn next(&mut self, random: u64) -> Duration {
        let bound = self.bound;
        self.bound = if bound < self.max / 2 { bound * 2 } else { self.max };
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % millis).min(self.max)
    }
}

/// How long a response says to wait, half as much at most added to it (Envoy's `JitteredLowerBoundBackOffStrategy`).
/// `now` is the time of day in seconds since 1970.
#[must_use]
pub fn rate_limited(
    policy: &RateLimitedBackOff,
    response: &Headers,
    now: u64,
    random: u64,
) -> Option<Duration> {
    let told = policy.headers.iter().find_map(|(name, format)| {
        let value = std::str::from_utf8(response.get(name)?).ok()?.trim();
        let number: u64 = value.parse().ok()?;
        let seconds = match format {
            ResetFormat::Seconds => number,
            ResetFormat::UnixTimestamp => number.checked_sub(now)?,
        };
        Some(Duration::from_secs(seconds)).filter(|told| *told <= policy.max)
    })?;
    let millis = u64::try_from(told.as_millis()).unwrap_or(u64::MAX);
    // Less than two milliseconds are as good as none.
    (millis > 1).then(|| told + Duration::from_millis(random % (millis / 2)))
}
