//! The completion driver: one io_uring, entered once a turn.
//!
//! - A small receive is a single shot into a provided-buffer ring: demand is one buffer, and an idle connection holds none.
//!   It goes straight to polling unless the previous receive left something behind, as a keep-alive connection has nothing
//!   to read when the read is asked for.
//! - Bulk is polled for by the ring and then moved by plain calls, one socket after the other: a large buffer that is sent
//!   on at once is still in cache, while a batch of them is not. Measured with 1 MB bodies this saves a fifth.
//! - A socket has one send in flight, of everything queued, and the kernel resumes partial ones (MSG_WAITALL).
//! - What the kernel may still read or write (outboxes, addresses, buffers) stays where it is until the operation's last
//!   completion; a slot is not freed before that. When the driver ends it cancels and collects everything first.

mod provided;
mod setup;

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    rc::Rc,
    time::{Duration, Instant},
};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use provided::Group;
pub(crate) use setup::{Tier, rehearse};
use socket2::SockAddr;

use super::{
    Attempt, Driver, Event,
    direct::{self, Direct},
};
use crate::{
    buf::{Class, Lease, Pool},
    io::{Flight, Key, Slot, Slots},
};

/// linux/io_uring.h: IORING_RECVSEND_POLL_FIRST
const POLL_FIRST: u16 = 1;

/// From this many queued bytes on, a send is tried by a plain call first.
const BULK: usize = 16 * 1024;

/// Completions handled in one turn.
const COMPLETION_BUDGET: usize = 1024;

/// How long the end of the driver waits for operations to be cancelled.
const PATIENCE: Duration = Duration::from_secs(2);

/// The kind of an operation: the top byte of its user data. Below it are 24 bits of slot index and 32 of generation.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Cancel,
    Connect,
    Poll,
    PollOut,
    Recv,
    Send,
    Wake,
}

impl Op {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Op; 8] =
            [Op::Accept, Op::Cancel, Op::Connect, Op::Poll, Op::PollOut, Op::Recv, Op::Send, Op::Wake];
        ALL.get(usize::from(byte).wrapping_sub(1)).copied()
    }

    #[inline]
    fn on(self, key: Key) -> u64 {
        u64::from(self as u8) << 56 | u64::from(key.index) << 32 | u64::from(key.generation)
    }
}

pub(crate) struct UringDriver {
    ring: IoUring,
    /// The ring's number among the thread's registered rings, which saves looking its descriptor up on each entry.
    registered: Option<u32>,
    enter_flags: u32,
    group: Group,
    pool: Rc<Pool>,
    wake: RawFd,
    wake_armed: bool,
    in_flight: usize,
    /// Entries that found the submission queue full.
    deferred: VecDeque<squeue::Entry>,
    /// Addresses being connected to, by slot.
    addresses: HashMap<u32, Box<SockAddr>>,
}

impl UringDriver {
    pub(crate) fn new(sq_entries: u32, pool: &Rc<Pool>, wake: &OwnedFd) -> io::Result<Self> {
        let (ring, _) = setup::create(sq_entries)?;
        let group = Group::new(&ring, pool, Class::Small)?;
        // Otherwise a waiting worker counts as waiting for a disk.
        let no_iowait = if ring.params().is_feature_no_iowait() { EnterFlags::NO_IOWAIT.bits() } else { 0 };
        let registered = setup::register_ring(&ring);
        let enter_flags = no_iowait | registered.map_or(0, |_| EnterFlags::REGISTERED_RING.bits());
        Ok(Self {
            ring,
            registered,
            enter_flags,
            group,
            pool: Rc::clone(pool),
            wake: wake.as_raw_fd(),
            wake_armed: false,
            in_flight: 0,
            deferred: VecDeque::new(),
            addresses: HashMap::new(),
        })
    }

