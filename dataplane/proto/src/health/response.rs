//! What an answer to a check says.

use culvert_model::HttpHealthCheck;

use super::{Failure, Outcome, contains_in_order};
use crate::route::string_matches;

/// What of the response to an HTTP check counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HttpAnswer<'a> {
    /// Its status.
    pub status: u16,
    /// As much of its body as `response_buffer_size` lets.
    pub body: &'a [u8],
    /// Whether it has `x-envoy-degraded`.
    pub degraded: bool,
    /// Whether it has `x-envoy-immediate-health-check-fail`.
    pub excludes_itself: bool,
    /// `x-envoy-upstream-healthchecked-cluster`; empty without.
    pub cluster: &'a [u8],
}

/// What an answer means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Judgement {
    /// For [`super::Checked::record`].
    pub outcome: Outcome,
    /// Whether the endpoint is to be left out of the balancing until it is healthy again.
    pub excluded: bool,
    /// Whether the name of the cluster was looked at.
    pub verified: bool,
}

/// Judges the response to an HTTP check: body first, then status, then the name of the service, as Envoy does.
#[must_use]
pub fn judge_http(check: &HttpHealthCheck, answer: &HttpAnswer<'_>) -> Judgement {
    let failed = |failure| Judgement {
        outcome: Outcome::Failure(failure),
        excluded: answer.excludes_itself,
        verified: false,
    };
    if !contains_in_order(&check.receive, answer.body) {
        return failed(Failure::Answer);
    }
    let is_in =
        |ranges: &[(u16, u16)]| ranges.iter().any(|(start, end)| (*start..*end).contains(&answer.status));
    if !is_in(&check.expected) {
        return failed(if is_in(&check.retriable) { Failure::Retriable } else { Failure::Answer });
    }
    let success = Outcome::Success { degraded: answer.degraded };
    match &check.service_name {
        None => Judgement { outcome: success, excluded: false, verified: false },
        Some(name) => {
            let outcome = if string_matches(name, answer.cluster) {
                success
            } else {
                Outcome::Failure(Failure::Answer)
            };
            Judgement { outcome, excluded: false, verified: true }
        }
    }
}

/// Whether the body of a response to `grpc.health.v1.Health/Check` says SERVING. `None`: it is not one.
#[must_use]
pub fn grpc_serving(body: &[u8]) -> Option<bool> {
    let (prefix, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    // Compressed messages were not asked for.
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut rest)?,
            (_, 0) => {
                varint(&mut rest)?;
            }
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status == 1)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
