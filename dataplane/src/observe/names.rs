//! How scopes of statistics are spelled.

use std::fmt::Display;

/// An address as part of a statistic's name: Envoy writes `_` for `:`, so that `0.0.0.0:8080` is `0.0.0.0_8080` and
/// `[::1]:80` is `[__1]_80`.
pub fn address_scope(address: impl Display) -> String {
    address.to_string().replace(':', "_")
}

/// `listener.<address>`, the scope of a listener without a `stat_prefix`.
pub fn listener_scope(address: impl Display) -> String {
    format!("listener.{}", address_scope(address))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn addresses_lose_their_colons() {
        let scope = |text: &str| listener_scope(text.parse::<SocketAddr>().unwrap());
        assert_eq!(scope("0.0.0.0:8080"), "listener.0.0.0.0_8080");
        assert_eq!(scope("[::1]:80"), "listener.[__1]_80");
        assert_eq!(address_scope("/run/a.sock"), "/run/a.sock");
    }
}
