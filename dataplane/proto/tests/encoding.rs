//! What goes out, byte by byte. The requests are as Envoy 1.40 sends them, without the fields it adds.

use culvert_model::HeaderCase;
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead,
    h1::{
        Framing, RequestOptions, encode_chunk_header, encode_continue, encode_last_chunk, encode_request,
        encode_response, parse_request, push_decimal, reason_phrase, remove_hop_by_hop,
    },
};

fn forwarded(wire: &str, case: HeaderCase) -> String {
    let opts = RequestOptions { preserve_case: case == HeaderCase::Preserve, ..RequestOptions::default() };
    let mut head = RequestHead::new();
    let (_, framing) = parse_request(wire.as_bytes(), &opts, &mut head).unwrap().unwrap();
    remove_hop_by_hop(&mut head.headers, false);
    let mut out = Vec::new();
    encode_request(&head, framing, case, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn requests() {
    for (fields, method, expected) in [
        ("", "GET", ""),
        ("Transfer-Encoding: chunked\r\n", "GET", "transfer-encoding: chunked\r\n"),
        ("Content-Length: 3\r\n", "GET", "content-length: 3\r\n"),
        ("", "POST", "content-length: 0\r\n"),
        ("", "PUT", "content-length: 0\r\n"),
        ("", "PATCH", "content-length: 0\r\n"),
        ("", "PROPFIND", "content-length: 0\r\n"),
        ("", "OPTIONS", "content-length: 0\r\n"),
        ("", "DELETE", ""),
        ("", "TRACE", ""),
        ("", "HEAD", ""),
        ("Content-Length: 0\r\n", "GET", "content-length: 0\r\n"),
        ("Connection: te\r\nTE: trailers\r\n", "GET", "te: trailers\r\n"),
        ("TE: trailers, gzip\r\n", "GET", "te: trailers\r\n"),
        (
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
            "POST",
            "transfer-encoding: chunked\r\n",
        ),
        ("Connection: foo, keep-alive\r\nFoo: 1\r\nBar: 2\r\n", "GET", "bar: 2\r\n"),
        ("Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTrailer: A\r\n", "GET", "trailer: A\r\n"),
        ("Upgrade: websocket\r\n", "GET", ""),
        ("A: 1\r\nB: 2\r\nA: 3\r\n", "GET", "a: 1\r\nb: 2\r\na: 3\r\n"),
        ("A: \t 1 \t\r\nB:\r\n", "GET", "a: 1\r\nb: \r\n"),
        ("A: 1\r\nContent-Length: 3\r\nB: 2\r\n", "POST", "a: 1\r\ncontent-length: 3\r\nb: 2\r\n"),
        // Envoy keeps the zeros.
        ("Content-Length: 0003\r\n", "POST", "content-length: 3\r\n"),
    ] {
        let wire = format!("{method} /p?q HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let expected = format!("{method} /p?q HTTP/1.1\r\nhost: a\r\n{expected}\r\n");
        assert_eq!(forwarded(&wire, HeaderCase::Lower), expected, "{wire:?}");
    }
    let nominated = "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\n";
    let expected = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n";
    assert_eq!(forwarded(nominated, HeaderCase::Lower), expected, "a nominated length is still the length");
    let absolute = forwarded("GET http://B.c:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n", HeaderCase::Lower);
    assert_eq!(absolute, "GET /x?y HTTP/1.1\r\nhost: B.c:80\r\n\r\n");
    let connect = forwarded("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", HeaderCase::Lower);
    assert_eq!(connect, "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n");
}

#[test]
fn spelling() {
    let wire = "POST / HTTP/1.1\r\nHOST: a\r\nx-ONE: 1\r\nfoo$b#ar_baz: 2\r\ncontent-LENGTH: 3\r\n\r\n";
    for (case, expected) in [
        (HeaderCase::Lower, "host: a\r\nx-one: 1\r\nfoo$b#ar_baz: 2\r\ncontent-length: 3\r\n"),
        (HeaderCase::Preserve, "HOST: a\r\nx-ONE: 1\r\nfoo$b#ar_baz: 2\r\ncontent-LENGTH: 3\r\n"),
        (HeaderCase::Proper, "Host: a\r\nX-One: 1\r\nFoo$B#Ar_Baz: 2\r\nContent-Length: 3\r\n"),
    ] {
        assert_eq!(forwarded(wire, case), format!("POST / HTTP/1.1\r\n{expected}\r\n"));
    }
}

#[test]
fn an_upgrade_is_passed_on() {
    let mut head = RequestHead::new();
    let wire =
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
    let (_, framing) = parse_request(wire, &RequestOptions::default(), &mut head).unwrap().unwrap();
    remove_hop_by_hop(&mut head.headers, true);
    let mut out = Vec::new();
    encode_request(&head, framing, HeaderCase::Lower, &mut out);
    let expected = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn responses() {
    for (status, fields, framing, expected) in [
        (200, &[][..], Framing::Length(0), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (200, &[("content-length", "9")], Framing::Length(3), "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"),
        (
            200,
            &[("content-length", "9")],
            Framing::Chunked,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (200, &[("content-length", "9"), ("a", "b")], Framing::UntilClose, "HTTP/1.1 200 OK\r\na: b\r\n\r\n"),
        (200, &[("transfer-encoding", "chunked")], Framing::UntilClose, "HTTP/1.1 200 OK\r\n\r\n"),
        (
            404,
            &[("content-length", "9")],
            Framing::None,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
        ),
        (
            304,
            &[("content-length", "9")],
            Framing::None,
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        ),
        (204, &[("content-length", "0")], Framing::None, "HTTP/1.1 204 No Content\r\n\r\n"),
        (204, &[], Framing::Length(0), "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            103,
            &[("link", "x"), ("content-length", "9")],
            Framing::None,
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
        ),
        (
            101,
            &[("connection", "upgrade"), ("upgrade", "websocket")],
            Framing::Tunnel,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ),
        (200, &[("content-length", "9")], Framing::Tunnel, "HTTP/1.1 200 OK\r\n\r\n"),
        (999, &[], Framing::Length(1), "HTTP/1.1 999 Unknown\r\ncontent-length: 1\r\n\r\n"),
    ] {
        let mut head = ResponseHead::new();
        head.set_status(status);
        for (name, value) in fields {
            head.headers.push(name, value);
        }
        let mut out = Vec::new();
        encode_response(&head, framing, HeaderCase::Lower, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
    let mut out = Vec::new();
    encode_continue(&mut out);
    assert_eq!(out, b"HTTP/1.1 100 Continue\r\n\r\n");
}

#[test]
fn chunks() {
    for (len, expected) in [
        (0, String::new()),
        (1, "1\r\n".to_owned()),
        (15, "f\r\n".to_owned()),
        (16, "10\r\n".to_owned()),
        (0xab_cdef, "abcdef\r\n".to_owned()),
        (usize::MAX, format!("{:x}\r\n", usize::MAX)),
    ] {
        let mut out = Vec::new();
        encode_chunk_header(len, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
    let mut trailers = Headers::new();
    let mut out = Vec::new();
    encode_last_chunk(&trailers, HeaderCase::Lower, &mut out);
    assert_eq!(out, b"0\r\n\r\n");
    trailers.push("Grpc-Status", "0");
    trailers.push("content-length", "3");
    trailers.push("transfer-encoding", "chunked");
    out.clear();
    encode_last_chunk(&trailers, HeaderCase::Proper, &mut out);
    assert_eq!(out, b"0\r\nGrpc-Status: 0\r\n\r\n");
}

#[test]
fn numbers() {
    for number in [0, 1, 9, 10, 99, 100, 65_535, u64::from(u32::MAX), u64::MAX] {
        let mut out = b"n=".to_vec();
        push_decimal(number, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("n={number}"));
    }
}

#[test]
fn reasons() {
    for (status, reason) in [
        (200, "OK"),
        (301, "Moved Permanently"),
        (431, "Request Header Fields Too Large"),
        (503, "Service Unavailable"),
        (299, "Unknown"),
        (0, "Unknown"),
    ] {
        assert_eq!(reason_phrase(status), reason);
    }
}

#[test]
fn steady_state_needs_no_memory() {
    let wire = b"POST /path?query HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\nContent-Length: 3\r\n\r\n";
    let mut head = RequestHead::new();
    let mut out = Vec::new();
    let mut held = None;
    for _ in 0..100 {
        let (_, framing) = parse_request(wire, &RequestOptions::default(), &mut head).unwrap().unwrap();
        remove_hop_by_hop(&mut head.headers, false);
        head.headers.set("x-request-id", "0123456789");
        out.clear();
        encode_request(&head, framing, HeaderCase::Lower, &mut out);
        let now = (head.headers.allocated_bytes(), out.capacity());
        assert_eq!(*held.get_or_insert(now), now);
    }
    assert_eq!(head.method, Method::Post);
}
