//! Whether a request is tried again, and when: Envoy's `RetryStateImpl`, without its timers and counters.

mod back_off;
mod priorities;
mod recent;

use culvert_model::{RetryOn, RetryPolicy};
use smallvec::SmallVec;

pub use back_off::{BackOffState, rate_limited};
pub use priorities::PreviousPriorities;
pub use recent::Recent;

use crate::{
    Headers, ResponseHead,
    route::{RequestView, header_matches, response_header_matches},
};

/// Headers that say how a request is retried. They are for this proxy, not for its upstream.
pub const REQUEST_HEADERS: [&str; 5] = [
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
];

/// How an attempt ended without an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reset {
    /// There was no connection.
    ConnectFailure,
    /// A circuit breaker is open.
    Overflow,
    /// The upstream said that it did not look at the request (REFUSED_STREAM, GOAWAY).
    Refused,
    /// The connection was lost before the upstream had received anything of the request.
    Unread,
    /// The connection or stream was lost, broke the protocol, or the attempt took too long.
    Other,
}

/// What becomes of a request after an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The attempt's outcome counts.
    Keep,
    /// It should be tried again after a while.
    Retry,
    /// It should be tried again at once.
    RetryNow,
}

/// What a request's route and its own headers say about retries.
#[derive(Clone, Debug)]
pub struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    on: RetryOn,
    left: u32,
    /// What the request's headers add to the policy's.
    codes: SmallVec<[u32; 4]>,
    names: SmallVec<[Box<str>; 2]>,
}

impl<'a> Retries<'a> {
    /// `None` when neither the policy nor the request asks for retries.
    #[must_use]
    pub fn new(policy: Option<&'a RetryPolicy>, request: &RequestView<'_>) -> Option<Self> {
        let text = |name| request.headers.get(name).and_then(|value| std::str::from_utf8(value).ok());
        let (http, grpc) = (text("x-envoy-retry-on"), text("x-envoy-retry-grpc-on"));
        let own = policy.map_or_else(RetryOn::default, |policy| policy.on);
        if own.is_empty() && http.is_none() && grpc.is_none() {
            return None;
        }
        let asked = http.map_or_else(RetryOn::default, RetryOn::http)
            | grpc.map_or_else(RetryOn::default, RetryOn::grpc);
        let excluded = policy.is_some_and(|policy| {
            let matchers = &policy.request_headers;
            !matchers.is_empty() && !matchers.iter().any(|matcher| header_matches(matcher, request))
        });
        let on = if excluded { RetryOn::default() } else { own | asked };
        let max = text("x-envoy-max-retries").and_then(|max| max.trim().parse().ok());
        let list = |name| text(name).unwrap_or_default().split(',').map(str::trim);
        Some(Self {
            policy,
            on,
            left: max.unwrap_or_else(|| policy.map_or(1, |policy| policy.max_retries)),
            codes: list("x-envoy-retriable-status-codes").filter_map(|code| code.parse().ok()).collect(),
            names: list("x-envoy-retriable-header-names")
                .filter(|name| !name.is_empty())
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
        })
    }

    /// Whether there is anything it would be retried for.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.on.is_empty()
    }

    /// What becomes of it after this response. `early`: the request says that it came with early data (RFC 8470).
    #[must_use]
    pub fn after_response(&self, response: &ResponseHead, early: bool) -> Decision {
        // It comes from another proxy, which has limited the rate.
        if response.headers.contains("x-envoy-ratelimited") {
            return retry_if(self.on.has(RetryOn::ENVOY_RATE_LIMITED));
        }
        let status = response.status;
        if self.on.has(RetryOn::ANY_5XX) && (500..600).contains(&status)
            || self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status)
            || self.on.has(RetryOn::RETRIABLE_4XX) && status == 409
        {
            return Decision::Retry;
        }
        if self.on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.names_code(u32::from(status)) {
            match (status, early) {
                (425, false) => return Decision::RetryNow,
                (425, true) => {}
                _ => return Decision::Retry,
            }
        }
        let by_header = self.on.has(RetryOn::RETRIABLE_HEADERS) && self.names_header(response);
        retry_if(by_header || grpc_condition(&response.headers).is_some_and(|on| self.on.has(on)))
    }

    /// What becomes of it when there was no response.
    #[must_use]
    pub fn after_reset(&self, reset: Reset) -> Decision {
        let always = RetryOn::RESET | RetryOn::ANY_5XX | RetryOn::GATEWAY_ERROR;
        retry_if(match reset {
            Reset::Overflow => false,
            Reset::ConnectFailure => {
                self.on.has(always | RetryOn::CONNECT_FAILURE | RetryOn::RESET_BEFORE_REQUEST)
            }
            Reset::Refused => self.on.has(always | RetryOn::REFUSED_STREAM),
            Reset::Unread => self.on.has(always | RetryOn::RESET_BEFORE_REQUEST),
            Reset::Other => self.on.has(always),
        })
    }

    /// Takes one of the retries that the policy allows; false when none is left.
    pub fn take(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn names_code(&self, status: u32) -> bool {
        self.codes.contains(&status)
            || self.policy.is_some_and(|policy| policy.status_codes.contains(&status))
    }

    fn names_header(&self, response: &ResponseHead) -> bool {
        let matchers = self.policy.map_or(&[][..], |policy| &policy.headers);
        self.names.iter().any(|name| response.headers.contains(&**name))
            || matchers.iter().any(|matcher| response_header_matches(matcher, response))
    }
}

fn retry_if(yes: bool) -> Decision {
    if yes { Decision::Retry } else { Decision::Keep }
}

/// The condition that a gRPC answer without a body meets.
fn grpc_condition(headers: &Headers) -> Option<RetryOn> {
    match headers.get("grpc-status")? {
        b"1" => Some(RetryOn::GRPC_CANCELLED),
        b"4" => Some(RetryOn::GRPC_DEADLINE_EXCEEDED),
        b"8" => Some(RetryOn::GRPC_RESOURCE_EXHAUSTED),
        b"13" => Some(RetryOn::GRPC_INTERNAL),
        b"14" => Some(RetryOn::GRPC_UNAVAILABLE),
        _ => None,
    }
}
