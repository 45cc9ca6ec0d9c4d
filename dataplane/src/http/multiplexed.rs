//! A downstream connection that carries many requests at a time: HTTP/2. Each of them is a task of its own.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ::h2::Reason;
use culvert_proto::h1::Fault;
use culvert_ring::{Chunk, task, time, time::Timer};

use crate::{
    http::{
        codec::{
            Detour, ServerStream,
            h2::{self, Owner, Request, ServerConn, Wire},
        },
        connection::Timers,
        exchange::{After, Exchange},
        log::Flags,
        reply::Reply,
        shared::{Shared, Speaks},
    },
    tls::Transport,
};

/// The requests of one connection.
struct Streams {
    shared: Shared,
    wire: Rc<Wire>,
    active: Cell<u32>,
    /// Since when there is none.
    idle_since: Cell<Instant>,
    /// The connection's task, which waits for streams to end.
    waker: RefCell<Option<Waker>>,
    ended: Cell<u32>,
    /// Of those that ended, how many the client reset before they were old.
    premature: Cell<u32>,
    /// Streams that were answered and whose client has not taken all of it, the oldest first.
    flushing: RefCell<VecDeque<Flushing>>,
}

/// An answered stream. It counts as active.
struct Flushing {
    stream: h2::ServerStream,
    /// When it is given up.
    until: Option<Instant>,
}

/// Streams that have to end before their client is judged (Envoy's `overload.premature_reset_total_stream_count`).
pub(super) const JUDGED_STREAMS: u32 = 500;

/// How old a stream is that was not reset prematurely (`overload.premature_reset_min_stream_lifetime_seconds`).
pub(super) const PREMATURE: Duration = Duration::from_secs(1);

/// How long a client may take nothing of what is left for it.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);

/// Most bytes read and dropped after the end.
const LINGER_BYTES: usize = 1 << 20;

/// What the connection's task is to do.
enum Event {
    /// The codec is done.
    Over,
    /// A request came.
    Request(Box<Request>),
    /// A deadline passed, or something else changed.
    Again,
}

/// How far the end of a connection is.
#[derive(Clone, Copy, PartialEq)]
enum Draining {
    No,
    /// No further requests are taken; when the connection ends even if the client does not answer.
    Since(Instant),
    /// It is being closed; until when the client may take what is left for it.
    Closed(Instant),
}

/// Serves a connection to its end. `received` came already.
pub(super) async fn serve(shared: Shared, stream: Transport, received: Option<Chunk>) {
    shared.speaks(Speaks::Http2);
    let config = shared.manager.spec.config.clone();
    let limit = shared.downstream.listener.spec.config.buffer_limit_bytes;
    let stats = shared.worker.http2_stats();
    let wire = Wire::new(
        stream,
        Owner::Server(shared.manager.stats.clone()),
        stats,
        &config.http2,
        limit,
        config.max_request_headers_bytes,
    );
    if let Some(received) = received {
        wire.received(received);
    }
    let mut timer = Timer::new();
    if let Some(idle) = config.idle_timeout {
        timer.set(time::now() + idle);
    }
    let header_bytes = config.max_request_headers_bytes;
    let mut handshake = Box::pin(ServerConn::handshake(wire.clone(), &config.http2, header_bytes, limit));
    let shaken = poll_fn(|cx| {
        if let Poll::Ready(shaken) = handshake.as_mut().poll(cx) {
            return Poll::Ready(Some(shaken));
        }
        timer.poll_expired(cx).map(|()| None)
    })
    .await;
    drop(handshake);
    let conn = match shaken {
        Some(Ok(conn)) => conn,
        Some(Err(error)) => {
            log::debug!(target: "http", "HTTP/2 preface: {error}");
            if !error.is_io() {
                shared.manager.stats.downstream_cx_protocol_error.inc();
            }
            // As in Envoy there is no GOAWAY: what came was not HTTP/2.
            return linger(&shared, &wire, false, &mut timer).await;
        }
        None => {
            shared.manager.stats.downstream_cx_idle_timeout.inc();
            return linger(&shared, &wire, false, &mut timer).await;
        }
    };
    let streams = Rc::new(Streams {
        shared,
        wire: wire.clone(),
        active: Cell::new(0),
        idle_since: Cell::new(time::now()),
        waker: RefCell::default(),
        ended: Cell::new(0),
        premature: Cell::new(0),
        flushing: RefCell::default(),
    });
    let abandoned = run(&streams, conn, &mut timer).await;
    streams.flushing.take();
    linger(&streams.shared, &wire, abandoned, &mut timer).await;
}

