//! Tunnels: upgrades and CONNECT, over each version of HTTP (RFC 9110 section 7.8, RFC 8441).
//!
//! What goes through a tunnel is the body of the request and that of the answer, which begin when the upstream has accepted
//! it: who is refused has sent nothing that could be taken for the next request.

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use culvert_proto::{Method, RequestHead, ResponseHead};

use super::Passage;
use crate::{
    http::exchange::{After, Exchange},
    upstream::{Cluster, Lent},
};

impl Passage<'_> {
    /// Whether it is a tunnel that ends here: what comes through it goes to the cluster as it is.
    pub(super) fn ends_tunnel(&self, method: &Method) -> bool {
        self.upgrade && self.action.ends_connect && *method == Method::Connect
    }

    /// Parts with the connection of a request whose client is gone: the other end of a tunnel must not take that for an
    /// orderly end.
    pub(super) fn cut_tunnel(&self, lent: Lent) {
        if self.tunnel_open.get() {
            lent.conn.abort();
        }
    }

    /// Whether nothing is awaited from the client now: it has sent all, or may not send yet.
    pub(super) fn awaits_nothing(&self) -> bool {
        self.kept.is_complete() || self.upgrade && !self.tunnel_open.get()
    }
}

impl Exchange<'_> {
    /// Both directions of a tunnel are over.
    pub(super) fn conclude_tunnel(&self, lent: Option<Lent>, cluster: &Cluster) -> After {
        drop(lent);
        let times = self.record.times.borrow();
        let client_first = match (times.rx_end, times.upstream_rx_end) {
            (Some(client), Some(upstream)) => client <= upstream,
            (client, _) => client.is_some(),
        };
        drop(times);
        self.count_cut(cluster, !client_first);
        if client_first && !self.stream.is_multiplexed() {
            self.downstream_lost();
            return After::Finished;
        }
        After::Close
    }
}

/// What RFC 6455 has the server put behind the client's key.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

fn is_websocket(upgrade: Option<&[u8]>) -> bool {
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(b"websocket"))
}

/// HTTP/2 knows no key of a WebSocket's handshake, without which an upstream of HTTP/1 refuses it.
pub(super) fn name_key(head: &mut RequestHead, rng: &mut fastrand::Rng) {
    if is_websocket(head.headers.get("upgrade")) && !head.headers.contains("sec-websocket-key") {
        let key = BASE64_STANDARD.encode(rng.u128(..).to_be_bytes());
        head.headers.push("sec-websocket-key", key);
    }
}

/// And an answer over HTTP/2 does not prove that the key was read, as a client of HTTP/1 wants it.
pub(super) fn prove_key(request: &RequestHead, response: &mut ResponseHead) {
    let Some(key) = request.headers.get("sec-websocket-key") else { return };
    if is_websocket(request.headers.get("upgrade")) && !response.headers.contains("sec-websocket-accept") {
        let mut proof = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        proof.update(key);
        proof.update(KEY_SUFFIX);
        response.headers.push("sec-websocket-accept", BASE64_STANDARD.encode(proof.finish()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn keys_are_proved() {
        let mut request = RequestHead::default();
        request.headers.push("upgrade", "websocket");
        request.headers.push("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let mut response = ResponseHead::default();
        prove_key(&request, &mut response);
        let proof = response.headers.get("sec-websocket-accept");
        assert_eq!(proof, Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
    }

    #[test]
    fn keys_are_made_where_they_are_missing() {
        let mut head = RequestHead::default();
        name_key(&mut head, &mut fastrand::Rng::new());
        assert!(head.headers.is_empty());
        head.headers.push("upgrade", "websocket");
        name_key(&mut head, &mut fastrand::Rng::new());
        let key = head.headers.get("sec-websocket-key").map(|key| BASE64_STANDARD.decode(key));
        assert_eq!(key.map(|key| key.map(|key| key.len())), Some(Ok(16)));
    }
}
