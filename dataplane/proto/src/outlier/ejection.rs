//! How many may be ejected, and for how long.

use std::time::Duration;

use culvert_model::OutlierDetection;

/// Whether one more of `hosts` endpoints may be ejected when `ejected` are.
#[must_use]
pub fn may_eject(config: &OutlierDetection, ejected: usize, hosts: usize) -> bool {
    let percent = u64::from(config.max_percent.min(100));
    (config.always_one && ejected == 0) || (ejected as u64 + 1) * 100 <= percent * hosts as u64
}

/// The ejections of one endpoint. Times are since any fixed moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ejectable {
    /// How many base times its next ejection lasts, less one.
    backoff: u32,
    /// When it was ejected, and by how much its return is put off.
    ejected: Option<(Duration, Duration)>,
    /// How often it was ejected.
    count: u32,
}

impl Ejectable {
    /// Whether it is ejected.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.ejected.is_some()
    }

    /// How often it was ejected.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Ejects it.
    pub fn eject(&mut self, config: &OutlierDetection, now: Duration, jitter: Duration) {
        self.count = self.count.saturating_add(1);
        self.ejected = Some((now, jitter));
        let next = config.base_ejection.saturating_mul(self.backoff.saturating_add(1));
        if next < config.max_ejection.saturating_add(config.base_ejection) {
            self.backoff += 1;
        }
    }

    /// Takes it back.
    pub fn uneject(&mut self) {
        self.ejected = None;
    }

    /// Looks at it, once an interval: whether its time is over. One that was not ejected is forgiven a little.
    pub fn sweep(&mut self, config: &OutlierDetection, now: Duration) -> bool {
        let Some((since, jitter)) = self.ejected else {
            self.backoff = self.backoff.saturating_sub(1);
            return false;
        };
        let time = config.base_ejection.saturating_mul(self.backoff).min(config.max_ejection);
        time.saturating_add(jitter) <= now.saturating_sub(since)
    }
}
