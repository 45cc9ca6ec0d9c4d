//! Host hygiene before routing, as Envoy does it.

use culvert_model::StripPort;

/// Splits an authority into host and port. The host of an IPv6 literal keeps its brackets.
#[must_use]
pub fn split_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    (authority, None)
}

/// Removes the port as `strip_matching_host_port` (only `listener_port`) and `strip_any_host_port` do.
pub fn strip_port(authority: &mut Vec<u8>, action: StripPort, listener_port: u16) {
    let _ = (authority, action, listener_port);
}

/// Removes one dot at the end of the host, before the port if there is one, as `strip_trailing_host_dot` does.
pub fn strip_trailing_dot(authority: &mut Vec<u8>) {
    let _ = authority;
}
