//! Request heads: what is taken, what is refused and how. Statuses and details were measured on Envoy 1.40 with default
//! options; rows marked `RFC` are those where Envoy takes the request (`h1::INTENDED_DIFFERENCES`).

use culvert_model::UnderscoresAction;
use culvert_proto::{
    Method, RequestHead, Scheme, Version,
    h1::{Fault, Framing, INTENDED_DIFFERENCES, RequestOptions, parse_request},
};

const HOST: &str = "Host: a\r\n";

fn request(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\n{fields}\r\n").into_bytes()
}

fn get(fields: &str) -> Vec<u8> {
    request("GET / HTTP/1.1", &format!("{HOST}{fields}"))
}

fn post(fields: &str) -> Vec<u8> {
    request("POST / HTTP/1.1", &format!("{HOST}{fields}"))
}

fn line(line: &str) -> Vec<u8> {
    request(line, HOST)
}

fn parse(bytes: &[u8]) -> Result<(RequestHead, Framing), Fault> {
    parse_with(bytes, &RequestOptions::default())
}

fn parse_with(bytes: &[u8], opts: &RequestOptions) -> Result<(RequestHead, Framing), Fault> {
    let mut head = RequestHead::new();
    let (consumed, framing) = parse_request(bytes, opts, &mut head)?.expect("the head is complete");
    assert_eq!(consumed, bytes.len());
    Ok((head, framing))
}

#[track_caller]
fn refused(bytes: &[u8], fault: Fault, status: u16, details: &str) {
    let shown = String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(parse(bytes).map(|_| ()), Err(fault), "{shown:?}");
    assert_eq!((fault.status(), fault.details()), (status, details), "{shown:?}");
}

#[test]
fn a_plain_request() {
    let (head, framing) =
        parse(b"GET /a/b?c=d HTTP/1.1\r\nHost: X.y:80\r\nAccept: */*\r\nX-A:\t b c \r\n\r\n").unwrap();
    assert_eq!(
        (head.method.clone(), head.version, head.scheme),
        (Method::Get, Version::Http11, Scheme::Http)
    );
    assert_eq!((head.path(), head.authority()), (&b"/a/b?c=d"[..], &b"X.y:80"[..]));
    assert_eq!(head.headers.iter().collect::<Vec<_>>(), [(&b"accept"[..], &b"*/*"[..]), (b"x-a", b"b c")]);
    assert_eq!(framing, Framing::None);
}

#[test]
fn bad_lines_are_refused() {
    let codec = "http1.codec_error";
    let cases: &[(&[u8], Fault)] = &[
        (b" GET / HTTP/1.1\r\n", Fault::Method),
        (b"garbage\r\n\r\n", Fault::Method),
        (b"get / HTTP/1.1\r\n", Fault::Method),
        (b"FOO / HTTP/1.1\r\n", Fault::Method),
        (b"GETS / HTTP/1.1\r\n", Fault::Method),
        (b"A!#$ / HTTP/1.1\r\n", Fault::Method),
        (b"\x16\x03\x01\x02\x00\x01", Fault::Method),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::Method),
        (b"GET / http/1.1\r\n", Fault::Version),
        (b"GET / HTTP/1.10\r\n", Fault::Version),
        (b"GET / HTTPS/1.1\r\n", Fault::Version),
        (b"GET / ICY/1.1\r\n", Fault::Version),
        (b"GET /a b HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET a HTTP/1.1\r\n", Fault::Target),
        (b"GET ?a HTTP/1.1\r\n", Fault::Target),
        (b"GET a:b HTTP/1.1\r\n", Fault::Target),
        ("GET /é HTTP/1.1\r\n".as_bytes(), Fault::Target),
        (b"GET /\xe9 HTTP/1.1\r\n", Fault::Target),
        (b"GET /a\rb HTTP/1.1\r\n", Fault::BareCr),
        // RFC
        (b"GET  / HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET /  HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.1 \r\n", Fault::RequestLine),
        (b"GET /\tHTTP/1.1\r\n", Fault::RequestLine),
        (b"GET\t/ HTTP/1.1\r\n", Fault::Method),
        (b"GET / HTTP/1.1\n", Fault::BareLf),
        (b"\nGET / HTTP/1.1\r\n", Fault::BareLf),
        (b"\rGET / HTTP/1.1\r\n", Fault::BareCr),
    ];
    for (bytes, fault) in cases {
        refused(bytes, *fault, 400, codec);
    }
    for target in ["/\0", "/\x01", "/\x7f", "/a\x0b"] {
        refused(
            &line(&format!("GET {target} HTTP/1.1")),
            Fault::InvalidCharacter,
            400,
            "http1.invalid_characters",
        );
    }
    for version in ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/3.0"] {
        refused(&line(&format!("GET / {version}")), Fault::VersionUnserved, 426, "low_version");
    }
    refused(b"GET /\r\n\r\n", Fault::VersionUnserved, 426, "low_version");
    refused(b"GET / \r\n\r\n", Fault::VersionUnserved, 426, "low_version");
    refused(&line("GET /a#b HTTP/1.1"), Fault::Fragment, 400, "path_normalization_failed");
    refused(&line("GET /a?x#b HTTP/1.1"), Fault::Fragment, 400, "path_normalization_failed");
    refused(&line("GET http://b/#f HTTP/1.1"), Fault::Fragment, 400, "path_normalization_failed");
}

