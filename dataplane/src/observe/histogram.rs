//! A histogram one thread writes and another reads without a lock.
//!
//! Values are quantised exactly as `hdrhistogram` does with two significant digits: exact below 256, then 128 steps
//! per power of two (an error below 0.8 %), so that what the control thread merges loses nothing. Nothing is allocated
//! before the first sample; then 2 KB for the small values, and 1 KB for each power of two that occurs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::observe::stats::Counter;

/// Values below this are counted exactly; `hdrhistogram` calls it the sub-bucket count.
const EXACT: usize = 256;
/// Steps per power of two above that.
const STEPS: usize = EXACT / 2;
/// Powers of two above [`EXACT`] that are told apart.
const SCALES: usize = 24;
/// The largest value told apart: 2^32 - 1 (49 days in milliseconds). Larger ones count as this.
pub const VALUE_MAX: u64 = (EXACT as u64) << SCALES;

/// Samples of one quantity, such as a time in milliseconds. Written by its owning thread only.
#[derive(Debug, Default)]
pub struct Histogram(OnceLock<Box<Buckets>>);

#[derive(Debug)]
struct Buckets {
    count: Counter,
    sum: Counter,
    exact: [Counter; EXACT],
    scales: [OnceLock<Box<[Counter; STEPS]>>; SCALES],
}

impl Histogram {
    /// Adds one sample. Allocates when the sample is the first, or the first of its power of two.
    #[inline]
    pub fn record(&self, value: u64) {
        let buckets = self.0.get_or_init(Buckets::boxed);
        let value = value.min(VALUE_MAX - 1);
        buckets.count.inc();
        buckets.sum.add(value);
        buckets.bucket(value).inc();
    }

    /// Samples recorded so far.
    pub fn count(&self) -> u64 {
        self.0.get().map_or(0, |buckets| buckets.count.value())
    }

    /// Adds what was recorded so far to `into`.
    pub fn merge_into(&self, into: &mut Merged) {
        let Some(buckets) = self.0.get() else { return };
        into.sum = into.sum.wrapping_add(buckets.sum.value());
        buckets.each(|lowest, count| into.record(lowest, count));
    }
}

impl Buckets {
    fn boxed() -> Box<Self> {
        Box::new(Self {
            count: Counter::default(),
            sum: Counter::default(),
            exact: std::array::from_fn(|_| Counter::default()),
            scales: std::array::from_fn(|_| OnceLock::new()),
        })
    }

    /// The bucket of `value`, which is below [`VALUE_MAX`].
    #[inline]
    fn bucket(&self, value: u64) -> &Counter {
        if value < EXACT as u64 {
            return &self.exact[value as usize];
        }
        // 256..512 is scale 0 with steps of 2, 512..1024 is scale 1 with steps of 4, and so on.
        let scale = (value.ilog2() - EXACT.ilog2()) as usize;
        let step = (value >> (scale + 1)) as usize - STEPS;
        let steps = self.scales[scale].get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        &steps[step]
    }

    /// Calls `f` with the lowest value and the count of every bucket that is not empty.
    fn each(&self, mut f: impl FnMut(u64, u64)) {
        let mut show = |value: u64, counter: &Counter| {
            let count = counter.value();
            if count > 0 {
                f(value, count);
            }
        };
        for (value, counter) in self.exact.iter().enumerate() {
            show(value as u64, counter);
        }
        for (scale, steps) in self.scales.iter().enumerate() {
            for (step, counter) in steps.get().into_iter().flat_map(|steps| steps.iter()).enumerate() {
                show(((STEPS + step) as u64) << (scale + 1), counter);
            }
        }
    }
}

/// Histograms of several workers added up: only the buckets that are not empty, so that thousands of idle histograms
/// cost nothing to keep and to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Samples by the lowest value of their bucket.
    counts: BTreeMap<u64, u64>,
    count: u64,
    sum: u64,
}

impl Merged {
    /// Samples in all.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all samples.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The value that `quantile` (0.0 to 1.0) of the samples do not exceed, or none without samples. Samples that the
    /// quantisation does not tell apart count as the largest of them, and for quantile 0 as the smallest.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        if quantile <= 0.0 {
            return self.counts.keys().next().copied();
        }
        let wanted = (quantile.min(1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (lowest, count) in &self.counts {
            seen += count;
            if seen >= wanted {
                return Some(highest_equivalent(*lowest));
            }
        }
        None
    }

    /// How many samples are at most `value`; samples that the quantisation does not tell apart count as the smallest.
    pub fn count_at_most(&self, value: f64) -> u64 {
        self.counts.iter().take_while(|(lowest, _)| **lowest as f64 <= value).map(|(_, count)| count).sum()
    }

    /// Adds the samples of `other`.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        for (lowest, count) in &other.counts {
            self.record(*lowest, *count);
        }
    }

    /// The samples that were added since `earlier`, which is this histogram at an earlier time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut delta = Self { sum: self.sum.saturating_sub(earlier.sum), ..Self::default() };
        for (lowest, count) in &self.counts {
            let before = earlier.counts.get(lowest).copied().unwrap_or(0);
            delta.record(*lowest, count.saturating_sub(before));
        }
        delta
    }

    fn record(&mut self, lowest: u64, count: u64) {
        if count > 0 {
            *self.counts.entry(lowest).or_default() += count;
            self.count += count;
        }
    }
}