/// Serves requests to the end of the connection. Whether the client did not take what was left for it in time.
async fn run(streams: &Rc<Streams>, mut conn: ServerConn, timer: &mut Timer) -> bool {
    let shared = &streams.shared;
    let (stats, config) = (&shared.manager.stats, &shared.manager.spec.config);
    let mut draining = Draining::No;
    let mut requests = 0_u32;
    loop {
        match streams.deadline(draining) {
            Some(deadline) => timer.set(deadline),
            None => timer.clear(),
        }
        let event = poll_fn(|cx| streams.poll_event(&mut conn, draining, timer, cx)).await;
        match event {
            Event::Over => break,
            Event::Request(request) => {
                requests += 1;
                if config.max_requests_per_connection == Some(requests) {
                    stats.downstream_cx_max_requests_reached.inc();
                    streams.wire.drain();
                }
                task::spawn(answer(Active::new(streams), request));
            }
            Event::Again => streams.give_up_slow(),
        }
        let close_by = || time::now() + config.delayed_close_timeout.unwrap_or_default();
        if let Draining::Closed(until) = draining {
            if time::now() >= until {
                break;
            }
            continue;
        }
        if conn.is_broken() {
            draining = Draining::Closed(close_by());
        } else if streams.is_flooded() {
            stats.downstream_rq_too_many_premature_resets.inc();
            draining = Draining::Closed(close_by());
            conn.close(Reason::ENHANCE_YOUR_CALM);
        }
        match draining {
            Draining::No => {
                let now = time::now();
                let expired = shared.expires().is_some_and(|at| now >= at);
                let idle = streams.idle_until().is_some_and(|at| now >= at);
                if expired {
                    stats.downstream_cx_max_duration_reached.inc();
                } else if idle {
                    stats.downstream_cx_idle_timeout.inc();
                }
                let wanted = streams.wire.wants_drain();
                if wanted {
                    stats.downstream_cx_drain_close.inc();
                }
                if expired || idle || wanted {
                    conn.drain();
                    draining = Draining::Since(now);
                }
            }
            Draining::Since(since) => {
                // A client that does not answer the ping between the two GOAWAYs is not waited for.
                if streams.active.get() == 0 && time::now() >= streams.drained_by(since) {
                    conn.close(Reason::NO_ERROR);
                    draining = Draining::Closed(close_by());
                }
            }
            Draining::Closed(_) => {}
        }
    }
    if conn.is_broken() {
        stats.downstream_cx_protocol_error.inc();
    }
    matches!(draining, Draining::Closed(until) if time::now() >= until)
}

/// Answers one request.
async fn answer(active: Active, request: Box<Request>) {
    let shared = &active.streams.shared;
    let started = time::now();
    let Request { parts, stream } = *request;
    let mut head = shared.worker.request_head();
    let framing = stream.head(&parts, &shared.manager.options, &mut head);
    drop(parts);
    let detour = Detour::default();
    let side = ServerStream::of_stream(&stream, &detour);
    let after = match framing {
        Ok(framing) => {
            let mut timers = Timers { wait: Timer::new(), route: Timer::new() };
            Exchange::new(shared, side, head, framing, started, false).run(&mut timers).await
        }
        Err(fault @ (Fault::HeadersTooMany | Fault::Underscore)) => {
            if fault == Fault::Underscore {
                active.streams.wire.stats.requests_rejected_with_underscores_in_headers.inc();
            }
            shared.worker.recycle(head, None);
            return stream.reset(Reason::INTERNAL_ERROR);
        }
        Err(Fault::InvalidCharacter) => {
            shared.worker.recycle(head, None);
            return stream.reset(Reason::PROTOCOL_ERROR);
        }
        Err(fault) => {
            if fault == Fault::Fragment {
                shared.manager.stats.downstream_rq_failed_path_normalization.inc();
            }
            let framing = culvert_proto::h1::Framing::None;
            let exchange = Exchange::new(shared, side, head, framing, started, false);
            let mut reply = Reply::new(fault.status(), "").details(fault.details());
            if fault.is_protocol_error() {
                reply = reply.flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
            }
            exchange.refuse(reply)
        }
    };
    match after {
        After::Abort | After::Close | After::Finished | After::KeepAlive if stream.is_complete() => {
            active.flush(stream);
        }
        After::Abort | After::Close | After::Finished | After::KeepAlive => {
            if time::now() - started < PREMATURE && stream.was_reset() {
                active.premature.set(true);
            }
            stream.reset(Reason::INTERNAL_ERROR);
        }
    }
}

impl Streams {
    fn poll_event(
        &self,
        conn: &mut ServerConn,
        draining: Draining,
        timer: &mut Timer,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        match conn.poll_request(cx) {
            Poll::Ready(Some(Ok(request))) => return Poll::Ready(Event::Request(Box::new(request))),
            Poll::Ready(Some(Err(error))) => {
                if !error.is_io() && !conn.is_broken() {
                    self.shared.manager.stats.downstream_cx_protocol_error.inc();
                }
                log::debug!(target: "http", "HTTP/2 connection: {error}");
                return Poll::Ready(Event::Over);
            }
            Poll::Ready(None) => return Poll::Ready(Event::Over),
            Poll::Pending => {}
        }
        self.notice_flushed(cx);
        let due = self.deadline(draining);
        if draining == Draining::No && self.wire.is_draining(cx)
            || !matches!(draining, Draining::Closed(_)) && (self.is_flooded() || conn.is_broken())
        {
            return Poll::Ready(Event::Again);
        }
        // Streams that ended meanwhile move the deadline.
        match due {
            Some(due) => timer.set(due),
            None => timer.clear(),
        }
        if timer.is_set() { timer.poll_expired(cx).map(|()| Event::Again) } else { Poll::Pending }
    }

