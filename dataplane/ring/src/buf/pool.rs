//! The receive buffers of one worker: two size classes, each one mapping cut into equal buffers.
//!
//! A buffer is in one of three hands: the free stack, a driver ([`Blank`], or the kernel's provided-buffer ring), or
//! the holders of [`Lease`]s on it, counted in the table here. The free list is a stack, so that the buffer used last,
//! still in cache, is used next, and memory that was never needed is never touched.

use std::{
    cell::{Cell, RefCell},
    io, ptr,
    rc::Rc,
    slice,
};

use super::Lease;
use crate::config::BufferConfig;

/// A buffer size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Small = 0,
    Large = 1,
}

/// Every receive buffer of a worker.
pub(crate) struct Pool {
    shelves: [Shelf; 2],
}

impl Pool {
    pub(crate) fn new(config: &BufferConfig) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            shelves: [
                Shelf::new(config.small_size, config.small_count)?,
                Shelf::new(config.large_size, config.large_count)?,
            ],
        }))
    }

    /// Takes a buffer of `class`, if one is free.
    #[inline]
    pub(crate) fn take(self: &Rc<Self>, class: Class) -> Option<Blank> {
        let index = self.shelf(class).free.borrow_mut().pop()?;
        Some(Blank { pool: Rc::clone(self), class, index })
    }

    /// Buffers of `class` that are free.
    pub(crate) fn free(&self, class: Class) -> usize {
        self.shelf(class).free.borrow().len()
    }

    /// Bytes in each buffer of `class`.
    #[inline]
    pub(crate) fn size(&self, class: Class) -> usize {
        self.shelf(class).size
    }

    /// Number of buffers of `class`.
    pub(crate) fn count(&self, class: Class) -> usize {
        self.shelf(class).refs.len()
    }

    /// Where buffer `index` of `class` starts.
    #[inline]
    pub(crate) fn address(&self, class: Class, index: u16) -> *mut u8 {
        let shelf = self.shelf(class);
        assert!(usize::from(index) < shelf.refs.len());
        // SAFETY: the index is below the number of buffers, so the offset stays inside the mapping.
        unsafe { shelf.map.base.add(usize::from(index) * shelf.size) }
    }

    /// The bytes of a leased buffer.
    #[inline]
    pub(super) fn bytes(&self, class: Class, index: u16, start: u32, len: u32) -> &[u8] {
        debug_assert!(start as usize + len as usize <= self.size(class));
        // SAFETY: a lease was made for at most the buffer's size and only ever shrinks; the buffer is written again only
        // after the last lease on it is gone, and the mapping lives as long as the pool the lease holds.
        unsafe { slice::from_raw_parts(self.address(class, index).add(start as usize), len as usize) }
    }

    #[inline]
    pub(super) fn retain(&self, class: Class, index: u16) {
        let refs = &self.shelf(class).refs[usize::from(index)];
        refs.set(refs.get() + 1);
    }

    #[inline]
    pub(super) fn release(&self, class: Class, index: u16) {
        let shelf = self.shelf(class);
        let refs = &shelf.refs[usize::from(index)];
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            shelf.free.borrow_mut().push(index);
        }
    }

    #[inline]
    fn shelf(&self, class: Class) -> &Shelf {
        &self.shelves[class as usize]
    }
}

/// An empty buffer that belongs to nobody else; it goes back to the pool unless it is filled.
pub(crate) struct Blank {
    pool: Rc<Pool>,
    class: Class,
    index: u16,
}

impl Blank {
    /// The whole buffer, for writing.
    #[inline]
    pub(crate) fn space(&mut self) -> &mut [u8] {
        // SAFETY: a blank is the only owner of its buffer, the mapping is zeroed (hence initialised) memory.
        unsafe {
            slice::from_raw_parts_mut(self.pool.address(self.class, self.index), self.pool.size(self.class))
        }
    }

