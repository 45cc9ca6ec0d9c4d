//! Connection handling: persistence, upgrades, expectations, hop-by-hop fields.

use crate::{Headers, Version};

/// Whether the connection stays open after this message (RFC 9112 section 9.3).
#[must_use]
pub fn keep_alive(version: Version, headers: &Headers) -> bool {
    let _ = headers;
    version == Version::Http11
}

/// Whether the comma-separated list in the fields called `name` has this token, in any case.
#[must_use]
pub fn has_token(headers: &Headers, name: &str, token: &str) -> bool {
    let _ = (headers, name, token);
    false
}

/// The protocol a request wants to change to: the `upgrade` field, if `connection` nominates it.
#[must_use]
pub fn upgrade(headers: &Headers) -> Option<&[u8]> {
    let _ = headers;
    None
}

/// Whether a response switches protocols as asked: status 101.
#[must_use]
pub fn upgrade_accepted(status: u16) -> bool {
    status == 101
}

/// Whether the client waits for `100 Continue` before it sends the body.
#[must_use]
pub fn expects_continue(version: Version, headers: &Headers) -> bool {
    let _ = (version, headers);
    false
}

/// Whether the sender said `te: trailers`.
#[must_use]
pub fn accepts_trailers(headers: &Headers) -> bool {
    has_token(headers, "te", "trailers")
}

/// Removes what is between two neighbours only (RFC 9110 section 7.6.1): the fields `connection` nominates,
/// `connection`, `keep-alive`, `proxy-connection`, `transfer-encoding`, `te` unless it is `trailers`, and `upgrade`.
/// With `keep_upgrade`, `connection: upgrade` and `upgrade` stay.
pub fn remove_hop_by_hop(headers: &mut Headers, keep_upgrade: bool) {
    let _ = (headers, keep_upgrade);
}
