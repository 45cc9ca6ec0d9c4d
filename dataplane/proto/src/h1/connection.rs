//! Connection handling: persistence, upgrades, expectations, hop-by-hop fields.

use smallvec::SmallVec;

use crate::{Headers, Version, h1::field};

/// Whether the connection stays open after this message (RFC 9112 section 9.3). `close` wins over `keep-alive`;
/// `proxy-connection: close` counts, as in Envoy.
#[must_use]
pub fn keep_alive(version: Version, headers: &Headers) -> bool {
    if has_token(headers, "connection", "close") || has_token(headers, "proxy-connection", "close") {
        return false;
    }
    version != Version::Http10 || has_token(headers, "connection", "keep-alive")
}

/// Whether the comma-separated list in the fields called `name` has this token, in any case.
#[must_use]
pub fn has_token(headers: &Headers, name: &str, token: &str) -> bool {
    headers.get_all(name).flat_map(field::list).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// The protocol a request wants to change to: the `upgrade` field, if `connection` nominates it. A wish for `h2c` alone
/// is ignored, as in Envoy. HTTP/1.0 requests cannot upgrade (RFC 9110 section 7.8): do not ask for those.
#[must_use]
pub fn upgrade(headers: &Headers) -> Option<&[u8]> {
    let protocol = headers.get("upgrade").filter(|_| has_token(headers, "connection", "upgrade"))?;
    field::list(protocol).any(|token| !token.eq_ignore_ascii_case(b"h2c")).then_some(protocol)
}

/// Whether a response switches protocols as asked: status 101.
#[must_use]
pub fn upgrade_accepted(status: u16) -> bool {
    status == 101
}

/// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
#[must_use]
pub fn expects_continue(version: Version, headers: &Headers) -> bool {
    version != Version::Http10 && has_token(headers, "expect", "100-continue")
}

/// Whether the sender said `te: trailers`.
#[must_use]
pub fn accepts_trailers(headers: &Headers) -> bool {
    has_token(headers, "te", "trailers")
}

/// Removes what is between two neighbours only (RFC 9110 section 7.6.1): the fields `connection` nominates,
/// `connection`, `keep-alive`, `proxy-connection`, `transfer-encoding`, `upgrade`, `http2-settings`, and of `te` all
/// but `trailers`. With `keep_upgrade`, `upgrade` and `connection: upgrade` stay, the latter as it was spelled.
///
/// A nominated `content-length` goes too: [`super::encode_request`] writes the framing from what was parsed.
pub fn remove_hop_by_hop(headers: &mut Headers, keep_upgrade: bool) {
    let te_trailers = accepts_trailers(headers);
    let tokens = || headers.get_all("connection").flat_map(field::list);
    let spelled = tokens().find(|token| keep_upgrade && token.eq_ignore_ascii_case(b"upgrade"));
    let spelled = spelled.map(SmallVec::<[u8; 8]>::from_slice);
    let mut nominated = SmallVec::<[u8; 128]>::new();
    for value in headers.get_all("connection") {
        nominated.extend_from_slice(value);
        nominated.push(b',');
    }
    let is_nominated =
        |name: &[u8]| field::list(&nominated).any(|element| element.eq_ignore_ascii_case(name));
    headers.retain(|name, _| match name {
        b"te" => te_trailers,
        b"connection" | b"upgrade" => keep_upgrade,
        b"http2-settings" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" => false,
        _ => nominated.is_empty() || !is_nominated(name),
    });
    if te_trailers {
        headers.set("te", "trailers");
    }
    if keep_upgrade {
        headers.set("connection", spelled.as_deref().unwrap_or(b"upgrade"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.push(name, value);
        }
        headers
    }

    #[test]
    fn persistence() {
        for (version, fields, expected) in [
            (Version::Http11, &[][..], true),
            (Version::Http11, &[("connection", "close")], false),
            (Version::Http11, &[("connection", "Keep-Alive, CLOSE")], false),
            (Version::Http11, &[("connection", "foo"), ("connection", "close")], false),
            (Version::Http11, &[("connection", "closed")], true),
            (Version::Http11, &[("proxy-connection", "close")], false),
            (Version::Http10, &[], false),
            (Version::Http10, &[("connection", "keep-alive")], true),
            (Version::Http10, &[("connection", "keep-alive, close")], false),
        ] {
            assert_eq!(keep_alive(version, &headers(fields)), expected, "{version:?} {fields:?}");
        }
    }

    #[test]
    fn upgrades() {
        let asked = |fields: &[(&str, &str)]| upgrade(&headers(fields)).map(<[u8]>::to_vec);
        let websocket = Some(b"websocket".to_vec());
        assert_eq!(asked(&[("connection", "upgrade"), ("upgrade", "websocket")]), websocket);
        assert_eq!(asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]), websocket);
        assert_eq!(asked(&[("upgrade", "websocket")]), None);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
        assert_eq!(asked(&[("connection", "upgrade"), ("upgrade", "")]), None);
        assert_eq!(asked(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]), None);
        assert!(upgrade_accepted(101) && !upgrade_accepted(200));
    }

    #[test]
    fn expectations() {
        let fields = headers(&[("expect", "100-Continue")]);
        assert!(expects_continue(Version::Http11, &fields));
        assert!(!expects_continue(Version::Http10, &fields), "RFC 9110 section 10.1.1: ignored in HTTP/1.0");
        assert!(!expects_continue(Version::Http11, &headers(&[("expect", "foo")])));
    }

    #[test]
    fn hop_by_hop_fields_go() {
        let mut fields = headers(&[
            ("connection", "Foo, keep-alive"),
            ("foo", "1"),
            ("bar", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "x"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "a"),
            ("connection", "baz"),
            ("baz", "3"),
            ("http2-settings", "AAM"),
        ]);
        remove_hop_by_hop(&mut fields, false);
        assert_eq!(fields, headers(&[("bar", "2"), ("proxy-authorization", "x"), ("trailer", "a")]));
    }

    #[test]
    fn te_trailers_and_upgrades_stay() {
        let mut fields = headers(&[
            ("connection", "TE, upgrade, foo"),
            ("te", "trailers, gzip;q=0.5"),
            ("upgrade", "websocket"),
            ("foo", "1"),
        ]);
        remove_hop_by_hop(&mut fields, true);
        assert_eq!(
            fields,
            headers(&[("connection", "upgrade"), ("te", "trailers"), ("upgrade", "websocket")])
        );
        remove_hop_by_hop(&mut fields, false);
        assert_eq!(fields, headers(&[("te", "trailers")]));
    }
}
