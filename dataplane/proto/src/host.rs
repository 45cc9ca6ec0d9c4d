//! Authorities: validation, and hygiene before routing as Envoy does it.

use culvert_model::StripPort;

use crate::h1::decimal;

/// Splits an authority into host and port. An IPv6 literal keeps its brackets. There is no port when what follows the
/// last colon is not a number below 65,536.
#[must_use]
pub fn split_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let Some(colon) = port_colon(authority) else { return (authority, None) };
    match decimal(&authority[colon + 1..]).map(u16::try_from) {
        Some(Ok(port)) => (&authority[..colon], Some(port)),
        _ => (authority, None),
    }
}

/// Removes the port as `strip_any_host_port` and `strip_matching_host_port` (only `listener_port`) do. Returns whether
/// there was something to remove.
pub fn strip_port(authority: &mut Vec<u8>, action: StripPort, listener_port: u16) -> bool {
    let (host, Some(port)) = split_port(authority) else { return false };
    let strip = match action {
        StripPort::Any => true,
        StripPort::Matching => port == listener_port,
        StripPort::No => false,
    };
    if strip {
        let host_len = host.len();
        authority.truncate(host_len);
    }
    strip
}

/// Removes one dot at the end of the host, before the port if there is one, as `strip_trailing_host_dot` does. Returns
/// whether there was one.
pub fn strip_trailing_dot(authority: &mut Vec<u8>) -> bool {
    let host_len = split_port(authority).0.len();
    let Some(dot) = host_len.checked_sub(1).filter(|&last| authority[last] == b'.') else { return false };
    authority.remove(dot);
    true
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2) with a host that is not empty.
#[must_use]
pub fn is_valid(authority: &[u8]) -> bool {
    let (host, port) = match port_colon(authority) {
        Some(colon) => (&authority[..colon], &authority[colon + 1..]),
        None => (authority, &[][..]),
    };
    if !port.iter().all(u8::is_ascii_digit) {
        return false;
    }
    match host {
        [] => false,
        [b'[', literal @ .., b']'] => is_ip_literal(literal),
        _ => is_reg_name(host),
    }
}

/// What Envoy takes as the authority of an absolute-form or authority-form target: no percent-encoding, and a port that
/// is a port.
pub(crate) fn is_valid_target(authority: &[u8]) -> bool {
    let port_fits = port_colon(authority).is_none() || split_port(authority).1.is_some();
    port_fits && is_valid(authority) && memchr::memchr(b'%', authority).is_none()
}

/// Where the port starts: the last colon, unless it is inside an IP literal.
fn port_colon(authority: &[u8]) -> Option<usize> {
    let colon = memchr::memrchr(b':', authority)?;
    memchr::memchr(b']', &authority[colon..]).is_none().then_some(colon)
}

/// `IPv6address` by its alphabet, or `IPvFuture` (RFC 3986 section 3.2.2).
fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = literal {
        let Some(dot) = memchr::memchr(b'.', rest) else { return false };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(|&byte| byte == b':' || is_reg_name_byte(byte));
    }
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// `reg-name`: unreserved characters, sub-delimiters, and percent-encoded bytes.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_reg_name_byte(*byte) => rest,
            _ => return false,
        };
    }
}

fn is_reg_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || memchr::memchr(byte, b"-._~!$&'()*+,;=").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_split_off() {
        let cases: &[(&str, &str, Option<u16>)] = &[
            ("a", "a", None),
            ("a:80", "a", Some(80)),
            ("a:", "a:", None),
            ("a:x", "a:x", None),
            ("a:65535", "a", Some(65535)),
            ("a:65536", "a:65536", None),
            ("[::1]", "[::1]", None),
            ("[::1]:8080", "[::1]", Some(8080)),
            ("", "", None),
            (":80", "", Some(80)),
        ];
        for (authority, host, port) in cases {
            assert_eq!(split_port(authority.as_bytes()), (host.as_bytes(), *port), "{authority}");
        }
    }

    #[test]
    fn stripping() {
        let strip = |authority: &str, action| {
            let mut authority = authority.as_bytes().to_vec();
            strip_port(&mut authority, action, 80);
            String::from_utf8(authority).unwrap()
        };
        assert_eq!(strip("a:80", StripPort::No), "a:80");
        assert_eq!(strip("a:80", StripPort::Matching), "a");
        assert_eq!(strip("a:81", StripPort::Matching), "a:81");
        assert_eq!(strip("a:81", StripPort::Any), "a");
        assert_eq!(strip("[::1]:81", StripPort::Any), "[::1]");
        assert_eq!(strip("[::1]", StripPort::Any), "[::1]");
        let dot = |authority: &str| {
            let mut authority = authority.as_bytes().to_vec();
            strip_trailing_dot(&mut authority);
            String::from_utf8(authority).unwrap()
        };
        assert_eq!(dot("a.b."), "a.b");
        assert_eq!(dot("a.b.:80"), "a.b:80");
        assert_eq!(dot("a.b.."), "a.b.");
        assert_eq!(dot("a.b"), "a.b");
        assert_eq!(dot(""), "");
        assert_eq!(dot("."), "");
    }

    #[test]
    fn validity() {
        for good in [
            "a",
            "a.b:80",
            "a:",
            "a_b",
            "a!$&'()*+,;=b",
            "%41",
            "[::1]",
            "[::1]:80",
            "[::ffff:1.2.3.4]",
            "[v1.a:b]",
            "1.2.3.4",
            "a:99999",
            "A.B",
        ] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a/b", "a?b", "a#b", "u@a", "a:x", "a:8x", "[::1", "::1", "[]", "[::1]x", "a]",
            "[x]", "[v.a]", "[v1.]", "[vx.a]", "[v1]", "%4", "%zz", "a\"b", "a<b", "a\\b", "é", "a|b", "a^b",
            "a`b", "a{b", "a\tb", "a\0b",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
        for bad in ["a:", "a:99999", "a%41", "u@a", ""] {
            assert!(!is_valid_target(bad.as_bytes()), "{bad}");
        }
        assert!(is_valid_target(b"[::1]:80") && is_valid_target(b"a"));
    }
}