    /// Turns the first `len` bytes into a lease.
    #[inline]
    pub(crate) fn fill(self, len: usize) -> Lease {
        assert!(len <= self.pool.size(self.class));
        let (class, index) = (self.class, self.index);
        let shelf = self.pool.shelf(class);
        debug_assert_eq!(shelf.refs[usize::from(index)].get(), 0);
        shelf.refs[usize::from(index)].set(1);
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the reference is moved out exactly once.
        let pool = unsafe { ptr::read(&this.pool) };
        Lease::pooled(pool, class, index, len)
    }

    /// Hands the buffer to the kernel; [`Blank::reclaim`] takes it back.
    #[inline]
    pub(crate) fn surrender(self) -> u16 {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the reference is moved out (and dropped) exactly once.
        drop(unsafe { ptr::read(&this.pool) });
        this.index
    }

    /// Takes back a buffer that the kernel had.
    ///
    /// # Safety
    /// `index` came from [`Blank::surrender`] on the same pool and class, and the kernel will not write to it any more.
    #[inline]
    pub(crate) unsafe fn reclaim(pool: &Rc<Pool>, class: Class, index: u16) -> Self {
        Self { pool: Rc::clone(pool), class, index }
    }
}

impl Drop for Blank {
    #[inline]
    fn drop(&mut self) {
        self.pool.shelf(self.class).free.borrow_mut().push(self.index);
    }
}

struct Shelf {
    size: usize,
    refs: Box<[Cell<u32>]>,
    free: RefCell<Vec<u16>>,
    map: Mapping,
}

impl Shelf {
    fn new(size: u32, count: u16) -> io::Result<Self> {
        let count = count.clamp(1, 1 << 15);
        let size = size.max(64) as usize;
        Ok(Self {
            size,
            refs: vec![Cell::new(0); usize::from(count)].into_boxed_slice(),
            free: RefCell::new((0..count).rev().collect()),
            map: Mapping::new(size * usize::from(count))?,
        })
    }
}

/// Anonymous zeroed memory straight from the kernel, so that it is page-aligned and resident only where touched.
pub(crate) struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Huge pages would make the first touched buffer cost 2 MB. Advice may be refused; nothing depends on it.
        // SAFETY: the range is the mapping made above.
        unsafe { libc::madvise(base, len, libc::MADV_NOHUGEPAGE) };
        Ok(Self { base: base.cast(), len })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Rc<Pool> {
        Pool::new(&BufferConfig { small_size: 64, small_count: 2, large_size: 128, large_count: 1 }).unwrap()
    }

    #[test]
    fn buffers_run_out_and_come_back() {
        let pool = pool();
        let first = pool.take(Class::Small).unwrap();
        let second = pool.take(Class::Small).unwrap();
        assert!(pool.take(Class::Small).is_none());
        let lease = second.fill(10);
        drop(first);
        assert!(pool.take(Class::Small).is_some());
        drop(lease);
        assert!(pool.take(Class::Small).is_some());
    }

    #[test]
    fn the_buffer_used_last_is_used_next() {
        let pool = pool();
        let blank = pool.take(Class::Small).unwrap();
        let index = blank.index;
        drop(blank.fill(1));
        assert_eq!(pool.take(Class::Small).unwrap().index, index);
    }

    #[test]
    fn a_surrendered_buffer_is_not_free() {
        let pool = pool();
        let index = pool.take(Class::Large).unwrap().surrender();
        assert!(pool.free(Class::Large) == 0);
        // SAFETY: no kernel was involved.
        drop(unsafe { Blank::reclaim(&pool, Class::Large, index) });
        assert!(pool.free(Class::Large) > 0);
    }

    #[test]
    fn leases_outlive_the_runtime_that_made_them() {
        let pool = pool();
        let mut blank = pool.take(Class::Small).unwrap();
        blank.space()[..2].copy_from_slice(b"hi");
        let lease = blank.fill(2);
        drop(pool);
        assert_eq!(&*lease, b"hi");
    }
}
