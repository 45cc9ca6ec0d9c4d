//! Why a request is traced, or that it is not; and where its id says so.

use culvert_model::Fraction;

use crate::Headers;

/// `Tracing::Reason`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reason {
    /// It is not traced.
    #[default]
    NotTraceable,
    /// It was drawn.
    Sampled,
    /// `x-envoy-force-trace`
    ServiceForced,
    /// `x-client-trace-id`
    ClientForced,
}

impl Reason {
    /// The digit of a UUID that says so: that of its version, which is 4.
    fn digit(self) -> u8 {
        match self {
            Self::NotTraceable => b'4',
            Self::Sampled => b'9',
            Self::ServiceForced => b'a',
            Self::ClientForced => b'b',
        }
    }

    fn of(id: &[u8]) -> Self {
        match id.get(DIGIT) {
            Some(b'9') if id.len() == UUID => Self::Sampled,
            Some(b'a') if id.len() == UUID => Self::ServiceForced,
            Some(b'b') if id.len() == UUID => Self::ClientForced,
            _ => Self::NotTraceable,
        }
    }
}

const UUID: usize = 36;
const DIGIT: usize = 14;
const REQUEST_ID: &str = "x-request-id";

/// `UuidRequestIdConfig`: what request ids have to do with tracing.
#[derive(Clone, Copy, Debug)]
pub struct RequestIds {
    /// `pack_trace_reason`: they say why.
    pub pack: bool,
    /// `use_request_id_for_trace_sampling`: they are what is drawn, so that all proxies on the way draw the same.
    pub draw: bool,
}

/// How many requests are traced.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// `client_sampling`: of those with `x-client-trace-id`.
    pub client: Fraction,
    /// `random_sampling`: of all others.
    pub random: Fraction,
    /// `overall_sampling`: of all that would be.
    pub overall: Fraction,
}

/// Decides whether a request is traced, as Envoy's connection manager does, and has its id say so.
pub fn decide(
    headers: &mut Headers,
    ids: RequestIds,
    sampling: Sampling,
    mut random: impl FnMut() -> u64,
) -> Reason {
    let id = headers.get(REQUEST_ID).unwrap_or_default();
    let drawn = if ids.draw {
        match id.get(..8).and_then(super::hex64) {
            Some(number) => number,
            None => return Reason::NotTraceable,
        }
    } else {
        random()
    };
    let mut reason = if ids.pack { Reason::of(id) } else { Reason::NotTraceable };
    if reason == Reason::NotTraceable {
        if headers.contains("x-client-trace-id") && sampling.client.hits(random()) {
            reason = Reason::ClientForced;
        } else if headers.contains("x-envoy-force-trace") {
            reason = Reason::ServiceForced;
        } else if sampling.random.hits(drawn) {
            reason = Reason::Sampled;
        }
    }
    if reason != Reason::NotTraceable && !sampling.overall.hits(drawn) {
        reason = Reason::NotTraceable;
    }
    if ids.pack {
        pack(headers, reason);
    }
    reason
}

/// Has the request's id say that it is not traced: clients outside must not have a say in that.
pub fn forget(headers: &mut Headers) {
    pack(headers, Reason::NotTraceable);
}

/// Has the request's id say why it is traced.
fn pack(headers: &mut Headers, reason: Reason) {
    let Some(id) = headers.get(REQUEST_ID) else { return };
    let Ok(mut id) = <[u8; UUID]>::try_from(id) else { return };
    if id[DIGIT] != reason.digit() {
        id[DIGIT] = reason.digit();
        headers.set(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };
    const IDS: RequestIds = RequestIds { pack: true, draw: true };

    fn asked(id: &str, fields: &[&str]) -> Headers {
        let mut headers = Headers::new();
        headers.push(REQUEST_ID, id);
        for name in fields {
            headers.push(name, "1");
        }
        headers
    }

    /// The reason, and the digit of the id.
    fn outcome(mut headers: Headers, ids: RequestIds, sampling: Sampling) -> (Reason, char) {
        let reason = decide(&mut headers, ids, sampling, || 7);
        (reason, headers.get(REQUEST_ID).and_then(|id| id.get(DIGIT)).map_or(' ', |digit| char::from(*digit)))
    }

    #[test]
    fn the_order_of_reasons() {
        let id = "00000063-0000-4000-8000-000000000000";
        let all = Sampling { client: ALL, random: ALL, overall: ALL };
        let none = Sampling { random: Fraction::NONE, ..all };
        let client = ["x-client-trace-id", "x-envoy-force-trace"];
        assert_eq!(outcome(asked(id, &client), IDS, all), (Reason::ClientForced, 'b'));
        assert_eq!(outcome(asked(id, &client[1..]), IDS, none), (Reason::ServiceForced, 'a'));
        assert_eq!(outcome(asked(id, &[]), IDS, all), (Reason::Sampled, '9'));
        assert_eq!(outcome(asked(id, &[]), IDS, none), (Reason::NotTraceable, '4'));
        let no_client = Sampling { client: Fraction::NONE, ..none };
        assert_eq!(outcome(asked(id, &client[..1]), IDS, no_client), (Reason::NotTraceable, '4'));
        let overall = Sampling { overall: Fraction::NONE, ..all };
        assert_eq!(outcome(asked(id, &client), IDS, overall), (Reason::NotTraceable, '4'));
    }

    #[test]
    fn the_id_is_what_is_drawn() {
        let half = Fraction { numerator: 50, denominator: 100 };
        let sampling = Sampling { client: ALL, random: half, overall: ALL };
        // 0x31 is 49, 0x32 is 50.
        let below = asked("00000031-0000-4000-8000-000000000000", &[]);
        let above = asked("00000032-0000-4000-8000-000000000000", &[]);
        assert_eq!(outcome(below, IDS, sampling).0, Reason::Sampled);
        assert_eq!(outcome(above.clone(), IDS, sampling).0, Reason::NotTraceable);
        // 7 is drawn instead.
        let free = RequestIds { draw: false, ..IDS };
        assert_eq!(outcome(above, free, sampling).0, Reason::Sampled);
        assert_eq!(outcome(asked("none", &[]), IDS, sampling).0, Reason::NotTraceable);
    }

    #[test]
    fn what_the_id_says_stays_said() {
        let none = Sampling { client: ALL, random: Fraction::NONE, overall: ALL };
        let id = "00000063-0000-9000-8000-000000000000";
        assert_eq!(outcome(asked(id, &[]), IDS, none), (Reason::Sampled, '9'));
        let unpacked = RequestIds { pack: false, ..IDS };
        assert_eq!(outcome(asked(id, &[]), unpacked, none), (Reason::NotTraceable, '9'));
        let mut headers = asked(id, &[]);
        forget(&mut headers);
        assert_eq!(outcome(headers, IDS, none), (Reason::NotTraceable, '4'));
    }
}