/// The largest value in the bucket that begins at `lowest`.
fn highest_equivalent(lowest: u64) -> u64 {
    if lowest < EXACT as u64 {
        return lowest;
    }
    lowest + (1 << (lowest.ilog2() - EXACT.ilog2() + 1)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(histograms: &[&Histogram]) -> Merged {
        let mut all = Merged::default();
        for histogram in histograms {
            histogram.merge_into(&mut all);
        }
        all
    }

    #[test]
    fn an_unused_histogram_is_small_and_empty() {
        let histogram = Histogram::default();
        assert!(size_of::<Histogram>() <= 16);
        assert_eq!(histogram.count(), 0);
        assert_eq!(merged(&[&histogram]).quantile(0.5), None);
    }

    fn reference() -> hdrhistogram::Histogram<u64> {
        hdrhistogram::Histogram::new_with_bounds(1, VALUE_MAX, 2).unwrap()
    }

    #[test]
    fn quantisation_is_that_of_hdrhistogram() {
        let reference = reference();
        let mut value = 1_u64;
        while value < VALUE_MAX {
            for near in [value - 1, value, value + 1, value * 3 / 2, value * 7 / 4 + 1] {
                let near = near.min(VALUE_MAX - 1);
                let histogram = Histogram::default();
                histogram.record(near);
                let mut lowest = None;
                histogram.0.get().unwrap().each(|value, count| {
                    assert_eq!(count, 1);
                    lowest = Some(value);
                });
                assert_eq!(lowest, Some(reference.lowest_equivalent(near)), "value {near}");
                assert_eq!(
                    lowest.map(highest_equivalent),
                    Some(reference.highest_equivalent(near)),
                    "value {near}"
                );
            }
            value *= 2;
        }
    }

    #[test]
    fn workers_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        (1..=50).for_each(|value| a.record(value));
        (51..=100).for_each(|value| b.record(value));
        let all = merged(&[&a, &b]);
        assert_eq!((all.count(), all.sum()), (100, 5_050));
        assert_eq!(all.quantile(0.5), Some(50));
        assert_eq!(all.quantile(0.99), Some(99));
        assert_eq!(all.quantile(1.0), Some(100));
    }

    #[test]
    fn quantiles_are_those_of_hdrhistogram() {
        let (histogram, mut reference) = (Histogram::default(), reference());
        let mut value = 1_u64;
        for step in 0..2_000_u64 {
            value = (value * 1_103_515_245 + 12_345 + step) % 600_000;
            histogram.record(value);
            reference.record(value).unwrap();
        }
        let all = merged(&[&histogram]);
        for quantile in [0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0] {
            assert_eq!(
                all.quantile(quantile),
                Some(reference.value_at_quantile(quantile)),
                "quantile {quantile}"
            );
        }
    }

    #[test]
    fn cumulative_counts_follow_the_value() {
        let histogram = Histogram::default();
        for value in [0, 1, 5, 6, 10_000] {
            histogram.record(value);
        }
        let all = merged(&[&histogram]);
        let at_most = |value| all.count_at_most(value);
        assert_eq!([-1.0, 0.5, 1.0, 5.0, 10.0, 9_000.0, 10_000.0].map(at_most), [0, 1, 2, 3, 4, 4, 5]);
    }

    #[test]
    fn a_huge_value_counts_as_the_largest() {
        let histogram = Histogram::default();
        histogram.record(u64::MAX);
        let all = merged(&[&histogram]);
        assert_eq!(all.count(), 1);
        assert!(all.quantile(1.0).unwrap() >= VALUE_MAX - VALUE_MAX / 100);
    }

    #[test]
    fn an_interval_is_what_came_since() {
        let histogram = Histogram::default();
        histogram.record(10);
        histogram.record(1_000);
        let earlier = merged(&[&histogram]);
        histogram.record(20);
        let mut delta = merged(&[&histogram]).since(&earlier);
        assert_eq!((delta.count(), delta.sum(), delta.quantile(0.5)), (1, 20, Some(20)));
        delta.add(&earlier);
        assert_eq!(delta, merged(&[&histogram]));
    }
}
