//! A server that counts how many requests it has, and keeps some.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

use crate::support::{
    culvert::PATIENCE,
    upstream::{Upstream, ok, read_request},
};

/// Answers at once, but for requests whose path has `hold` in it: these wait until they are let go. Where it has `again`, the
/// first attempt fails and further ones wait.
pub(crate) struct Gate {
    upstream: Upstream,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Requests here.
    now: usize,
    /// Most that were here at a time.
    most: usize,
    /// Requests that may go.
    passes: usize,
    /// Requests that are sent again, and the most of them at a time.
    again: usize,
    most_again: usize,
}

impl Gate {
    pub(crate) fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        let upstream = Upstream::start(move |stream| own.serve(stream));
        Self { upstream, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.upstream.address
    }

    /// Requests here.
    pub(crate) fn now(&self) -> usize {
        self.shared.state.lock().unwrap().now
    }

    /// Most requests that were here at a time.
    pub(crate) fn most(&self) -> usize {
        self.shared.state.lock().unwrap().most
    }

    /// Most requests that were here at a time and had been sent before.
    pub(crate) fn most_again(&self) -> usize {
        self.shared.state.lock().unwrap().most_again
    }

    /// Waits until so many requests are here.
    pub(crate) fn wait_for(&self, count: usize) {
        let state = self.shared.state.lock().unwrap();
        let (state, waited) =
            self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.now != count).unwrap();
        assert!(!waited.timed_out(), "{} requests, not {count}", state.now);
    }

    /// Lets so many requests go.
    pub(crate) fn pass(&self, count: usize) {
        self.shared.state.lock().unwrap().passes += count;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).expect("no delay");
        while let Some((head, _)) = read_request(&mut stream) {
            let attempt = head.lines().find_map(|line| line.strip_prefix("x-envoy-attempt-count: "));
            let again = usize::from(attempt.is_some_and(|attempt| attempt.trim() != "1"));
            let mut state = self.state.lock().unwrap();
            state.now += 1;
            state.most = state.most.max(state.now);
            state.again += again;
            state.most_again = state.most_again.max(state.again);
            self.changed.notify_all();
            if head.contains("/hold") || head.contains("/again") && again > 0 {
                state = self.changed.wait_while(state, |state| state.passes == 0).unwrap();
                state.passes -= 1;
            }
            state.now -= 1;
            state.again -= again;
            self.changed.notify_all();
            drop(state);
            let answer = if head.contains("/again") && again == 0 {
                b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec()
            } else {
                ok(b"yes")
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}
