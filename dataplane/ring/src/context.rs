//! Which runtime the current thread is inside of.

use std::{cell::Cell, ptr::NonNull};

use crate::inner::Core;

thread_local! {
    static CURRENT: Cell<Option<NonNull<Core>>> = const { Cell::new(None) };
}

/// Makes `core` the thread's runtime until the guard is dropped.
///
/// # Panics
/// When the thread is inside a runtime already.
pub(crate) fn enter(core: &Core) -> Entered<'_> {
    CURRENT.with(|current| {
        assert!(current.get().is_none(), "a runtime cannot run inside another on the same thread");
        current.set(Some(NonNull::from(core)));
    });
    Entered { _core: core }
}

pub(crate) struct Entered<'a> {
    _core: &'a Core,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(None));
    }
}

/// Runs `f` on the thread's runtime, if there is one.
#[inline]
pub(crate) fn try_with<R>(f: impl FnOnce(&Core) -> R) -> Option<R> {
    let core = CURRENT.with(Cell::get)?;
    // SAFETY: the pointer is set only while an `Entered` guard borrows the core; `f` runs inside that scope on the same
    // thread and cannot keep the reference, and `Core` hands out shared references only.
    Some(f(unsafe { core.as_ref() }))
}

/// Runs `f` on the thread's runtime.
///
/// # Panics
/// When called outside of `Runtime::block_on`.
#[inline]
pub(crate) fn with<R>(f: impl FnOnce(&Core) -> R) -> R {
    match try_with(f) {
        Some(it) => it,
        None => panic!("called outside of a culvert-ring runtime"),
    }
}
