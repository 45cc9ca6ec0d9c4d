//! A downstream connection of HTTP/3. Each request is a task of its own, which reads and answers its stream by itself; the
//! connection's task does what concerns all of them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use culvert_proto::{
    h1::{Fault, Framing},
    h3::{Code, Settings, Violation},
};
use culvert_quic::{Connection, ConnectionError, RecvStream, SendStream};
use culvert_ring::{task, time, time::Timer};

use crate::{
    http::{
        HttpManager,
        codec::{
            Detour, ServerStream,
            h3::{self, Received, Role, Session},
        },
        connection::Timers,
        exchange::{After, Exchange},
        log::Flags,
        multiplexed::{JUDGED_STREAMS, PREMATURE},
        reply::Reply,
        shared::{Shared, Speaks},
    },
    listener::Downstream,
    worker::Worker,
};

/// The requests of one connection.
struct Streams {
    shared: Shared,
    session: Rc<Session>,
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
    stream: h3::ServerStream,
    /// When it is given up.
    until: Option<Instant>,
}

/// What the connection's task is to do.
enum Event {
    /// The connection is over.
    Over(ConnectionError),
    /// A request comes.
    Request(SendStream, RecvStream),
    /// A deadline passed, or something else changed.
    Again,
}

/// How far the end of a connection is (RFC 9114, section 5.2).
#[derive(Clone, Copy, PartialEq)]
enum Draining {
    No,
    /// The client was told, without promising anything: until when what it sent before that is waited for.
    Told(Instant),
    /// No further requests are taken.
    Last,
}

/// How long a request may be on its way that was sent before the client knew, beside two round-trip times.
const ON_ITS_WAY: Duration = Duration::from_millis(10);

/// How long it is waited for the client to acknowledge what it was sent.
const DELIVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// Serves a connection to its end. Its handshake is complete.
pub async fn serve(worker: Rc<Worker>, quic: Connection, downstream: Downstream, manager: Rc<HttpManager>) {
    let shared = Shared::new(worker, manager, downstream);
    shared.speaks(Speaks::Http3);
    let config = &shared.manager.spec.config;
    let own = Settings {
        max_field_section: Some(config.max_request_headers_bytes as u64),
        connect_protocol: config.http3.allow_connect,
    };
    let session = Session::new(quic, Role::Server, own, &config.http3, shared.worker.http3_stats());
    let streams = Rc::new(Streams {
        shared,
        session,
        active: Cell::new(0),
        idle_since: Cell::new(time::now()),
        waker: RefCell::default(),
        ended: Cell::new(0),
        premature: Cell::new(0),
        flushing: RefCell::default(),
    });
    let ended = streams.run().await;
    streams.flushing.take();
    streams.count_bytes();
    let stats = &streams.shared.manager.stats;
    match ended {
        Some(
            ConnectionError::ConnectionClosed(_)
            | ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset
            | ConnectionError::TimedOut,
        ) => stats.downstream_cx_destroy_remote.inc(),
        _ => stats.downstream_cx_destroy_local.inc(),
    }
    if streams.session.violation().is_some() {
        stats.downstream_cx_protocol_error.inc();
    }
}

