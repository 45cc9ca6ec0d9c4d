//! Request smuggling: whatever the trick, a request is either refused or means one thing only.

use culvert_model::HeaderCase;
use culvert_proto::{
    RequestHead,
    h1::{BodyDecoder, BodyLimits, Fault, Framing, RequestOptions, Step, encode_request, parse_request},
};

fn parse(bytes: &[u8]) -> Result<Option<(RequestHead, usize, Framing)>, Fault> {
    let mut head = RequestHead::new();
    let found = parse_request(bytes, &RequestOptions::default(), &mut head)?;
    Ok(found.map(|(consumed, framing)| (head, consumed, framing)))
}

/// Ways to write `transfer-encoding: chunked` that one server reads and another does not.
const DISGUISES: &[&str] = &[
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
    "Transfer-Encoding:\x0cchunked\r\n",
    "Transfer-Encoding: \x00chunked\r\n",
    "Transfer-Encoding: chunked\x00\r\n",
    "Transfer-Encoding: chunked\x0b\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: 'chunked'\r\n",
    "Transfer-Encoding: chunked;a=b\r\n",
    "Transfer-Encoding: chunked;\r\n",
    "Transfer-Encoding: ,chunked\r\n",
    "Transfer-Encoding: chunked,\r\n",
    "Transfer-Encoding: chunk\r\n",
    "Transfer-Encoding: chunkedd\r\n",
    "Transfer-Encoding: c\u{212a}hunked\r\n",
    "Transfer-Encoding: chun\u{212a}ed\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding:\r\n\tchunked\r\n",
    "Transfer-Encoding: chunked\r\n x\r\n",
    "Transfer-Encoding: \r\n chunked\r\n",
    "Transfer-Encoding:\n chunked\r\n",
    "Transfer-Encoding: chunked\n",
    "Transfer-Encoding: chunked\r",
    "Transfer-Encoding\r\n: chunked\r\n",
    "Transfer-Encoding\n: chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "\tTransfer-Encoding: chunked\r\n",
    "X: x\r\n Transfer-Encoding: chunked\r\n",
    "X: x\nTransfer-Encoding: chunked\r\n",
    "X: x\rTransfer-Encoding: chunked\r\n",
    "X: x\r\r\nTransfer-Encoding: chunked\r\n",
    "X: x\r\n\rTransfer-Encoding: chunked\r\n",
    "X\x00: x\r\nTransfer-Encoding: chunked\r\n",
    "\r\rTransfer-Encoding: chunked\r\n",
    ": x\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, gzip\r\n",
    "Transfer-Encoding: \r\n",
    "Transfer-Encoding:\r\n",
    "Transfer-Encoding: chunked chunked\r\n",
    "Transfer-Encoding: chunked\x7f\r\n",
    "Transfer-\x01Encoding: chunked\r\n",
    "Transfer-Encoding\u{a0}: chunked\r\n",
    "Transfer\u{2010}Encoding: chunked\r\n",
    "Transfer-Encoding;: chunked\r\n",
    "Transfer-Encoding=: chunked\r\n",
    "Transfer-Encoding chunked\r\n",
];

/// Ways to write `content-length` that one server reads and another does not.
const LENGTHS: &[&str] = &[
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 5,6\r\n",
    "Content-Length: 5 6\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: -5\r\n",
    "Content-Length: 0x5\r\n",
    "Content-Length: 5.\r\n",
    "Content-Length: 5e0\r\n",
    "Content-Length: 5_0\r\n",
    "Content-Length: \"5\"\r\n",
    "Content-Length: \r\n",
    "Content-Length:\r\n",
    "Content-Length: 5\x00\r\n",
    "Content-Length: \x0b5\r\n",
    "Content-Length : 5\r\n",
    "Content-Length\t: 5\r\n",
    " Content-Length: 5\r\n",
    "Content-Length: 5\r\n 6\r\n",
    "Content-Length:\r\n 5\r\n",
    "Content-Length: 5\n",
    "Content-Length: 5\rX: y\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length: 99999999999999999999999\r\n",
    "Content-Length: 5;\r\n",
    "Content-Length: five\r\n",
    "Content-Length: \u{ff15}\r\n",
    "Content-Length: 5\u{a0}\r\n",
    "Content-Length\x00: 5\r\n",
];

fn post(fields: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        .into_bytes()
}

#[track_caller]
fn refused(bytes: &[u8]) {
    let shown = String::from_utf8_lossy(bytes);
    match parse(bytes) {
        Err(fault) => assert!(matches!(fault.status(), 400 | 501), "{shown:?}: {fault}"),
        Ok(found) => panic!("{shown:?} is taken: {found:?}"),
    }
}

