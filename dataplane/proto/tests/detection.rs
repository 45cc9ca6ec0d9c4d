//! What the first bytes of a connection say.

mod checks;

use culvert_proto::detect::{Hello, Http, Proxy, ProxyVersions, Tls, http, proxy, tls};
use proptest::{collection::vec, prelude::*};

/// Written by OpenSSL: a.test, h2 and http/1.1.
const HELLO: &[u8] = include_bytes!("../fuzz/seeds/detect/hello");

fn hello() -> Tls {
    let protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
    Tls::Hello(Hello { server_name: "a.test".to_owned(), protocols })
}

#[test]
fn a_hello_in_any_records() {
    assert_eq!(tls(HELLO, 16_384), hello());
    for size in [1, 2, 3, 7, 100] {
        let mut bytes = Vec::new();
        for fragment in HELLO[5..].chunks(size) {
            bytes.extend_from_slice(&[22, 3, 1, 0, fragment.len() as u8]);
            bytes.extend_from_slice(fragment);
        }
        assert_eq!(tls(&bytes, 16_384), hello(), "{size}");
        assert_eq!(tls(&bytes[..bytes.len() - 1], 16_384), Tls::Incomplete);
        assert_eq!(tls(&bytes, bytes.len() - 1), Tls::TooLarge);
    }
    for (bytes, expected) in [
        (&b""[..], Tls::Incomplete),
        (b"\x16", Tls::Incomplete),
        (b"G", Tls::Not),
        (b"\x16\x02", Tls::Not),
        (b"\x16\x03\x01\0\0", Tls::Not),
        (b"\x16\x03\x01\0\x04\x02\0\0\0", Tls::Not),
        (b"\x16\x03\x01\0\x04\x01\0\0\0", Tls::Not),
        (b"\x16\x03\x01\x02\0\x01\x01\0\0", Tls::TooLarge),
    ] {
        assert_eq!(tls(bytes, 1_000), expected, "{bytes:?}");
    }
}

#[test]
fn http_as_envoy_sees_it() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], Http::Http11),
        (b"\r\nFOO /a b HTTP/1.1\n", Http::Http11),
        (b"get / HTTP/1.0\r\n", Http::Http10),
        (b"GET / HTTP/1.2\r\n", Http::Http10),
        (b"GET / HTTP/1.1", Http::Incomplete),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http::Http2),
        (b"PRI * HTTP/2.0\r\n", Http::Incomplete),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Http::Not),
        (b"\x01\x02", Http::Not),
        (b"GET /\x01", Http::Not),
        (b"220 mail.test ESMTP\r\n", Http::Not),
        (b"", Http::Incomplete),
    ] {
        assert_eq!(http(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(http(&[b'x'; 40]), Http::Not);
}

#[test]
fn versions_that_are_not_looked_for_are_absent() {
    let only = |v1, v2| ProxyVersions { v1, v2 };
    assert_eq!(proxy(b"PROXY TCP4", only(false, true)), Proxy::Absent);
    assert_eq!(proxy(b"\r\n\r\n\0\r\nQUIT\n", only(true, false)), Proxy::Absent);
    assert_eq!(proxy(b"PROX", only(true, true)), Proxy::Incomplete);
    assert!(matches!(
        proxy(&[b"PROXY ".as_slice(), &[b'1'; 200]].concat(), only(true, true)),
        Proxy::Malformed(_)
    ));
    for line in ["PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY \r\n"] {
        assert!(matches!(proxy(line.as_bytes(), only(true, true)), Proxy::Malformed(_)), "{line}");
    }
}

proptest! {
    #[test]
    fn once_decided_more_bytes_change_nothing(
        begin in proptest::sample::select(vec![
            HELLO,
            b"PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\x01\x02\x03\x04\x05\x06\x07\x08\0\x0b\0\x16\x04\0\x01x",
            b"GET / HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]),
        keep in 0_usize..700,
        change in proptest::option::of((0_usize..60, any::<u8>())),
        rest in vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = begin[..keep.min(begin.len())].to_vec();
        if let Some((at, byte)) = change && let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.extend(rest);
        checks::detect(&bytes);
    }
}
