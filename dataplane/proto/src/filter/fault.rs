//! Faults on purpose (`envoy.filters.http.fault`): which of them a request meets.

use std::time::Duration;

use culvert_model::{FaultAbort, FaultAnswer, FaultDelay, Fraction, HttpFault};

use crate::{
    Headers,
    route::{RequestView, header_matches},
};

/// How a request is answered in place of its upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// With this status.
    Http(u16),
    /// With this gRPC status.
    Grpc(u32),
}

/// Whether faults are meant for this request, which goes to `cluster`.
#[must_use]
pub fn concerns(fault: &HttpFault, request: &RequestView<'_>, cluster: Option<&[u8]>) -> bool {
    let node = || request.headers.get("x-envoy-downstream-service-node");
    (fault.upstream_cluster.is_empty() || cluster == Some(fault.upstream_cluster.as_bytes()))
        && (fault.downstream_nodes.is_empty()
            || node().is_some_and(|node| fault.downstream_nodes.iter().any(|known| known.as_bytes() == node)))
        && fault.headers.iter().all(|matcher| header_matches(matcher, request))
}

/// For how long the request is held up.
#[must_use]
pub fn delay(delay: &FaultDelay, headers: &Headers, random: u64) -> Option<Duration> {
    let (fraction, duration) = match delay.fixed {
        Some(fixed) => (delay.fraction, fixed),
        None => {
            let asked = number(headers, "x-envoy-fault-delay-request")?;
            let fraction = at_most(delay.fraction, headers, "x-envoy-fault-delay-request-percentage");
            (fraction, Duration::from_millis(asked))
        }
    };
    (fraction.hits(random) && !duration.is_zero()).then_some(duration)
}

/// How the request is answered, if it is not to go on.
#[must_use]
pub fn abort(abort: &FaultAbort, headers: &Headers, random: u64) -> Option<Answer> {
    let (fraction, answer) = match abort.answer {
        FaultAnswer::Http(status) => (abort.fraction, Answer::Http(status)),
        FaultAnswer::Grpc(status) => (abort.fraction, Answer::Grpc(status)),
        FaultAnswer::Header => {
            let http = number(headers, "x-envoy-fault-abort-request")
                .and_then(|status| u16::try_from(status).ok())
                .filter(|status| (200..600).contains(status))
                .map(Answer::Http);
            let grpc = || {
                let status = number(headers, "x-envoy-fault-abort-grpc-request")?;
                u32::try_from(status).ok().map(Answer::Grpc)
            };
            let fraction = at_most(abort.fraction, headers, "x-envoy-fault-abort-request-percentage");
            (fraction, http.or_else(grpc)?)
        }
    };
    fraction.hits(random).then_some(answer)
}

/// The fraction, or what a header says if that is less.
fn at_most(fraction: Fraction, headers: &Headers, name: &str) -> Fraction {
    let Some(asked) = number(headers, name) else { return fraction };
    let asked = u32::try_from(asked).unwrap_or(u32::MAX);
    Fraction { numerator: fraction.numerator.min(asked), ..fraction }
}

fn number(headers: &Headers, name: &str) -> Option<u64> {
    std::str::from_utf8(headers.get(name)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    }

    #[test]
    fn a_delay_has_its_fraction() {
        let fixed = FaultDelay {
            fraction: Fraction { numerator: 30, denominator: 100 },
            fixed: Some(Duration::from_secs(1)),
        };
        let hit = (0..1_000).filter(|random| delay(&fixed, &Headers::new(), *random).is_some()).count();
        assert_eq!(hit, 300);
    }

    #[test]
    fn headers_may_ask_for_less() {
        let by_header = FaultDelay { fraction: Fraction { numerator: 50, denominator: 100 }, fixed: None };
        let count = |fields: &[(&str, &str)]| {
            let headers = headers(fields);
            (0..100).filter(|random| delay(&by_header, &headers, *random).is_some()).count()
        };
        let asked = ("x-envoy-fault-delay-request", "5");
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[asked]), 50);
        assert_eq!(count(&[asked, ("x-envoy-fault-delay-request-percentage", "7")]), 7);
        assert_eq!(count(&[asked, ("x-envoy-fault-delay-request-percentage", "99")]), 50);
        assert_eq!(count(&[("x-envoy-fault-delay-request", "0")]), 0);
    }

    #[test]
    fn answers_are_statuses() {
        let by_header = FaultAbort { fraction: ALL, answer: FaultAnswer::Header, body: [].into() };
        let of = |fields: &[(&str, &str)]| abort(&by_header, &headers(fields), 0);
        assert_eq!(of(&[("x-envoy-fault-abort-request", "418")]), Some(Answer::Http(418)));
        assert_eq!(of(&[("x-envoy-fault-abort-request", "199")]), None);
        assert_eq!(of(&[("x-envoy-fault-abort-request", "600")]), None);
        assert_eq!(of(&[("x-envoy-fault-abort-grpc-request", "5")]), Some(Answer::Grpc(5)));
        let none = ("x-envoy-fault-abort-request-percentage", "0");
        assert_eq!(of(&[("x-envoy-fault-abort-request", "500"), none]), None);
        let fixed = FaultAbort { answer: FaultAnswer::Grpc(14), ..by_header };
        assert_eq!(abort(&fixed, &Headers::new(), 3), Some(Answer::Grpc(14)));
        assert_eq!(abort(&FaultAbort { fraction: Fraction::NONE, ..fixed }, &Headers::new(), 0), None);
    }
}
