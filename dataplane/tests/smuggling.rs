//! Requests that two readers may understand differently, sent as they are to a culvert whose upstream reads strictly: what
//! is forwarded means one thing only, and ends where culvert says.

mod support;

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use support::{
    DRIVERS,
    culvert::{Culvert, bootstrap, cluster, free_port},
};

/// How many requests the corpus has at least.
const REQUESTS_MIN: usize = 300;

/// What the upstream read.
#[derive(Default)]
struct Ledger {
    whole: usize,
    /// Whose body broke off.
    cut: usize,
    /// What was not as a request of a proxy has to be.
    faults: Vec<String>,
}

/// How much of a request there was.
enum Read {
    Nothing,
    Cut,
    Whole,
}

#[test]
fn nothing_ambiguous_is_forwarded() {
    let corpus = corpus();
    assert!(corpus.len() >= REQUESTS_MIN, "{}", corpus.len());
    for driver in DRIVERS {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let upstream = strict_upstream(ledger.clone());
        let (admin, port) = (free_port(), free_port());
        let routes = "- {match: {prefix: /}, route: {cluster: up}}\n- {match: {connect_matcher: {}}, route: {cluster: up}}";
        let manager = "http_protocol_options: {accept_http_10: true, enable_trailers: true}\n\
                       upgrade_configs: [{upgrade_type: other}]\nstream_idle_timeout: 5s\ndelayed_close_timeout: 1s";
        let clusters = cluster("up", &[upstream]);
        let text = bootstrap(admin, port, manager, routes, &clusters);
        let mut culvert = Culvert::start_with(driver, admin, &text, &["--concurrency", "1"]);
        culvert.wait_live();
        let mut answered = 0;
        for (line, request) in &corpus {
            let before = ledger.lock().unwrap().faults.len();
            answered += usize::from(!exchange(port, request).is_empty());
            let faults = ledger.lock().unwrap().faults[before..].join("; ");
            assert!(faults.is_empty(), "{driver}: {line}: {faults}");
        }
        assert!(answered > REQUESTS_MIN / 2, "{driver}: {answered} answers");
        let forwarded = culvert.stat("cluster.up.upstream_rq_total") as usize;
        let ledger = ledger.lock().unwrap();
        assert!(ledger.whole > 50, "{driver}: {} came through", ledger.whole);
        // One more than were sent would be a smuggled one. Of one that was cut at once the upstream may see nothing.
        let read = ledger.whole + ledger.cut;
        assert!(read <= forwarded, "{driver}: {forwarded} were forwarded and {read} read");
    }
}

/// The lines of the corpus and the bytes they stand for.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let lines = include_str!("smuggling/corpus.txt").lines();
    lines.filter_map(|line| Some((line.to_owned(), unescaped(line.strip_suffix('$')?)))).collect()
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, used) = match rest {
            [b'r', ..] => (b'\r', 1),
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] => {
                let digits = [*high, *low];
                (u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap(), 3)
            }
            _ => panic!("{text}: unknown escape"),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes
}

/// Sends the bytes and a FIN, and gives what comes back.
fn exchange(port: u16, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Culvert may have answered and closed before everything was sent.
    let _ = stream.write_all(request).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let mut part = [0; 4_096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return answer,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("no end after {:?}: {error}", String::from_utf8_lossy(request)),
        }
    }
}

/// An upstream that reads as RFC 9112 has it and forgives nothing.
fn strict_upstream(ledger: Arc<Mutex<Ledger>>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let ledger = ledger.clone();
            thread::spawn(move || serve(stream, &ledger));
        }
    });
    address
}

fn serve(mut stream: TcpStream, ledger: &Mutex<Ledger>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        match request(&mut reader) {
            Ok(Read::Whole) => {
                ledger.lock().unwrap().whole += 1;
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
            Ok(Read::Cut) => {
                ledger.lock().unwrap().cut += 1;
                return;
            }
            Ok(Read::Nothing) => return,
            Err(fault) => {
                ledger.lock().unwrap().faults.push(fault);
                return;
            }
        }
    }
}

/// Reads one request.
fn request(reader: &mut impl BufRead) -> Result<Read, String> {
    let Some(line) = line(reader)? else { return Ok(Read::Nothing) };
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("request line {line:?}")) };
    if !is_token(method) || !(target.starts_with('/') || target == "*") {
        return Err(format!("request line {line:?}"));
    }
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    loop {
        let Some(field) = self::line(reader)? else { return Ok(Read::Cut) };
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(": ").ok_or_else(|| format!("field {field:?}"))?;
        if !is_token(name) || value.trim_matches([' ', '\t']) != value {
            return Err(format!("field {field:?}"));
        }
        match &*name.to_ascii_lowercase() {
            "content-length" => lengths.push(value.to_owned()),
            "transfer-encoding" => codings.push(value.to_owned()),
            "host" => hosts += 1,
            "connection" | "keep-alive" | "proxy-connection" | "upgrade" => {
                return Err(format!("of one hop only: {field:?}"));
            }
            _ => {}
        }
    }
    if hosts != 1 {
        return Err(format!("{hosts} hosts"));
    }
    let whole = match (&lengths[..], &codings[..]) {
        ([], []) => true,
        ([length], []) => {
            let digits = length.bytes().all(|byte| byte.is_ascii_digit())
                && (length == "0" || !length.starts_with('0'));
            let length: u64 =
                length.parse().ok().filter(|_| digits).ok_or_else(|| format!("length {length:?}"))?;
            let read = std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap_or(0);
            read == length
        }
        ([], [coding]) if coding == "chunked" => chunks(reader)?,
        _ => return Err(format!("framed twice: {lengths:?} {codings:?}")),
    };
    Ok(if whole { Read::Whole } else { Read::Cut })
}

/// Reads a chunked body and its trailers.
fn chunks(reader: &mut impl BufRead) -> Result<bool, String> {
    loop {
        let Some(size) = line(reader)? else { return Ok(false) };
        let canonical = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let length = u64::from_str_radix(&size, 16).ok().filter(|_| canonical);
        let length = length.ok_or_else(|| format!("chunk size {size:?}"))?;
        if length == 0 {
            break;
        }
        let read = std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap_or(0);
        if read < length {
            return Ok(false);
        }
        match line(reader)? {
            Some(end) if end.is_empty() => {}
            Some(end) => return Err(format!("chunk data goes on: {end:?}")),
            None => return Ok(false),
        }
    }
    loop {
        let Some(trailer) = line(reader)? else { return Ok(false) };
        if trailer.is_empty() {
            return Ok(true);
        }
        let name = trailer.split_once(": ").map_or("", |(name, _)| name);
        let framing = ["content-length", "transfer-encoding", "host"].contains(&&*name.to_ascii_lowercase());
        if !is_token(name) || framing {
            return Err(format!("trailer {trailer:?}"));
        }
    }
}

/// A line that ends with CRLF and has no other control characters; `None` when it breaks off.
fn line(reader: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut bytes = Vec::new();
    if reader.read_until(b'\n', &mut bytes).is_err() || bytes.last() != Some(&b'\n') {
        return Ok(None);
    }
    let text = bytes.strip_suffix(b"\r\n").ok_or_else(|| format!("bare LF in {bytes:?}"))?;
    if text.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
        return Err(format!("control character in {:?}", String::from_utf8_lossy(text)));
    }
    Ok(Some(text.iter().map(|byte| char::from(*byte)).collect()))
}

fn is_token(name: &str) -> bool {
    let other = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || other(byte))
}
