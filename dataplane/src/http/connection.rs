//! A downstream connection: requests one after the other, until one of them, a timer or the peer ends it.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_proto::{
    RequestHead,
    h1::{Fault, Framing, reason_phrase},
};
use culvert_ring::{heap::Reused, time, time::Timer};

use crate::{
    http::{
        HttpManager,
        codec::{
            Detour, ReceiveError, ServerStream,
            h1::{RequestStart, ServerConn},
        },
        exchange::{After, Exchange},
        log::Flags,
        multiplexed,
        reply::Reply,
        shared::{Shared, Speaks},
    },
    listener::Downstream,
    tls::Transport,
    worker::Worker,
};

/// A connection's state between requests.
pub struct Connection {
    shared: Shared,
    codec: ServerConn,
    requests: Cell<u32>,
}

/// The timers of a connection. Re-armed lazily: moving a deadline further away costs nothing, so two serve every wait.
pub(super) struct Timers {
    /// For whatever is awaited now: a request, its head, progress of a stream.
    pub(super) wait: Timer,
    /// The route's timeout.
    pub(super) route: Timer,
}

/// What ended the wait for a request.
enum Next {
    /// The client closed.
    Closed,
    /// Nothing came for `idle_timeout`.
    Idle,
    /// `max_connection_duration` passed.
    Expired,
    /// A request begins.
    Request,
}

/// Serves a connection to its end.
///
/// What an idle connection costs is the size of this future and of [`Connection`]: the state of everything that is not
/// waiting for a request is boxed when it is needed, and nothing is kept twice.
pub fn serve(
    worker: Rc<Worker>,
    stream: Transport,
    downstream: Downstream,
    manager: Rc<HttpManager>,
) -> impl Future<Output = ()> {
    let config = &manager.spec.config;
    let limit = downstream.listener.spec.config.buffer_limit_bytes;
    let codec = ServerConn::new(stream, config.http1.header_case, limit, manager.stats.clone());
    let shared = Shared::new(worker, manager, downstream);
    let connection = Box::new(Connection { shared, codec, requests: Cell::new(0) });
    let serving = connection.run();
    debug_assert!(
        size_of_val(&serving) + size_of::<Connection>() <= IDLE_BYTES_MAX,
        "an idle connection grew"
    );
    serving
}

/// Most bytes of an idle connection here; the driver's slot and the kernel's socket come on top.
const IDLE_BYTES_MAX: usize = 1_024;

impl Connection {
    async fn run(self: Box<Self>) {
        let mut timers = Timers { wait: Timer::new(), route: Timer::new() };
        let mut undecided = match self.shared.agreed() {
            Some(Speaks::Http2) => return self.multiplexed().await,
            // HTTP/3 does not come over streams of bytes; a listener of these is not configured with it.
            Some(Speaks::Http1 | Speaks::Http3) => false,
            None => true,
        };
        loop {
            match self.next(&mut timers.wait).await {
                Next::Request if std::mem::take(&mut undecided) => {
                    match self.speaks_http2(&mut timers.wait).await {
                        Some(true) => return self.multiplexed().await,
                        Some(false) => self.shared.speaks(Speaks::Http1),
                        None => return self.shared.manager.stats.downstream_cx_idle_timeout.inc(),
                    }
                }
                Next::Request => self.shared.speaks(Speaks::Http1),
                Next::Closed => {
                    // It may only have stopped sending: the last response still goes out.
                    self.shared.manager.stats.downstream_cx_destroy_remote.inc();
                    Box::pin(self.flush(&mut timers.wait)).await;
                    return;
                }
                Next::Idle => {
                    let stats = &self.shared.manager.stats;
                    stats.downstream_cx_idle_timeout.inc();
                    return stats.downstream_cx_destroy_local.inc();
                }
                Next::Expired => {
                    Box::pin(self.flush(&mut timers.wait)).await;
                    return;
                }
            }
            self.requests.set(self.requests.get() + 1);
            match Reused::new(self.request(&mut timers)).await {
                After::Abort => return self.codec.abort(),
                After::Close => return Box::pin(self.close(timers.wait)).await,
                After::KeepAlive => {}
                After::Finished => {
                    Box::pin(self.flush(&mut timers.wait)).await;
                    return;
                }
            }
        }
    }

