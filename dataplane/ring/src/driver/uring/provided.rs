//! A ring of provided buffers: memory that the kernel picks from when data has arrived.

use std::{
    io,
    rc::Rc,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types::BufRingEntry};

use crate::buf::{Blank, Class, Mapping, Pool};

/// Buffers posted at first. Few, so that they stay in cache: the kernel takes them in turn, never the one used last.
const FIRST_TARGET: u16 = 32;

/// The ring shared with the kernel.
pub(super) struct Provided {
    entries: Mapping,
    mask: u16,
    tail: u16,
    group: u16,
}

impl Provided {
    /// Registers an empty ring for at least `count` buffers. It must outlive `ring`.
    pub(super) fn new(ring: &IoUring, group: u16, count: u16) -> io::Result<Self> {
        let slots = count.clamp(1, 1 << 15).next_power_of_two();
        let entries = Mapping::new(usize::from(slots) * size_of::<BufRingEntry>())?;
        // SAFETY: the memory is page-aligned, large enough for `slots` entries and freed after the ring is closed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.base().expose_provenance() as u64,
                slots,
                group,
                0,
            )?;
        };
        Ok(Self { entries, mask: slots - 1, tail: 0, group })
    }

    fn push(&mut self, address: *mut u8, len: usize, id: u16) {
        let at = usize::from(self.tail & self.mask);
        // SAFETY: `at` is below the number of entries; the kernel reads an entry only once the tail has moved past it. The
        // first entry's last two bytes are the tail itself, which none of the setters writes.
        let entry = unsafe { &mut *self.entries.base().cast::<BufRingEntry>().add(at) };
        entry.set_addr(address.expose_provenance() as u64);
        entry.set_len(len as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail is part of the mapped ring; the pointer is aligned to two bytes.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.base().cast()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// One buffer class at the kernel's disposal. Only as many buffers as are in use at once are posted; the rest stay on the
/// pool's stack.
pub(super) struct Group {
    provided: Provided,
    class: Class,
    posted: u16,
    target: u16,
    /// Receives have found the ring empty since it was last refilled.
    short: bool,
}

impl Group {
    pub(super) fn new(ring: &IoUring, pool: &Pool, class: Class) -> io::Result<Self> {
        let count = pool.count(class) as u16;
        let provided = Provided::new(ring, class as u16, count)?;
        Ok(Self { provided, class, posted: 0, target: FIRST_TARGET.min(count), short: false })
    }

    pub(super) fn id(&self) -> u16 {
        self.provided.group
    }

    /// Buffers that the kernel may fill.
    pub(super) fn posted(&self) -> u16 {
        self.posted
    }

    /// Posts free buffers until there are as many as needed.
    #[inline]
    pub(super) fn refill(&mut self, pool: &Rc<Pool>) {
        if std::mem::take(&mut self.short) {
            self.target = self.target.saturating_mul(2).min(pool.count(self.class) as u16);
        }
        if self.posted >= self.target {
            return;
        }
        let before = self.posted;
        while self.posted < self.target {
            let Some(blank) = pool.take(self.class) else { break };
            let id = blank.surrender();
            self.provided.push(pool.address(self.class, id), pool.size(self.class), id);
            self.posted += 1;
        }
        if self.posted != before {
            self.provided.publish();
        }
    }

    /// Takes back a buffer that a completion names.
    #[inline]
    pub(super) fn take_back(&mut self, pool: &Rc<Pool>, id: u16) -> Blank {
        self.posted -= 1;
        // SAFETY: the kernel named the buffer in a completion: it has taken it off the ring and is done with it.
        unsafe { Blank::reclaim(pool, self.class, id) }
    }

    /// A receive found the ring empty: more buffers are needed at once than were posted. However many say so, the number
    /// is only doubled once for each refill.
    pub(super) fn ran_short(&mut self) {
        self.short = true;
    }
}
