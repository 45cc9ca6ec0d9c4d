//! Retries.

use std::time::Duration;

use culvert_model::{
    AvoidHost, BackOff, HeaderMatcher, RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy,
};
use envoy_types::pb::envoy::{
    config::route::v3::{
        self as pb,
        retry_policy::{
            RateLimitedRetryBackOff, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
            retry_host_predicate::ConfigType, retry_priority,
        },
    },
    extensions::retry::{
        host::{
            omit_canary_hosts::v3::OmitCanaryHostsPredicate, omit_host_metadata::v3::OmitHostMetadataConfig,
            previous_hosts::v3::PreviousHostsPredicate,
        },
        priority::previous_priorities::v3::PreviousPrioritiesConfig,
    },
};

use super::{core, matcher, metadata, unpack};
use crate::at::At;

/// `RateLimitedRetryBackOff.max_interval` when there is none.
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// A retry policy.
pub(super) fn policy(at: &At<'_>, policy: &pb::RetryPolicy) -> Option<RetryPolicy> {
    let given = |name, value: Option<&_>| core::timeout(&at.field(name), value, None);
    let per_try_timeout = given("per_try_timeout", policy.per_try_timeout.as_ref());
    let per_try_idle_timeout = given("per_try_idle_timeout", policy.per_try_idle_timeout.as_ref());
    let at_predicates = at.field("retry_host_predicate");
    let avoid: Vec<_> = policy
        .retry_host_predicate
        .iter()
        .enumerate()
        .map(|(index, predicate)| avoid(&at_predicates.index(index), predicate))
        .collect();
    let avoid_priorities_after = match policy.retry_priority.as_ref() {
        Some(priority) => update_frequency(&at.field("retry_priority"), priority).map(Some),
        None => Some(None),
    };
    let back_off = match policy.retry_back_off.as_ref() {
        Some(given) => back_off(&at.field("retry_back_off"), given),
        None => Some(BackOff::default()),
    };
    let rate_limited = match policy.rate_limited_retry_back_off.as_ref() {
        Some(given) => rate_limited(&at.field("rate_limited_retry_back_off"), given).map(Some),
        None => Some(None),
    };
    let headers = matchers(&at.field("retriable_headers"), &policy.retriable_headers);
    let request_headers = matchers(&at.field("retriable_request_headers"), &policy.retriable_request_headers);
    Some(RetryPolicy {
        on: RetryOn::http(&policy.retry_on) | RetryOn::grpc(&policy.retry_on),
        max_retries: policy.num_retries.as_ref().map_or(1, |retries| retries.value),
        per_try_timeout: per_try_timeout?,
        per_try_idle_timeout: per_try_idle_timeout?,
        avoid: avoid.into_iter().collect::<Option<_>>()?,
        avoid_priorities_after: avoid_priorities_after?,
        host_attempts: match policy.host_selection_retry_max_attempts {
            0 => 1,
            attempts => u32::try_from(attempts).unwrap_or(if attempts < 0 { 0 } else { u32::MAX }),
        },
        status_codes: policy.retriable_status_codes.clone(),
        back_off: back_off?,
        rate_limited: rate_limited?,
        headers: headers?,
        request_headers: request_headers?,
    })
}

fn matchers(at: &At<'_>, matchers: &[pb::HeaderMatcher]) -> Option<Vec<HeaderMatcher>> {
    let all: Vec<_> = matchers.iter().enumerate().map(|(i, m)| matcher::header(&at.index(i), m)).collect();
    all.into_iter().collect()
}

fn avoid(at: &At<'_>, predicate: &RetryHostPredicate) -> Option<AvoidHost> {
    let at = at.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = predicate.config_type.as_ref() else {
        return at.error("value is required");
    };
    if unpack::<PreviousHostsPredicate>(any).is_some() {
        return Some(AvoidHost::Previous);
    }
    if unpack::<OmitCanaryHostsPredicate>(any).is_some() {
        return Some(AvoidHost::Canary);
    }
    let Some(config) = unpack::<OmitHostMetadataConfig>(any) else { return at.unsupported("not supported") };
    let metadata = metadata::metadata(config.metadata_match.as_ref()).unwrap_or_default();
    Some(AvoidHost::Metadata(metadata.0.get("envoy.lb").cloned().unwrap_or_default()))
}

fn update_frequency(at: &At<'_>, priority: &RetryPriority) -> Option<u32> {
    let at = at.field("typed_config");
    let Some(retry_priority::ConfigType::TypedConfig(any)) = priority.config_type.as_ref() else {
        return at.error("value is required");
    };
    let Some(config) = unpack::<PreviousPrioritiesConfig>(any) else {
        return at.unsupported("not supported");
    };
    match u32::try_from(config.update_frequency) {
        Ok(frequency @ 1..) => Some(frequency),
        _ => at.field("update_frequency").error("must be greater than 0"),
    }
}

fn back_off(at: &At<'_>, given: &RetryBackOff) -> Option<BackOff> {
    let at_base = at.field("base_interval");
    let Some(base) = given.base_interval.as_ref() else { return at_base.error("value is required") };
    let at_least = |duration: Duration| duration.max(Duration::from_millis(1));
    let base = at_least(core::duration(&at_base, base)?);
    let at_max = at.field("max_interval");
    let max = match given.max_interval.as_ref() {
        Some(max) => at_least(core::duration(&at_max, max)?),
        None => base.saturating_mul(BackOff::MAX_BASES),
    };
    if max < base {
        return at_max.error("must be greater than or equal to the base_interval");
    }
    Some(BackOff { base, max })
}

fn rate_limited(at: &At<'_>, given: &RateLimitedRetryBackOff) -> Option<RateLimitedBackOff> {
    let max = core::duration_or(&at.field("max_interval"), given.max_interval.as_ref(), RATE_LIMITED_MAX)?;
    let format = |format| match format {
        ResetHeaderFormat::Seconds => ResetFormat::Seconds,
        ResetHeaderFormat::UnixTimestamp => ResetFormat::UnixTimestamp,
    };
    let headers = &given.reset_headers;
    let headers =
        headers.iter().map(|header| (header.name.to_ascii_lowercase(), format(header.format()))).collect();
    Some(RateLimitedBackOff { headers, max })
}