    /// Queues a submission.
    ///
    /// # Safety
    /// What the entry refers to stays valid and unmoved until its last completion.
    #[inline]
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.in_flight += 1;
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_err() {
            self.push_to_full(entry);
        }
    }

    /// The queue is full: submits it, or, should the kernel not take more until completions are collected, keeps the
    /// entry for the next wait.
    #[cold]
    fn push_to_full(&mut self, entry: &squeue::Entry) {
        if self.deferred.is_empty() && self.enter(0, None).is_err() {
            log::debug!("the submission queue is stuck");
        }
        // SAFETY: what the entry refers to is valid until its completion, by `push`'s contract.
        if !self.deferred.is_empty() || unsafe { self.ring.submission().push(entry) }.is_err() {
            self.deferred.push_back(entry.clone());
        }
    }

    /// Moves what did not fit into the submission queue as far as it fits now.
    fn push_deferred(&mut self) {
        while let Some(entry) = self.deferred.front() {
            // SAFETY: as in `push_to_full`.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                return;
            }
            self.deferred.pop_front();
        }
    }

    fn enter(&mut self, want: u32, timeout: Option<&libc::timespec>) -> io::Result<()> {
        let staged = self.ring.submission().len() as u32;
        let flags = self.enter_flags | EnterFlags::GETEVENTS.bits() | EnterFlags::EXT_ARG.bits();
        let fd = self.registered.map_or_else(|| self.ring.as_raw_fd(), |it| it as RawFd);
        setup::enter(fd, staged, want, flags, timeout)
    }

    /// Starts a small receive.
    fn stage_recv(&mut self, key: Key, slot: &mut Slot) -> Attempt<Lease> {
        let entry = opcode::Recv::new(
            types::Fd(raw(slot)),
            std::ptr::null_mut(),
            self.pool.size(Class::Small) as u32,
        )
        .buf_group(self.group.id())
        .ioprio(if slot.drive.readable { 0 } else { POLL_FIRST })
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
        .user_data(Op::Recv.on(key));
        // SAFETY: the entry refers to no memory but the provided buffers, which outlive the ring.
        unsafe { self.push(&entry) };
        slot.drive.receiving = true;
        slot.drive.receive_op = Op::Recv as u8;
        Attempt::Pending
    }

    /// Asks to be told when there is something to receive.
    fn stage_poll(&mut self, key: Key, slot: &mut Slot) -> Attempt<Lease> {
        let entry =
            opcode::PollAdd::new(types::Fd(raw(slot)), (libc::POLLIN | libc::POLLRDHUP) as u32).build();
        // SAFETY: the entry refers to no memory.
        unsafe { self.push(&entry.user_data(Op::Poll.on(key))) };
        slot.drive.receiving = true;
        slot.drive.receive_op = Op::Poll as u8;
        Attempt::Pending
    }

    /// A receive by a plain call; polls when there is nothing.
    fn recv_now(&mut self, key: Key, slot: &mut Slot, outcome: Direct<Lease>) -> Attempt<Lease> {
        match outcome {
            Direct::Done(outcome) => Attempt::Done(outcome),
            Direct::NoBuffer => Attempt::NoBuffer,
            Direct::WouldBlock => self.stage_poll(key, slot),
        }
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(types::Fd(self.wake), libc::POLLIN as u32).multi(true).build();
            // SAFETY: the entry refers to no memory.
            unsafe { self.push(&poll.user_data(u64::from(Op::Wake as u8) << 56)) };
            self.wake_armed = true;
        }
    }

    /// Takes completions off the queue, at most a turn's worth.
    fn collect(&mut self, slots: &mut Slots, events: &mut Vec<Event>) {
        for _ in 0..COMPLETION_BUDGET {
            let Some(entry) = self.ring.completion().next() else { return };
            if !cqueue::more(entry.flags()) {
                self.in_flight -= 1;
            }
            let data = entry.user_data();
            let key = Key { index: (data >> 32) as u32 & 0xff_ffff, generation: data as u32 };
            let event = match Op::from_byte((data >> 56) as u8) {
                Some(Op::Accept) => accepted(key, &entry, slots),
                Some(Op::Connect) => self.connected(key, &entry, slots),
                Some(Op::Poll) => polled(key, &entry, slots),
                Some(Op::PollOut) => polled_out(key, &entry, slots),
                Some(Op::Recv) => self.received(key, &entry, slots),
                Some(Op::Send) => sent(key, &entry, slots),
                Some(Op::Wake) => {
                    self.wake_armed = cqueue::more(entry.flags());
                    continue;
                }
                Some(Op::Cancel) | None => continue,
            };
            events.push(event);
        }
    }

    fn connected(&mut self, key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
        self.addresses.remove(&key.index);
        let Some(slot) = slots.get_mut(key) else { return Event::Stale };
        slot.drive.connecting = false;
        Event::Connected(key, result(entry).map(drop))
    }

    #[inline]
    fn received(&mut self, key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
        let flags = entry.flags();
        let blank = cqueue::buffer_select(flags).map(|id| self.group.take_back(&self.pool, id));
        let Some(slot) = slots.get_mut(key) else { return Event::Stale };
        slot.drive.receiving = false;
        slot.drive.readable = cqueue::sock_nonempty(flags);
        match result(entry) {
            Err(error) if is_stall(&error) => Event::Stalled(key),
            Ok(0) => Event::Received(key, Ok(Lease::default())),
            Ok(len) => match blank {
                Some(blank) => Event::Received(key, Ok(blank.fill(len as usize))),
                None => Event::Received(key, Err(io::Error::from_raw_os_error(libc::EIO))),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.group.ran_short();
                // There was something to receive.
                slot.drive.readable = true;
                Event::ReceivedNoBuffer(key)
            }
            Err(error) => Event::Received(key, Err(error)),
        }
    }
}

