//! How the kernel's scheduler sees a thread.

use std::io;

/// The longest slice the kernel takes: 100 ms, in nanoseconds.
const SLICE_MAX: u64 = 100_000_000;

/// `struct sched_attr` (sched_setattr(2)), as of its second version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Nanoseconds; under the ordinary policies the slice, 0 for the system's.
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Lets whoever wakes up interrupt the calling thread, which still gets its share of the CPU. For threads that compute
/// for long where others answer requests: since Linux 6.6 a thread that wakes up waits for the end of the slice of the
/// one that runs, and since 6.12 it does so only when its own slice is not the shorter one. Older kernels take this for
/// nothing, as do real-time policies.
///
/// Threads that are started by this one inherit it.
///
/// # Errors
/// What the kernel says, `EPERM` where a seccomp filter forbids the call.
pub fn give_way() -> io::Result<()> {
    let mut attr = get()?;
    if attr.policy == libc::SCHED_OTHER.unsigned_abs() || attr.policy == libc::SCHED_BATCH.unsigned_abs() {
        attr.runtime = SLICE_MAX;
        set(&attr)?;
    }
    Ok(())
}

/// As [`give_way`]; that it failed is logged.
pub fn give_way_or_warn(what: &str) {
    if let Err(error) = give_way() {
        log::warn!(target: "main", "{what}: others cannot interrupt it: {error}");
    }
}

fn get() -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes to a struct of that size, all of whose bit patterns are valid; thread
    // 0 is the calling one.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attr) }
}

fn set(attr: &SchedAttr) -> io::Result<()> {
    // SAFETY: the kernel reads `attr.size` bytes, which it wrote itself and which is at most the size of the struct.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{SLICE_MAX, get, give_way};

    #[test]
    fn the_kernel_keeps_the_slice_and_nothing_else_changes() {
        let changed = std::thread::spawn(|| {
            let before = get().unwrap();
            give_way().unwrap();
            (before, get().unwrap())
        });
        let (before, after) = changed.join().unwrap();
        assert_eq!((after.policy, after.nice, after.priority), (before.policy, before.nice, before.priority));
        // Before 6.12 there is no slice of one's own.
        assert!([before.runtime, SLICE_MAX].contains(&after.runtime), "{}", after.runtime);
        assert_ne!(get().unwrap().runtime, SLICE_MAX, "of another thread");
    }
}
