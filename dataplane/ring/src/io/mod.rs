//! The sockets of a worker: what is common to all drivers.

mod outbox;
mod slot;

mod close;
mod datagram;
mod read;
mod write;

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use outbox::Spares;
pub(crate) use outbox::{Flight, MAX_SLICES};
pub(crate) use slot::{Key, Park, Phase, Shutdown, Slot, Slots};
use socket2::SockAddr;

use crate::{
    buf::Pool,
    config::RuntimeConfig,
    driver::{AnyDriver, Attempt, Driver, Event},
    stats::RuntimeStats,
    wake::Shared,
    watch::Watch,
};

/// How long what a dropped stream has queued is still sent.
const LINGER: Duration = Duration::from_secs(1);

/// How long a receive waits for a pooled buffer before it gets memory of its own.
const STARVATION: Duration = Duration::from_millis(10);

/// How long a socket pauses when descriptors or kernel memory have run out.
const PAUSE: Duration = Duration::from_millis(5);

/// Connections a listener accepts in one turn.
const ACCEPT_BUDGET: u32 = 64;

/// Connections a listener accepts ahead of demand; then it stops until they have been taken.
const ACCEPT_AHEAD: usize = 1024;

pub(crate) struct Io {
    driver: AnyDriver,
    pool: Rc<Pool>,
    slots: Slots,
    spares: Spares,
    events: Vec<Event>,
    turn: u32,
    now: Instant,
    /// Sockets with something to send.
    dirty: Vec<Key>,
    /// Some of them are best sent right after the task.
    eager: bool,
    /// Readers and listeners that have had their share of this turn.
    again: Vec<Key>,
    /// Receives that wait for a free buffer, in order.
    starved: VecDeque<(Key, Instant)>,
    /// Dropped streams that are still sending, in order of their deadlines.
    lingering: VecDeque<(Key, Instant)>,
    /// Sockets that pause, in order of their deadlines.
    pausing: VecDeque<(Key, Instant)>,
    parked: VecDeque<u64>,
    janitor: Option<Waker>,
    pub(crate) stats: RuntimeStats,
}

impl Io {
    pub(crate) fn new(config: &RuntimeConfig, shared: &Shared, now: Instant) -> io::Result<Self> {
        let pool = Pool::new(&config.buffers)?;
        Ok(Self {
            driver: AnyDriver::new(config, &pool, shared)?,
            pool,
            slots: Slots::new(u32::from(shared.id()) << 16),
            spares: Spares::default(),
            events: Vec::new(),
            turn: 1,
            now,
            dirty: Vec::new(),
            eager: false,
            again: Vec::new(),
            starved: VecDeque::new(),
            lingering: VecDeque::new(),
            pausing: VecDeque::new(),
            parked: VecDeque::new(),
            janitor: None,
            stats: RuntimeStats::default(),
        })
    }

    pub(crate) fn insert_stream(&mut self, fd: OwnedFd) -> Key {
        self.slots.insert(fd, Phase::Open)
    }

    pub(crate) fn insert_listener(&mut self, fd: OwnedFd) -> Key {
        self.slots.insert(fd, Phase::Listening)
    }

    #[inline]
    pub(crate) fn slot(&self, key: Key) -> Option<&Slot> {
        self.slots.get(key)
    }

    pub(crate) fn watch(&mut self, key: Key, watch: Box<dyn Watch>) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.watch = Some(watch);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Starts a handshake; its outcome comes from [`Io::poll_connected`].
    pub(crate) fn connect(&mut self, fd: OwnedFd, addr: &SockAddr) -> io::Result<Key> {
        let key = self.slots.insert(fd, Phase::Connecting);
        let Some(slot) = self.slots.get_mut(key) else { return Err(gone()) };
        match self.driver.connect(key, slot, addr) {
            Attempt::Done(outcome) => self.connected(key, outcome),
            Attempt::Pending | Attempt::NoBuffer => {}
        }
        Ok(key)
    }

    pub(crate) fn poll_connected(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        if slot.phase == Phase::Connecting {
            set_waker(&mut slot.writer, cx);
            return Poll::Pending;
        }
        Poll::Ready(check(slot.write_error))
    }

    pub(crate) fn poll_accept(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<OwnedFd>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        if let Some(fd) = slot.backlog.as_mut().and_then(|it| it.pop_front()) {
            return Poll::Ready(Ok(fd));
        }
        set_waker(&mut slot.reader, cx);
        if slot.starved {
            return Poll::Pending;
        }
        if slot.read_turn != self.turn {
            slot.read_turn = self.turn;
            slot.taken = 0;
        }
        if slot.taken >= ACCEPT_BUDGET {
            self.again.push(key);
            return Poll::Pending;
        }
        match self.driver.accept(key, slot) {
            Attempt::Done(Ok(fd)) => {
                slot.taken += 1;
                self.stats.accepts += 1;
                Poll::Ready(Ok(fd))
            }
            Attempt::Done(Err(error)) => self.accept_failed(key, &error),
            Attempt::Pending | Attempt::NoBuffer => Poll::Pending,
        }
    }

    /// Sends what every dirty socket has queued.
    pub(crate) fn flush(&mut self) {
        while let Some(key) = self.dirty.pop() {
            self.flush_one(key);
        }
    }

    /// The end of a turn: starts everything that can be started. Tasks may be woken by what finishes at once, so this
    /// comes before deciding how long to wait.
    pub(crate) fn settle(&mut self) {
        self.flush();
        self.feed_starved();
    }

    /// Sends what the task that has just run has queued, where the driver prefers that.
    #[inline]
    pub(crate) fn flush_eager(&mut self) {
        if std::mem::take(&mut self.eager) {
            self.flush();
        }
    }