#[test]
fn disguised_codings_are_refused() {
    for disguise in DISGUISES {
        refused(&post(disguise));
        for length in ["Content-Length: 4\r\n", "content-length: 0\r\n"] {
            refused(&post(&format!("{length}{disguise}")));
            refused(&post(&format!("{disguise}{length}")));
        }
    }
}

#[test]
fn disguised_lengths_are_refused() {
    for length in LENGTHS {
        refused(&post(length));
        refused(&post(&format!("{length}Transfer-Encoding: chunked\r\n")));
        refused(&post(&format!("Transfer-Encoding: chunked\r\n{length}")));
    }
}

/// Names that are not the framing fields must not be taken for them, by us or by the next.
#[test]
fn similar_names_are_ordinary_fields() {
    for name in [
        "Transfer_Encoding",
        "Content_Length",
        "X-Transfer-Encoding",
        "Content-Lengt",
        "Transfer-Encoding-",
        "Content-Length-X",
    ] {
        let (head, _, framing) = parse(&post(&format!("{name}: chunked\r\n"))).unwrap().unwrap();
        assert_eq!(framing, Framing::None, "{name}");
        let mut out = Vec::new();
        encode_request(&head, framing, HeaderCase::Lower, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("content-length: 0\r\n") && !text.contains("\ntransfer-encoding: chunked"),
            "{text}"
        );
    }
}

/// Where one request ends, the next begins, whatever is inside the first.
#[test]
fn a_pipeline_is_cut_in_the_right_places() {
    let inner = "GET /inner HTTP/1.1\r\nHost: x\r\n\r\n";
    let wire = format!(
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}POST /2 HTTP/1.1\r\nHost: a\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x};ext\r\n{inner}\r\n0\r\nX: y\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        inner.len(),
        inner.len()
    );
    let mut rest = wire.as_bytes();
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (head, consumed, framing) = parse(rest).unwrap().unwrap();
        rest = &rest[consumed..];
        let mut decoder = BodyDecoder::new(framing, BodyLimits::default());
        let mut body = Vec::new();
        loop {
            match decoder.decode(rest).unwrap() {
                Step::Data { skip, len } => {
                    body.extend_from_slice(&rest[skip..skip + len]);
                    rest = &rest[skip + len..];
                }
                Step::Done { skip } => {
                    rest = &rest[skip..];
                    break;
                }
                Step::More { .. } => panic!("the body is complete"),
            }
        }
        seen.push((String::from_utf8(head.path().to_vec()).unwrap(), String::from_utf8(body).unwrap()));
    }
    let expected = [("/1", inner), ("/2", inner), ("/3", "")];
    assert_eq!(seen, expected.map(|(path, body)| (path.to_owned(), body.to_owned())));
}

/// Bodies whose end two readers would see in different places.
#[test]
fn ambiguous_chunks_are_refused() {
    for body in [
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3;a=\n\r\nabc\r\n",
        "3;a\rb\r\nabc\r\n",
        "0x3\r\nabc\r\n",
        "+3\r\nabc\r\n",
        "-3\r\nabc\r\n",
        " 3\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "3\t\r\nabc\r\n",
        "3 3\r\nabc\r\n",
        "3,\r\nabc\r\n",
        "3.0\r\nabc\r\n",
        "3_\r\nabc\r\n",
        "\u{ff13}\r\nabc\r\n",
        "\r\n3\r\nabc\r\n",
        "3\r\r\nabc\r\n",
        "3\x00\r\nabc\r\n",
        "3\x0b\r\nabc\r\n",
        "10000000000000003\r\nabc\r\n",
        "fffffffffffffffff\r\nabc\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nX: y\r\n z\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\nX\r\n\r\n",
        "0\r\n\n",
        "0\n\n",
        "0\r\n\rX: y\r\n\r\n",
        "0\r\nX: y\rZ: a\r\n\r\n",
    ] {
        let mut decoder = BodyDecoder::new(Framing::Chunked, BodyLimits::default());
        let mut rest = body.as_bytes();
        let fault = loop {
            match decoder.decode(rest) {
                Ok(Step::Data { skip, len }) => rest = &rest[skip + len..],
                Ok(step) => panic!("{body:?}: {step:?}"),
                Err(fault) => break fault,
            }
        };
        assert_eq!(fault.status(), 400, "{body:?}: {fault}");
    }
}
