//! Requests that go to another cluster too, whose answers nobody waits for (`request_mirror_policies`).
//!
//! A mirrored request is a task of its own. Its body comes through a queue; a cluster that falls behind by more than
//! what may be kept of a request loses it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use culvert_model::{MirrorPolicy, MirrorTarget};
use culvert_proto::{
    Headers, RequestHead, Version,
    h1::{self, Framing},
    host::split_port,
};
use culvert_ring::{
    Chunk, task,
    time::{self, Timer},
};

use super::{Passage, attempt::ActiveUpstream};
use crate::{
    http::{
        callout::{count_lost, final_head, within_stream},
        codec::{Body, ReceiveError},
        exchange::Exchange,
        shared::millis,
    },
    upstream::{Choice, Cluster, Host, Lent, LocalFailure, Via},
    worker::Worker,
};

/// How long an answer is waited for where the route sets no limit.
const PATIENCE: Duration = Duration::from_secs(300);

/// A mirrored request, as the one that it mirrors sees it. Dropped before its end it is given up.
pub(super) struct Mirror {
    queue: Rc<Queue>,
    /// How many bytes may wait.
    limit: usize,
}

#[derive(Default)]
struct Queue {
    pieces: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    trailers: RefCell<Option<Headers>>,
    state: Cell<State>,
    /// Of who waits for pieces.
    waker: RefCell<Option<Waker>>,
    /// Of who waits for the state to change.
    watcher: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum State {
    #[default]
    Open,
    Complete,
    GivenUp,
}

impl Queue {
    fn turn(&self, state: State) {
        self.state.set(state);
        self.wake();
        if let Some(waker) = self.watcher.borrow_mut().take() {
            waker.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Mirror {
    /// Queues a piece of the body. False when too much waits.
    pub(super) fn send(&self, piece: &Bytes) -> bool {
        let waiting = self.queue.bytes.get() + piece.len();
        if waiting > self.limit {
            return false;
        }
        self.queue.bytes.set(waiting);
        self.queue.pieces.borrow_mut().push_back(piece.clone());
        self.queue.wake();
        true
    }

    /// Ends the body.
    pub(super) fn finish(&self, trailers: Option<&Headers>) {
        *self.queue.trailers.borrow_mut() = trailers.cloned();
        self.queue.turn(State::Complete);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if self.queue.state.get() == State::Open {
            self.queue.turn(State::GivenUp);
        }
    }
}

impl Exchange<'_> {
    /// Starts what the route says the request, whose head is ready to be sent, is mirrored to.
    pub(super) fn mirrors(&self, passage: &Passage<'_>, policies: &[MirrorPolicy]) -> Vec<Mirror> {
        policies.iter().filter_map(|policy| self.mirror(passage, policy)).collect()
    }

    fn mirror(&self, passage: &Passage<'_>, policy: &MirrorPolicy) -> Option<Mirror> {
        // What follows an upgrade is a conversation.
        if passage.upgrade {
            return None;
        }
        let worker = &self.conn.worker;
        let drawn = worker.rng.borrow_mut().u32(..1_000_000);
        if policy.fraction_ppm.is_some_and(|ppm| drawn >= ppm) {
            return None;
        }
        let name = match &policy.target {
            MirrorTarget::Cluster(name) => name.as_bytes(),
            MirrorTarget::Header(header) => self.head.headers.get(header)?,
        };
        let cluster = worker.cluster(std::str::from_utf8(name).ok()?)?;
        let mut head = worker.request_head();
        head.clone_from(&self.head);
        head.headers.set("x-envoy-internal", "true");
        if let Some(literal) = &policy.host_rewrite {
            head.set_authority(literal);
        } else if policy.append_suffix {
            let authority = shadowed(head.authority());
            head.set_authority(authority);
        }
        let queue = Rc::new(Queue::default());
        if self.framing.is_empty() {
            queue.state.set(State::Complete);
        }
        let via = Via { names: None, ..passage.via.clone() };
        let run = Run {
            worker: worker.clone(),
            cluster,
            head,
            framing: self.framing,
            downstream: self.downstream_version,
            via,
            queue: queue.clone(),
        };
        let whole = passage.timeouts.whole;
        task::spawn(run.watched(whole.unwrap_or(PATIENCE)));
        Some(Mirror { queue, limit: self.buffer_limit(passage.matched) })
    }
}

/// The host with `-shadow` behind its name, as upstreams are told that it is not the real request.
fn shadowed(authority: &[u8]) -> Vec<u8> {
    let (host, port) = split_port(authority);
    let mut shadowed = host.to_vec();
    shadowed.extend_from_slice(b"-shadow");
    if port.is_some() {
        shadowed.extend_from_slice(&authority[host.len()..]);
    }
    shadowed
}

/// A mirrored request.
struct Run {
    worker: Rc<Worker>,
    cluster: Rc<Cluster>,
    head: Box<RequestHead>,
    framing: Framing,
    downstream: Version,
    via: Via,
    queue: Rc<Queue>,
}

impl Run {
    /// Serves it until it is given up, or for `patience` after all of it was received.
    async fn watched(self, patience: Duration) {
        let (queue, cluster) = (self.queue.clone(), self.cluster.clone());
        let mut serving = pin!(self.serve());
        let mut timer = Timer::new();
        poll_fn(|cx| {
            if serving.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match queue.state.get() {
                State::Open => {
                    *queue.watcher.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                State::Complete if !timer.is_set() => timer.set(time::now() + patience),
                State::Complete => {}
                // Whatever it waits for.
                State::GivenUp => {
                    cluster.stats.upstream_rq_tx_reset.inc();
                    return Poll::Ready(());
                }
            }
            timer.poll_expired(cx).map(|()| {
                cluster.stats.upstream_rq_timeout.inc();
                cluster.count(504, true);
            })
        })
        .await;
    }

    async fn serve(self) {
        let (worker, cluster) = (&self.worker, &self.cluster);
        let host = cluster.pick(&mut worker.rng.borrow_mut(), Choice::default());
        let Some(host) = host else { return cluster.stats.upstream_cx_none_healthy.inc() };
        let _active = ActiveUpstream::new(cluster, &host, self.via.priority);
        let acquired = cluster.acquire(worker, &host, &self.via, self.downstream, false).await;
        let mut lent = match acquired {
            Ok(lent) => lent,
            Err(error) => {
                // What the limits of the cluster refuse is not the host's fault.
                if !error.is_overflow() {
                    host.failed(LocalFailure::Connection);
                }
                return self.failed(&host);
            }
        };
        lent.host.reached(false);
        lent.begin_request();
        cluster.stats.upstream_rq_total.inc();
        lent.conn.send_head(&self.head, self.framing);
        let exchange = async {
            if !self.framing.is_empty() && !self.send_body(&lent).await {
                return None;
            }
            let started = time::now();
            Some((started, self.discard_answer(&lent, &host).await))
        };
        let Some(exchanged) = within_stream(cluster, exchange).await else {
            return cluster.count_cut(lent.conn.version().is_multiplexed(), false);
        };
        let Some((started, answer)) = exchanged else { return cluster.stats.upstream_rq_tx_reset.inc() };
        match answer {
            Ok(reusable) => {
                cluster.stats.upstream_rq_time.record(millis(time::now() - started));
                if reusable && lent.conn.is_reusable() {
                    lent.release(worker);
                }
            }
            Err(error) => {
                count_lost(cluster, lent.conn.version(), &error);
                host.failed(LocalFailure::Connection);
                self.failed(&host);
            }
        }
    }

    fn failed(&self, host: &Host) {
        self.cluster.count(503, true);
        host.stats(|stats| stats.rq_error.inc());
    }

    /// Sends the body; false when the request was given up.
    async fn send_body(&self, lent: &Lent) -> bool {
        let queue = &self.queue;
        loop {
            // An upstream that takes no more may have answered.
            if poll_fn(|cx| lent.conn.poll_ready(cx)).await.is_err() {
                return true;
            }
            let next = poll_fn(|cx| {
                if let Some(piece) = queue.pieces.borrow_mut().pop_front() {
                    queue.bytes.set(queue.bytes.get() - piece.len());
                    return Poll::Ready(Some(piece));
                }
                if queue.state.get() == State::Open {
                    *queue.waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(None)
            })
            .await;
            match next {
                Some(piece) => lent.conn.send_data(Chunk::Bytes(piece)),
                None if queue.state.get() == State::GivenUp => return false,
                None => {
                    let trailers = queue.trailers.borrow();
                    let enabled =
                        lent.conn.version().is_multiplexed() || self.cluster.config().enable_trailers;
                    lent.conn.finish(trailers.as_ref().filter(|_| enabled));
                    return true;
                }
            }
        }
    }

    /// Reads the answer. Whether the connection may be used again.
    async fn discard_answer(&self, lent: &Lent, host: &Host) -> Result<bool, ReceiveError> {
        let mut head = self.worker.response_head();
        let framing = final_head(lent, &self.head.method, &mut head).await?;
        self.cluster.count(head.status, true);
        host.answered(head.status);
        host.stats(|stats| if head.status < 500 { stats.rq_success.inc() } else { stats.rq_error.inc() });
        let reusable = framing != Framing::UntilClose && h1::keep_alive(head.version, &head.headers);
        self.worker.recycle_response(head);
        while let Body::Data(_) = poll_fn(|cx| lent.conn.poll_body(cx)).await? {}
        lent.conn.take_trailers();
        Ok(reusable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_is_before_the_port() {
        for (host, expected) in
            [("a.test", "a.test-shadow"), ("a.test:80", "a.test-shadow:80"), ("[::1]:80", "[::1]-shadow:80")]
        {
            assert_eq!(shadowed(host.as_bytes()), expected.as_bytes());
        }
    }
}
