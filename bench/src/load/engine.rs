//! The event loop of a run: one thread, one epoll instance, no allocation per request.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::meter::Meter;
use super::plan::{Pacing, Plan, Reuse};
use super::response::Finished;
use super::schedule::Schedule;
use super::slot::{Pending, Phase, Received, Slot, untoken};
use super::tally::{Failure, Outcome, Tally, nanoseconds};

/// How long a slot waits after a failed connect, so that a dead target is not hammered.
const RETRY: Duration = Duration::from_millis(10);

/// How often deadlines are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// How long a peer that announced to close may take.
const CLOSING: Duration = Duration::from_secs(1);

const READ_BYTES: usize = 64 * 1024;
const EVENTS_MAX: usize = 256;
const TIMER_TOKEN: u64 = u64::MAX;

/// Runs a plan of HTTP/1.1 to its end and returns what came of it. Takes at most warm-up, duration and timeout together.
///
/// # Errors
/// Only when epoll, a timer, or a cgroup to be measured is not to be had; failing requests are part of the outcome.
pub(super) fn run(plan: &Plan) -> io::Result<Outcome> {
    Engine::new(plan)?.run()
}

struct Engine<'a> {
    plan: &'a Plan,
    poll: OwnedFd,
    timer: OwnedFd,
    timer_set_for: Option<Instant>,
    slots: Vec<Slot>,
    /// Slots without work, longest idle first.
    idle: VecDeque<u32>,
    schedule: Schedule,
    stage: Stage,
    meter: Meter,
    tally: Tally,
    buffer: Vec<u8>,
    /// Requests given to slots and neither answered nor failed.
    outstanding: usize,
    next_housekeeping: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    WarmUp,
    Window,
    /// The window is over; what was due in it may still be answered.
    Drain,
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // Edge-triggered, so that an expired timer needs no read: setting it again is enough.
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&poll, &timer, epoll::EventData::new_u64(TIMER_TOKEN), events)?;
        let start = Instant::now();
        let slots = (0..plan.connections.max(1)).map(|_| Slot::new(plan.request_is_head, start)).collect();
        Ok(Self {
            plan,
            poll,
            timer,
            timer_set_for: None,
            slots,
            idle: VecDeque::new(),
            schedule: Schedule::new(plan, start),
            stage: Stage::WarmUp,
            meter: Meter::new(plan),
            tally: Tally::new(),
            buffer: vec![0; READ_BYTES],
            outstanding: 0,
            next_housekeeping: start + HOUSEKEEPING,
        })
    }

    fn run(mut self) -> io::Result<Outcome> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        self.advance_stage(self.schedule.start)?;
        for index in 0..self.slots.len() as u32 {
            self.renew(index);
        }
        loop {
            let now = Instant::now();
            if self.advance_stage(now)? {
                return self.finish(now);
            }
            if now >= self.next_housekeeping {
                self.keep_house(now);
            }
            self.dispatch(now);
            self.set_timer(now)?;
            events.clear();
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&self.wait_time(now))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data.u64());
                if data != TIMER_TOKEN {
                    self.on_event(data, flags);
                }
            }
        }
    }

    /// Moves on to the window, the drain, and the end (true).
    fn advance_stage(&mut self, now: Instant) -> io::Result<bool> {
        if self.stage == Stage::WarmUp && now >= self.schedule.start + self.plan.warm_up {
            self.stage = Stage::Window;
            self.schedule.window = Some(now..now + self.plan.duration);
            self.meter.start(now)?;
        }
        let Some(end) = self.schedule.window.as_ref().map(|window| window.end) else { return Ok(false) };
        let sent_all = self.schedule.is_exhausted() && self.outstanding == 0;
        if self.stage == Stage::Window && (now >= end || sent_all) {
            self.stage = Stage::Drain;
            self.meter.stop(now)?;
        }
        let quiet = self.outstanding == 0 && self.schedule.peek(now).is_none();
        Ok(self.stage == Stage::Drain && (quiet || now >= end + self.plan.timeout))
    }

    /// Accounts for what is still unanswered.
    fn finish(mut self, now: Instant) -> io::Result<Outcome> {
        let mut waiting: Vec<Instant> =
            self.slots.iter().filter_map(|slot| slot.pending).map(|p| p.due).collect();
        while let Some(due) = self.schedule.next(now) {
            waiting.push(due);
        }
        for due in waiting.into_iter().filter(|due| self.schedule.is_measured(*due)) {
            self.tally.latency.saturating_record(nanoseconds(now - due));
            self.tally.failed(Failure::Unfinished);
        }
        let usage = self.meter.usage();
        Ok(self.tally.outcome(usage))
    }

    /// Hands requests that are due to slots that have nothing to do.
    fn dispatch(&mut self, now: Instant) {
        while !self.idle.is_empty() {
            let Some(due) = self.schedule.next(now) else { return };
            if let Some(index) = self.idle.pop_front() {
                self.begin(index, due, now);
            }
        }
    }

    /// Gives a free slot its request.
    fn begin(&mut self, index: u32, due: Instant, now: Instant) {
        let slot = &mut self.slots[index as usize];
        slot.pending = Some(Pending { due, began: now });
        slot.deadline = now + self.plan.timeout;
        self.outstanding += 1;
        let result = match self.plan.reuse {
            Reuse::KeepAlive => slot.send_from_start(&self.plan.request),
            Reuse::PerRequest => {
                slot.connect_began = now;
                slot.connect(self.plan, &self.poll, index)
            }
        };
        if let Err(failure) = result {
            self.fail(index, failure);
        }
    }

    /// A slot without work or connection: gives it what it needs next.
    fn renew(&mut self, index: u32) {
        let now = Instant::now();
        let slot = &mut self.slots[index as usize];
        if self.plan.reuse == Reuse::PerRequest || slot.phase == Phase::Idle {
            slot.phase = Phase::Idle;
            match self.schedule.next(now) {
                Some(due) => self.begin(index, due, now),
                None => self.idle.push_back(index),
            }
            return;
        }
        slot.connect_began = now;
        slot.deadline = now + self.plan.timeout;
        if let Err(failure) = slot.connect(self.plan, &self.poll, index) {
            self.fail(index, failure);
        }
    }

    fn on_event(&mut self, data: u64, flags: epoll::EventFlags) {
        let (index, generation) = untoken(data);
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        if slot.generation != generation {
            return;
        }
        let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if slot.phase == Phase::Connecting && (broken || flags.contains(epoll::EventFlags::OUT)) {
            self.on_connected(index);
        } else if slot.phase == Phase::Busy && flags.contains(epoll::EventFlags::OUT) {
            match slot.send_rest(&self.plan.request) {
                // A peer may answer and close without reading all of a request: the answer counts.
                Ok(()) | Err(Failure::Reset) => {}
                Err(failure) => return self.fail(index, failure),
            }
        }
        if broken || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) {
            self.read(index, broken || flags.contains(epoll::EventFlags::RDHUP));
        }
    }

    fn on_connected(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if let Err(failure) = slot.connect_result() {
            return self.fail(index, failure);
        }
        if self.stage == Stage::Window {
            self.tally.connect.saturating_record(nanoseconds(slot.connect_began.elapsed()));
        }
        if slot.pending.is_none() {
            slot.phase = Phase::Idle;
            return self.renew(index);
        }
        if let Err(failure) = slot.send_from_start(&self.plan.request) {
            self.fail(index, failure);
        }
    }

    /// Reads what is there. With edges a short read means "empty", unless the peer's end of stream is behind it.
    fn read(&mut self, index: u32, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let generation = self.slots[index as usize].generation;
        let is_same = |slot: &Slot| slot.generation == generation && slot.phase != Phase::Down;
        while is_same(&self.slots[index as usize]) {
            match self.slots[index as usize].receive(&mut buffer) {
                Received::Blocked => break,
                Received::Bytes(count) => {
                    if self.stage != Stage::WarmUp {
                        self.tally.bytes_received += count as u64;
                    }
                    self.on_bytes(index, &buffer[..count], to_the_end);
                    let is_last = count < buffer.len() && self.slots[index as usize].short_read_is_last();
                    if is_last && !to_the_end {
                        break;
                    }
                }
                Received::Closed => {
                    self.on_closed(index);
                    break;
                }
                Received::Failed(failure) => {
                    self.fail(index, failure);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn on_bytes(&mut self, index: u32, bytes: &[u8], peer_is_closing: bool) {
        let slot = &mut self.slots[index as usize];
        match slot.phase {
            Phase::Busy => match slot.reader.advance(bytes) {
                Ok(Some(finished)) => self.complete(index, finished, peer_is_closing),
                Ok(None) => {}
                Err(_) => self.fail(index, Failure::Malformed),
            },
            // Bytes nobody asked for.
            Phase::Idle | Phase::Closing => self.fail(index, Failure::Malformed),
            Phase::Connecting | Phase::Down => {}
        }
    }

    fn on_closed(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        match slot.phase {
            Phase::Busy => match slot.reader.closed() {
                Ok(finished) => {
                    self.complete(index, finished, true);
                    self.free(index);
                }
                Err(_) => self.fail(index, Failure::Closed),
            },
            // An idle connection may be closed at any time, but a server that does nothing else gets a pause.
            Phase::Idle => {
                slot.close(Instant::now() + RETRY);
                self.idle.retain(|&other| other != index);
            }
            Phase::Closing | Phase::Connecting | Phase::Down => self.free(index),
        }
    }

    /// Takes a response into account and moves on to the next request.
    fn complete(&mut self, index: u32, finished: Finished, peer_is_closing: bool) {
        let now = Instant::now();
        let slot = &mut self.slots[index as usize];
        let Some(pending) = slot.pending.take() else { return };
        self.outstanding -= 1;
        if self.stage == Stage::Window {
            self.tally.in_window += 1;
        }
        if self.schedule.is_measured(pending.due) {
            self.tally.latency.saturating_record(nanoseconds(now - pending.due));
            self.tally.service.saturating_record(nanoseconds(now - pending.began));
            *self.tally.statuses.entry(finished.status).or_default() += 1;
        }
        if self.plan.reuse == Reuse::KeepAlive && finished.reusable && !peer_is_closing {
            slot.phase = Phase::Idle;
            return self.renew(index);
        }
        // The peer closes first, so that the ports it holds afterwards (TIME_WAIT) are not the client's.
        slot.phase = Phase::Closing;
        slot.deadline = now + CLOSING;
    }

    /// Closes a connection that has done its work.
    fn free(&mut self, index: u32) {
        self.slots[index as usize].close(Instant::now());
        self.renew(index);
    }

    /// Gives a request, if there is one, and its connection up.
    fn fail(&mut self, index: u32, failure: Failure) {
        let now = Instant::now();
        let slot = &mut self.slots[index as usize];
        let pending = slot.pending.take();
        let was_connecting = slot.phase == Phase::Connecting || slot.phase == Phase::Down;
        if slot.phase == Phase::Idle {
            self.idle.retain(|&other| other != index);
        }
        slot.close(now + RETRY);
        self.next_housekeeping = self.next_housekeeping.min(now + RETRY);
        if pending.is_some() {
            self.outstanding -= 1;
        } else if was_connecting && self.plan.pacing == Pacing::Closed && self.schedule.next(now).is_none() {
            // A connection that cannot be made stands for the request it would have carried; there was none left.
            return;
        }
        let measured =
            pending.map_or(self.stage == Stage::Window, |pending| self.schedule.is_measured(pending.due));
        if !measured {
            return;
        }
        self.tally.failed(failure);
        if let (Failure::Timeout, Some(pending)) = (failure, pending) {
            self.tally.latency.saturating_record(nanoseconds(now - pending.due));
        }
    }

    /// Ends what lasts too long and revives what is down.
    fn keep_house(&mut self, now: Instant) {
        let mut any_down = false;
        for index in 0..self.slots.len() as u32 {
            let slot = &self.slots[index as usize];
            if now < slot.deadline {
                any_down |= slot.phase == Phase::Down;
                continue;
            }
            match slot.phase {
                Phase::Busy => self.fail(index, Failure::Timeout),
                Phase::Closing => self.free(index),
                Phase::Connecting => self.fail(index, Failure::ConnectTimeout),
                Phase::Down if self.stage < Stage::Drain || self.schedule.peek(now).is_some() => {
                    self.renew(index);
                }
                Phase::Down | Phase::Idle => {}
            }
            any_down |= self.slots[index as usize].phase == Phase::Down;
        }
        self.next_housekeeping = now + if any_down { RETRY } else { HOUSEKEEPING };
    }

    /// Wakes the loop when the next request is due and a slot is free for it.
    fn set_timer(&mut self, now: Instant) -> io::Result<()> {
        let Some(due) = self.schedule.upcoming().filter(|_| !self.idle.is_empty()) else { return Ok(()) };
        if self.timer_set_for == Some(due) {
            return Ok(());
        }
        self.timer_set_for = Some(due);
        // Zero would disarm the timer.
        let wait = (due - now.min(due)).max(Duration::from_nanos(1));
        let setting = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(wait) };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }

    fn wait_time(&self, now: Instant) -> Timespec {
        let boundary = match (&self.schedule.window, self.stage) {
            (Some(window), Stage::Drain) => window.end + self.plan.timeout,
            (Some(window), _) => window.end,
            (None, _) => self.schedule.start + self.plan.warm_up,
        };
        timespec(boundary.min(self.next_housekeeping).saturating_duration_since(now))
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
