//! Success rates of an interval.

use culvert_model::OutlierDetection;

/// Requests of one endpoint in one interval.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rate {
    /// All of them.
    pub total: u64,
    /// Those that succeeded.
    pub successes: u64,
}

impl Rate {
    /// Percent that succeeded; `None` without requests.
    #[must_use]
    pub fn percent(self) -> Option<f64> {
        (self.total > 0).then(|| 100.0 * self.successes as f64 / self.total as f64)
    }

    fn of_volume(self, volume: u32) -> Option<f64> {
        self.percent().filter(|_| self.total >= u64::from(volume))
    }
}

/// Which of the endpoints are outliers: their success rate is below the mean by more than so many standard deviations.
/// `None` is an endpoint that is ejected already.
#[must_use]
pub fn success_rate_outliers(config: &OutlierDetection, rates: &[Option<Rate>]) -> Vec<usize> {
    let valid = with_volume(rates, config.success_rate_volume);
    if valid.is_empty() || valid.len() < config.success_rate_hosts as usize {
        return Vec::new();
    }
    let count = valid.len() as f64;
    let mean = valid.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = valid.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - variance.sqrt() * f64::from(config.success_rate_factor) / 1_000.0;
    valid.into_iter().filter(|(_, rate)| *rate < threshold).map(|(index, _)| index).collect()
}

/// Which of the endpoints fail at least `failure_percentage_threshold` percent of their requests.
#[must_use]
pub fn failing(config: &OutlierDetection, rates: &[Option<Rate>]) -> Vec<usize> {
    let valid = with_volume(rates, config.failure_percentage_volume);
    if valid.len() < config.failure_percentage_hosts as usize {
        return Vec::new();
    }
    let fails = |rate: f64| 100.0 - rate >= f64::from(config.failure_percentage);
    valid.into_iter().filter(|(_, rate)| fails(*rate)).map(|(index, _)| index).collect()
}

/// Those with enough requests: their places and rates.
fn with_volume(rates: &[Option<Rate>], volume: u32) -> Vec<(usize, f64)> {
    let rates = rates.iter().enumerate();
    rates.filter_map(|(index, rate)| Some((index, (*rate)?.of_volume(volume)?))).collect()
}
