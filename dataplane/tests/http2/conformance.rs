//! The cases of h2spec (RFC 9113 and RFC 7541 as a server meets them), by its numbers and as frames of our own: 146, so
//! that no build of it is needed. `scripts/peers` runs the program itself where there is one.

use std::{io, thread};

use crate::{
    http1, on_each,
    peer::{
        CONTINUATION, DATA, Frame, GET_ROOT as GET, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, frame,
    },
    support::upstream::Upstream,
};

const PUSH_PROMISE: u8 = 5;
/// A type that no RFC has.
const UNKNOWN: u8 = 0x16;

// Flags.
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;
/// A whole request without a body.
const WHOLE: u8 = END_STREAM | END_HEADERS;

// Error codes (RFC 9113 7).
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION: u32 = 9;

// Settings.
const ENABLE_PUSH: u8 = 2;
const INITIAL_WINDOW: u8 = 4;
const MAX_FRAME: u8 = 5;

/// `POST /` of `test`.
const POST: &[u8] = b"\x83\x86\x84\x41\x04test";
const HEAD: &[u8] = b"\x02\x04HEAD\x86\x84\x41\x04test";
/// The limit that the test configures.
const STREAMS: u32 = 10;
const MARK: &[u8; 8] = b"conforms";

enum Step {
    Send(Vec<u8>),
    /// Waits for the end of the answer on that stream.
    Answered(u32),
    /// Waits for the head of the answer on stream 1.
    Head,
    /// The next DATA frame has this length.
    Data(usize),
}
use Step::{Answered, Data, Head, Send};

enum Then {
    /// A whole answer on that stream.
    Answer(u32),
    /// A ping is answered.
    Alive,
    /// Settings are acknowledged.
    Acked,
    /// A connection error of one of these codes.
    Dead(&'static [u32]),
    /// The same, or the stream is reset with one of these codes.
    Refused(&'static [u32]),
    /// The connection ends, however; or it lives on.
    Either,
    /// What the steps say suffices.
    Done,
}
use Then::{Acked, Alive, Answer, Dead, Done, Either, Refused};

struct Case(&'static str, Vec<Step>, Then);

/// A case that sends its frames at once.
fn case(name: &'static str, frames: &[Vec<u8>], then: Then) -> Case {
    Case(name, vec![Send(frames.concat())], then)
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}
fn get(stream: u32) -> Vec<u8> {
    headers(WHOLE, stream, GET)
}
/// A request whose body follows.
fn post(stream: u32) -> Vec<u8> {
    headers(END_HEADERS, stream, POST)
}
fn data(flags: u8, stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}
fn continuation(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(CONTINUATION, flags, stream, block)
}
/// `on`: a stream, or 0x8000_0000 and a stream for an exclusive dependency. `weight` is one less than it means.
fn priority(stream: u32, on: u32, weight: u8) -> Vec<u8> {
    frame(PRIORITY, 0, stream, &[&on.to_be_bytes()[..], &[weight]].concat())
}
fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}
fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}
fn setting(name: u8, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, name][..], &value.to_be_bytes()].concat())
}
fn goaway(stream: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, stream, &[&[0; 4][..], &code.to_be_bytes()].concat())
}
/// A field with both parts spelt out, in no table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}
fn with(block: &[u8], more: &[u8]) -> Vec<u8> {
    [block, more].concat()
}

