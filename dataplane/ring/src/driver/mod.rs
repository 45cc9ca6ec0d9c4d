//! The seam between sockets and the kernel.
//!
//! It has the shape of completions: an operation either finishes at once or its outcome arrives from [`Driver::wait`].
//! Receiving is on demand: nothing is received that was not asked for, which is what carries back-pressure to the peer.

pub(crate) mod datagram;
mod direct;
mod epoll;
mod uring;

use std::{io, os::fd::OwnedFd, rc::Rc, time::Duration};

use epoll::EpollDriver;
use socket2::SockAddr;
use uring::UringDriver;
pub(crate) use uring::{Tier, rehearse};

use crate::{
    buf::{Lease, Pool},
    config::{DriverKind, RuntimeConfig},
    io::{Key, Slot, Slots},
    wake::Shared,
};

/// What became of an operation when it was started.
pub(crate) enum Attempt<T> {
    Done(io::Result<T>),
    /// No receive buffer is free.
    NoBuffer,
    /// The outcome, or a report that it is worth trying again, comes from [`Driver::wait`].
    Pending,
}

/// Something that [`Driver::wait`] found out.
pub(crate) enum Event {
    /// A connection arrived, or accepting failed.
    Accepted(Key, io::Result<OwnedFd>),
    Connected(Key, io::Result<()>),
    /// Starting the operations that were pending again will succeed or fail at once.
    Ready {
        key: Key,
        readable: bool,
        writable: bool,
    },
    /// The outcome of a receive; an empty lease is the end of the stream.
    Received(Key, io::Result<Lease>),
    /// A receive ended because no buffer was free.
    ReceivedNoBuffer(Key),
    /// Bytes the kernel accepted.
    Sent(Key, io::Result<usize>),
    /// An event for a socket that is gone.
    Stale,
    /// A send or receive ended without outcome, as the kernel could not go on with it: to be started anew, but not at once.
    Stalled(Key),
}

/// Moves bytes for the sockets of one worker.
pub(crate) trait Driver {
    /// Whether `queued` bytes are best sent right after the task that queued them, while they are in cache, or together
    /// with all others at the end of the turn.
    fn sends_eagerly(&self, queued: usize) -> bool;

    /// Whether [`Driver::recv`] would receive at once instead of starting something.
    fn recv_is_immediate(&self, slot: &Slot) -> bool;

    /// How many receives would find a buffer now.
    fn free_buffers(&self, pool: &Pool) -> usize;

    /// Starts a receive, unless one is in flight.
    fn recv(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease>;

    /// Receives into memory of its own, when the pool has been empty for too long.
    fn recv_unpooled(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease>;

    /// Starts sending what is queued, unless a send is in flight.
    fn send(&mut self, key: Key, slot: &mut Slot) -> Attempt<usize>;

    fn connect(&mut self, key: Key, slot: &mut Slot, addr: &SockAddr) -> Attempt<()>;

    fn accept(&mut self, key: Key, slot: &mut Slot) -> Attempt<OwnedFd>;

    /// Makes sure that [`Event::Ready`] or [`Event::Received`] is reported when something arrives.
    fn watch(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease>;

    /// Makes sure that [`Event::Ready`] is reported when there is room to send again.
    fn watch_writable(&mut self, key: Key, slot: &mut Slot) -> Attempt<()>;

    /// Asks for the end of what is in flight: everything, or all but sends.
    fn cancel(&mut self, key: Key, slot: &mut Slot, sends_too: bool);

    /// Submits what was started and collects events: at once, or after at most `timeout` when there are none.
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        slots: &mut Slots,
        events: &mut Vec<Event>,
    ) -> io::Result<()>;
}

/// The driver of a runtime. An enum and not a box: the calls are hot and there are few kinds.
pub(crate) enum AnyDriver {
    Epoll(EpollDriver),
    Uring(Box<UringDriver>),
}

macro_rules! each {
    ($self:ident, $driver:ident => $call:expr) => {
        match $self {
            AnyDriver::Epoll($driver) => $call,
            AnyDriver::Uring($driver) => $call,
        }
    };
}

impl AnyDriver {
    pub(crate) fn new(config: &RuntimeConfig, pool: &Rc<Pool>, shared: &Shared) -> io::Result<Self> {
        match config.driver {
            DriverKind::Epoll => Ok(Self::Epoll(EpollDriver::new(shared.event())?)),
            DriverKind::Uring => {
                Ok(Self::Uring(Box::new(UringDriver::new(config.sq_entries, pool, shared.event())?)))
            }
        }
    }
}

impl Driver for AnyDriver {
    #[inline]
    fn sends_eagerly(&self, queued: usize) -> bool {
        each!(self, it => it.sends_eagerly(queued))
    }

    #[inline]
    fn recv_is_immediate(&self, slot: &Slot) -> bool {
        each!(self, it => it.recv_is_immediate(slot))
    }

    fn free_buffers(&self, pool: &Pool) -> usize {
        each!(self, it => it.free_buffers(pool))
    }

    #[inline]
    fn recv(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease> {
        each!(self, it => it.recv(key, slot, pool))
    }

    fn recv_unpooled(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease> {
        each!(self, it => it.recv_unpooled(key, slot, pool))
    }

    #[inline]
    fn send(&mut self, key: Key, slot: &mut Slot) -> Attempt<usize> {
        each!(self, it => it.send(key, slot))
    }

    fn connect(&mut self, key: Key, slot: &mut Slot, addr: &SockAddr) -> Attempt<()> {
        each!(self, it => it.connect(key, slot, addr))
    }

    fn accept(&mut self, key: Key, slot: &mut Slot) -> Attempt<OwnedFd> {
        each!(self, it => it.accept(key, slot))
    }

    #[inline]
    fn watch(&mut self, key: Key, slot: &mut Slot, pool: &Rc<Pool>) -> Attempt<Lease> {
        each!(self, it => it.watch(key, slot, pool))
    }

    fn watch_writable(&mut self, key: Key, slot: &mut Slot) -> Attempt<()> {
        each!(self, it => it.watch_writable(key, slot))
    }

    fn cancel(&mut self, key: Key, slot: &mut Slot, sends_too: bool) {
        each!(self, it => it.cancel(key, slot, sends_too));
    }

    #[inline]
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        slots: &mut Slots,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        each!(self, it => it.wait(timeout, slots, events))
    }
}
