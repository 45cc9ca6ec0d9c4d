//! Medians and their intervals. Rounds are few and noisy: means and normal theory would mislead.

use serde::Serialize;

/// Resamples behind an interval; more changes the second digit of its ends no longer.
const RESAMPLES: usize = 2000;

/// Fixed, so that the same rounds always give the same interval.
const SEED: u64 = 1;

/// What a set of per-round values comes down to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value.
    pub median: f64,
    /// First and third quartile.
    pub quartiles: [f64; 2],
    /// 95 % bootstrap interval of the median.
    pub interval: [f64; 2],
    /// How many rounds.
    pub rounds: usize,
}

impl Summary {
    /// Sums up per-round values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return None;
        }
        Some(Self {
            median: quantile(&sorted, 0.5),
            quartiles: [quantile(&sorted, 0.25), quantile(&sorted, 0.75)],
            interval: median_interval(&sorted),
            rounds: sorted.len(),
        })
    }

    /// Sums up per-round ratios of two series that were measured in the same rounds; rounds whose base is zero or
    /// not finite say nothing and are left out.
    pub fn of_ratios(values: &[f64], base: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = values
            .iter()
            .zip(base)
            .map(|(value, base)| value / base)
            .filter(|ratio| ratio.is_finite())
            .collect();
        Self::of(&ratios)
    }
}

/// The value below which a share of `sorted` lies, linearly interpolated between neighbours.
///
/// `sorted` must be ascending; the result for an empty slice is not a number.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// 95 % percentile-bootstrap interval of the median.
fn median_interval(sorted: &[f64]) -> [f64; 2] {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut resample = vec![0.0; sorted.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            resample.fill_with(|| sorted[rng.usize(..sorted.len())]);
            resample.sort_by(f64::total_cmp);
            quantile(&resample, 0.5)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    [quantile(&medians, 0.025), quantile(&medians, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 0.5), 2.5);
        assert_eq!(quantile(&sorted, 0.25), 1.75);
        assert_eq!(quantile(&sorted, 1.0), 4.0);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn summary_does_not_depend_on_order_and_repeats_itself() {
        let forward = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).expect("values");
        let backward = Summary::of(&[3.0, 2.0, 4.0, 1.0, 5.0]).expect("values");
        assert_eq!(forward, backward);
        assert_eq!((forward.median, forward.quartiles, forward.rounds), (3.0, [2.0, 4.0], 5));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_outlier_moves_neither_median_nor_interval_much() {
        let mut values: Vec<f64> = (0..21).map(|round| 100.0 + f64::from(round % 5)).collect();
        let calm = Summary::of(&values).expect("values");
        values[3] = 1e6;
        let shaken = Summary::of(&values).expect("values");
        assert!((shaken.median - calm.median).abs() <= 1.0);
        assert!(shaken.interval[1] <= 104.0, "{:?}", shaken.interval);
    }

    #[test]
    fn the_interval_covers_the_true_median_about_as_often_as_it_claims() {
        // 400 samples of 21 values from a skewed distribution whose median is ln 2.
        let mut rng = fastrand::Rng::with_seed(42);
        let covered = (0..400)
            .filter(|_| {
                let values: Vec<f64> = (0..21).map(|_| -(1.0 - rng.f64()).ln()).collect();
                let [low, high] = Summary::of(&values).expect("values").interval;
                (low..=high).contains(&std::f64::consts::LN_2)
            })
            .count();
        assert!((360..=398).contains(&covered), "{covered} of 400");
    }

    #[test]
    fn ratios_pair_rounds() {
        let ratios = Summary::of_ratios(&[2.0, 6.0, 5.0], &[1.0, 2.0, 0.0]).expect("values");
        assert_eq!((ratios.median, ratios.rounds), (2.5, 2));
    }
}
