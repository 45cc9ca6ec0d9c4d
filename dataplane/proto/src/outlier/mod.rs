//! Outlier detection: which endpoints are ejected for the requests they fail, and for how long.

mod ejection;
mod rates;
mod streak;

pub use ejection::{Ejectable, may_eject};
pub use rates::{Rate, failing, success_rate_outliers};
pub use streak::{Streak, gateway_error};

use culvert_model::OutlierDetection;

/// Why an endpoint is taken for an outlier.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Cause {
    /// `consecutive_gateway_failure`
    ConsecutiveGateway,
    /// `consecutive_5xx`
    Consecutive5xx,
    /// `consecutive_local_origin_failure`
    ConsecutiveLocal,
    /// Its success rate is far below that of the others.
    SuccessRate,
    /// The same, of reaching it.
    LocalSuccessRate,
    /// `failure_percentage_threshold`
    FailurePercentage,
    /// The same, of reaching it.
    LocalFailurePercentage,
}

impl Cause {
    /// All, in the order in which they are seen to.
    pub const ALL: [Self; 7] = [
        Self::ConsecutiveGateway,
        Self::Consecutive5xx,
        Self::ConsecutiveLocal,
        Self::SuccessRate,
        Self::LocalSuccessRate,
        Self::FailurePercentage,
        Self::LocalFailurePercentage,
    ];

    /// The chance, in percent, that it leads to an ejection.
    #[must_use]
    pub fn enforcing(self, config: &OutlierDetection) -> u32 {
        let enforcing = &config.enforcing;
        match self {
            Self::Consecutive5xx => enforcing.consecutive_5xx,
            Self::ConsecutiveGateway => enforcing.consecutive_gateway,
            Self::ConsecutiveLocal => enforcing.consecutive_local,
            Self::SuccessRate => enforcing.success_rate,
            Self::LocalSuccessRate => enforcing.local_success_rate,
            Self::FailurePercentage => enforcing.failure_percentage,
            Self::LocalFailurePercentage => enforcing.local_failure_percentage,
        }
    }
}