fn generic() -> Vec<Case> {
    let half_closed = |more: Vec<u8>| vec![get(1), more];
    let prioritized = |on: u32, weight: u8| {
        headers(WHOLE | PRIORITIZED, 1, &[&on.to_be_bytes()[..], &[weight], GET].concat())
    };
    let mut cases = vec![
        case("generic 1/1", &[], Alive),
        case("generic 2/1", &[priority(1, 0, 255), get(1)], Answer(1)),
        case("generic 2/2", &half_closed(window(1, 1)), Answer(1)),
        case("generic 2/3", &half_closed(priority(1, 0, 255)), Answer(1)),
        case("generic 2/4", &half_closed(reset(1, 8)), Alive),
        Case("generic 2/5", vec![Send(get(1)), Answered(1), Send(priority(1, 0, 255))], Alive),
        case("generic 3.1/1", &[post(1), data(END_STREAM, 1, b"test")], Answer(1)),
        case("generic 3.1/2", &[post(1), data(0, 1, b"test"), data(END_STREAM, 1, b"test")], Answer(1)),
        case("generic 3.1/3", &[post(1), data(END_STREAM | PADDED, 1, b"\x03test\0\0\0")], Answer(1)),
        case("generic 3.2/1", &[get(1)], Answer(1)),
        case(
            "generic 3.2/2",
            &[headers(WHOLE | PADDED, 1, &[&b"\x02"[..], GET, b"\0\0"].concat())],
            Answer(1),
        ),
        case("generic 3.2/3", &[prioritized(0, 255)], Answer(1)),
        case("generic 3.3/1", &[priority(1, 0, 0), get(1)], Answer(1)),
        case("generic 3.3/2", &[priority(1, 0, 255), get(1)], Answer(1)),
        case("generic 3.3/3", &[priority(1, 3, 255), get(1)], Answer(1)),
        case("generic 3.3/4", &[priority(1, 0x8000_0003, 255), get(1)], Answer(1)),
        case("generic 3.3/5", &[priority(3, 0, 255), get(1)], Answer(1)),
        case("generic 3.4/1", &[post(1), reset(1, 8)], Alive),
        case("generic 3.5/1", &[setting(3, 100)], Acked),
        case("generic 3.7/1", &[], Alive),
        case("generic 3.8/1", &[goaway(0, 0)], Either),
        case("generic 3.9/1", &[window(0, 1)], Alive),
        case("generic 3.9/2", &[get(1), window(1, 1)], Answer(1)),
        case(
            "generic 3.10/1",
            &[headers(END_STREAM, 1, &GET[..3]), continuation(END_HEADERS, 1, &GET[3..])],
            Answer(1),
        ),
        case(
            "generic 3.10/2",
            &[
                headers(END_STREAM, 1, &GET[..3]),
                continuation(0, 1, &GET[3..5]),
                continuation(END_HEADERS, 1, &GET[5..]),
            ],
            Answer(1),
        ),
        case("generic 4/1", &[get(1)], Answer(1)),
        case("generic 4/2", &[headers(WHOLE, 1, HEAD)], Answer(1)),
        case("generic 4/3", &[post(1), data(END_STREAM, 1, b"test")], Answer(1)),
        case(
            "generic 4/4",
            &[post(1), data(0, 1, b"test"), headers(WHOLE, 1, &field("x-test", "ok"))],
            Answer(1),
        ),
    ];
    // Representations of fields (RFC 7541 6), the Huffman codes from its appendix C.
    let blocks: [(&str, &[u8]); 13] = [
        ("generic 5/1", b"\x90"),
        ("generic 5/2", b"\x7a\x04test"),
        ("generic 5/3", b"\x7a\x86\xa8\xeb\x10\x64\x9c\xbf"),
        ("generic 5/4", b"\x40\x04test\x02ok"),
        ("generic 5/5", b"\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
        ("generic 5/6", b"\x0f\x2b\x04test"),
        ("generic 5/7", b"\x0f\x2b\x86\xa8\xeb\x10\x64\x9c\xbf"),
        ("generic 5/8", b"\x00\x04test\x02ok"),
        ("generic 5/9", b"\x00\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
        ("generic 5/10", b"\x1f\x2b\x04test"),
        ("generic 5/11", b"\x1f\x2b\x86\xa8\xeb\x10\x64\x9c\xbf"),
        ("generic 5/12", b"\x10\x04test\x02ok"),
        ("generic 5/13", b"\x10\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
    ];
    cases.extend(blocks.map(|(name, more)| case(name, &[headers(WHOLE, 1, &with(GET, more))], Answer(1))));
    cases.push(case("generic 5/14", &[headers(WHOLE, 1, &with(b"\x20", GET))], Answer(1)));
    cases.push(case("generic 5/15", &[headers(WHOLE, 1, &with(b"\x20\x3f\xe1\x1f", GET))], Answer(1)));
    cases
}

fn frames() -> Vec<Case> {
    let closed = |more: Vec<u8>, codes| (vec![Send(get(1)), Answered(1), Send(more)], Refused(codes));
    let was_reset = |more: Vec<u8>| [post(1), reset(1, 8), more];
    let depends_on_itself = headers(WHOLE | PRIORITIZED, 1, &[&[0, 0, 0, 1, 255][..], GET].concat());
    let many: Vec<Vec<u8>> = (0..=STREAMS).map(|n| post(2 * n + 1)).collect();
    let fragment = || headers(END_STREAM, 1, &GET[..3]);
    let mut cases = vec![
        case("3.5/1", &[], Alive),
        case("4.1/1", &[frame(UNKNOWN, 0, 0, &[0; 8])], Alive),
        case("4.1/2", &[frame(PING, 0x16, 0, &[0; 8])], Alive),
        case("4.1/3", &[frame(PING, 0, 0x8000_0000, &[0; 8])], Alive),
        case("4.2/1", &[post(1), data(END_STREAM, 1, &[0; 16_384])], Answer(1)),
        case("4.2/2", &[post(1), data(END_STREAM, 1, &[0; 16_385])], Refused(&[FRAME_SIZE])),
        case(
            "4.2/3",
            &[headers(WHOLE, 1, &with(GET, &field("x-test", &"a".repeat(126)).repeat(130)))],
            Dead(&[FRAME_SIZE]),
        ),
        case("4.3/1", &[headers(WHOLE, 1, &[0x40])], Dead(&[COMPRESSION])),
        case("4.3/2", &[fragment(), priority(1, 0, 255)], Dead(&[PROTOCOL])),
        case("4.3/3", &[fragment(), get(3)], Dead(&[PROTOCOL])),
        case("5.1/1", &[data(END_STREAM, 1, b"test")], Dead(&[PROTOCOL, STREAM_CLOSED])),
        case("5.1/2", &[reset(1, 8)], Dead(&[PROTOCOL])),
        case("5.1/3", &[window(1, 100)], Dead(&[PROTOCOL])),
        case("5.1/4", &[continuation(END_HEADERS, 1, GET)], Dead(&[PROTOCOL])),
        case("5.1/5", &[get(1), data(END_STREAM, 1, b"test")], Refused(&[STREAM_CLOSED])),
        case("5.1/6", &[get(1), get(1)], Refused(&[STREAM_CLOSED])),
        case("5.1/7", &[get(1), continuation(END_HEADERS, 1, GET)], Refused(&[STREAM_CLOSED, PROTOCOL])),
        case("5.1/8", &was_reset(data(END_STREAM, 1, b"test")), Refused(&[STREAM_CLOSED])),
        case("5.1/9", &was_reset(get(1)), Refused(&[STREAM_CLOSED])),
        case("5.1/10", &was_reset(continuation(END_HEADERS, 1, GET)), Refused(&[STREAM_CLOSED, PROTOCOL])),
        case("5.1.1/1", &[get(2)], Dead(&[PROTOCOL])),
        case("5.1.1/2", &[get(5), get(3)], Dead(&[PROTOCOL])),
        case("5.1.2/1", &many, Refused(&[PROTOCOL, REFUSED_STREAM])),
        case("5.3.1/1", &[depends_on_itself], Refused(&[PROTOCOL])),
        case("5.3.1/2", &[priority(1, 1, 255)], Refused(&[PROTOCOL])),
        case("5.4.1/1", &[frame(PING, 0, 0, &[0; 6])], Dead(&[FRAME_SIZE])),
        case("5.5/1", &[frame(UNKNOWN, 0, 1, &[0; 8])], Alive),
        case("5.5/2", &[fragment(), frame(UNKNOWN, 0, 0, &[0; 8])], Dead(&[PROTOCOL])),
        case("6.1/1", &[data(END_STREAM, 0, b"test")], Dead(&[PROTOCOL])),
        case("6.1/2", &[get(1), data(END_STREAM, 1, b"test")], Refused(&[STREAM_CLOSED])),
        case("6.1/3", &[post(1), data(END_STREAM | PADDED, 1, b"\x06test")], Dead(&[PROTOCOL])),
        case("6.2/1", &[fragment(), priority(1, 0, 255)], Dead(&[PROTOCOL])),
        case("6.2/2", &[fragment(), get(3)], Dead(&[PROTOCOL])),
        case("6.2/3", &[get(0)], Dead(&[PROTOCOL])),
        case("6.2/4", &[headers(WHOLE | PADDED, 1, &with(b"\xff", GET))], Dead(&[PROTOCOL])),
        case("6.3/1", &[priority(0, 0, 255)], Dead(&[PROTOCOL])),
        case("6.3/2", &[post(1), frame(PRIORITY, 0, 1, &[0; 4])], Refused(&[FRAME_SIZE])),
        case("6.4/1", &[reset(0, 8)], Dead(&[PROTOCOL])),
        case("6.4/2", &[reset(1, 8)], Dead(&[PROTOCOL])),
        case("6.4/3", &[post(1), frame(RST_STREAM, 0, 1, &[0; 3])], Dead(&[FRAME_SIZE])),
        case("6.5/1", &[frame(SETTINGS, ACK, 0, &[0; 1])], Dead(&[FRAME_SIZE])),
        case("6.5/2", &[frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100])], Dead(&[PROTOCOL])),
        case("6.5/3", &[frame(SETTINGS, 0, 0, &[0, 3, 0])], Dead(&[FRAME_SIZE])),
        case("6.5.2/1", &[setting(ENABLE_PUSH, 2)], Dead(&[PROTOCOL])),
        case("6.5.2/2", &[setting(INITIAL_WINDOW, 0x8000_0000)], Dead(&[FLOW_CONTROL])),
        case("6.5.2/3", &[setting(MAX_FRAME, 16_383)], Dead(&[PROTOCOL])),
        case("6.5.2/4", &[setting(MAX_FRAME, 16_777_216)], Dead(&[PROTOCOL])),
        case("6.5.2/5", &[setting(0xff, 1)], Alive),
        case("6.5.3/2", &[setting(3, 100)], Acked),
        case("6.7/1", &[], Alive),
        case("6.7/2", &[frame(PING, ACK, 0, b"notasked")], Alive),
        case("6.7/3", &[frame(PING, 0, 1, &[0; 8])], Dead(&[PROTOCOL])),
        case("6.7/4", &[frame(PING, 0, 0, &[0; 6])], Dead(&[FRAME_SIZE])),
        case("6.8/1", &[goaway(1, 0)], Dead(&[PROTOCOL])),
        case("6.9/1", &[window(0, 0)], Dead(&[PROTOCOL])),
        case("6.9/2", &[post(1), window(1, 0)], Refused(&[PROTOCOL])),
        case("6.9/3", &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])], Dead(&[FRAME_SIZE])),
        case("6.9.1/2", &[window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)], Dead(&[FLOW_CONTROL])),
        case("6.9.1/3", &[post(1), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)], Refused(&[FLOW_CONTROL])),
        case("6.9.2/3", &[setting(INITIAL_WINDOW, 0x8000_0000)], Dead(&[FLOW_CONTROL])),
        case(
            "6.10/1",
            &[fragment(), continuation(0, 1, &GET[3..5]), continuation(END_HEADERS, 1, &GET[5..])],
            Answer(1),
        ),
        case(
            "6.10/2",
            &[fragment(), continuation(0, 1, &GET[3..]), data(END_STREAM, 1, b"test")],
            Dead(&[PROTOCOL]),
        ),
        case("6.10/3", &[fragment(), continuation(END_HEADERS, 0, &GET[3..])], Dead(&[PROTOCOL])),
        case("6.10/4", &[post(1), continuation(END_HEADERS, 1, &GET[3..])], Dead(&[PROTOCOL])),
        case(
            "6.10/5",
            &[fragment(), continuation(END_HEADERS, 1, &GET[3..]), continuation(END_HEADERS, 1, &GET[3..])],
            Dead(&[PROTOCOL]),
        ),
        case(
            "6.10/6",
            &[
                headers(0, 1, &POST[..3]),
                data(END_STREAM, 1, b"test"),
                continuation(END_HEADERS, 1, &POST[3..]),
            ],
            Dead(&[PROTOCOL]),
        ),
        case("7/1", &[goaway(0, 0xff)], Either),
        case("7/2", &[post(1), reset(1, 0xff)], Alive),
        case(
            "8.2/1",
            &[get(1), frame(PUSH_PROMISE, END_HEADERS, 1, &with(&[0, 0, 0, 3], GET))],
            Dead(&[PROTOCOL]),
        ),
    ];
    for (name, (steps, then)) in [
        ("5.1/11", closed(data(END_STREAM, 1, b"test"), &[STREAM_CLOSED])),
        ("5.1/12", closed(get(1), &[STREAM_CLOSED])),
        ("5.1/13", closed(continuation(END_HEADERS, 1, GET), &[STREAM_CLOSED, PROTOCOL])),
    ] {
        cases.push(Case(name, steps, then));
    }
    cases
}

