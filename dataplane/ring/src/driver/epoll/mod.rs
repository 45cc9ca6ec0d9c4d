//! The readiness driver: edge-triggered epoll and non-blocking calls.
//!
//! A descriptor is registered once, for everything, when it first has to wait; from then on its readiness is tracked
//! here. A receive that does not fill its buffer has emptied the socket, so the next one waits for an edge instead of
//! asking the kernel, unless the peer has hung up: then the end of the stream is still to be read.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags},
};
use socket2::{SockAddr, SockRef};

use super::{Attempt, Driver, Event};
use crate::{
    buf::{Class, Lease, Pool},
    io::{Key, MAX_SLICES, Phase, Slot, Slots},
};

/// Events taken from the kernel in one turn.
const EVENT_BUDGET: usize = 256;

/// Bytes received at once without a pooled buffer.
const UNPOOLED_SIZE: usize = 16 * 1024;

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

    fn pending<T>(&self, key: Key, slot: &mut Slot) -> Attempt<T> {
        match self.register(key, slot) {
            Ok(()) => Attempt::Pending,
            Err(error) => Attempt::Done(Err(error)),
        }
    }

    /// One receive, and what it says about the next. `None` when there is nothing.
    fn recv_into(slot: &mut Slot, space: &mut [u8]) -> Option<io::Result<usize>> {
        let Some(fd) = &slot.fd else { return Some(Err(Errno::BADF.into())) };
        let room = space.len();
        loop {
            match rustix::net::recv(fd, &mut *space, RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    if len < room && !slot.drive.hung_up {
                        slot.drive.readable = false;
                    }
                    return Some(Ok(len));
                }
                Err(Errno::AGAIN) => {
                    slot.drive.readable = false;
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

impl Driver for EpollDriver {
    fn sends_eagerly(&self) -> bool {
        true
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
        let class = if slot.large { Class::Large } else { Class::Small };
        let Some(mut blank) = pool.take(class).or_else(|| pool.take(Class::Small)) else {
            return Attempt::NoBuffer;
        };
        match Self::recv_into(slot, blank.space()) {
            Some(Ok(0)) => Attempt::Done(Ok(Lease::default())),
            Some(Ok(len)) => Attempt::Done(Ok(blank.fill(len))),
            Some(Err(error)) => Attempt::Done(Err(error)),
            None => self.pending(key, slot),
        }
    }

    fn recv_unpooled(&mut self, key: Key, slot: &mut Slot) -> Attempt<Lease> {
        if slot.drive.registered && !slot.drive.readable {
            return Attempt::Pending;
        }
        let mut memory = vec![0; UNPOOLED_SIZE];
        match Self::recv_into(slot, &mut memory) {
            Some(Ok(len)) => {
                memory.truncate(len);
                Attempt::Done(Ok(Lease::from(memory)))
            }
            Some(Err(error)) => Attempt::Done(Err(error)),
            None => self.pending(key, slot),
        }
    }

    #[inline]
    fn send(&mut self, key: Key, slot: &mut Slot) -> Attempt<usize> {
        if slot.drive.registered && !slot.drive.writable {
            return Attempt::Pending;
        }
        let (Some(fd), Some(outbox)) = (&slot.fd, &slot.outbox) else { return Attempt::Done(Ok(0)) };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            let outcome = match outbox.single() {
                Some(bytes) => rustix::net::send(fd, bytes, flags),
                None => {
                    let mut slices = [io::IoSlice::new(&[]); MAX_SLICES];
                    let count = outbox.slices(&mut slices);
                    rustix::net::sendmsg(fd, &slices[..count], &mut SendAncillaryBuffer::default(), flags)
                }
            };
            match outcome {
                Ok(len) => return Attempt::Done(Ok(len)),
                Err(Errno::AGAIN) => {
                    slot.drive.writable = false;
                    return self.pending(key, slot);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Attempt::Done(Err(error.into())),
            }
        }
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