#[test]
fn methods_envoy_knows_are_taken() {
    for method in [
        "ACL",
        "BIND",
        "CHECKOUT",
        "COPY",
        "DELETE",
        "GET",
        "HEAD",
        "LINK",
        "LOCK",
        "MERGE",
        "MKACTIVITY",
        "MKCALENDAR",
        "MKCOL",
        "MOVE",
        "NOTIFY",
        "OPTIONS",
        "PATCH",
        "POST",
        "PROPFIND",
        "PROPPATCH",
        "PURGE",
        "PUT",
        "QUERY",
        "REBIND",
        "REPORT",
        "SEARCH",
        "SOURCE",
        "SUBSCRIBE",
        "TRACE",
        "UNBIND",
        "UNLINK",
        "UNLOCK",
        "UNSUBSCRIBE",
    ] {
        let (head, _) = parse(&line(&format!("{method} / HTTP/1.1"))).unwrap();
        assert_eq!(head.method.as_bytes(), method.as_bytes());
    }
    for method in ["M-SEARCH", "BREW", "PRI", &"A".repeat(100)] {
        refused(&line(&format!("{method} / HTTP/1.1")), Fault::Method, 400, "http1.codec_error");
    }
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    for count in [1, 5, 100] {
        let bytes = [b"\r\n".repeat(count), get("")].concat();
        assert_eq!(parse(&bytes).unwrap().0.path(), b"/");
    }
    let opts = RequestOptions { max_bytes: 100, ..RequestOptions::default() };
    let mut head = RequestHead::new();
    assert_eq!(parse_request(&b"\r\n".repeat(49), &opts, &mut head), Ok(None));
    assert_eq!(
        parse_request(&b"\r\n".repeat(50), &opts, &mut head),
        Err(Fault::HeadersTooLarge),
        "they are bounded too"
    );
}