/// Windows: DATA frames have to be as long as they allow.
fn windows() -> Vec<Case> {
    let twice = frame(SETTINGS, 0, 0, &[0, INITIAL_WINDOW, 0, 0, 0, 100, 0, INITIAL_WINDOW, 0, 0, 0, 1]);
    let is = |value| Send(setting(INITIAL_WINDOW, value));
    vec![
        Case("6.5.3/1", vec![Send(twice), Send(get(1)), Data(1)], Done),
        Case("6.9.1/1", vec![is(1), Send(get(1)), Data(1)], Done),
        Case("6.9.2/1", vec![is(0), Send(get(1)), Head, is(1), Data(1)], Done),
        Case("6.9.2/2", vec![is(3), Send(get(1)), Data(3), is(2), Send(window(1, 2)), Data(1)], Done),
    ]
}

/// Heads that are malformed (RFC 9113 8) or cannot be decompressed (RFC 7541).
fn heads() -> Vec<Case> {
    let authority = field(":authority", "test");
    let bad: [(&'static str, Vec<u8>); 13] = [
        ("8.1.2/1", with(GET, &field("X-TEST", "ok"))),
        ("8.1.2.1/1", with(&GET[..3], &field(":test", "ok"))),
        ("8.1.2.1/2", with(&GET[..3], &field(":status", "200"))),
        ("8.1.2.1/4", [&GET[..2], &field("x-test", "ok")[..], &GET[2..]].concat()),
        ("8.1.2.2/1", with(GET, &field("connection", "keep-alive"))),
        ("8.1.2.2/2", with(GET, &field("te", "trailers, deflate"))),
        ("8.1.2.3/1", with(b"\x82\x86\x04\x00", &authority)),
        ("8.1.2.3/2", with(b"\x86\x84", &authority)),
        ("8.1.2.3/3", with(b"\x82\x84", &authority)),
        ("8.1.2.3/4", with(b"\x82\x86", &authority)),
        ("8.1.2.3/5", with(b"\x82\x82\x86\x84", &authority)),
        ("8.1.2.3/6", with(b"\x82\x86\x86\x84", &authority)),
        ("8.1.2.3/7", with(b"\x82\x86\x84\x84", &authority)),
    ];
    let announced = headers(END_HEADERS, 1, &with(POST, b"\x0f\x0d\x011"));
    let trailers = headers(WHOLE, 1, &field(":method", "POST"));
    let mut cases = vec![
        case("8.1/1", &[post(1), headers(END_HEADERS, 1, &field("x-test", "ok"))], Refused(&[PROTOCOL])),
        case("8.1.2.1/3", &[post(1), data(0, 1, b"test"), trailers], Refused(&[PROTOCOL])),
        case("8.1.2.6/1", &[announced.clone(), data(END_STREAM, 1, b"test")], Refused(&[PROTOCOL])),
        case(
            "8.1.2.6/2",
            &[announced, data(0, 1, b"test"), data(END_STREAM, 1, b"test")],
            Refused(&[PROTOCOL]),
        ),
    ];
    cases.extend(bad.map(|(name, block)| case(name, &[headers(WHOLE, 1, &block)], Refused(&[PROTOCOL]))));
    // An `a` is 0x1f when Huffman coded: five bits and three of padding.
    let undecodable: [(&str, &[u8]); 8] = [
        ("hpack 2.3.3/1", b"\xc6"),
        ("hpack 2.3.3/2", b"\x7f\x07\x00"),
        ("hpack 4.2/1", b"\x21"),
        ("hpack 5.2/1", b"\x00\x01a\x82\x1f\xff"),
        ("hpack 5.2/2", b"\x00\x01a\x81\x18"),
        ("hpack 5.2/3", b"\x00\x01a\x84\xff\xff\xff\xff"),
        ("hpack 6.1/1", b"\x80"),
        ("hpack 6.3/1", b"\x3f\xe1\x7f"),
    ];
    for (name, more) in undecodable {
        // Changes of the table's size belong to the front of a block; elsewhere they are wrong anyway.
        let block = if name == "hpack 6.3/1" { with(more, GET) } else { with(GET, more) };
        cases.push(case(name, &[headers(WHOLE, 1, &block)], Dead(&[COMPRESSION])));
    }
    cases
}

/// What came of a case, if it is not what should have.
fn play(port: u16, case: &Case) -> Result<(), String> {
    let mut raw = Raw::open(port);
    wait(&mut raw, |frame| frame.kind == SETTINGS && frame.flags & ACK != 0)?;
    for step in &case.1 {
        match step {
            Send(bytes) => raw.send(bytes),
            Answered(stream) => answered(&mut raw, *stream)?,
            Head => drop(wait(&mut raw, |frame| frame.kind == HEADERS && frame.stream == 1)?),
            Data(length) => {
                let frame = wait(&mut raw, |frame| frame.kind == DATA)?;
                if frame.payload.len() != *length {
                    return Err(format!("{} bytes of DATA", frame.payload.len()));
                }
            }
        }
    }
    match &case.2 {
        Answer(stream) => answered(&mut raw, *stream),
        Alive => ping(&mut raw),
        Acked => wait(&mut raw, |frame| frame.kind == SETTINGS && frame.flags & ACK != 0).map(drop),
        Dead(codes) => ends(&mut raw, codes, false),
        Refused(codes) => ends(&mut raw, codes, true),
        Either => match ping(&mut raw) {
            Err(text) if text != "the connection ended" => Err(text),
            _ => Ok(()),
        },
        Done => Ok(()),
    }
}

/// `None` when the connection has ended.
fn next(raw: &mut Raw) -> Result<Option<Frame>, String> {
    match raw.next() {
        Ok(frame) => Ok(Some(frame)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            Ok(None)
        }
        Err(error) => Err(format!("nothing came: {error}")),
    }
}

fn wait(raw: &mut Raw, wanted: impl Fn(&Frame) -> bool) -> Result<Frame, String> {
    loop {
        match next(raw)? {
            Some(frame) if wanted(&frame) => return Ok(frame),
            Some(frame) if frame.kind == GOAWAY && code(&frame) != 0 => {
                return Err(format!("GOAWAY {}", code(&frame)));
            }
            Some(_) => {}
            None => return Err("the connection ended".into()),
        }
    }
}

/// Waits for a whole answer of status 200.
fn answered(raw: &mut Raw, stream: u32) -> Result<(), String> {
    let mut ok = false;
    loop {
        let frame = wait(raw, |frame| frame.stream == stream)?;
        match frame.kind {
            // `:status: 200`, as every encoder writes it.
            HEADERS => ok |= frame.payload.contains(&0x88),
            DATA => {}
            _ => return Err(format!("{frame:?}")),
        }
        if frame.flags & END_STREAM != 0 {
            return if ok { Ok(()) } else { Err("another status".into()) };
        }
    }
}

fn ping(raw: &mut Raw) -> Result<(), String> {
    raw.send(&frame(PING, 0, 0, MARK));
    let answer = wait(raw, |frame| frame.kind == PING && frame.payload != [0; 8])?;
    if answer.flags & ACK != 0 && answer.payload == MARK { Ok(()) } else { Err(format!("{answer:?}")) }
}

fn ends(raw: &mut Raw, codes: &[u32], by_stream: bool) -> Result<(), String> {
    let mut last = None;
    loop {
        match next(raw)? {
            Some(frame) if by_stream && frame.kind == RST_STREAM => {
                let code = u32::from_be_bytes(frame.payload[..4].try_into().expect("a code"));
                return if codes.contains(&code) { Ok(()) } else { Err(format!("RST_STREAM {code}")) };
            }
            Some(frame) if frame.kind == GOAWAY => last = Some(code(&frame)),
            Some(_) => {}
            // As h2spec has it, the end of the connection will do: the h2 crate says PROTOCOL_ERROR of most of what it cannot
            // read, where the RFC has names of its own.
            None if last.is_some_and(|code| code == PROTOCOL || codes.contains(&code)) => return Ok(()),
            None => return Err(format!("the connection ended after GOAWAY {last:?}")),
        }
    }
}

fn code(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[4..8].try_into().expect("a code"))
}

