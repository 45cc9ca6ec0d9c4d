//! How many requests began in the last while, for budgets by ratio over time.

use std::sync::atomic::{AtomicU64, Ordering};

/// In how many slices a while is counted: an old request counts for up to one of them longer.
const SLICES: u64 = 16;

/// Counts of the last slices of time, shared by all workers. Moments are in nanoseconds of one clock.
#[derive(Debug)]
pub struct Recent {
    /// The number of the slice in the upper half, what was counted in it in the lower one.
    slices: [AtomicU64; SLICES as usize + 1],
    slice_nanos: u64,
}

impl Recent {
    /// Counts requests of the last `interval`, in nanoseconds, at least [`SLICES`].
    #[must_use]
    pub fn new(interval: u64) -> Self {
        Self {
            slices: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            slice_nanos: (interval / SLICES).max(1),
        }
    }

    /// The interval that it counts, in nanoseconds.
    #[must_use]
    pub fn interval(&self) -> u64 {
        self.slice_nanos * SLICES
    }

    /// Counts a request that begins `now`.
    pub fn record(&self, now: u64) {
        let slice = self.number(now);
        let count = |word: u64| {
            let (number, count) = (word >> 32, word & COUNT);
            let count = if number == slice { count.saturating_add(1).min(COUNT) } else { 1 };
            Some(slice << 32 | count)
        };
        let word = &self.slices[(slice % (SLICES + 1)) as usize];
        // It always sets a new value.
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
    }

    /// How many began in the last interval.
    #[must_use]
    pub fn count(&self, now: u64) -> u32 {
        let slice = self.number(now);
        let recent = |word: &AtomicU64| {
            let word = word.load(Ordering::Relaxed);
            let age = slice.wrapping_sub(word >> 32) & COUNT;
            if word != u64::MAX && age <= SLICES { word & COUNT } else { 0 }
        };
        u32::try_from(self.slices.iter().map(recent).sum::<u64>()).unwrap_or(u32::MAX)
    }

    /// The number of a slice, in 32 bits.
    fn number(&self, now: u64) -> u64 {
        (now / self.slice_nanos) & COUNT
    }
}

const COUNT: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_for_the_interval_and_no_longer_than_a_slice_more() {
        let recent = Recent::new(1_600);
        assert_eq!(recent.count(0), 0);
        for now in [0, 10, 99, 100, 1_000] {
            recent.record(now);
        }
        assert_eq!(recent.count(1_000), 5);
        assert_eq!(recent.count(1_600), 5);
        assert_eq!(recent.count(1_700), 2);
        assert_eq!(recent.count(1_800), 1);
        assert_eq!(recent.count(2_700), 0);
        recent.record(100_000);
        assert_eq!(recent.count(100_000), 1);
    }
}
