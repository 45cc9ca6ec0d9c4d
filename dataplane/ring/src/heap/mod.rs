//! The process's heap: the allocator, what threads take from it, and memory that a thread keeps for its next use.

mod count;
mod reused;

pub use count::{Allocations, Allocator, count_allocations};
pub use reused::Reused;

/// Makes the allocator give memory of which it has no more use back to the system at once. For `main`, before anything
/// else.
///
/// By default it waits before it gives a free segment (32 MiB) back. When the segment is taken into use again meanwhile,
/// what its pages hold is resident for as long as it is in use, also where nothing was put: parsing a large configuration
/// leaves tens of megabytes that way.
pub fn configure() {
    if arena_purge_mult() == ARENA_PURGE_MULT_DEFAULT {
        // SAFETY: options may be set at any time.
        unsafe { libmimalloc_sys::mi_option_set(ARENA_PURGE_MULT, 0) }
    }
}

/// `mi_option_arena_purge_mult`, by which the delay of purging is multiplied for segments. The bindings do not have it.
const ARENA_PURGE_MULT: libmimalloc_sys::mi_option_t = 24;
/// What it is by default, which tells that the number means what it should.
const ARENA_PURGE_MULT_DEFAULT: std::ffi::c_long = 10;

fn arena_purge_mult() -> std::ffi::c_long {
    // SAFETY: options may be read at any time; the number is below that of the last option.
    unsafe { libmimalloc_sys::mi_option_get(ARENA_PURGE_MULT) }
}

/// Gives memory that was freed back to the system. The allocator only looks at what was freed when something is
/// allocated or freed again, and a thread that has taken a configuration in may be idle for long. Takes some milliseconds
/// for a large heap.
pub fn give_back() {
    reused::forget_spares();
    // SAFETY: the function has no precondition. It works on the calling thread's heap, which it makes if there is none,
    // and on what the allocator's own synchronisation lets every thread work on.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        assert_eq!(super::arena_purge_mult(), super::ARENA_PURGE_MULT_DEFAULT);
        super::configure();
        assert_eq!(super::arena_purge_mult(), 0);
        super::give_back();
    }
}