    /// Goes on with HTTP/2. Boxed, as connections of HTTP/1 would pay for its size.
    fn multiplexed(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        let Self { shared, codec, .. } = *self;
        let (stream, received) = codec.into_tunnel();
        Box::pin(multiplexed::serve(shared, stream, received))
    }

    /// Whether the first bytes are those of HTTP/2; `None` when they do not come.
    async fn speaks_http2(&self, timer: &mut Timer) -> Option<bool> {
        poll_fn(|cx| {
            if let Poll::Ready(it_does) = self.codec.poll_http2_preface(cx) {
                return Poll::Ready(Some(it_does));
            }
            timer.poll_expired(cx).map(|()| None)
        })
        .await
    }

    async fn next(&self, timer: &mut Timer) -> Next {
        let config = &self.shared.manager.spec.config;
        let now = time::now();
        let expires = self.shared.expires();
        let idle = config.idle_timeout.map(|max| now + max);
        let Some(deadline) = earliest(expires, idle) else {
            timer.clear();
            return start_or(poll_fn(|cx| self.codec.poll_start(cx)).await);
        };
        timer.set(deadline);
        poll_fn(|cx| {
            if let Poll::Ready(start) = self.codec.poll_start(cx) {
                return Poll::Ready(start_or(start));
            }
            timer.poll_expired(cx).map(|()| {
                if expires == Some(deadline) {
                    self.shared.manager.stats.downstream_cx_max_duration_reached.inc();
                    Next::Expired
                } else {
                    Next::Idle
                }
            })
        })
        .await
    }

    /// Reads one request and answers it.
    async fn request(&self, timers: &mut Timers) -> After {
        let mut head = self.shared.worker.request_head();
        head.headers.set_preserve_case(self.shared.manager.options.preserve_case);
        let started = time::now();
        let config = &self.shared.manager.spec.config;
        let limit = earliest(
            config.request_headers_timeout.map(|max| started + max),
            // A head that trickles in must not outlive an idle connection.
            config.request_timeout.or(config.stream_idle_timeout).map(|max| started + max),
        );
        let timer = &mut timers.wait;
        match limit {
            Some(limit) => timer.set(limit),
            None => timer.clear(),
        }
        let received = poll_fn(|cx| {
            if let Poll::Ready(result) = self.codec.poll_head(&self.shared.manager.options, &mut head, cx) {
                return Poll::Ready(Some(result));
            }
            timer.poll_expired(cx).map(|()| None)
        })
        .await;
        timer.clear();
        let framing = match received {
            Some(Ok(framing)) => framing,
            Some(Err(ReceiveError::Fault(fault))) => return self.refuse(fault, head, started),
            Some(Err(ReceiveError::Closed | ReceiveError::Truncated)) => {
                // An earlier response may still be on its way to a client that only sends no more.
                self.shared.manager.stats.downstream_cx_destroy_remote.inc();
                return After::Close;
            }
            Some(Err(
                ReceiveError::Broken
                | ReceiveError::Encoding
                | ReceiveError::Io(_)
                | ReceiveError::Refused
                | ReceiveError::Reset,
            )) => {
                self.shared.manager.stats.downstream_cx_destroy_remote.inc();
                return After::Abort;
            }
            None => {
                return self.too_slow(head, started);
            }
        };
        let last = config.max_requests_per_connection.is_some_and(|max| self.requests.get() >= max);
        if last {
            self.shared.manager.stats.downstream_cx_max_requests_reached.inc();
        }
        let detour = Detour::default();
        let stream = ServerStream::of_connection(&self.codec, &detour);
        Exchange::new(&self.shared, stream, head, framing, started, last).run(timers).await
    }