#[test]
fn bad_fields_are_refused() {
    let codec = "http1.codec_error";
    for (fields, fault) in [
        ("A : b\r\n", Fault::Name),
        ("A\t: b\r\n", Fault::Name),
        (": b\r\n", Fault::Name),
        ("A(: b\r\n", Fault::Name),
        ("A b: b\r\n", Fault::Name),
        ("Aé: b\r\n", Fault::Name),
        (":path: /x\r\n", Fault::Name),
        ("\"A\": b\r\n", Fault::Name),
        ("Ab\r\n", Fault::HeaderColon),
        // RFC
        ("A: b\r\n c\r\n", Fault::ObsFold),
        ("A: b\r\n\tc\r\n", Fault::ObsFold),
        ("A: b\rc\r\n", Fault::BareCr),
        ("A: b\r\r\n", Fault::BareCr),
        ("A: b\nC: d\r\n", Fault::BareLf),
        ("A: b\n\n", Fault::BareLf),
        ("A: b\r\n\n", Fault::BareLf),
    ] {
        refused(&get(fields), fault, 400, codec);
    }
    refused(&request("GET / HTTP/1.1", " c\r\nHost: a\r\n"), Fault::ObsFold, 400, codec);
    for fields in [
        "A: b\0c\r\n",
        "A: b\x01c\r\n",
        "A: b\x7fc\r\n",
        "A\0: b\r\n",
        "A: \x0bb\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
    ] {
        refused(&get(fields), Fault::InvalidCharacter, 400, "http1.invalid_characters");
    }
    let taken = [
        b"A: b\tc\r\n".to_vec(),
        b"A: b\xe9c\r\n".to_vec(),
        b"A:\r\n".to_vec(),
        b"!#$%&'*+-.^_`|~0aZ: b\r\n".to_vec(),
    ];
    for fields in taken {
        let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), fields, b"\r\n".to_vec()].concat();
        assert_eq!(parse(&bytes).unwrap().0.headers.len(), 1);
    }
}

#[test]
fn hosts() {
    refused(&request("GET / HTTP/1.1", ""), Fault::HostMissing, 400, "missing_host_header");
    refused(&get("Connection: host\r\n"), Fault::HostMissing, 400, "missing_host_header");
    for host in ["a, b", "a b", "a/b", "a\"b", "a<b", "a\\b", "a?b", "a#b", "é", "a|b", "a^b", "a`b", "a{b"]
    {
        refused(
            &request("GET / HTTP/1.1", &format!("Host: {host}\r\n")),
            Fault::Host,
            400,
            "http.invalid_authority",
        );
    }
    // RFC
    for host in ["u@a", "u:p@a", "a:x", "[::1", "a]", "::1", ":80", "a%zz", "[]", "[::1]x", "[x]"] {
        refused(
            &request("GET / HTTP/1.1", &format!("Host: {host}\r\n")),
            Fault::Host,
            400,
            "http.invalid_authority",
        );
    }
    for repeated in ["Host: a\r\n", "Host: b\r\n", "host:\r\n", "A: b\r\nHOST: a\r\n"] {
        refused(&get(repeated), Fault::HostRepeated, 400, "http.invalid_authority");
    }
    refused(&request("GET http://b/x HTTP/1.1", ""), Fault::HostMissing, 400, "missing_host_header");
    refused(&request("GET http://b/x HTTP/1.1", "Host: a b\r\n"), Fault::Host, 400, "http.invalid_authority");
    for host in
        ["", "a", "A.b:80", "a:", "a:99999", "[::1]:80", "[v1.a]", "a%41", "a_b", "a!$&'()*+,;=b", "a..b"]
    {
        let (head, _) = parse(&request("GET / HTTP/1.1", &format!("Host: {host}\r\n"))).unwrap();
        assert_eq!(head.authority(), host.as_bytes());
        assert!(!head.headers.contains("host"));
    }
}

