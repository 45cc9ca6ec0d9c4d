//! The allocator, and how often a thread has asked it for memory.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

use mimalloc::MiMalloc;

thread_local! {
    /// Where this thread counts. Needs neither memory nor a destructor, so that it may be used inside of the allocator.
    static COUNTER: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// The process's allocator: mimalloc, which counts the allocations of those threads that ask for it. For the others
/// that is one look at a thread's own memory with each allocation.
pub struct Allocator;

/// How often a thread has allocated since [`count_allocations`]; growing or shrinking in place counts too. Any thread may
/// read it.
#[derive(Clone, Copy, Debug)]
pub struct Allocations(&'static AtomicU64);

impl Allocations {
    /// The count so far.
    pub fn value(self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts the allocations of the current thread from now on. For threads that live as long as the process: the count is
/// never freed. Nothing is counted where [`Allocator`] is not the process's allocator.
pub fn count_allocations() -> Allocations {
    let counter = COUNTER.get().unwrap_or_else(|| {
        let made: &'static AtomicU64 = Box::leak(Box::default());
        COUNTER.set(Some(made));
        made
    });
    Allocations(counter)
}

#[inline]
fn count() {
    // A thread that ends may allocate when its own memory is gone already.
    if let Ok(Some(counter)) = COUNTER.try_with(Cell::get) {
        // Nobody else writes it.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

// SAFETY: every call is handed to mimalloc as it is; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that mimalloc asks for.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from mimalloc with this layout.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the memory came from mimalloc with this layout; the rest is the caller's promise.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_asks_is_counted() {
        let layout = Layout::from_size_align(64, 8).unwrap();
        let turn = || {
            // SAFETY: the layout is not of size zero; the memory is freed with the layout that it was made with.
            unsafe {
                let memory = Allocator.alloc(layout);
                let memory = Allocator.realloc(memory, layout, 128);
                Allocator.dealloc(memory, Layout::from_size_align(128, 8).unwrap());
                let zeroed = Allocator.alloc_zeroed(layout);
                assert!((0..64).all(|at| *zeroed.add(at) == 0));
                Allocator.dealloc(zeroed, layout);
            }
        };
        turn();
        let allocations = count_allocations();
        let before = allocations.value();
        turn();
        assert_eq!(allocations.value() - before, 3);
        assert_eq!(count_allocations().value() - before, 3, "the same count");
        std::thread::scope(|scope| scope.spawn(turn).join()).unwrap();
        assert_eq!(allocations.value() - before, 3, "another thread's own");
    }
}
