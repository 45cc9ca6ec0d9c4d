//! A server that answers requests with its name, and checks as it is told.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::upstream::{Upstream, ok, read_request};

/// The path that checks ask for.
pub const PATH: &str = "/healthz";

/// Head and body of a request.
pub type Check = (String, Vec<u8>);

pub struct Switch {
    pub upstream: Upstream,
    answer: Arc<Mutex<Vec<u8>>>,
    /// Whether requests are answered with 500.
    failing: Arc<AtomicBool>,
    /// Whether checks wait for their answer.
    holding: Arc<AtomicBool>,
    /// Heads and bodies of the checks it has got.
    pub checks: Arc<Mutex<Vec<Check>>>,
}

impl Switch {
    /// One that is healthy.
    pub fn new(name: &'static str) -> Self {
        let answer = Arc::new(Mutex::new(ok(b"fine")));
        let failing = Arc::new(AtomicBool::new(false));
        let checks: Arc<Mutex<Vec<_>>> = Arc::default();
        let holding = Arc::new(AtomicBool::new(false));
        let (told, seen, fails, holds) = (answer.clone(), checks.clone(), failing.clone(), holding.clone());
        let upstream = Upstream::start(move |mut stream| {
            while let Some((head, body)) = read_request(&mut stream) {
                let answer = if head.contains(PATH) {
                    seen.lock().expect("checks").push((head, body));
                    while holds.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(5));
                    }
                    told.lock().expect("an answer").clone()
                } else if fails.load(Ordering::SeqCst) {
                    status(500, "")
                } else {
                    ok(name.as_bytes())
                };
                // Nothing to say: whoever asked waits.
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        Self { upstream, answer, failing, holding, checks }
    }

    pub fn address(&self) -> SocketAddr {
        self.upstream.address
    }

    /// Answers checks with this status from now on, and these header lines.
    pub fn answer(&self, code: u16, headers: &str) {
        *self.answer.lock().expect("an answer") = status(code, headers);
    }

    /// Answers checks with these bytes from now on.
    pub fn say(&self, bytes: Vec<u8>) {
        *self.answer.lock().expect("an answer") = bytes;
    }

    /// Whether requests fail from now on.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    /// Whether checks wait for their answer from now on.
    pub fn hold(&self, holding: bool) {
        self.holding.store(holding, Ordering::SeqCst);
    }

    /// The first check it got: head and body.
    pub fn first_check(&self) -> Option<(String, Vec<u8>)> {
        self.checks.lock().expect("checks").first().cloned()
    }

    /// How many checks it has got.
    pub fn checks(&self) -> usize {
        self.checks.lock().expect("checks").len()
    }
}

fn status(code: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} Told\r\nContent-Length: 0\r\n{headers}\r\n").into_bytes()
}
