//! Response heads: what is taken, what is refused. Compared with Envoy 1.40 in front of a raw upstream; it answers 502
//! `upstream_reset_before_response_started{protocol_error}` to every fault here, and takes the rows marked `RFC`.

use culvert_proto::{
    Method, ResponseHead, Version,
    h1::{Fault, Framing, ResponseOptions, parse_response},
};

fn parse_for(method: &Method, bytes: &[u8]) -> Result<(ResponseHead, Framing), Fault> {
    let mut head = ResponseHead::new();
    let (consumed, framing) =
        parse_response(bytes, &ResponseOptions::default(), method, &mut head)?.expect("the head is complete");
    assert_eq!(consumed, bytes.len());
    Ok((head, framing))
}

fn response(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\n{fields}\r\n").into_bytes()
}

#[test]
fn a_plain_response() {
    let (head, framing) =
        parse_for(&Method::Get, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: b\r\n\r\n").unwrap();
    assert_eq!(
        (head.status, head.version, head.reason(), framing),
        (200, Version::Http11, &b"OK"[..], Framing::Length(3))
    );
    assert_eq!(
        head.headers.iter().collect::<Vec<_>>(),
        [(&b"content-length"[..], &b"3"[..]), (b"x-a", b"b")]
    );
}

#[test]
fn status_lines() {
    let taken: &[(&str, u16, Version, &str)] = &[
        ("HTTP/1.1 200", 200, Version::Http11, ""),
        ("HTTP/1.1 200 ", 200, Version::Http11, ""),
        ("HTTP/1.1 200 Fine as it is", 200, Version::Http11, "Fine as it is"),
        ("HTTP/1.0 404 Not Found", 404, Version::Http10, "Not Found"),
        ("HTTP/1.1 600 X", 600, Version::Http11, "X"),
        ("HTTP/1.1 999 X", 999, Version::Http11, "X"),
        ("HTTP/1.1 200 a\tb", 200, Version::Http11, "a\tb"),
    ];
    for (line, status, version, reason) in taken {
        let (head, _) = parse_for(&Method::Get, &response(line, "")).unwrap();
        assert_eq!(
            (head.status, head.version, head.reason()),
            (*status, *version, reason.as_bytes()),
            "{line}"
        );
    }
    let refused: &[(&str, Fault)] = &[
        ("ICY 200 OK", Fault::StatusLine),
        ("abc", Fault::StatusLine),
        ("\r\nHTTP/1.1 200 OK", Fault::StatusLine),
        ("HTTP/1.1 20 OK", Fault::StatusLine),
        ("HTTP/1.1 099 OK", Fault::StatusLine),
        ("HTTP/1.1 +20 OK", Fault::StatusLine),
        ("HTTP/1.1 2000 OK", Fault::StatusLine), // RFC
        ("HTTP/1.1", Fault::StatusLine),
        ("HTTP/1.1 ", Fault::StatusLine),
        ("HTTP/1.1 2x0 OK", Fault::StatusLine),
        ("HTTP/1.1  200 OK", Fault::StatusLine),
        ("HTTP/1.2 200 OK", Fault::StatusLine), // RFC
        ("HTTP/2.0 200 OK", Fault::StatusLine), // RFC
        ("HTTP/0.9 200 OK", Fault::StatusLine), // RFC
        ("http/1.1 200 OK", Fault::StatusLine),
        ("HTTP/1.1 200 O\x01K", Fault::InvalidCharacter),
        ("HTTP/1.1 200 O\rK", Fault::BareCr),
        ("HTTP/1.1 200 OK\nA: b", Fault::BareLf), // RFC
    ];
    for (line, fault) in refused {
        assert_eq!(parse_for(&Method::Get, &response(line, "")).err(), Some(*fault), "{line:?}");
    }
    let obs_text = b"HTTP/1.1 200 O\xe9K\r\n\r\n";
    assert_eq!(parse_for(&Method::Get, obs_text).unwrap().0.reason(), b"O\xe9K");
}

#[test]
fn bad_fields_are_refused() {
    for (fields, fault) in [
        ("A : b\r\n", Fault::Name),
        ("A(: b\r\n", Fault::Name),
        ("Ab\r\n", Fault::HeaderColon),
        ("A: b\0c\r\n", Fault::InvalidCharacter),
        ("A: b\r\n c\r\n", Fault::ObsFold), // RFC
        ("A: b\rc\r\n", Fault::BareCr),     // RFC
        ("A: b\nC: d\r\n", Fault::BareLf),  // RFC
    ] {
        assert_eq!(
            parse_for(&Method::Get, &response("HTTP/1.1 200 OK", fields)).err(),
            Some(fault),
            "{fields:?}"
        );
    }
}

#[test]
fn framing() {
    use Framing::{Chunked, Length, None, Tunnel, UntilClose};
    const LENGTH: &str = "Content-Length: 3\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    let cases: &[(Method, u16, &str, Result<Framing, Fault>)] = &[
        (Method::Get, 200, LENGTH, Ok(Length(3))),
        (Method::Get, 200, "Content-Length: 0\r\n", Ok(Length(0))),
        (Method::Get, 200, CHUNKED, Ok(Chunked)),
        (Method::Get, 200, "", Ok(UntilClose)),
        (Method::Get, 500, "", Ok(UntilClose)),
        (Method::Head, 200, LENGTH, Ok(None)),
        (Method::Head, 200, CHUNKED, Ok(None)),
        (Method::Head, 200, "", Ok(None)),
        (Method::Get, 304, LENGTH, Ok(None)),
        (Method::Get, 304, CHUNKED, Ok(None)),
        (Method::Get, 204, "", Ok(None)),
        (Method::Get, 204, "Content-Length: 0\r\n", Ok(None)),
        (Method::Get, 204, LENGTH, Err(Fault::BodyNotAllowed)),
        (Method::Get, 204, CHUNKED, Err(Fault::BodyNotAllowed)),
        (Method::Get, 100, "", Ok(None)),
        (Method::Get, 103, "Link: b\r\n", Ok(None)),
        (Method::Get, 102, LENGTH, Err(Fault::BodyNotAllowed)),
        (Method::Get, 101, "Connection: upgrade\r\nUpgrade: websocket\r\n", Ok(Tunnel)),
        (Method::Get, 101, LENGTH, Err(Fault::BodyNotAllowed)),
        (Method::Get, 101, CHUNKED, Err(Fault::BodyNotAllowed)),
        (Method::Connect, 200, "", Ok(Tunnel)),
        (Method::Connect, 299, LENGTH, Ok(Tunnel)),
        (Method::Connect, 404, LENGTH, Ok(Length(3))),
        (Method::Get, 200, "Content-Length: 3\r\nContent-Length: 3\r\n", Err(Fault::ContentLengthRepeated)),
        (Method::Head, 200, "Content-Length: 3\r\nContent-Length: 4\r\n", Err(Fault::ContentLengthRepeated)),
        (Method::Get, 200, "Content-Length: 3, 3\r\n", Err(Fault::ContentLength)),
        (Method::Get, 200, "Content-Length: x\r\n", Err(Fault::ContentLength)),
        (
            Method::Get,
            200,
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            Err(Fault::ContentLengthWithTransferEncoding),
        ),
        (Method::Get, 200, "Transfer-Encoding: gzip\r\n", Err(Fault::TransferEncodingUnknown)),
        (Method::Get, 200, "Transfer-Encoding: gzip, chunked\r\n", Err(Fault::TransferEncodingUnknown)),
        (Method::Get, 200, "Transfer-Encoding: identity\r\n", Err(Fault::TransferEncodingUnknown)),
    ];
    for (method, status, fields, expected) in cases {
        let bytes = response(&format!("HTTP/1.1 {status} X"), fields);
        assert_eq!(
            parse_for(method, &bytes).map(|(_, framing)| framing),
            *expected,
            "{method} {status} {fields:?}"
        );
    }
    let http10 = response("HTTP/1.0 200 OK", CHUNKED);
    assert_eq!(parse_for(&Method::Get, &http10).err(), Some(Fault::TransferEncodingInHttp10)); // RFC
}

#[test]
fn limits() {
    let mut head = ResponseHead::new();
    let opts = ResponseOptions { max_bytes: 100, max_count: 2, ..ResponseOptions::default() };
    let mut parse = |bytes: &[u8]| parse_response(bytes, &opts, &Method::Get, &mut head);
    assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA"), Ok(None));
    assert_eq!(
        parse(&[b"HTTP/1.1 200 OK\r\nA: ".to_vec(), b"b".repeat(100)].concat()),
        Err(Fault::HeadersTooLarge)
    );
    assert!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\n").unwrap().is_some());
    assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\nE: f\r\n\r\n"), Err(Fault::HeadersTooMany));
}

#[test]
fn other_protocols_are_noticed_at_once() {
    let mut head = ResponseHead::new();
    let mut parse =
        |bytes: &[u8]| parse_response(bytes, &ResponseOptions::default(), &Method::Get, &mut head);
    assert_eq!(parse(b"HTT"), Ok(None));
    assert_eq!(parse(b"\x00"), Err(Fault::StatusLine));
    assert_eq!(parse(b"HTTP/2"), Err(Fault::StatusLine));
}
