//! The memory in which the proxy publishes what has been read, and the legs that own a place in it.

use std::{
    cell::RefCell,
    io,
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    rc::Rc,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use culvert_bpf_common::{Address, Leg as LegEntry, MAX_LEGS, Slot, SocketKey};

use super::{Diag, EnterError, LegSpec, Shared};
use crate::sys;

/// A [`Slot`] as two sides see it at the same time.
#[repr(C, align(64))]
pub(super) struct SharedSlot {
    generation: AtomicU64,
    read: AtomicU64,
    peer_read: AtomicU64,
    off: AtomicU64,
    redirected_in: AtomicU64,
    redirected_out: AtomicU64,
    fell_back_in: AtomicU32,
    fell_back_out: AtomicU32,
    beginnings: AtomicU64,
}

const _: () = {
    assert!(size_of::<SharedSlot>() == size_of::<Slot>());
    assert!(std::mem::offset_of!(SharedSlot, read) == std::mem::offset_of!(Slot, read));
    assert!(std::mem::offset_of!(SharedSlot, peer_read) == std::mem::offset_of!(Slot, peer_read));
    assert!(std::mem::offset_of!(SharedSlot, off) == std::mem::offset_of!(Slot, off));
    assert!(std::mem::offset_of!(SharedSlot, redirected_in) == std::mem::offset_of!(Slot, redirected_in));
    assert!(std::mem::offset_of!(SharedSlot, redirected_out) == std::mem::offset_of!(Slot, redirected_out));
    assert!(std::mem::offset_of!(SharedSlot, fell_back_in) == std::mem::offset_of!(Slot, fell_back_in));
    assert!(std::mem::offset_of!(SharedSlot, fell_back_out) == std::mem::offset_of!(Slot, fell_back_out));
    assert!(std::mem::offset_of!(SharedSlot, beginnings) == std::mem::offset_of!(Slot, beginnings));
};

/// The map `SLOTS` in this process's memory.
pub(super) struct SlotTable {
    start: NonNull<SharedSlot>,
    /// Where places begin that no pool has taken.
    next: AtomicU32,
    /// The memory lives for as long as the map does.
    _map: OwnedFd,
}

// SAFETY: the memory is that of a map, which any thread may use; all of it is atomics.
unsafe impl Send for SlotTable {}
// SAFETY: as above.
unsafe impl Sync for SlotTable {}

/// How many places a pool takes when it has none left. It keeps them.
const TAKEN_AT_ONCE: u32 = 256;
const _: () = assert!(MAX_LEGS.is_multiple_of(TAKEN_AT_ONCE));

const TABLE_LEN: usize = MAX_LEGS as usize * size_of::<SharedSlot>();

impl SlotTable {
    pub(super) fn map(map: OwnedFd) -> io::Result<Self> {
        let start = sys::mmap_shared(map.as_fd(), TABLE_LEN)?;
        Ok(Self { start: start.cast(), next: AtomicU32::new(0), _map: map })
    }

    fn slots(&self) -> &[SharedSlot] {
        // SAFETY: the mapping is that long, page aligned, zeroed by the kernel, and stays until `self` is dropped.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), MAX_LEGS as usize) }
    }

    /// Places that nobody has had.
    fn take(&self) -> Range<u32> {
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            (next < MAX_LEGS).then(|| next + TAKEN_AT_ONCE)
        });
        taken.map_or(0..0, |start| start..start + TAKEN_AT_ONCE)
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        sys::munmap(self.start.cast(), TABLE_LEN);
    }
}

/// Places for legs, for one thread. Clones share them.
#[derive(Clone)]
pub struct SlotPool {
    shared: Arc<Shared>,
    free: Rc<RefCell<Vec<u32>>>,
}

/// A socket of the proxy in the map. Dropped, it publishes no more, and its place is free; the socket itself leaves the map
/// when it is closed, which must not happen before.
pub struct Leg {
    pool: SlotPool,
    key: SocketKey,
    peer: SocketKey,
    slot: u32,
    generation: u32,
}

/// What the programs have done for a leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegProgress {
    /// Bytes redirected to the proxy's socket.
    pub redirected_in: u64,
    /// Bytes redirected from the proxy's socket.
    pub redirected_out: u64,
    /// How often one of the directions returned to TCP because the limit was reached.
    pub fell_back: u64,
    /// Whether nothing is redirected any more because the application has set an option that redirected bytes do not obey.
    pub declined: bool,
    /// Whether nothing is redirected any more because more was read than had been sent.
    pub miscounted: bool,
}

