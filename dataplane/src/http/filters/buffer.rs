//! `envoy.filters.http.buffer`: a request goes on once all of it is here.

use culvert_proto::{
    filter::Settings,
    h1::{self, Framing},
};

use super::{Scope, Verdict};
use crate::http::{collect::Collected, exchange::Exchange, reply::Reply};

/// The filter: most bytes of a request's body.
pub(super) struct Buffer(pub(super) u32);

impl Buffer {
    pub(super) async fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        let max = match scope.settings() {
            Some(Settings::Buffer(None)) => return Verdict::Continue,
            Some(Settings::Buffer(Some(max))) => *max,
            _ => self.0,
        };
        if exchange.framing.is_empty() || h1::upgrade(&exchange.head.headers).is_some() {
            return Verdict::Continue;
        }
        match exchange.collect_body((max as usize).saturating_add(1)).await {
            Collected::Whole if exchange.stream.with_kept(<[u8]>::len) > max as usize => too_large(),
            Collected::Whole => {
                // Its length is known by now; but trailers would have no place behind it.
                if exchange.framing == Framing::Chunked && !exchange.stream.is_multiplexed() {
                    let length = exchange.stream.with_kept(<[u8]>::len);
                    exchange.framing = Framing::Length(length as u64);
                }
                Verdict::Continue
            }
            Collected::Part => too_large(),
            Collected::Failed(error) => Verdict::Failed(error),
            Collected::Expired(reply) => Verdict::Reply(reply),
        }
    }
}

fn too_large() -> Verdict {
    Verdict::Reply(Reply::new(413, "Payload Too Large").details("request_payload_too_large"))
}
