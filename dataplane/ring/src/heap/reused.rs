//! Memory that a thread keeps for the next value of the same size.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::RefCell,
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    pin::Pin,
    ptr::{self, NonNull},
    task::{Context, Poll},
};

/// Sizes are rounded up to a multiple of this, in bytes, so that values of about the same size share memory.
const STEP: usize = 256;

/// From this size on, in bytes, memory is not kept.
const SIZE_MAX: usize = 64 * STEP;

/// No value may ask for more; what does is not kept.
const ALIGN: usize = 16;

/// Most bytes of one size that a thread keeps.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static SPARES: RefCell<Spares> = const { RefCell::new(Spares { shelves: [const { Vec::new() }; SIZE_MAX / STEP] }) };
}

/// A box whose memory goes back to its thread when it is dropped, for the next one: what is made with every request, or
/// nearly so, asks the allocator for nothing once there have been as many at a time before.
///
/// As with a pinned box, a value that is not [`Unpin`] never moves.
pub struct Reused<T> {
    place: NonNull<T>,
    _owned: PhantomData<T>,
}

impl<T> Reused<T> {
    /// Puts `value` into memory of its own.
    pub fn new(value: T) -> Self {
        let place = take(Layout::new::<T>()).cast::<T>();
        // SAFETY: the memory is large enough and aligned for a `T`, and belongs to nobody else.
        unsafe { place.write(value) };
        Self { place, _owned: PhantomData }
    }
}

/// The value stays where it is when the box moves.
impl<T> Unpin for Reused<T> {}

impl<T> Deref for Reused<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the place holds a value until this is dropped.
        unsafe { self.place.as_ref() }
    }
}

impl<T: Unpin> DerefMut for Reused<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the place holds a value until this is dropped, and nobody else refers to it.
        unsafe { self.place.as_mut() }
    }
}

impl<F: Future> Future for Reused<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the future stays in its place until it is dropped there: there is no way to take it out, and none to
        // refer to it mutably unless it may move.
        unsafe { Pin::new_unchecked(self.place.as_mut()) }.poll(cx)
    }
}

impl<T> Drop for Reused<T> {
    fn drop(&mut self) {
        // SAFETY: the place holds a value, which is dropped once. Should that panic, the memory is lost and no more.
        unsafe { ptr::drop_in_place(self.place.as_ptr()) };
        give(self.place.cast(), Layout::new::<T>());
    }
}

impl<T: fmt::Debug> fmt::Debug for Reused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Memory that is not in use, by size.
struct Spares {
    shelves: [Vec<NonNull<u8>>; SIZE_MAX / STEP],
}

impl Spares {
    fn clear(&mut self) {
        for (shelf, memory) in self.shelves.iter_mut().enumerate() {
            for place in std::mem::take(memory) {
                // SAFETY: what is on a shelf was allocated with the layout of that shelf, and nobody uses it.
                unsafe { dealloc(place.as_ptr(), layout_of(shelf)) };
            }
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Gives what the current thread keeps back to the allocator.
pub(super) fn forget_spares() {
    let _ = SPARES.try_with(|spares| spares.borrow_mut().clear());
}

/// The shelf for values of that layout; `None` when their memory is not kept.
fn shelf_of(layout: Layout) -> Option<usize> {
    let fits = layout.align() <= ALIGN && layout.size() <= SIZE_MAX;
    fits.then(|| layout.size().div_ceil(STEP).max(1) - 1)
}

fn layout_of(shelf: usize) -> Layout {
    // SAFETY: the alignment is a power of two, and the size is at most SIZE_MAX.
    unsafe { Layout::from_size_align_unchecked((shelf + 1) * STEP, ALIGN) }
}

/// Memory for a value of that layout.
fn take(layout: Layout) -> NonNull<u8> {
    let Some(shelf) = shelf_of(layout) else { return allocate(at_least_one(layout)) };
    let spare = SPARES.try_with(|spares| spares.borrow_mut().shelves[shelf].pop());
    spare.ok().flatten().unwrap_or_else(|| allocate(layout_of(shelf)))
}

/// Takes the memory of a value of that layout back.
fn give(place: NonNull<u8>, layout: Layout) {
    let Some(shelf) = shelf_of(layout) else {
        // SAFETY: it was allocated by `take` with this layout.
        return unsafe { dealloc(place.as_ptr(), at_least_one(layout)) };
    };
    let kept = SPARES.try_with(|spares| {
        let memory = &mut spares.borrow_mut().shelves[shelf];
        let room = memory.len() < KEPT_BYTES / ((shelf + 1) * STEP);
        if room {
            memory.push(place);
        }
        room
    });
    if kept != Ok(true) {
        // SAFETY: it was allocated with the layout of its shelf, and is on no shelf.
        unsafe { dealloc(place.as_ptr(), layout_of(shelf)) };
    }
}

/// The allocator takes no layout of size zero.
fn at_least_one(layout: Layout) -> Layout {
    // SAFETY: the alignment is that of a layout, and a size of one can be rounded up to it.
    unsafe { Layout::from_size_align_unchecked(layout.size().max(1), layout.align()) }
}

/// Memory of a layout whose size is not zero.
fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, pin::pin, rc::Rc, task::Waker};

    use super::*;

    fn address<T>(of: &Reused<T>) -> usize {
        of.place.as_ptr().addr()
    }

    #[test]
    fn memory_is_used_again_by_what_is_of_its_size() {
        let first = Reused::new([1_u8; 600]);
        let at = address(&first);
        drop(first);
        let second = Reused::new([7_u64; 70]);
        assert_eq!((address(&second), second[69]), (at, 7));
        let third = Reused::new([2_u8; 600]);
        assert_ne!(address(&third), at);
        drop(second);
        forget_spares();
        assert_eq!(third[599], 2);
    }

    #[test]
    fn values_are_dropped_once() {
        struct Counted(Rc<Cell<u32>>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let count = Rc::new(Cell::new(0));
        for turn in 1..4 {
            drop(Reused::new(Counted(count.clone())));
            assert_eq!(count.get(), turn);
        }
    }

    #[test]
    fn futures_run_where_they_are() {
        let turns = Cell::new(0);
        let mut future = pin!(Reused::new(async {
            let here = Cell::new(0);
            let seen = &here;
            poll_fn(|_| {
                seen.set(seen.get() + 1);
                turns.set(seen.get());
                if seen.get() == 3 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            here.get()
        }));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!(future.as_mut().poll(&mut cx), Poll::Ready(3));
        assert_eq!(turns.get(), 3);
    }

    #[test]
    fn unusual_values_have_memory_of_their_own() {
        #[repr(align(64))]
        struct Aligned(u8);
        let (aligned, large) = (Reused::new(Aligned(3)), Reused::new([5_u8; SIZE_MAX + 1]));
        assert_eq!((address(&aligned) % 64, aligned.0, large[SIZE_MAX]), (0, 3, 5));
        drop(Reused::new(()));
        let mut changed = Reused::new(1);
        *changed += 1;
        assert_eq!(*changed, 2);
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let many: Vec<_> = (0..10).map(|_| Reused::new([0_u8; SIZE_MAX])).collect();
        drop(many);
        let most = (0..100).map(|_| Reused::new([0_u8; SIZE_MAX])).collect::<Vec<_>>();
        drop(most);
        let kept = SPARES.with(|spares| spares.borrow().shelves[SIZE_MAX / STEP - 1].len());
        assert_eq!(kept, KEPT_BYTES / SIZE_MAX);
    }
}
