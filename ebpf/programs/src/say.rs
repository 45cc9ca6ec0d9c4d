//! What the programs say to whoever reads culvert's log: what went wrong with a connection, which no counter tells of.
//!
//! Messages wait in a ring in memory, also while no culvert runs. Each processor has a few a second; how many were left out
//! is said with the next one.

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
    left_out: u32,
}

/// How many messages were left out before this one; `None` when this one is to be left out too.
#[inline(always)]
pub fn turn() -> Option<u32> {
    // SAFETY: the entry belongs to this processor. A program that interrupts this one makes the count wrong at worst.
    let said = unsafe { &mut *SAID.get_ptr_mut(0)? };
    // SAFETY: the helper only returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(said.since_ns) >= SECOND_NS {
        said.since_ns = now;
        said.messages = 0;
    }
    if said.messages >= SHARE {
        said.left_out = said.left_out.wrapping_add(1);
        return None;
    }
    said.messages += 1;
    let left_out = said.left_out;
    said.left_out = 0;
    Some(left_out)
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
        if let Some(left_out) = $crate::say::turn() {
            if left_out > 0 {
                ::aya_log_ebpf::warn!($ctx, "{} messages before this one were left out", left_out);
            }
            ::aya_log_ebpf::$level!($ctx, $($message)+);
        }
    };
}
pub(crate) use say;
