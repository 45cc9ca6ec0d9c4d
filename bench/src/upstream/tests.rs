use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use super::*;
use crate::wire::{append_pattern, pattern};

/// Runs a test on every interface this machine has.
fn on_each(name: Option<&str>, test: impl Fn(&Server)) {
    for io in [Io::Epoll, Io::Uring] {
        let settings = Settings::new(name.map(str::to_owned), 10).expect("settings");
        match Server::start("127.0.0.1:0".parse().expect("address"), settings, io) {
            Ok(server) => test(&server),
            Err(error) if io == Io::Uring && error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => panic!("{io:?}: {error}"),
        }
    }
}

/// Like [`exchange_bytes`], for answers that are text.
fn exchange(server: &Server, request: &[u8]) -> (String, SocketAddr) {
    let (answer, address) = exchange_bytes(server, request);
    (String::from_utf8(answer).expect("text"), address)
}

fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n").into_bytes()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n";

#[test]
fn paths_answer_as_documented() {
    on_each(None, |server| {
        assert_eq!(exchange(server, &get("/", "")).0, format!("{OK}content-length: 10\r\n\r\n0123456789"));
        assert_eq!(exchange(server, &get("/name", "")).0, format!("{OK}content-length: 8\r\n\r\nunnamed\n"));
        assert_eq!(exchange(server, &get("/slow/1", "")).0, format!("{OK}content-length: 5\r\n\r\nslow\n"));
        assert_eq!(exchange(server, &get("/bytes/0", "")).0, format!("{OK}content-length: 0\r\n\r\n"));
        let (answer, address) = exchange(server, &get("/addr", ""));
        assert!(answer.ends_with(&format!("\r\n\r\n{address}\n")), "{answer}");
    });
}

#[test]
fn a_named_server_says_who_answered_whom() {
    on_each(Some("reviews-v1"), |server| {
        let (answer, address) = exchange(server, &get("/reviews/0", "Connection: close\r\n"));
        let body = format!("reviews-v1\nclient {address}\n");
        let head = format!(
            "{OK}x-served-by: reviews-v1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        assert_eq!(answer, format!("{head}{body}"));
        assert!(exchange(server, &get("/bytes/3", "")).0.contains("x-served-by: reviews-v1\r\n"));
    });
    assert!(Settings::new(Some("a\r\nb".to_owned()), 0).is_err());
}

#[test]
fn chunks_are_used_when_asked_for() {
    on_each(None, |server| {
        let (answer, _) = exchange(server, &get("/name?chunked", ""));
        assert_eq!(answer, format!("{OK}transfer-encoding: chunked\r\n\r\n8\r\nunnamed\n\r\n0\r\n\r\n"));
        let old = b"GET /name?chunked HTTP/1.0\r\n\r\n";
        assert_eq!(
            exchange(server, old).0,
            format!("{OK}connection: close\r\ncontent-length: 8\r\n\r\nunnamed\n")
        );
    });
}

#[test]
fn large_bodies_stream_whole() {
    const TOTAL: usize = 2_500_000;
    on_each(None, |server| {
        let (answer, _) = exchange_bytes(server, &get(&format!("/bytes/{TOTAL}"), ""));
        let (head, body) = split(&answer);
        assert!(head.ends_with(&format!("content-length: {TOTAL}")), "{head}");
        assert!(body.len() == TOTAL && body.iter().enumerate().all(|(at, byte)| *byte == pattern(at as u64)));
    });
}

#[test]
fn echo_returns_bodies_in_their_framing() {
    const TOTAL: usize = 1_000_000;
    on_each(None, |server| {
        let mut request =
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {TOTAL}\r\n\r\n").into_bytes();
        append_pattern(&mut request, 0, TOTAL);
        let (answer, _) = exchange_bytes(server, &request);
        let (head, body) = split(&answer);
        assert!(head.ends_with(&format!("content-length: {TOTAL}")), "{head}");
        assert!(body.len() == TOTAL && body.iter().enumerate().all(|(at, byte)| *byte == pattern(at as u64)));

        let chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let (answer, _) = exchange(server, chunked);
        let mut decoder = crate::wire::BodyDecoder::chunked();
        let mut wire = answer.split_once("\r\n\r\n").expect("head").1.as_bytes();
        let mut content = Vec::new();
        while !decoder.is_done() {
            let piece = decoder.decode(wire).expect("framing");
            content.extend_from_slice(&wire[piece.data]);
            wire = &wire[piece.consumed..];
        }
        assert_eq!((content.as_slice(), wire), (&b"abcde"[..], &b""[..]));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_and_bodies_skipped() {
    on_each(None, |server| {
        let mut requests = b"POST /name HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nGET ".to_vec();
        requests.extend(get("/bytes/0", ""));
        requests.extend(b"HEAD /bytes/7 HTTP/1.1\r\nHost: x\r\n\r\n");
        requests.extend(get("/name", ""));
        let name = format!("{OK}content-length: 8\r\n\r\nunnamed\n");
        let expected = format!("{name}{OK}content-length: 0\r\n\r\n{OK}content-length: 7\r\n\r\n{name}");
        assert_eq!(exchange(server, &requests).0, expected);
    });
}

#[test]
fn expect_continue_is_granted() {
    on_each(None, |server| {
        let mut stream = TcpStream::connect(server.address()).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let head = b"POST /name HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head).expect("write");
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).expect("read");
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"x").expect("write");
        let mut start = [0; 15];
        stream.read_exact(&mut start).expect("read");
        assert_eq!(&start, b"HTTP/1.1 200 OK");
    });
}

#[test]
fn nonsense_is_refused_and_the_connection_closed() {
    on_each(None, |server| {
        let bad = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        for request in [
            &b"nonsense\r\n\r\n"[..],
            b"GET /bytes/many HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        ] {
            assert_eq!(exchange(server, request).0, bad, "{:?}", String::from_utf8_lossy(request));
        }
    });
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let settings = Settings::new(None, 1).expect("settings");
    let error = Server::start(address, settings, Io::Auto).expect_err("in use");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

/// Sends everything, half-closes, returns everything that came back and the address it was sent from.
fn exchange_bytes(server: &Server, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    let stream = TcpStream::connect(server.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut sender = stream.try_clone().expect("clone");
    let request = request.to_vec();
    // Written and read at the same time: the server answers a body while it still arrives.
    let writer = thread::spawn(move || {
        sender.write_all(&request).expect("write");
        sender.shutdown(Shutdown::Write).expect("half-close");
    });
    let mut answer = Vec::new();
    (&stream).read_to_end(&mut answer).expect("read");
    writer.join().expect("writer");
    (answer, stream.local_addr().expect("address"))
}

fn split(answer: &[u8]) -> (String, &[u8]) {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("end of head");
    (String::from_utf8_lossy(&answer[..end]).into_owned(), &answer[end + 4..])
}
