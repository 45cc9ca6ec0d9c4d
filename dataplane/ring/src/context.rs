//! Which runtime the current thread is inside of.

use std::{cell::Cell, ptr::NonNull};

use crate::inner::Core;

thread_local! {
    static CURRENT: Cell<Option<NonNull<Core>>> = const { Cell::new(None) };
}

/// Whether the thread is inside a runtime: what is dropped when it has ended can send nothing any more.
pub fn is_inside() -> bool {
    CURRENT.get().is_some()
}

/// Makes `core` the thread's runtime until the guard is dropped; then it is again what it was before.
pub(crate) fn enter(core: &Core) -> Entered<'_> {
    Entered { before: CURRENT.replace(Some(NonNull::from(core))), _core: core }
}

pub(crate) struct Entered<'a> {
    before: Option<NonNull<Core>>,
    _core: &'a Core,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Runs `f` on the thread's runtime, if there is one.
#[inline]
pub(crate) fn try_with<R>(f: impl FnOnce(&Core) -> R) -> Option<R> {
    let core = CURRENT.get()?;
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
