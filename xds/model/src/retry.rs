//! Retries (`config.route.v3.RetryPolicy`).

use std::time::Duration;

use crate::{HeaderMatcher, Struct};

/// `config.route.v3.RetryPolicy`.
#[derive(Clone, Debug, Default)]
pub struct RetryPolicy {
    /// `retry_on`
    pub on: RetryOn,
    /// `num_retries`: 1.
    pub max_retries: u32,
    /// `per_try_timeout`: none; counts once the request is complete and on its way.
    pub per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`: none.
    pub per_try_idle_timeout: Option<Duration>,
    /// `retry_host_predicate`: hosts that an attempt after the first one avoids.
    pub avoid: Vec<AvoidHost>,
    /// `retry_priority` as `envoy.retry_priorities.previous_priorities`: after so many attempts each, its
    /// `update_frequency`, the priorities that were tried are avoided; at least 1.
    pub avoid_priorities_after: Option<u32>,
    /// `host_selection_retry_max_attempts`: how often another host than one to be avoided is looked for, 1.
    pub host_attempts: u32,
    /// `retriable_status_codes`
    pub status_codes: Vec<u32>,
    /// `retry_back_off`
    pub back_off: BackOff,
    /// `rate_limited_retry_back_off`
    pub rate_limited: Option<RateLimitedBackOff>,
    /// `retriable_headers`, of responses.
    pub headers: Vec<HeaderMatcher>,
    /// `retriable_request_headers`: where there are some, only requests that one of them matches are retried.
    pub request_headers: Vec<HeaderMatcher>,
}

/// An entry of `retry_host_predicate`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AvoidHost {
    /// `envoy.retry_host_predicates.omit_canary_hosts`: `canary: true` in the host's metadata `envoy.lb`.
    Canary,
    /// `envoy.retry_host_predicates.omit_host_metadata`: hosts whose metadata `envoy.lb` has all of these.
    Metadata(Struct),
    /// `envoy.retry_host_predicates.previous_hosts`
    Previous,
}

/// `RetryPolicy.RetryBackOff`: intervals are drawn from zero to a bound that doubles with every retry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackOff {
    /// `base_interval`: 25 ms, at least 1 ms.
    pub base: Duration,
    /// `max_interval`: ten times `base`.
    pub max: Duration,
}

impl BackOff {
    /// `max_interval` is as many times `base_interval` unless it is given.
    pub const MAX_BASES: u32 = 10;
}

impl Default for BackOff {
    fn default() -> Self {
        let base = Duration::from_millis(25);
        Self { base, max: base * Self::MAX_BASES }
    }
}

/// `RetryPolicy.RateLimitedRetryBackOff`: the response says how long to wait.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RateLimitedBackOff {
    /// `reset_headers`: lower-case names, the first one that says something up to `max` counts.
    pub headers: Vec<(String, ResetFormat)>,
    /// `max_interval`: 300 s.
    pub max: Duration,
}

/// `RetryPolicy.ResetHeaderFormat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResetFormat {
    /// `SECONDS`
    Seconds,
    /// `UNIX_TIMESTAMP`, in seconds.
    UnixTimestamp,
}

/// `retry_on`, a set.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($list:ident { $($constant:ident = $number:literal, $token:literal;)* })*) => {
        impl RetryOn {
            $($(
                #[doc = concat!("`", $token, "`")]
                pub const $constant: Self = Self(1 << $number);
            )*)*

            $(const $list: &'static [(Self, &'static str)] = &[$((Self::$constant, $token),)*];)*
        }
    };
}

conditions! {
    HTTP {
        ANY_5XX = 0, "5xx";
        GATEWAY_ERROR = 1, "gateway-error";
        CONNECT_FAILURE = 2, "connect-failure";
        RETRIABLE_4XX = 3, "retriable-4xx";
        REFUSED_STREAM = 4, "refused-stream";
        RETRIABLE_STATUS_CODES = 5, "retriable-status-codes";
        RESET = 6, "reset";
        RETRIABLE_HEADERS = 7, "retriable-headers";
        ENVOY_RATE_LIMITED = 8, "envoy-ratelimited";
        HTTP3_POST_CONNECT_FAILURE = 9, "http3-post-connect-failure";
        RESET_BEFORE_REQUEST = 10, "reset-before-request";
    }
    GRPC {
        GRPC_CANCELLED = 16, "cancelled";
        GRPC_DEADLINE_EXCEEDED = 17, "deadline-exceeded";
        GRPC_RESOURCE_EXHAUSTED = 18, "resource-exhausted";
        GRPC_UNAVAILABLE = 19, "unavailable";
        GRPC_INTERNAL = 20, "internal";
    }
}

impl RetryOn {
    /// The conditions of a list as `x-envoy-retry-on` has it, separated by commas. What is not known is left out, as in
    /// Envoy.
    #[must_use]
    pub fn http(list: &str) -> Self {
        Self::parse(list, Self::HTTP)
    }

    /// The same of `x-envoy-retry-grpc-on`.
    #[must_use]
    pub fn grpc(list: &str) -> Self {
        Self::parse(list, Self::GRPC)
    }

    fn parse(list: &str, known: &[(Self, &str)]) -> Self {
        let tokens = list.split(',').map(str::trim);
        let found = tokens.filter_map(|token| known.iter().find(|(_, name)| *name == token));
        found.fold(Self::default(), |set, (one, _)| set | *one)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether one of `others` is among them.
    #[must_use]
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_what_is_known_of_their_kind() {
        let on = RetryOn::http("5xx, reset ,canceled,unavailable");
        assert!(on == RetryOn::ANY_5XX | RetryOn::RESET);
        assert_eq!(
            RetryOn::grpc("5xx,unavailable,internal"),
            RetryOn::GRPC_UNAVAILABLE | RetryOn::GRPC_INTERNAL
        );
        assert!(RetryOn::http("").is_empty() && !on.has(RetryOn::GATEWAY_ERROR));
    }
}