    /// One wait for the kernel. `timeout` is shortened by what is due here.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = self.shorten(timeout);
        let mut events = std::mem::take(&mut self.events);
        let outcome = self.driver.wait(timeout, &mut self.slots, &mut events);
        self.stats.waits += 1;
        self.events = events;
        outcome
    }

    /// Acts on what the wait brought and wakes those concerned. `now` is the time of the new turn.
    pub(crate) fn turn(&mut self, now: Instant) {
        self.turn = self.turn.wrapping_add(1).max(1);
        self.now = now;
        self.stats.turns += 1;
        self.stats.completions += self.events.len() as u64;
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        // What is woken runs later: it adds to the list when this is done.
        for key in self.again.drain(..) {
            if let Some(waker) = self.slots.get_mut(key).and_then(|it| it.reader.take()) {
                waker.wake();
            }
        }
        self.end_lingering();
        self.end_pauses();
    }

    pub(crate) fn poll_parked(&mut self, cx: &Context<'_>) -> Poll<u64> {
        match self.parked.pop_front() {
            Some(tag) => Poll::Ready(tag),
            None => {
                set_waker(&mut self.janitor, cx);
                Poll::Pending
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted(key, outcome) => self.accepted(key, outcome),
            Event::Connected(key, outcome) => self.connected(key, outcome),
            Event::Ready { key, readable, writable } => self.ready(key, readable, writable),
            Event::Received(key, outcome) => self.received(key, outcome),
            Event::ReceivedNoBuffer(key) => self.starve(key),
            Event::Sent(key, outcome) => self.sent(key, outcome),
            Event::Stale => self.stats.stale += 1,
            Event::Stalled(key) => self.stalled(key),
        }
    }

    fn ready(&mut self, key: Key, readable: bool, writable: bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.phase == Phase::Closing {
            // It became ready before the cancellation reached it.
            return self.free_if_idle(key);
        }
        if readable {
            if let Park::Quiet(tag) = slot.park {
                slot.park = Park::Disturbed;
                self.report_parked(tag);
            } else if let Some(waker) = slot.reader.take() {
                waker.wake();
            }
        }
        if writable {
            self.flush_one(key);
        }
    }

    fn connected(&mut self, key: Key, outcome: io::Result<()>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.phase != Phase::Connecting {
            return self.free_if_idle(key);
        }
        slot.phase = Phase::Open;
        if let Err(error) = outcome {
            slot.write_error = errno(&error);
            slot.read_error = slot.write_error;
        }
        if let Some(waker) = slot.writer.take() {
            waker.wake();
        }
    }

    fn accepted(&mut self, key: Key, outcome: io::Result<OwnedFd>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.phase != Phase::Listening {
            return self.free_if_idle(key);
        }
        match outcome {
            Ok(fd) => {
                self.stats.accepts += 1;
                let backlog = slot.backlog.get_or_insert_default();
                backlog.push_back(fd);
                if backlog.len() == ACCEPT_AHEAD {
                    self.driver.cancel(key, slot, false);
                }
                if let Some(waker) = slot.reader.take() {
                    waker.wake();
                }
            }
            Err(error) => {
                if let Poll::Ready(Err(_)) = self.accept_failed(key, &error)
                    && let Some(slot) = self.slots.get_mut(key)
                {
                    slot.read_error = errno(&error);
                    if let Some(waker) = slot.reader.take() {
                        waker.wake();
                    }
                }
            }
        }
    }

    /// Decides what a failed accept means: nothing, a pause, or the end of the listener.
    fn accept_failed(&mut self, key: Key, error: &io::Error) -> Poll<io::Result<OwnedFd>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        match errno(error) {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                slot.starved = true;
                self.stats.accept_backoffs += 1;
                self.pausing.push_back((key, self.now + PAUSE));
                Poll::Pending
            }
            libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP => {
                Poll::Ready(Err(io::Error::from_raw_os_error(errno(error))))
            }
            // The connection died while it was queued, or the network did (accept(2), "Error handling").
            _ => {
                self.again.push(key);
                Poll::Pending
            }
        }
    }

    fn end_pauses(&mut self) {
        while let Some(&(key, until)) = self.pausing.front() {
            if until > self.now {
                return;
            }
            self.pausing.pop_front();
            let Some(slot) = self.slots.get_mut(key) else { continue };
            if slot.phase == Phase::Listening {
                slot.starved = false;
            }
            // Datagrams wait for room without having anything queued.
            if slot.queued() == 0
                && let Some(waker) = slot.writer.take()
            {
                waker.wake();
            }
            // Readers and listeners start anew; what is queued is sent, what is parked is watched again.
            if let Some(waker) = slot.reader.take() {
                waker.wake();
            }
            if slot.queued() > 0 {
                self.mark_dirty(key);
            }
            self.watch_parked(key);
        }
    }

    /// An operation is to be started anew after a pause.
    fn stalled(&mut self, key: Key) {
        self.stats.stalls += 1;
        self.pausing.push_back((key, self.now + PAUSE));
        self.free_if_idle(key);
    }

    /// The shortest of `timeout` and the times until something is due here.
    fn shorten(&self, timeout: Option<Duration>) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let starved = self.starved.front().map(|&(_, since)| since + STARVATION);
        let lingering = self.lingering.front().map(|&(_, until)| until);
        let pausing = self.pausing.front().map(|&(_, until)| until);
        let due = [starved, lingering, pausing].into_iter().flatten().min();
        let due = due.map(|it| it.saturating_duration_since(self.now));
        match (timeout, due) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// Stores the waker to call, without cloning when it is there already.
#[inline]
fn set_waker(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        empty => *empty = Some(cx.waker().clone()),
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[inline]
fn check(errno: i32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// The error of an operation on a socket of a runtime that has ended.
fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}