#[test]
fn the_cases_of_h2spec() {
    let upstream = Upstream::mirror();
    let options = format!("http2_protocol_options: {{max_concurrent_streams: {STREAMS}}}");
    on_each(upstream.address, &options, &http1(), |_, port| {
        let cases: Vec<Case> = [generic(), frames(), windows(), heads()].into_iter().flatten().collect();
        let wrong: Vec<String> = thread::scope(|scope| {
            let playing: Vec<_> = cases
                .iter()
                .map(|case| {
                    scope.spawn(move || play(port, case).err().map(|text| format!("{}: {text}", case.0)))
                })
                .collect();
            playing.into_iter().filter_map(|one| one.join().expect("no panic")).collect()
        });
        assert!(wrong.is_empty(), "{wrong:#?}");
        // One more, whose first bytes are not HTTP/2.
        let mut raw = Raw(std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected"));
        raw.0.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("timeout");
        raw.send(b"INVALID CONNECTION PREFACE\r\n\r\n");
        let mut answer = Vec::new();
        io::Read::read_to_end(&mut raw.0, &mut answer).expect("an end");
        assert!(answer.starts_with(b"HTTP/1.1 400"), "3.5/2: {:?}", String::from_utf8_lossy(&answer));
        assert_eq!(cases.len() + 1, 146);
    });
}
