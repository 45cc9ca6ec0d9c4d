//! Bodies of all sizes, both framings, both directions, kept-alive and closed connections: byte for byte equal.
//!
//! 1,000 requests per driver; 10,000 with `CULVERT_FULL=1`. The sizes are log-uniform from 0 to 5 MB, from a fixed seed.

mod support;

use std::{
    io::Write as _,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, bootstrap, cluster, free_port},
    full,
    upstream::{Upstream, read_request},
};

/// Largest body in bytes.
const SIZE_MAX: f64 = 5e6;
/// Clients at once.
const CLIENTS: usize = 8;

/// What one request is like.
struct Case {
    request: Vec<u8>,
    response_size: usize,
    request_chunked: bool,
    response_chunked: bool,
    close: bool,
}

impl Case {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        let request = body(rng.u64(..), size(rng));
        Self {
            request,
            response_size: size(rng),
            request_chunked: rng.bool(),
            response_chunked: rng.bool(),
            close: rng.u8(..8) == 0,
        }
    }

    fn path(&self, seed: u64) -> String {
        format!("/{}/{}/{seed}", self.response_size, u8::from(self.response_chunked))
    }
}

/// Log-uniform over 0 to [`SIZE_MAX`].
fn size(rng: &mut fastrand::Rng) -> usize {
    ((SIZE_MAX + 1.0).powf(rng.f64()) - 1.0) as usize
}

/// Bytes that depend on every position, so that a swap or a repetition shows.
fn body(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Answers `/size/chunked/seed` with that body, and with a sum of the request's body in a header.
fn serve(mut stream: TcpStream) {
    while let Some((head, received)) = read_request(&mut stream) {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut parts = path.split('/').skip(1);
        let mut next = || parts.next().and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
        let (size, chunked, seed) = (next() as usize, next() == 1, next());
        let sent = body(seed, size);
        let mut response = format!("HTTP/1.1 200 OK\r\nx-sum: {}\r\n", sum(&received)).into_bytes();
        if chunked {
            response.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            // Pieces of growing size, so that boundaries fall everywhere.
            let (mut at, mut piece) = (0, 1);
            while at < sent.len() {
                let end = (at + piece).min(sent.len());
                response.extend_from_slice(format!("{:x}\r\n", end - at).as_bytes());
                response.extend_from_slice(&sent[at..end]);
                response.extend_from_slice(b"\r\n");
                (at, piece) = (end, piece * 2 + 1);
            }
            response.extend_from_slice(b"0\r\n\r\n");
        } else {
            response.extend_from_slice(format!("content-length: {}\r\n\r\n", sent.len()).as_bytes());
            response.extend_from_slice(&sent);
        }
        if stream.write_all(&response).is_err() {
            return;
        }
    }
}

/// FNV-1a over the length and the bytes.
fn sum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().copied().fold(step(0xcbf2_9ce4_8422_2325, bytes.len() as u8), step)
}

fn exchange(client: &mut Option<Client>, port: u16, case: &Case, seed: u64) {
    let connection = client.get_or_insert_with(|| Client::connect(port));
    let mut head = format!("POST {} HTTP/1.1\r\nhost: t\r\n", case.path(seed));
    if case.close {
        head.push_str("connection: close\r\n");
    }
    let mut wire = Vec::new();
    if case.request_chunked {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
        wire.extend_from_slice(head.as_bytes());
        for piece in case.request.chunks(50_021) {
            wire.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
            wire.extend_from_slice(piece);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
    } else {
        head.push_str(&format!("content-length: {}\r\n\r\n", case.request.len()));
        wire.extend_from_slice(head.as_bytes());
        wire.extend_from_slice(&case.request);
    }
    connection.send(wire);
    let response = connection.response("POST");
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("x-sum"),
        Some(sum(&case.request).to_string().as_str()),
        "request body changed"
    );
    assert!(
        response.body == body(seed, case.response_size),
        "response body of {} bytes changed",
        case.response_size
    );
    if case.close {
        assert!(connection.is_closed());
        *client = None;
    }
}

#[test]
fn bodies_arrive_as_they_were_sent() {
    let upstream = Upstream::start(serve);
    let requests = if full() { 10_000 } else { 1_000 };
    for driver in DRIVERS {
        let (admin, port) = (free_port(), free_port());
        let routes = "- {match: {prefix: /}, route: {cluster: up, timeout: 0s}}";
        let config = bootstrap(admin, port, "", routes, &cluster("up", &[upstream.address]));
        let culvert = Culvert::start(driver, admin, &config);
        let done = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|index| {
                let done = done.clone();
                thread::spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(1_000 + index as u64);
                    let mut client = None;
                    while done.fetch_add(1, Ordering::SeqCst) < requests {
                        let case = Case::draw(&mut rng);
                        exchange(&mut client, port, &case, rng.u64(..));
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("all bodies equal");
        }
        assert_eq!(culvert.stat("http.ingress.downstream_rq_2xx"), requests as u64, "{driver}");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0, "{driver}");
    }
}
