//! `config.cluster.v3.OutlierDetection`.

use std::time::Duration;

use culvert_model::{Enforcing, OutlierDetection};
use envoy_types::pb::{envoy::config::cluster::v3 as pb, google::protobuf};

use super::core;
use crate::at::At;

/// The message at `at`; what it leaves out is Envoy's default.
pub(super) fn outlier_detection(at: &At<'_>, message: &pb::OutlierDetection) -> Option<OutlierDetection> {
    let seconds = Duration::from_secs;
    let or = |value: &Option<protobuf::UInt32Value>, default| value.as_ref().map_or(default, |v| v.value);
    let time = |name, value: &Option<protobuf::Duration>, default| {
        core::duration_or(&at.field(name), value.as_ref(), default)
    };
    let interval = time("interval", &message.interval, seconds(10));
    let base_ejection = time("base_ejection_time", &message.base_ejection_time, seconds(30))?;
    let longest = base_ejection.max(seconds(300));
    let max_ejection = time("max_ejection_time", &message.max_ejection_time, longest)?;
    if max_ejection < base_ejection {
        return at.field("max_ejection_time").error("cannot be shorter than base_ejection_time");
    }
    Some(OutlierDetection {
        consecutive_5xx: or(&message.consecutive_5xx, 5),
        consecutive_gateway: or(&message.consecutive_gateway_failure, 5),
        consecutive_local: or(&message.consecutive_local_origin_failure, 5),
        split: message.split_external_local_origin_errors,
        interval: interval?,
        base_ejection,
        max_ejection,
        jitter: time("max_ejection_time_jitter", &message.max_ejection_time_jitter, Duration::ZERO)?,
        max_percent: or(&message.max_ejection_percent, 10),
        always_one: message.always_eject_one_host.as_ref().is_some_and(|always| always.value),
        check_unejects: message
            .successful_active_health_check_uneject_host
            .as_ref()
            .is_none_or(|uneject| uneject.value),
        success_rate_hosts: or(&message.success_rate_minimum_hosts, 5),
        success_rate_volume: or(&message.success_rate_request_volume, 100),
        success_rate_factor: or(&message.success_rate_stdev_factor, 1_900),
        failure_percentage: or(&message.failure_percentage_threshold, 85),
        failure_percentage_hosts: or(&message.failure_percentage_minimum_hosts, 5),
        failure_percentage_volume: or(&message.failure_percentage_request_volume, 50),
        enforcing: Enforcing {
            consecutive_5xx: or(&message.enforcing_consecutive_5xx, 100),
            consecutive_gateway: or(&message.enforcing_consecutive_gateway_failure, 0),
            consecutive_local: or(&message.enforcing_consecutive_local_origin_failure, 100),
            success_rate: or(&message.enforcing_success_rate, 100),
            local_success_rate: or(&message.enforcing_local_origin_success_rate, 100),
            failure_percentage: or(&message.enforcing_failure_percentage, 0),
            local_failure_percentage: or(&message.enforcing_failure_percentage_local_origin, 0),
        },
    })
}