impl Driver for UringDriver {
    fn sends_eagerly(&self, queued: usize) -> bool {
        queued >= BULK
    }

    fn recv_is_immediate(&self, slot: &Slot) -> bool {
        slot.large && slot.drive.readable
    }

    fn free_buffers(&self, pool: &Pool) -> usize {
        usize::from(self.group.posted()) + pool.free(Class::Small)
    }

    #[inline]
    fn recv(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease> {
        if slot.drive.receiving {
            return Attempt::Pending;
        }
        match (slot.large, slot.drive.readable) {
            (false, _) => self.stage_recv(key, slot),
            (true, false) => self.stage_poll(key, slot),
            (true, true) => {
                let outcome = direct::recv(slot, pool);
                self.recv_now(key, slot, outcome)
            }
        }
    }

    fn recv_unpooled(&mut self, key: Key, slot: &mut Slot, _pool: &Rc<Pool>) -> Attempt<Lease> {
        if slot.drive.receiving {
            return Attempt::Pending;
        }
        let outcome = direct::recv_unpooled(slot);
        self.recv_now(key, slot, outcome)
    }

    #[inline]
    fn send(&mut self, key: Key, slot: &mut Slot) -> Attempt<usize> {
        if slot.drive.sending {
            return Attempt::Pending;
        }
        // What did not fit once is left to the ring, which knows when there is room.
        let queued = slot.queued();
        if queued >= BULK && slot.drive.writable {
            match direct::send(slot) {
                Direct::Done(outcome) => {
                    slot.drive.writable = outcome.as_ref().is_ok_and(|&it| it == queued);
                    return Attempt::Done(outcome);
                }
                Direct::NoBuffer | Direct::WouldBlock => {}
            }
        }
        let fd = types::Fd(raw(slot));
        let Some(outbox) = &mut slot.outbox else { return Attempt::Done(Ok(0)) };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = match outbox.take_off() {
            Flight::Single { bytes, len } => opcode::Send::new(fd, bytes, len).flags(flags).build(),
            Flight::Gather(header) => opcode::SendMsg::new(fd, header).flags(flags as u32).build(),
        };
        // SAFETY: the outbox is boxed, and neither it nor the chunks in flight change until `consume` or `land`, which
        // follow the completion; the slot keeps the outbox while `sending` is set.
        unsafe { self.push(&entry.user_data(Op::Send.on(key))) };
        slot.drive.sending = true;
        slot.drive.send_op = Op::Send as u8;
        Attempt::Pending
    }

    fn watch_writable(&mut self, key: Key, slot: &mut Slot) -> Attempt<()> {
        if slot.drive.sending {
            return Attempt::Pending;
        }
        let entry = opcode::PollAdd::new(types::Fd(raw(slot)), libc::POLLOUT as u32).build();
        // SAFETY: the entry refers to no memory.
        unsafe { self.push(&entry.user_data(Op::PollOut.on(key))) };
        slot.drive.sending = true;
        slot.drive.send_op = Op::PollOut as u8;
        Attempt::Pending
    }

    fn connect(&mut self, key: Key, slot: &mut Slot, addr: &SockAddr) -> Attempt<()> {
        let addr = self.addresses.entry(key.index).insert_entry(Box::new(addr.clone())).into_mut();
        let entry = opcode::Connect::new(types::Fd(raw(slot)), addr.as_ptr().cast(), addr.len()).build();
        // SAFETY: the boxed address is kept until the completion; the index is not used anew before that.
        unsafe { self.push(&entry.user_data(Op::Connect.on(key))) };
        slot.drive.connecting = true;
        Attempt::Pending
    }

    fn accept(&mut self, key: Key, slot: &mut Slot) -> Attempt<OwnedFd> {
        if slot.drive.accepting {
            return Attempt::Pending;
        }
        let entry = opcode::AcceptMulti::new(types::Fd(raw(slot)))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build()
            .user_data(Op::Accept.on(key));
        // SAFETY: the entry refers to no memory.
        unsafe { self.push(&entry) };
        slot.drive.accepting = true;
        Attempt::Pending
    }

    #[inline]
    fn watch(&mut self, key: Key, slot: &mut Slot, _pool: &Rc<Pool>) -> Attempt<Lease> {
        if slot.drive.receiving {
            return Attempt::Pending;
        }
        if slot.large { self.stage_poll(key, slot) } else { self.stage_recv(key, slot) }
    }

    fn cancel(&mut self, key: Key, slot: &mut Slot, sends_too: bool) {
        let drive = &slot.drive;
        let wanted = [
            drive.receiving.then(|| Op::from_byte(drive.receive_op)).flatten(),
            drive.accepting.then_some(Op::Accept),
            drive.connecting.then_some(Op::Connect),
            (drive.sending && sends_too).then(|| Op::from_byte(drive.send_op)).flatten(),
        ];
        for op in wanted.into_iter().flatten() {
            let entry = opcode::AsyncCancel::new(op.on(key)).build().user_data(Op::Cancel.on(key));
            // SAFETY: the entry refers to no memory.
            unsafe { self.push(&entry) };
        }
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        slots: &mut Slots,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.arm_wake();
        self.push_deferred();
        self.group.refill(&self.pool);
        let ready = !self.ring.completion().is_empty();
        let poll = ready || !self.deferred.is_empty() || timeout.is_some_and(|it| it.is_zero());
        if !ready || !self.ring.submission().is_empty() {
            let timespec = timeout.map(timespec);
            self.enter(u32::from(!poll), timespec.as_ref().filter(|_| !poll))?;
        }
        self.collect(slots, events);
        Ok(())
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        // The kernel must be done with buffers, addresses and outboxes before they are freed.
        let all =
            opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(Op::Cancel.on(NOBODY));
        let deadline = Instant::now() + PATIENCE;
        let mut slots = Slots::new(0);
        let mut events = Vec::new();
        // SAFETY: the entry refers to no memory.
        unsafe { self.push(&all) };
        while self.in_flight > 0 && Instant::now() < deadline {
            self.push_deferred();
            if self.enter(1, Some(&timespec(Duration::from_millis(10)))).is_err() {
                break;
            }
            self.collect(&mut slots, &mut events);
            events.clear();
        }
        if self.in_flight > 0 {
            log::error!("{} io_uring operations did not end; their buffers are given up", self.in_flight);
            std::mem::forget(Rc::clone(&self.pool));
            std::mem::forget(std::mem::take(&mut self.addresses));
        }
        if let Some(registered) = self.registered {
            setup::unregister_ring(&self.ring, registered);
        }
    }
}

/// Stands for no socket.
const NOBODY: Key = Key { index: 0xff_ffff, generation: 0 };

fn accepted(key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
    // SAFETY: a successful accept returns a new descriptor that nobody else owns.
    let outcome = result(entry).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let Some(slot) = slots.get_mut(key) else { return Event::Stale };
    slot.drive.accepting = cqueue::more(entry.flags());
    Event::Accepted(key, outcome)
}

fn polled(key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
    let Some(slot) = slots.get_mut(key) else { return Event::Stale };
    slot.drive.receiving = false;
    match result(entry) {
        Ok(mask) => {
            slot.drive.readable = true;
            slot.drive.hung_up |= mask & i32::from(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0;
            Event::Ready { key, readable: true, writable: false }
        }
        // Cancelled, or polling was refused; a receive tells the reason.
        Err(_) => Event::Stalled(key),
    }
}

fn polled_out(key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
    let Some(slot) = slots.get_mut(key) else { return Event::Stale };
    slot.drive.sending = false;
    match result(entry) {
        Ok(_) => {
            slot.drive.writable = true;
            Event::Ready { key, readable: false, writable: true }
        }
        // Cancelled, or polling was refused; a send tells the reason.
        Err(_) => Event::Stalled(key),
    }
}

#[inline]
fn sent(key: Key, entry: &cqueue::Entry, slots: &mut Slots) -> Event {
    let Some(slot) = slots.get_mut(key) else { return Event::Stale };
    slot.drive.sending = false;
    slot.drive.writable = true;
    match result(entry) {
        Err(error) if is_stall(&error) => {
            if let Some(outbox) = &mut slot.outbox {
                outbox.land();
            }
            Event::Stalled(key)
        }
        outcome => Event::Sent(key, outcome.map(|len| len as usize)),
    }
}

/// Whether an operation ended for no reason of its own. The kernel gives up polling for one after 128 vain attempts, as under
/// pressure on TCP's memory, and tries it once on a thread; as our sockets do not block, that ends with EAGAIN.
fn is_stall(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}

#[inline]
fn result(entry: &cqueue::Entry) -> io::Result<i32> {
    match entry.result() {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        value => Ok(value),
    }
}

/// A slot without a descriptor is never given to a driver; should it be, the kernel answers EBADF.
#[inline]
fn raw(slot: &Slot) -> RawFd {
    slot.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
