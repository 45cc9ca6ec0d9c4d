//! Services that filters ask.

use std::time::Duration;

use culvert_model::{CallRetry, GrpcCall, HttpUri, RetryCondition};
use envoy_types::pb::envoy::config::core::v3 as pb;

use super::core;
use crate::at::At;

/// A service of gRPC.
pub(super) fn grpc(at: &At<'_>, service: Option<&pb::GrpcService>) -> Option<GrpcCall> {
    let at = at.field("grpc_service");
    let service = service?;
    let retry = retry(&at, service.retry_policy.as_ref());
    Some(GrpcCall { service: core::grpc_service(&at, service)?, retry: retry? })
}

/// A service of HTTP. `at` is the message it is in, and `name` the field.
pub(super) fn http_uri(at: &At<'_>, name: &str, uri: Option<&pb::HttpUri>) -> Option<HttpUri> {
    let at = at.field(name);
    let Some(uri) = uri else { return at.error("value is required") };
    let cluster = match uri.http_upstream_type.as_ref()? {
        pb::http_uri::HttpUpstreamType::Cluster(cluster) => cluster.clone(),
    };
    let rest = uri.uri.split_once("://").map_or(uri.uri.as_str(), |(_, rest)| rest);
    let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if http::uri::Authority::try_from(authority).is_err() || http::uri::PathAndQuery::try_from(&path).is_err()
    {
        return at.field("uri").error(format!("{:?} is not a URI", uri.uri));
    }
    let timeout = core::duration(&at.field("timeout"), uri.timeout.as_ref()?)?;
    Some(HttpUri { cluster, authority: authority.to_owned(), path, timeout })
}

/// `retry_policy`; `at` is the message it is in.
pub(super) fn retry(at: &At<'_>, policy: Option<&pb::RetryPolicy>) -> Option<Option<CallRetry>> {
    let at = at.field("retry_policy");
    let Some(policy) = policy else { return Some(None) };
    let mut on = Vec::new();
    for word in policy.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        on.push(match word {
            "5xx" => RetryCondition::ServerError,
            "gateway-error" => RetryCondition::GatewayError,
            "connect-failure" => RetryCondition::ConnectFailure,
            "refused-stream" => RetryCondition::RefusedStream,
            "reset" => RetryCondition::Reset,
            "retriable-4xx" => RetryCondition::Retriable4xx,
            "cancelled" => RetryCondition::Grpc(1),
            "deadline-exceeded" => RetryCondition::Grpc(4),
            "resource-exhausted" => RetryCondition::Grpc(8),
            "internal" => RetryCondition::Grpc(13),
            "unavailable" => RetryCondition::Grpc(14),
            word => {
                return at.field("retry_on").unsupported(format!("{word:?} is not supported for calls"));
            }
        });
    }
    let (base, longest) = back_off(&at, policy.retry_back_off.as_ref())?;
    let max = policy.num_retries.as_ref().map_or(1, |retries| retries.value);
    Some(Some(CallRetry { on, max, base, longest }))
}

fn back_off(at: &At<'_>, strategy: Option<&pb::BackoffStrategy>) -> Option<(Duration, Duration)> {
    let Some(strategy) = strategy else {
        return Some((Duration::from_millis(25), Duration::from_millis(250)));
    };
    let at = at.field("retry_back_off");
    let base = core::duration(&at.field("base_interval"), strategy.base_interval.as_ref()?)?;
    let longest = core::duration_or(&at.field("max_interval"), strategy.max_interval.as_ref(), base * 10)?;
    if longest < base {
        return at.field("max_interval").error("must be greater than or equal to the base_interval");
    }
    Some((base, longest))
}