    /// Counts streams out whose last byte has left.
    fn notice_flushed(&self, cx: &mut Context<'_>) {
        if self.flushing.borrow().is_empty() {
            return;
        }
        let mut over = 0;
        self.flushing.borrow_mut().retain(|flushing| {
            let done = flushing.stream.is_over(cx);
            over += u32::from(done);
            !done
        });
        if over > 0 {
            self.active.set(self.active.get() - over);
            self.idle_since.set(time::now());
        }
    }

    /// Gives up the streams whose clients have had their time.
    fn give_up_slow(&self) {
        let now = time::now();
        let mut flushing = self.flushing.borrow_mut();
        while let Some(slow) = flushing.pop_front_if(|first| first.until.is_some_and(|until| until <= now)) {
            slow.stream.give_up();
            self.active.set(self.active.get() - 1);
            self.idle_since.set(now);
        }
    }

    /// When something has to be done whatever comes.
    fn deadline(&self, draining: Draining) -> Option<Instant> {
        // All of them have the same time, so that the first is the first to be given up.
        let flushed = self.flushing.borrow().front().and_then(|flushing| flushing.until);
        match (self.closing_deadline(draining), flushed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn closing_deadline(&self, draining: Draining) -> Option<Instant> {
        match draining {
            Draining::No => match (self.shared.expires(), self.idle_until()) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
            Draining::Since(since) if self.active.get() == 0 => Some(self.drained_by(since)),
            Draining::Since(_) => None,
            Draining::Closed(until) => Some(until),
        }
    }

    /// When a connection that drains ends without the client's consent. What the last stream brought is still on its way
    /// when that stream is over.
    fn drained_by(&self, since: Instant) -> Instant {
        since.max(self.idle_since.get()) + self.shared.manager.spec.config.drain_timeout
    }

    fn idle_until(&self) -> Option<Instant> {
        let idle = self.shared.manager.spec.config.idle_timeout?;
        (self.active.get() == 0).then(|| self.idle_since.get() + idle)
    }

    /// Whether the client opens streams to reset them (CVE-2023-44487).
    fn is_flooded(&self) -> bool {
        self.ended.get() >= JUDGED_STREAMS && self.premature.get() * 2 >= self.ended.get()
    }
}

/// Reads what the client still sends, because a close with unread bytes would reset the connection under what is on its
/// way.
async fn linger(shared: &Shared, wire: &Wire, abandoned: bool, timer: &mut Timer) {
    let manager = &shared.manager;
    if wire.is_closed() {
        return manager.stats.downstream_cx_destroy_remote.inc();
    }
    manager.stats.downstream_cx_destroy_local.inc();
    wire.shutdown();
    let patience = if abandoned { Duration::ZERO } else { FLUSH_PATIENCE };
    timer.set(time::now() + patience);
    let flushed = poll_fn(|cx| {
        if let Poll::Ready(result) = wire.poll_flushed(cx) {
            return Poll::Ready(result.is_ok());
        }
        timer.poll_expired(cx).map(|()| false)
    })
    .await;
    let Some(patience) = manager.spec.config.delayed_close_timeout.filter(|_| flushed) else { return };
    timer.set(time::now() + patience);
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        while let Poll::Ready(dropped) = wire.poll_discard(cx) {
            match dropped {
                Some(bytes) if bytes <= left => left -= bytes,
                _ => return Poll::Ready(()),
            }
        }
        timer.poll_expired(cx).map(|()| manager.stats.downstream_cx_delayed_close_timeout.inc())
    })
    .await;
}

/// A stream that is being answered.
struct Active {
    streams: Rc<Streams>,
    premature: Cell<bool>,
    /// It is counted out later.
    handed_on: Cell<bool>,
}

impl Active {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self { streams: streams.clone(), premature: Cell::new(false), handed_on: Cell::new(false) }
    }

    /// Leaves an answered stream to its connection until the client has taken all of it.
    fn flush(&self, stream: h2::ServerStream) {
        let streams = &self.streams;
        let patience = streams.shared.manager.spec.config.stream_flush_timeout;
        let until = patience.map(|patience| time::now() + patience);
        streams.flushing.borrow_mut().push_back(Flushing { stream, until });
        self.handed_on.set(true);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let streams = &self.streams;
        if !self.handed_on.get() {
            streams.active.set(streams.active.get() - 1);
            streams.idle_since.set(time::now());
        }
        streams.ended.set(streams.ended.get().saturating_add(1));
        if self.premature.get() {
            streams.premature.set(streams.premature.get().saturating_add(1));
        }
        if let Some(waker) = streams.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}
