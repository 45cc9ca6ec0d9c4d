//! The readiness driver: edge-triggered epoll and non-blocking calls.
//!
//! A descriptor is registered once, for everything, when it first has to wait; from then on its readiness is tracked
//! here, so that nothing is tried in vain.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::SocketFlags,
};
use socket2::{SockAddr, SockRef};

use super::{
    Attempt, Driver, Event,
    direct::{self, Direct},
};
use crate::{
    buf::{Class, Lease, Pool},
    io::{Key, Phase, Slot, Slots},
};

/// Events taken from the kernel in one turn.
const EVENT_BUDGET: usize = 256;

/// The event that means: another thread wants attention.
const WAKE: u64 = u64::MAX;

pub(crate) struct EpollDriver {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl EpollDriver {
    pub(crate) fn new(wake: &OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered, so that the counter never has to be read.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, wake, epoll::EventData::new_u64(WAKE), flags)?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENT_BUDGET) })
    }

    /// Puts the descriptor into the interest list. The kernel then reports what it is ready for already.
    fn register(&self, key: Key, slot: &mut Slot) -> io::Result<()> {
        if slot.drive.registered {
            return Ok(());
        }
        let Some(fd) = &slot.fd else { return Err(Errno::BADF.into()) };
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if slot.phase != Phase::Listening {
            flags |= epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        }
        let data = u64::from(key.generation) << 32 | u64::from(key.index);
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(data), flags)?;
        slot.drive.registered = true;
        Ok(())
    }

    /// What would block becomes pending.
    fn or_wait<T>(&self, key: Key, slot: &mut Slot, outcome: Direct<T>) -> Attempt<T> {
        match outcome {
            Direct::Done(outcome) => Attempt::Done(outcome),
            Direct::NoBuffer => Attempt::NoBuffer,
            Direct::WouldBlock => self.pending(key, slot),
        }
    }

    fn pending<T>(&self, key: Key, slot: &mut Slot) -> Attempt<T> {
        match self.register(key, slot) {
            Ok(()) => Attempt::Pending,
            Err(error) => Attempt::Done(Err(error)),
        }
    }
}

impl Driver for EpollDriver {
    fn sends_eagerly(&self, _queued: usize) -> bool {
        true
    }

    fn recv_is_immediate(&self, slot: &Slot) -> bool {
        slot.drive.readable
    }

    fn free_buffers(&self, pool: &Pool) -> usize {
        pool.free(Class::Small)
    }

    #[inline]
    fn recv(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease> {
        // A new descriptor is tried once before it is registered: many are readable already.
        if slot.drive.registered && !slot.drive.readable {
            return Attempt::Pending;
        }
        let outcome = direct::recv(slot, pool);
        self.or_wait(key, slot, outcome)
    }

    fn recv_unpooled(&mut self, key: Key, slot: &mut Slot, _pool: &Rc<Pool>) -> Attempt<Lease> {
        if slot.drive.registered && !slot.drive.readable {
            return Attempt::Pending;
        }
        let outcome = direct::recv_unpooled(slot);
        self.or_wait(key, slot, outcome)
    }

    #[inline]
    fn send(&mut self, key: Key, slot: &mut Slot) -> Attempt<usize> {
        if slot.drive.registered && !slot.drive.writable {
            return Attempt::Pending;
        }
        let outcome = direct::send(slot);
        self.or_wait(key, slot, outcome)
    }

    fn connect(&mut self, key: Key, slot: &mut Slot, addr: &SockAddr) -> Attempt<()> {
        let Some(fd) = &slot.fd else { return Attempt::Done(Err(Errno::BADF.into())) };
        match SockRef::from(fd).connect(addr) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                slot.drive.connecting = true;
                self.pending(key, slot)
            }
            // A Unix socket whose listener's queue is full.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                Attempt::Done(Err(Errno::CONNREFUSED.into()))
            }
            outcome => Attempt::Done(outcome),
        }
    }

    fn accept(&mut self, key: Key, slot: &mut Slot) -> Attempt<OwnedFd> {
        if slot.drive.registered && !slot.drive.readable {
            return Attempt::Pending;
        }
        let Some(fd) = &slot.fd else { return Attempt::Done(Err(Errno::BADF.into())) };
        match rustix::net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => Attempt::Done(Ok(fd)),
            Err(Errno::AGAIN) => {
                slot.drive.readable = false;
                self.pending(key, slot)
            }
            Err(error) => Attempt::Done(Err(error.into())),
        }
    }

    #[inline]
    fn watch(&mut self, key: Key, slot: &mut Slot, _pool: &Rc<Pool>) -> Attempt<Lease> {
        self.pending(key, slot)
    }

    fn watch_writable(&mut self, key: Key, slot: &mut Slot) -> Attempt<()> {
        self.pending(key, slot)
    }

    fn cancel(&mut self, _key: Key, slot: &mut Slot, _sends_too: bool) {
        slot.drive.connecting = false;
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        slots: &mut Slots,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let timeout = timeout.and_then(|it| Timespec::try_from(it).ok());
        self.events.clear();
        match epoll::wait(
            self.epoll.as_fd(),
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let data = event.data.u64();
            if data == WAKE {
                continue;
            }
            let key = Key { index: data as u32, generation: (data >> 32) as u32 };
            events.push(note(key, event.flags, slots));
        }
        Ok(())
    }
}

/// Writes down what a descriptor has become ready for.
#[inline]
fn note(key: Key, flags: epoll::EventFlags, slots: &mut Slots) -> Event {
    use epoll::EventFlags as Flags;
    let Some(slot) = slots.get_mut(key) else { return Event::Stale };
    let broken = flags.intersects(Flags::ERR | Flags::HUP);
    let readable = broken || flags.intersects(Flags::IN | Flags::RDHUP);
    let writable = broken || flags.contains(Flags::OUT);
    slot.drive.readable |= readable;
    slot.drive.hung_up |= broken || flags.contains(Flags::RDHUP);
    slot.drive.writable |= writable;
    if slot.drive.connecting && writable {
        slot.drive.connecting = false;
        let outcome = match slot.fd.as_ref().map(|fd| SockRef::from(fd).take_error()) {
            Some(Ok(Some(error))) | Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => Ok(()),
        };
        return Event::Connected(key, outcome);
    }
    Event::Ready { key, readable, writable }
}