#[test]
fn targets() {
    let taken: &[(&str, Method, Scheme, &str, &str)] = &[
        ("GET //a HTTP/1.1", Method::Get, Scheme::Http, "a", "//a"),
        ("GET /\"<>\\^`{|} HTTP/1.1", Method::Get, Scheme::Http, "a", "/\"<>\\^`{|}"),
        ("OPTIONS * HTTP/1.1", Method::Options, Scheme::Http, "a", "*"),
        ("OPTIONS http://b HTTP/1.1", Method::Options, Scheme::Http, "b", "/"),
        ("CONNECT c:80 HTTP/1.1", Method::Connect, Scheme::Http, "c:80", ""),
        ("CONNECT [::1]:80 HTTP/1.1", Method::Connect, Scheme::Http, "[::1]:80", ""),
        ("CONNECT c:0 HTTP/1.1", Method::Connect, Scheme::Http, "c:0", ""),
        ("GET http://b/x?y HTTP/1.1", Method::Get, Scheme::Http, "b", "/x?y"),
        ("GET https://B.c:443/x HTTP/1.1", Method::Get, Scheme::Https, "B.c:443", "/x"),
        ("GET HTTP://b HTTP/1.1", Method::Get, Scheme::Http, "b", "/"),
        ("GET http://[::1]:80/x HTTP/1.1", Method::Get, Scheme::Http, "[::1]:80", "/x"),
    ];
    for (start, method, scheme, authority, path) in taken {
        let (head, framing) = parse(&line(start)).unwrap();
        assert_eq!((&head.method, head.scheme, framing), (method, *scheme, Framing::None), "{start}");
        assert_eq!((head.authority(), head.path()), (authority.as_bytes(), path.as_bytes()), "{start}");
    }
    for bad in [
        "GET * HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT http://a/ HTTP/1.1",
        "CONNECT a: HTTP/1.1",
        "CONNECT a:99999 HTTP/1.1",
        "CONNECT u@a:80 HTTP/1.1",
        "CONNECT :80 HTTP/1.1",
        "CONNECT a:80#b HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://b:x/ HTTP/1.1",
        "GET http://b:99999/ HTTP/1.1",
        "GET http://b:/ HTTP/1.1",
        "GET http://b%41/ HTTP/1.1",
        "GET http://b<c/ HTTP/1.1",
        // RFC
        "GET http://u:p@b/x HTTP/1.1",
    ] {
        refused(&line(bad), Fault::Url, 400, "http1.invalid_url");
    }
    refused(&line("GET ftp://b/x HTTP/1.1"), Fault::Scheme, 400, "http1.invalid_scheme");
    refused(&line("GET ws://b/ HTTP/1.1"), Fault::Scheme, 400, "http1.invalid_scheme");
    refused(&line("GET http://b?q HTTP/1.1"), Fault::PathNotAbsolute, 404, "absolute_path_rejected");
    let opts = RequestOptions { allow_absolute_url: false, ..RequestOptions::default() };
    assert_eq!(parse_with(&line("GET http://b/x HTTP/1.1"), &opts).err(), Some(Fault::PathNotAbsolute));
    assert!(parse_with(&line("CONNECT b:80 HTTP/1.1"), &opts).is_ok());
}

#[test]
fn framing() {
    let taken: &[(&str, Framing)] = &[
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::Length(0)),
        ("Content-Length: 0003\r\n", Framing::Length(3)),
        ("Content-Length: 3 \t\r\n", Framing::Length(3)),
        ("Content-Length: 9223372036854775807\r\n", Framing::Length(i64::MAX as u64)),
        ("Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX)),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
        ("Transfer-Encoding:   CHunked  \r\n", Framing::Chunked),
    ];
    for (fields, framing) in taken {
        for method in ["GET", "POST", "HEAD", "TRACE", "DELETE"] {
            let bytes = request(&format!("{method} / HTTP/1.1"), &format!("{HOST}{fields}"));
            assert_eq!(parse(&bytes).unwrap().1, *framing, "{method} {fields:?}");
        }
    }
}

