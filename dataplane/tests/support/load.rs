//! Traffic that does not stop while a test does something to what serves it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{client::Response, mesh::wait_for, netns::Pod};

/// Threads that send requests, each on a connection of its own, and keep a record of all of them.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// One request and the connection it was sent on.
pub struct Attempt {
    /// Before connecting.
    pub started: Instant,
    /// After the response, or when it failed.
    pub ended: Instant,
    pub result: io::Result<Response>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
}

/// Between two requests of a thread: enough for a test of what happens, without taking the machine from it.
const PAUSE: Duration = Duration::from_millis(2);

impl Load {
    /// Starts so many threads that send from this pod.
    pub fn start(threads: usize, from: &Pod, to: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let threads = (0..threads).map(|_| {
            let (shared, from) = (shared.clone(), from.clone());
            thread::spawn(move || {
                while !shared.stop.load(Ordering::SeqCst) {
                    let started = Instant::now();
                    let result = from.try_get(to);
                    let attempt = Attempt { started, ended: Instant::now(), result };
                    shared.attempts.lock().expect("attempts").push(attempt);
                    thread::sleep(PAUSE);
                }
            })
        });
        Self { threads: threads.collect(), shared }
    }

    /// Waits until so many requests, sent after now, have ended.
    pub fn wait_for(&self, attempts: usize) {
        let since = Instant::now();
        wait_for("more requests", || {
            let all = self.shared.attempts.lock().expect("attempts");
            all.iter().rev().filter(|attempt| attempt.started > since).count() >= attempts
        });
    }

    /// Stops sending. What came of it, in the order in which the requests ended.
    pub fn stop(self) -> Vec<Attempt> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a thread that sends");
        }
        std::mem::take(&mut self.shared.attempts.lock().expect("attempts"))
    }
}

/// The attempts that fell between two moments as a whole. There must be some.
pub fn between(attempts: &[Attempt], from: Instant, to: Instant) -> Vec<&Attempt> {
    let found: Vec<_> = attempts.iter().filter(|it| it.started > from && it.ended < to).collect();
    assert!(!found.is_empty(), "nothing was sent meanwhile");
    found
}
