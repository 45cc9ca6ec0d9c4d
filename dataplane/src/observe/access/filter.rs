//! Which entries are logged.

use culvert_model::{AccessLogFilter, Comparison, ComparisonOp};
use culvert_proto::route::{RequestView, header_matches};

use crate::observe::access::{Facts, Runtime};

/// Whether the entry is to be logged.
pub(super) fn passes(filter: &AccessLogFilter, facts: &Facts<'_>, runtime: &Runtime) -> bool {
    match filter {
        AccessLogFilter::And(filters) => filters.iter().all(|filter| passes(filter, facts, runtime)),
        AccessLogFilter::Constant(passes) => *passes,
        AccessLogFilter::Duration(comparison) => {
            let elapsed = culvert_ring::time::now() - facts.started;
            compare(comparison, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), runtime)
        }
        AccessLogFilter::GrpcStatus { statuses, exclude } => {
            statuses.contains(&facts.grpc_status()) != *exclude
        }
        AccessLogFilter::Header(matcher) => match (facts.request, facts.request_headers) {
            (Some(head), Some(headers)) => {
                let view = RequestView { headers, ..head.view() };
                header_matches(matcher, &view)
            }
            _ => false,
        },
        AccessLogFilter::LogType { types, exclude } => types.contains(&facts.log_type.envoy().0) != *exclude,
        AccessLogFilter::NotHealthCheck => !facts.health_check,
        AccessLogFilter::Or(filters) => filters.iter().any(|filter| passes(filter, facts, runtime)),
        AccessLogFilter::ResponseFlags(names) if names.is_empty() => !facts.flags.is_empty(),
        AccessLogFilter::ResponseFlags(names) => facts.flags.has_any(names),
        AccessLogFilter::Runtime { key, numerator, denominator, independent } => {
            let numerator = number(runtime, key).unwrap_or_else(|| u64::from(*numerator));
            // The request id decides where there is one, so that all proxies on the way log the same requests.
            let id = if *independent { None } else { request_id(facts) };
            let random = id.unwrap_or_else(|| fastrand::u64(..));
            random % u64::from(*denominator) < numerator
        }
        AccessLogFilter::Traceable => facts.force_traced,
        AccessLogFilter::StatusCode(comparison) => compare(comparison, u64::from(facts.status), runtime),
    }
}

fn compare(comparison: &Comparison, value: u64, runtime: &Runtime) -> bool {
    let limit = number(runtime, &comparison.runtime_key).unwrap_or(comparison.value);
    match comparison.op {
        ComparisonOp::Equal => value == limit,
        ComparisonOp::GreaterOrEqual => value >= limit,
        ComparisonOp::LessOrEqual => value <= limit,
        ComparisonOp::NotEqual => value != limit,
    }
}

fn number(runtime: &Runtime, key: &str) -> Option<u64> {
    runtime.get(key)?.parse().ok()
}

/// The first eight digits of the request id, a UUID.
fn request_id(facts: &Facts<'_>) -> Option<u64> {
    let digits = facts.request_header("x-request-id")?.get(..8)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
