//! Socket options that redirected bytes do not obey, set on a socket that is in the map already.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use culvert_bpf_common::{Flow, Slot};

use crate::{
    context::field,
    maps::{DECLINED, LEGS, SLOTS, flow},
};

const SOL_SOCKET: u32 = 1;
const SO_RCVLOWAT: u32 = 18;
const SO_ZEROCOPY: u32 = 60;
const SOL_TCP: u32 = 6;
const TCP_ULP: u32 = 31;

/// Above this size the kernel shows a program only a part of the value.
const PAGE: u32 = 4096;
const ALLOW: i32 = 1;

#[cgroup_sockopt(setsockopt)]
pub fn splice_option(ctx: SockoptContext) -> i32 {
    let ctx = ctx.sockopt;
    if field!(u32, ctx => bpf_sockopt.optlen) > PAGE {
        // "Use what the application gave": else kernels before 6.5 refuse the call.
        // SAFETY: writes a field of the context.
        unsafe { (*ctx).optlen = 0 };
        return ALLOW;
    }
    let option = (field!(u32, ctx => bpf_sockopt.level), field!(u32, ctx => bpf_sockopt.optname));
    if matches!(option, (SOL_SOCKET, SO_RCVLOWAT | SO_ZEROCOPY) | (SOL_TCP, TCP_ULP)) {
        // SAFETY: reads a field of the context.
        let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
        decline(sk);
    }
    ALLOW
}

/// From now on neither direction is redirected. Sockets that are not in the map yet have no flow: whether they enter is
/// decided by what is set then.
#[inline(always)]
fn decline(sk: *mut bpf_sock) -> Option<()> {
    let flow = flow(sk)?;
    flow.mode = Flow::MODE_OFF;
    // First the note, then the look: a leg that comes in between finds the one or is found by the other.
    let _ = DECLINED.insert(flow.own, 1_u32, 0);
    // SAFETY: as everywhere, see `message`.
    let leg = unsafe { LEGS.get(flow.peer) }?;
    let slot = SLOTS.get_ptr_mut(leg.slot)?;
    // SAFETY: an entry of an array, which is always there.
    unsafe { (*slot).off = Slot::OFF_OPTION };
    Some(())
}