impl SlotPool {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, free: Rc::default() }
    }

    /// Puts a connected socket into the map. Four system calls.
    ///
    /// All that it has received must have been read: the kernel gives a verdict the packets that wait as a whole, and if one
    /// was read in part, that part would be read again.
    ///
    /// `read` is how much has been read from it since its connection was made. It may be in use: the bytes that it sends
    /// meanwhile are counted by the kernel.
    ///
    /// # Errors
    /// Says why the connection stays with TCP, which is all that follows from it.
    pub fn enter(&self, socket: BorrowedFd<'_>, spec: &LegSpec, read: u64) -> Result<Leg, EnterError> {
        let end = |it: std::net::SocketAddr| (Address::from(it.ip().to_canonical()), it.port());
        let key = SocketKey::new(spec.netns, end(spec.local), end(spec.peer));
        let peer = key.peer_in(spec.peer_netns);
        if sys::has_unread(socket).map_err(EnterError::Refused)? {
            return Err(EnterError::Unread);
        }
        let index = self.take().ok_or(EnterError::Full)?;
        let slot = self.slot(index);
        let fields =
            [&slot.peer_read, &slot.off, &slot.redirected_in, &slot.redirected_out, &slot.beginnings];
        fields.into_iter().for_each(|field| field.store(0, Ordering::Relaxed));
        for field in [&slot.fell_back_in, &slot.fell_back_out] {
            field.store(0, Ordering::Relaxed);
        }
        slot.read.store(read, Ordering::Relaxed);
        let generation = (slot.generation.fetch_add(1, Ordering::Release) as u32).wrapping_add(1);
        let leg = LegEntry::new(index, generation, spec.peer_netns, spec.active);
        // From here on the place is given back by the leg's end.
        let entered = Leg { pool: self.clone(), key, peer, slot: index, generation };
        self.shared.enter(socket, &key, &leg).map(|()| entered)
    }

    /// Places that this pool has and does not use.
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    fn take(&self) -> Option<u32> {
        let mut free = self.free.borrow_mut();
        if free.is_empty() {
            // The lowest first: what is in use stays close together.
            free.extend(self.shared.slots.take().rev());
        }
        free.pop()
    }

    fn slot(&self, index: u32) -> &SharedSlot {
        &self.shared.slots.slots()[index as usize]
    }
}

impl Leg {
    /// Publishes how much has been read from the socket since its connection was made.
    #[inline]
    pub fn publish_read(&self, total: u64) {
        self.slot().read.store(total, Ordering::Release);
    }

    /// Finds out how much the application has read of what was sent to it, and publishes that. `sent` is what the kernel
    /// has taken from the proxy since the connection was made. Two system calls.
    ///
    /// What the answer leaves out has certainly not been read twice: first what this socket still has to send is asked,
    /// then what waits in the application's, and bytes move only from there to here.
    ///
    /// # Errors
    /// Those of the kernel; `NotFound` when the application's socket is gone.
    pub fn confirm(&self, diag: &Diag, socket: BorrowedFd<'_>, sent: u64) -> io::Result<u64> {
        let unsent = u64::from(sys::unsent(socket)?);
        let unread = diag.unread(&self.peer)?;
        let read = sent.saturating_sub(unsent.saturating_add(unread));
        // Never less than before: it was true then.
        let before = self.slot().peer_read.fetch_max(read, Ordering::Release);
        Ok(read.max(before))
    }

    /// What the programs have done so far.
    pub fn progress(&self) -> LegProgress {
        let slot = self.slot();
        let load = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let off = load(&slot.off);
        LegProgress {
            redirected_in: load(&slot.redirected_in),
            redirected_out: load(&slot.redirected_out),
            fell_back: u64::from(slot.fell_back_in.load(Ordering::Relaxed))
                + u64::from(slot.fell_back_out.load(Ordering::Relaxed)),
            declined: off == Slot::OFF_OPTION,
            miscounted: off == Slot::OFF_MISCOUNT,
        }
    }

    /// Takes the application's socket out of the map. To be called only while nothing of what was sent to it is unread and
    /// nothing is being sent: it would be lost.
    pub fn release_peer(&self) {
        self.pool.shared.take_out(&self.peer);
    }

    fn slot(&self) -> &SharedSlot {
        self.pool.slot(self.slot)
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        self.pool.shared.leave(&self.key, self.slot, self.generation);
        self.slot().generation.fetch_add(1, Ordering::Release);
        self.pool.free.borrow_mut().push(self.slot);
    }
}

impl std::fmt::Debug for Leg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leg").field("key", &self.key).field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SlotPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotPool").field("free", &self.free()).finish_non_exhaustive()
    }
}