impl Streams {
    /// Serves requests to the end of the connection; `None` when that was its own decision.
    async fn run(self: &Rc<Self>) -> Option<ConnectionError> {
        let (shared, session) = (&self.shared, &self.session);
        let (stats, config) = (&shared.manager.stats, &shared.manager.spec.config);
        let mut timer = Timer::new();
        let mut draining = Draining::No;
        let mut requests = 0_u32;
        // The first stream that was not taken.
        let mut next = 0_u64;
        loop {
            match poll_fn(|cx| self.poll_event(draining, &mut timer, cx)).await {
                Event::Over(error) => return Some(error),
                Event::Request(mut send, mut receive) if draining == Draining::Last => {
                    // Nothing was done with it, so that it may be sent again elsewhere.
                    send.reset(h3::code(Code::RequestRejected));
                    receive.stop(h3::code(Code::RequestRejected));
                }
                Event::Request(send, receive) => {
                    next = next.max(u64::from(send.id()) + 4);
                    requests += 1;
                    if config.max_requests_per_connection == Some(requests) {
                        stats.downstream_cx_max_requests_reached.inc();
                        session.drain();
                    }
                    let header_bytes = config.max_request_headers_bytes;
                    let stream = h3::ServerStream::new(session.clone(), (send, receive), header_bytes);
                    task::spawn(answer(Active::new(self), stream));
                }
                Event::Again => self.give_up_slow(),
            }
            if self.is_flooded() {
                stats.downstream_rq_too_many_premature_resets.inc();
                session.fail(Violation::TooMuch);
                continue;
            }
            match draining {
                Draining::No => {
                    let now = time::now();
                    let expired = shared.expires().is_some_and(|at| now >= at);
                    let idle = self.idle_until().is_some_and(|at| now >= at);
                    if expired {
                        stats.downstream_cx_max_duration_reached.inc();
                    } else if idle {
                        stats.downstream_cx_idle_timeout.inc();
                    } else if session.wants_drain() {
                        stats.downstream_cx_drain_close.inc();
                    } else {
                        continue;
                    }
                    session.send_goaway(None);
                    let on_its_way = session.quic.stats().rtt * 2 + ON_ITS_WAY;
                    draining = Draining::Told(now + on_its_way.min(config.drain_timeout));
                }
                Draining::Told(until) if time::now() >= until => {
                    session.send_goaway(Some(next));
                    draining = Draining::Last;
                }
                Draining::Told(_) | Draining::Last => {}
            }
            if draining == Draining::Last && self.active.get() == 0 {
                self.deliver(&mut timer).await;
                session.quic.close(h3::code(Code::NoError), b"");
                return None;
            }
        }
    }

    /// Waits until the client has acknowledged everything but the end of the control stream, which has none.
    async fn deliver(&self, timer: &mut Timer) {
        let until = time::now() + DELIVERY;
        loop {
            timer.set(time::now() + LOOK);
            let over = poll_fn(|cx| match self.session.poll(cx) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending => timer.poll_expired(cx).map(|()| false),
            })
            .await;
            if over || self.session.quic.sending_streams() <= 1 || time::now() >= until {
                return;
            }
        }
    }

    fn poll_event(&self, draining: Draining, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<Event> {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        if let Poll::Ready(error) = self.session.poll(cx) {
            return Poll::Ready(Event::Over(error));
        }
        match self.session.quic.poll_accept_bi(cx) {
            Poll::Ready(Ok((send, receive))) => return Poll::Ready(Event::Request(send, receive)),
            Poll::Ready(Err(error)) => return Poll::Ready(Event::Over(error)),
            Poll::Pending => {}
        }
        self.notice_flushed();
        let ends = match draining {
            Draining::No => self.session.wants_drain() || self.is_flooded(),
            Draining::Told(_) => self.is_flooded(),
            Draining::Last => self.active.get() == 0 || self.is_flooded(),
        };
        if ends {
            return Poll::Ready(Event::Again);
        }
        match self.deadline(draining) {
            Some(due) => timer.set(due),
            None => timer.clear(),
        }
        if timer.is_set() { timer.poll_expired(cx).map(|()| Event::Again) } else { Poll::Pending }
    }

    /// Counts streams out whose last byte was taken.
    fn notice_flushed(&self) {
        if self.flushing.borrow().is_empty() {
            return;
        }
        let mut over = Vec::new();
        let mut flushing = self.flushing.borrow_mut();
        let mut at = 0;
        while at < flushing.len() {
            if flushing[at].stream.is_over() { over.extend(flushing.remove(at)) } else { at += 1 }
        }
        drop(flushing);
        self.count_out(over.len());
    }

    /// Gives up the streams whose clients have had their time.
    fn give_up_slow(&self) {
        let now = time::now();
        let mut flushing = self.flushing.borrow_mut();
        let mut over = Vec::new();
        while let Some(slow) = flushing.pop_front_if(|first| first.until.is_some_and(|until| until <= now)) {
            slow.stream.give_up();
            over.push(slow);
        }
        drop(flushing);
        self.count_out(over.len());
    }

    fn count_out(&self, streams: usize) {
        if streams > 0 {
            self.active.set(self.active.get().saturating_sub(u32::try_from(streams).unwrap_or(u32::MAX)));
            self.idle_since.set(time::now());
        }
    }

    /// When something has to be done whatever comes.
    fn deadline(&self, draining: Draining) -> Option<Instant> {
        // All of them have the same time, so that the first is the first to be given up.
        let flushed = self.flushing.borrow().front().and_then(|flushing| flushing.until);
        let ends = match draining {
            Draining::No => self.shared.expires().into_iter().chain(self.idle_until()).min(),
            Draining::Told(until) => Some(until),
            Draining::Last => None,
        };
        flushed.into_iter().chain(ends).min()
    }

    fn idle_until(&self) -> Option<Instant> {
        let idle = self.shared.manager.spec.config.idle_timeout?;
        (self.active.get() == 0).then(|| self.idle_since.get() + idle)
    }

    /// Whether the client opens streams to reset them (CVE-2023-44487).
    fn is_flooded(&self) -> bool {
        self.ended.get() >= JUDGED_STREAMS && self.premature.get() * 2 >= self.ended.get()
    }

    fn count_bytes(&self) {
        let (received, sent) = self.session.take_bytes();
        let stats = &self.shared.manager.stats;
        stats.downstream_cx_rx_bytes_total.add(received);
        stats.downstream_cx_tx_bytes_total.add(sent);
    }
}

