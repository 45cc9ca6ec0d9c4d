//! Outlier detection (`config.cluster.v3.OutlierDetection`).

use std::time::Duration;

/// `config.cluster.v3.OutlierDetection`: endpoints that fail requests are taken out of the balancing for a while.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutlierDetection {
    /// `consecutive_5xx`: 5; 0 is never.
    pub consecutive_5xx: u32,
    /// `consecutive_gateway_failure`: 5; 0 is never.
    pub consecutive_gateway: u32,
    /// `consecutive_local_origin_failure`: 5; 0 is never.
    pub consecutive_local: u32,
    /// `split_external_local_origin_errors`: false, failures to reach an endpoint count as its 5xx.
    pub split: bool,
    /// `interval` between sweeps: 10 s.
    pub interval: Duration,
    /// `base_ejection_time`: 30 s, times how often the endpoint has been ejected lately.
    pub base_ejection: Duration,
    /// `max_ejection_time`: 300 s, at least `base_ejection_time`.
    pub max_ejection: Duration,
    /// `max_ejection_time_jitter`: up to this much is added. 0.
    pub jitter: Duration,
    /// `max_ejection_percent`: 10.
    pub max_percent: u32,
    /// `always_eject_one_host`: false. The first one may be ejected whatever `max_ejection_percent` is.
    pub always_one: bool,
    /// `successful_active_health_check_uneject_host`: true.
    pub check_unejects: bool,
    /// `success_rate_minimum_hosts`: 5.
    pub success_rate_hosts: u32,
    /// `success_rate_request_volume`: 100.
    pub success_rate_volume: u32,
    /// `success_rate_stdev_factor`, thousandths: 1900.
    pub success_rate_factor: u32,
    /// `failure_percentage_threshold`: 85.
    pub failure_percentage: u32,
    /// `failure_percentage_minimum_hosts`: 5.
    pub failure_percentage_hosts: u32,
    /// `failure_percentage_request_volume`: 50.
    pub failure_percentage_volume: u32,
    /// Chances, in percent, that what was detected leads to an ejection.
    pub enforcing: Enforcing,
}

/// The `enforcing_*` fields, in percent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Enforcing {
    /// `enforcing_consecutive_5xx`: 100.
    pub consecutive_5xx: u32,
    /// `enforcing_consecutive_gateway_failure`: 0.
    pub consecutive_gateway: u32,
    /// `enforcing_consecutive_local_origin_failure`: 100.
    pub consecutive_local: u32,
    /// `enforcing_success_rate`: 100.
    pub success_rate: u32,
    /// `enforcing_local_origin_success_rate`: 100.
    pub local_success_rate: u32,
    /// `enforcing_failure_percentage`: 0.
    pub failure_percentage: u32,
    /// `enforcing_failure_percentage_local_origin`: 0.
    pub local_failure_percentage: u32,
}
