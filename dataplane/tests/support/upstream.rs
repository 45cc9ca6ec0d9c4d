//! Upstream servers that do exactly what a test tells them to.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// A server whose connections run `serve`, one thread each.
pub struct Upstream {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Upstream {
    /// Starts one on a free port of the loopback address.
    pub fn start(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        Self::on(listener, serve)
    }

    /// Starts one on a listening socket.
    pub fn on(listener: TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let address = listener.local_addr().expect("address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        Self { address, accepted }
    }

    /// A server that answers every request head with what `answer` makes of it (bytes as they go on the wire). Bodies
    /// of requests with a content-length are read and dropped first.
    pub fn answering(answer: impl Fn(&str) -> Vec<u8> + Clone + Send + 'static) -> Self {
        Self::start(move |mut stream| {
            while let Some((head, _)) = read_request(&mut stream) {
                if stream.write_all(&answer(&head)).is_err() {
                    return;
                }
            }
        })
    }

    /// A server that answers `200` with the request head as its body.
    pub fn mirror() -> Self {
        Self::answering(|head| ok(head.as_bytes()))
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A `200` response with a content-length.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    response.extend_from_slice(body);
    response
}

/// The next request on a connection: its head (with the blank line) and its body, chunked bodies decoded.
pub fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let head = read_until(stream, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let lower = head.to_ascii_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        let mut body = Vec::new();
        loop {
            let line = read_until(stream, b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&line[..line.len() - 2]).ok()?, 16).ok()?;
            if size == 0 {
                while read_until(stream, b"\r\n")? != b"\r\n" {}
                return Some((head, body));
            }
            let mut data = vec![0; size + 2];
            stream.read_exact(&mut data).ok()?;
            body.extend_from_slice(&data[..size]);
        }
    }
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// What comes up to and including `mark`; nothing behind it is taken.
pub fn read_until(stream: &mut TcpStream, mark: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        // Looked at before it is taken: byte by byte, a head would cost a call to the kernel for each.
        let mut seen = [0; 4096];
        let n = stream.peek(&mut seen).ok().filter(|&n| n > 0)?;
        let before = bytes.len();
        bytes.extend_from_slice(&seen[..n]);
        let from = (before + 1).saturating_sub(mark.len());
        let end = bytes[from..].windows(mark.len()).position(|window| window == mark);
        bytes.truncate(end.map_or(bytes.len(), |at| from + at + mark.len()));
        stream.read_exact(&mut seen[..bytes.len() - before]).ok()?;
        if end.is_some() {
            return Some(bytes);
        }
    }
}