#[test]
fn bad_framing_is_refused() {
    for value in [
        "",
        "-1",
        "+3",
        "0x3",
        "a",
        "1 2",
        "3,3",
        "3, 3",
        "3,4",
        "3.0",
        "18446744073709551616",
        "3;",
        "\"3\"",
        "1e2",
        "٣",
    ] {
        refused(
            &post(&format!("Content-Length: {value}\r\n")),
            Fault::ContentLength,
            400,
            "http1.codec_error",
        );
    }
    for second in ["3", "4"] {
        let fields = format!("Content-Length: 3\r\nContent-Length: {second}\r\n");
        refused(&post(&fields), Fault::ContentLengthRepeated, 400, "http1.codec_error");
    }
    for value in [
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "identity",
        "chunked, chunked",
        "",
        ",chunked",
        "chunked,",
        "\"chunked\"",
        "xchunked",
        "chunked;q=1",
        "identity, chunked",
        "chunke",
        "chunked x",
        "c hunked",
    ] {
        let fields = format!("Transfer-Encoding: {value}\r\n");
        refused(&post(&fields), Fault::TransferEncodingUnknown, 501, "http1.invalid_transfer_encoding");
    }
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
    refused(&post(twice), Fault::TransferEncodingUnknown, 501, "http1.invalid_transfer_encoding");
    let mixed = "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n";
    refused(&post(mixed), Fault::TransferEncodingUnknown, 501, "http1.invalid_transfer_encoding");
    for both in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 3\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let details = "http1.content_length_and_chunked_not_allowed";
        refused(&post(both), Fault::ContentLengthWithTransferEncoding, 400, details);
    }
}

#[test]
fn connect_has_no_body() {
    let connect = |fields: &str| request("CONNECT a:80 HTTP/1.1", &format!("{HOST}{fields}"));
    refused(&connect("Content-Length: 3\r\n"), Fault::BodyNotAllowed, 400, "http1.body_disallowed");
    let coding = "Transfer-Encoding: chunked\r\n";
    refused(&connect(coding), Fault::TransferEncodingUnknown, 501, "http1.invalid_transfer_encoding");
    assert_eq!(parse(&connect("Content-Length: 0\r\n")).unwrap().1, Framing::None);
}

#[test]
fn chunked_length_is_dropped_on_demand() {
    let opts = RequestOptions { allow_chunked_length: true, ..RequestOptions::default() };
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n",
    ] {
        let (head, framing) = parse_with(&post(fields), &opts).unwrap();
        assert_eq!(framing, Framing::Chunked);
        assert!(!head.headers.contains("content-length"));
    }
    let repeated = "Transfer-Encoding: chunked\r\nContent-Length: 7\r\nContent-Length: 8\r\n";
    assert_eq!(parse_with(&post(repeated), &opts).err(), Some(Fault::ContentLengthRepeated));
    let unknown = "Transfer-Encoding: gzip, chunked\r\nContent-Length: 7\r\n";
    assert_eq!(parse_with(&post(unknown), &opts).err(), Some(Fault::TransferEncodingUnknown));
}

#[test]
fn http10_on_demand() {
    let opts = RequestOptions { allow_http10: true, ..RequestOptions::default() };
    let default_host = RequestOptions { default_host: "dflt".to_owned(), ..opts.clone() };
    let http10 = |fields: &str| request("POST / HTTP/1.0", fields);
    let (head, framing) = parse_with(&http10("Host: a\r\nContent-Length: 3\r\n"), &opts).unwrap();
    assert_eq!((head.version, head.authority(), framing), (Version::Http10, &b"a"[..], Framing::Length(3)));
    assert_eq!(parse_with(&http10(""), &opts).err(), Some(Fault::HostMissing));
    assert_eq!(parse_with(&http10(""), &default_host).unwrap().0.authority(), b"dflt");
    let absolute = request("GET http://b/ HTTP/1.0", "");
    assert_eq!(parse_with(&absolute, &default_host).unwrap().0.authority(), b"b");
    assert_eq!(parse_with(&request("GET / HTTP/1.1", ""), &default_host).err(), Some(Fault::HostMissing));
    // RFC
    let chunked = http10("Host: a\r\nTransfer-Encoding: chunked\r\n");
    assert_eq!(parse_with(&chunked, &opts).err(), Some(Fault::TransferEncodingInHttp10));
    assert_eq!(parse_with(&line("GET / HTTP/1.2"), &opts).err(), Some(Fault::VersionUnserved));
    assert_eq!(parse_with(b"GET /\r\n\r\n", &opts).err(), Some(Fault::VersionUnserved));
}