    /// Answers bytes that are not a request.
    fn refuse(&self, fault: Fault, head: Box<RequestHead>, started: Instant) -> After {
        self.shared.manager.stats.downstream_cx_protocol_error.add(u64::from(fault.is_protocol_error()));
        ::log::debug!(target: "http", "request refused: {fault}");
        if fault == Fault::Fragment {
            self.shared.manager.stats.downstream_rq_failed_path_normalization.inc();
        }
        if !fault.is_protocol_error() {
            return self.answer_bare(
                head,
                started,
                true,
                Reply::new(fault.status(), "").details(fault.details()),
            );
        }
        let reply =
            Reply::new(fault.status(), reason_phrase(fault.status())).flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
        self.answer_bare(head, started, false, reply.details(fault.details()))
    }

    /// Answers a client whose request does not come to the end of its head.
    fn too_slow(&self, head: Box<RequestHead>, started: Instant) -> After {
        let config = &self.shared.manager.spec.config;
        let stats = &self.shared.manager.stats;
        let of_heads = config.request_headers_timeout;
        let of_requests = config.request_timeout.or(config.stream_idle_timeout);
        let reply = if of_heads.is_some_and(|heads| of_requests.is_none_or(|requests| heads < requests)) {
            stats.downstream_rq_header_timeout.inc();
            Reply::new(408, "request header timeout").details("request_header_timeout")
        } else {
            stats.downstream_rq_timeout.inc();
            Reply::new(408, "request timeout").details("request_overall_timeout")
        };
        self.answer_bare(head, started, false, reply)
    }

    /// Answers what did not become a request, and ends the connection. `known`: as much of it as there is may be logged.
    fn answer_bare(&self, mut head: Box<RequestHead>, started: Instant, known: bool, reply: Reply) -> After {
        if !known {
            head.clear();
        }
        let detour = Detour::default();
        let stream = ServerStream::of_connection(&self.codec, &detour);
        let exchange = Exchange::new(&self.shared, stream, head, Framing::None, started, true);
        exchange.record.bare.set(!known);
        exchange.refuse(reply)
    }

    /// Closes without losing what was written: everything leaves first, then FIN, then whatever the client still sends is
    /// read and dropped, because a close with unread bytes would reset the connection under the response.
    async fn close(self: Box<Self>, mut timer: Timer) {
        self.shared.manager.stats.downstream_cx_destroy_local.inc();
        if !self.flush(&mut timer).await {
            // A response that ends with the connection must not look complete.
            return self.codec.abort();
        }
        let Some(patience) = self.shared.manager.spec.config.delayed_close_timeout else { return };
        self.codec.shutdown();
        timer.set(time::now() + patience);
        let mut left = LINGER_BYTES;
        poll_fn(|cx| {
            while let Poll::Ready(dropped) = self.codec.poll_discard(cx) {
                match dropped {
                    Some(bytes) if bytes <= left => left -= bytes,
                    _ => return Poll::Ready(()),
                }
            }
            timer
                .poll_expired(cx)
                .map(|()| self.shared.manager.stats.downstream_cx_delayed_close_timeout.inc())
        })
        .await;
    }

    /// Waits until everything written has left. False when the connection failed, or nothing left for a long time.
    async fn flush(&self, timer: &mut Timer) -> bool {
        let mut queued = self.codec.queued();
        timer.set(time::now() + FLUSH_PATIENCE);
        poll_fn(|cx| {
            if let Poll::Ready(result) = self.codec.poll_flushed(cx) {
                return Poll::Ready(result.is_ok());
            }
            while timer.poll_expired(cx).is_ready() {
                let left = self.codec.queued();
                if left >= queued {
                    return Poll::Ready(false);
                }
                queued = left;
                timer.set(time::now() + FLUSH_PATIENCE);
            }
            Poll::Pending
        })
        .await
    }
}

/// How long a client may take nothing of its last response.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);

/// Most bytes read and dropped after the last response.
const LINGER_BYTES: usize = 1 << 20;

fn start_or(start: RequestStart) -> Next {
    match start {
        RequestStart::Bytes => Next::Request,
        RequestStart::Closed => Next::Closed,
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