/// Answers one request.
async fn answer(active: Active, stream: h3::ServerStream) {
    let shared = &active.streams.shared;
    let (manager, session) = (&shared.manager, &active.streams.session);
    let config = &manager.spec.config;
    let started = time::now();
    let mut head = shared.worker.request_head();
    let mut timers = Timers { wait: Timer::new(), route: Timer::new() };
    let of_heads = config.request_headers_timeout;
    // A head that trickles in must not outlive an idle stream.
    let of_requests = config.request_timeout.or(config.stream_idle_timeout);
    if let Some(limit) = of_heads.into_iter().chain(of_requests).min() {
        timers.wait.set(started + limit);
    }
    let connect = config.http3.allow_connect;
    let received = poll_fn(|cx| {
        if let Poll::Ready(received) = stream.poll_head(connect, &manager.options, &mut head, cx) {
            return Poll::Ready(Some(received));
        }
        if timers.wait.is_set() { timers.wait.poll_expired(cx).map(|()| None) } else { Poll::Pending }
    })
    .await;
    timers.wait.clear();
    let detour = Detour::default();
    let side = ServerStream::of_quic(&stream, &detour);
    let after = match received {
        Some(Received::Head(framing)) => {
            Exchange::new(shared, side, head, framing, started, false).run(&mut timers).await
        }
        Some(Received::Nothing) => {
            shared.worker.recycle(head, None);
            active.note_reset(&stream, started);
            return match stream.violation() {
                Some(violation) => punish(session, &stream, violation),
                None => stream.reset(Code::RequestCancelled),
            };
        }
        Some(Received::Refused(fault @ (Fault::HeadersTooMany | Fault::Underscore))) => {
            if fault == Fault::Underscore {
                session.stats.requests_rejected_with_underscores_in_headers.inc();
            }
            shared.worker.recycle(head, None);
            return stream.reset(Code::RequestRejected);
        }
        Some(Received::Refused(fault)) => {
            let exchange = Exchange::new(shared, side, head, Framing::None, started, false);
            let mut reply = Reply::new(fault.status(), "").details(fault.details());
            if fault.is_protocol_error() {
                reply = reply.flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
            }
            exchange.refuse(reply)
        }
        None => {
            head.clear();
            head.version = culvert_proto::Version::Http3;
            let exchange = Exchange::new(shared, side, head, Framing::None, started, false);
            exchange.record.bare.set(true);
            let sooner = of_heads.is_some_and(|heads| of_requests.is_none_or(|requests| heads < requests));
            exchange.refuse(if sooner {
                manager.stats.downstream_rq_header_timeout.inc();
                Reply::new(408, "request header timeout").details("request_header_timeout")
            } else {
                manager.stats.downstream_rq_timeout.inc();
                Reply::new(408, "request timeout").details("request_overall_timeout")
            })
        }
    };
    let (After::Abort | After::Close | After::Finished | After::KeepAlive) = after;
    active.streams.count_bytes();
    if let Some(violation) = stream.violation() {
        return punish(session, &stream, violation);
    }
    if stream.is_complete() {
        return active.flush(stream);
    }
    active.note_reset(&stream, started);
    stream.reset(Code::InternalError);
}

/// Does what follows from what a client did.
fn punish(session: &Session, stream: &h3::ServerStream, violation: Violation) {
    if !session.judge(violation) {
        stream.reset(violation.code());
    }
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

    fn note_reset(&self, stream: &h3::ServerStream, started: Instant) {
        if time::now() - started < PREMATURE && stream.was_reset() {
            self.premature.set(true);
        }
    }

    /// Leaves an answered stream to its connection until the client has taken all of it.
    fn flush(&self, stream: h3::ServerStream) {
        if stream.is_over() {
            return;
        }
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