#[test]
fn limits() {
    let opts = RequestOptions { max_bytes: 1_024, ..RequestOptions::default() };
    let of_len = |len: usize| get(&format!("A: {}\r\n", "b".repeat(len - get("A: \r\n").len())));
    assert!(parse_with(&of_len(1_024), &opts).is_ok());
    assert_eq!(parse_with(&of_len(1_025), &opts).err(), Some(Fault::HeadersTooLarge));
    let mut head = RequestHead::new();
    let endless = [b"GET /".to_vec(), b"a".repeat(2_000)].concat();
    assert_eq!(parse_request(&endless[..1_023], &opts, &mut head), Ok(None));
    assert_eq!(
        parse_request(&endless[..1_024], &opts, &mut head),
        Err(Fault::HeadersTooLarge),
        "also while incomplete"
    );
    assert_eq!(
        (Fault::HeadersTooLarge.status(), Fault::HeadersTooLarge.details()),
        (431, "http1.headers_too_large")
    );
    assert!(parse(&get(&"A: b\r\n".repeat(99))).is_ok());
    refused(&get(&"A: b\r\n".repeat(100)), Fault::HeadersTooMany, 431, "http1.too_many_headers");
    let many = RequestOptions { max_count: 2_000, ..RequestOptions::default() };
    assert_eq!(parse_with(&get(&"A: b\r\n".repeat(1_999)), &many).unwrap().0.headers.len(), 1_999);
}

#[test]
fn connection_nominations() {
    let nominate = |names: &[String]| get(&format!("Connection: {}\r\n", names.join(", ")));
    let names: Vec<String> = (0..10).map(|index| format!("a{index}")).collect();
    assert!(parse(&nominate(&names[..9])).is_ok());
    refused(&nominate(&names), Fault::ConnectionNominates, 400, "http1.connection_header_rejected");
    for name in ["x-forwarded-for", "X-Forwarded-Proto", "x-forwarded-host", ":path"] {
        refused(
            &nominate(&[name.to_owned()]),
            Fault::ConnectionNominates,
            400,
            "http1.connection_header_rejected",
        );
    }
}

#[test]
fn underscores() {
    let bytes = get("a_b: 1\r\nc: 2\r\n");
    let with = |underscores| parse_with(&bytes, &RequestOptions { underscores, ..RequestOptions::default() });
    assert_eq!(with(UnderscoresAction::Allow).unwrap().0.headers.len(), 2);
    assert_eq!(with(UnderscoresAction::Drop).unwrap().0.headers.len(), 1);
    assert_eq!(with(UnderscoresAction::Reject).err(), Some(Fault::Underscore));
    assert_eq!(
        (Fault::Underscore.status(), Fault::Underscore.details()),
        (400, "http1.unexpected_underscore")
    );
}

#[test]
fn spelling_is_kept_on_demand() {
    let opts = RequestOptions { preserve_case: true, ..RequestOptions::default() };
    let (head, _) = parse_with(b"GET / HTTP/1.1\r\nhOsT: a\r\nX-CaMeL: 1\r\n\r\n", &opts).unwrap();
    assert_eq!(head.host_spelling(), b"hOsT");
    assert_eq!(head.headers.iter_spelled().next(), Some((&b"X-CaMeL"[..], &b"1"[..])));
}

#[test]
fn a_head_is_reused() {
    let mut head = RequestHead::new();
    let opts = RequestOptions::default();
    parse_request(b"POST /long/path HTTP/1.1\r\nHost: first\r\nA: b\r\n\r\n", &opts, &mut head).unwrap();
    parse_request(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", &opts, &mut head).unwrap();
    let mut fresh = RequestHead::new();
    parse_request(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", &opts, &mut fresh).unwrap();
    assert_eq!(head, fresh);
}

#[test]
fn every_intended_difference_is_a_400() {
    for difference in INTENDED_DIFFERENCES {
        let expected = if difference.fault == Fault::VersionUnserved { 426 } else { 400 };
        assert_eq!(difference.fault.status(), expected, "{difference:?}");
    }
}
