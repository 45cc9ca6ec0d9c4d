//! What the programs say to whoever reads culvert's log: what went wrong with a connection, which no counter tells of.
//!
//! Messages wait in a ring in memory, also while no culvert runs. Each processor has a few a second; how many were left out
//! is counted, and said by culvert: a second message in each place would double what the kernel has to verify.

use core::mem;

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::PerCpuArray};
use culvert_bpf_common::Address;

/// Messages of one processor in one second.
const SHARE: u32 = 8;
const SECOND_NS: u64 = 1_000_000_000;

/// How many of its share a processor has used.
#[map]
pub static SAID: PerCpuArray<Said> = PerCpuArray::with_max_entries(1, 0);

/// Value of [`SAID`].
#[repr(C)]
pub struct Said {
    /// When the second began.
    since_ns: u64,
    messages: u32,
    /// Since the map was made; it wraps.
    left_out: u32,
}

/// Whether one more may be said; if not, it is counted.
#[inline(always)]
pub fn may_be_said() -> bool {
    let Some(said) = SAID.get_ptr_mut(0) else { return false };
    // SAFETY: the entry belongs to this processor. A program that interrupts this one makes the count wrong at worst.
    let said = unsafe { &mut *said };
    // SAFETY: the helper only returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(said.since_ns) >= SECOND_NS {
        said.since_ns = now;
        said.messages = 0;
    }
    if said.messages >= SHARE {
        said.left_out = said.left_out.wrapping_add(1);
        return false;
    }
    said.messages += 1;
    true
}

/// The address as messages show it with `{:i}`; IPv4 in its v4-mapped form.
#[inline(always)]
pub const fn shown(address: Address) -> [u8; 16] {
    // SAFETY: sixteen bytes either way, any of which are valid; in memory they are in network order.
    unsafe { mem::transmute(address.words()) }
}

/// `say!(warn, ctx, "...", ...)`: one of `aya_log_ebpf`'s levels, the program's context, and what its macros take.
macro_rules! say {
    ($level:ident, $ctx:expr, $($message:tt)+) => {
        if $crate::say::may_be_said() {
            ::aya_log_ebpf::$level!($ctx, $($message)+);
        }
    };
}
pub(crate) use say;
