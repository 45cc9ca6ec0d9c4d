//! The table of sockets. A [`Key`] names one; it stops matching once that socket is gone.

use std::{
    collections::VecDeque,
    os::fd::{AsFd as _, IntoRawFd, OwnedFd},
    task::Waker,
};

use crate::{
    buf::Lease,
    io::outbox::Outbox,
    watch::{Progress, Watch},
};

/// A driver packs the index of a socket into 24 bits.
const MAX_SLOTS: usize = 1 << 24;

/// A socket of this runtime: index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// One socket. It owns no buffer unless bytes are on the way.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    /// What the driver knows and does about the descriptor; only the driver writes it.
    pub(crate) drive: Drive,

    /// What was received and not yet read.
    pub(crate) inbox: Option<Lease>,
    pub(crate) eof: bool,
    /// The errno that ended receiving; 0 while it works.
    pub(crate) read_error: i32,
    /// Receive into large buffers next.
    pub(crate) large: bool,
    /// The consumer asked for large buffers.
    pub(crate) bulk: bool,
    /// Waits for a free buffer (streams), or for descriptors and memory (listeners).
    pub(crate) starved: bool,
    /// The turn of the last receive, for fairness.
    pub(crate) read_turn: u32,
    pub(crate) reader: Option<Waker>,

    pub(crate) outbox: Option<Box<Outbox>>,
    /// In the list of sockets to flush.
    pub(crate) dirty: bool,
    pub(crate) shutdown: Shutdown,
    /// The errno that ended sending; 0 while it works.
    pub(crate) write_error: i32,
    /// The writer is woken when no more than this many bytes are queued.
    pub(crate) drain_below: usize,
    pub(crate) writer: Option<Waker>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Follows the progress; gone before the descriptor is.
    pub(crate) watch: Option<Box<dyn Watch>>,

    pub(crate) park: Park,
    /// Connections accepted, or datagrams and trains of them received, in this turn (not for streams).
    pub(crate) taken: u32,
    /// Accepted connections that were not asked for yet (listeners only).
    #[expect(clippy::box_collection, reason = "a word instead of four in every stream")]
    pub(crate) backlog: Option<Box<VecDeque<OwnedFd>>>,
}

impl Slot {
    /// Bytes queued and not yet accepted by the kernel.
    #[inline]
    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |it| it.queued())
    }

    /// Books received bytes.
    #[inline]
    pub(crate) fn add_received(&mut self, len: u64) {
        self.received += len;
        let progress = self.progress();
        if let (Some(watch), Some(fd)) = (&mut self.watch, &self.fd) {
            watch.received(fd.as_fd(), progress);
        }
    }

    /// Says that bytes were sent, once they are booked.
    #[inline]
    pub(crate) fn tell_sent(&mut self) {
        let progress = self.progress();
        if let (Some(watch), Some(fd)) = (&mut self.watch, &self.fd) {
            watch.sent(fd.as_fd(), progress);
        }
    }

    fn progress(&self) -> Progress {
        Progress { received: self.received, sent: self.sent, queued: self.queued() }
    }
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Free,
    /// A stream that waits for its handshake.
    Connecting,
    Open,
    Listening,
    /// Dropped by its owner; what is queued is still sent.
    Lingering,
    /// Nothing is sent any more; waits only for operations in flight.
    Closing,
}

/// Driver state of a descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drive {
    /// epoll: it is in the interest list.
    pub(crate) registered: bool,
    /// A receive or accept may find something.
    pub(crate) readable: bool,
    /// A send may find room.
    pub(crate) writable: bool,
    /// The peer has closed its side, so a short receive does not mean drained.
    pub(crate) hung_up: bool,
    /// io_uring: operations in flight.
    pub(crate) receiving: bool,
    /// io_uring: the kind of receive that is in flight.
    pub(crate) receive_op: u8,
    pub(crate) sending: bool,
    /// io_uring: the kind of send that is in flight.
    pub(crate) send_op: u8,
    pub(crate) connecting: bool,
    pub(crate) accepting: bool,
}

impl Drive {
    /// Whether the kernel may still use the descriptor or memory on behalf of the slot.
    pub(crate) fn busy(&self) -> bool {
        self.receiving || self.sending || self.connecting || self.accepting
    }
}

/// How far the closing of the sending side has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shutdown {
    #[default]
    None,
    Wanted,
    Done,
}

/// Whether a stream is parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Park {
    #[default]
    No,
    Quiet(u64),
    /// Something arrived; the tag has been reported.
    Disturbed,
}

/// All slots of a runtime.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Where generations start: differs from runtime to runtime, so that a key is no use in another one.
    base: u32,
}

impl Slots {
    pub(crate) fn new(base: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), base }
    }

    pub(crate) fn insert(&mut self, fd: OwnedFd, phase: Phase) -> Key {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                assert!(self.slots.len() < MAX_SLOTS, "more than 16 million sockets on one worker");
                self.slots.push(Slot { generation: self.base, ..Slot::default() });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.fd = Some(fd);
        slot.phase = phase;
        slot.drive.writable = true;
        Key { index, generation: slot.generation }
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&Slot> {
        self.slots
            .get(key.index as usize)
            .filter(|it| it.generation == key.generation && it.phase != Phase::Free)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|it| it.generation == key.generation && it.phase != Phase::Free)
    }

    /// Frees the slot; its content is returned to be dropped.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Slot> {
        let slot = self.get_mut(key)?;
        let fresh = Slot { generation: key.generation.wrapping_add(1), ..Slot::default() };
        let old = std::mem::replace(slot, fresh);
        self.free.push(key.index);
        Some(old)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        let used = self.slots.iter().enumerate().filter(|(_, it)| it.phase != Phase::Free);
        used.map(|(index, it)| Key { index: index as u32, generation: it.generation }).collect()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            // Its owner outlives the runtime and may have lent the descriptor out: leaking it is the safe choice.
            if slot.phase == Phase::Open
                && let Some(fd) = slot.fd.take()
            {
                let _ = fd.into_raw_fd();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slots = Slots::new(100);
        let old = slots.insert(fd(), Phase::Open);
        assert!(slots.remove(old).is_some());
        let new = slots.insert(fd(), Phase::Open);
        assert_eq!(old.index, new.index);
        assert!(slots.get(old).is_none());
        assert!(slots.remove(old).is_none());
        assert!(slots.get(new).is_some());
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn an_idle_socket_costs_at_most_256_bytes() {
        assert!(size_of::<Slot>() <= 256, "{}", size_of::<Slot>());
    }
}
