//! Creating a ring: the best the kernel grants, and by how little that falls short.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    ptr,
};

use io_uring::{IoUring, opcode};

use super::provided::Provided;

/// What the kernel grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Linux 6.1: DEFER_TASKRUN.
    Core,
    /// Linux 6.6: also a submission queue without the index array.
    Full,
}

/// A ring for the calling thread, which becomes its only submitter.
///
/// # Errors
/// That of the last step of the ladder: `ENOSYS` or `EPERM` where io_uring is refused, `EINVAL` on kernels before 6.1.
pub(crate) fn create(sq_entries: u32) -> io::Result<(IoUring, Tier)> {
    match build(sq_entries, Tier::Full) {
        Ok(ring) => Ok((ring, Tier::Full)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((build(sq_entries, Tier::Core)?, Tier::Core))
        }
        Err(error) => Err(error),
    }
}

/// Makes a small ring and has it do what the driver depends on.
///
/// # Errors
/// What was refused.
pub(crate) fn rehearse() -> io::Result<Tier> {
    let (mut ring, tier) = create(8)?;
    let provided = Provided::new(&ring, u16::MAX, 8)?;
    let nop = opcode::Nop::new().build().user_data(7);
    // SAFETY: a no-operation refers to no memory.
    if unsafe { ring.submission().push(&nop) }.is_err() {
        return Err(io::Error::other("a new submission queue is full"));
    }
    ring.submit_and_wait(1)?;
    let answered = ring.completion().next().is_some_and(|it| it.user_data() == 7);
    // The ring goes before the memory it was given.
    drop(ring);
    drop(provided);
    if answered { Ok(tier) } else { Err(io::Error::other("a no-operation was not completed")) }
}

fn build(sq_entries: u32, tier: Tier) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_clamp()
        // A completion for each submission, and for what multishot operations and in-flight receives add.
        .setup_cqsize(sq_entries.saturating_mul(4));
    if tier == Tier::Full {
        builder.setup_no_sqarray();
    }
    builder.build(sq_entries)
}

/// The argument block of io_uring_enter(2) with IORING_ENTER_EXT_ARG.
#[repr(C)]
struct EnterArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timespec: u64,
}

impl EnterArg {
    fn new(timespec: Option<&libc::timespec>) -> Self {
        let timespec = timespec.map_or(ptr::null(), ptr::from_ref);
        Self { sigmask: 0, sigmask_size: 0, min_wait_usec: 0, timespec: timespec.expose_provenance() as u64 }
    }
}

/// io_uring_enter(2). Being interrupted, timing out and a full completion queue are no errors: there is something, or
/// nothing, to collect, and the caller comes back.
pub(super) fn enter(
    ring: RawFd,
    submit: u32,
    want: u32,
    flags: u32,
    timeout: Option<&libc::timespec>,
) -> io::Result<()> {
    let arg = EnterArg::new(timeout);
    // SAFETY: the argument block and the timespec outlive the call; submitted entries are valid by `push`'s contract.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring,
            submit,
            want,
            flags,
            &raw const arg,
            size_of::<EnterArg>(),
        )
    };
    if outcome >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

/// Registers the ring with the thread and returns its number there; `None` when the kernel declines.
pub(super) fn register_ring(ring: &IoUring) -> Option<u32> {
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: ring.as_raw_fd() as u64 };
    (register(ring, REGISTER_RING_FDS, &mut update) == 1).then_some(update.offset)
}

/// The opposite of [`register_ring`]; without it the ring would live as long as the thread.
pub(super) fn unregister_ring(ring: &IoUring, number: u32) {
    let mut update = RingUpdate { offset: number, reserved: 0, data: 0 };
    register(ring, UNREGISTER_RING_FDS, &mut update);
}

/// linux/io_uring.h
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// struct io_uring_rsrc_update
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

fn register(ring: &IoUring, what: u32, update: &mut RingUpdate) -> libc::c_long {
    // SAFETY: the kernel reads and writes one structure of the layout it expects.
    unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), what, ptr::from_mut(update), 1) }
}
