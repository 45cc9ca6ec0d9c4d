//! How a message goes: into the peer's receive queue, or by TCP.
//!
//! `sent` is what the socket has sent since its connection was made: redirected bytes are counted here, those that went
//! by TCP by the kernel. `read` is what the reader is known to have read of it, never too much. A direction
//!
//!  * is redirected while `sent - read` with the message stays within the limit, and so do the messages since `sent == read`;
//!  * changes from redirection to TCP at any time: what TCP delivers comes after what has been put into the queue before;
//!  * changes from TCP to redirection only when `sent == read`: nothing is under way that could be overtaken;
//!  * returns to TCP when bytes have gone by TCP that did not pass here (urgent ones, or of a `send` that had begun before
//!    the socket entered the map).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, bpf_sock, sk_action, sk_msg_md},
    helpers::generated::{bpf_get_netns_cookie, bpf_msg_redirect_hash},
    macros::{sk_msg, stream_verdict},
    programs::{SkBuffContext, SkMsgContext},
};
use culvert_bpf_common::{Address, Flow, Leg, Slot, SocketKey};

use crate::{
    context::{AF_INET, field, field_v6},
    maps::{DECLINED, LEGS, SLOTS, SPLICE, flow, flow_or, setting},
    tcp::Tcp,
};

/// Passes every message, having said where to. The answer is never that of the redirect, which would drop the message
/// when the peer is not there.
#[sk_msg]
pub fn splice_message(ctx: SkMsgContext) -> u32 {
    direct(&ctx);
    sk_action::SK_PASS
}

/// Lets everything pass.
#[stream_verdict]
pub fn splice_pass(_: SkBuffContext) -> u32 {
    sk_action::SK_PASS
}

#[inline(always)]
fn direct(ctx: &SkMsgContext) -> Option<()> {
    // SAFETY: reads a field of the context.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return None;
    }
    let flow = match flow(sk) {
        Some(flow) => flow,
        None => enter_leg(ctx, sk)?,
    };
    if flow.mode == Flow::MODE_OFF || !is_own(ctx.msg, &flow.own) {
        return None;
    }
    if flow.mode == Flow::MODE_NEW {
        resolve(flow, sk)?;
    }
    let slot = SLOTS.get_ptr_mut(flow.slot)?;
    // SAFETY: an entry of an array, which is always there. Each field has one writer.
    let slot = unsafe { &mut *slot };
    if slot.generation as u32 != flow.generation || slot.off != 0 {
        flow.mode = Flow::MODE_OFF;
        return None;
    }
    let to_app = flow.flags & Flow::IS_TO_APP != 0;
    let tcp = Tcp::of(sk)?;
    if setting!(blocking) == 0 && tcp.is_blocking() {
        flow.mode = Flow::MODE_OFF;
        slot.off = Slot::OFF_OPTION;
        return None;
    }
    let by_tcp = tcp.bytes_sent(flow.flags);
    let sent = flow.redirected.wrapping_add(by_tcp);
    let read = if to_app { slot.peer_read } else { slot.read };
    if read > sent {
        flow.mode = Flow::MODE_OFF;
        slot.off = Slot::OFF_MISCOUNT;
        return None;
    }
    if flow.mode == Flow::MODE_SPLICED && by_tcp != flow.by_tcp {
        flow.mode = Flow::MODE_TCP;
    }
    if flow.mode == Flow::MODE_TCP {
        if sent != read {
            return None;
        }
        flow.mode = Flow::MODE_SPLICED;
        flow.by_tcp = by_tcp;
    }
    if sent == read {
        flow.messages = 0;
    }
    let size = u64::from(field!(u32, ctx.msg => sk_msg_md.size));
    if sent - read + size > setting!(limit) || flow.messages >= Flow::MAX_MESSAGES {
        flow.mode = Flow::MODE_TCP;
        if to_app {
            slot.fell_back_out += 1;
        } else {
            slot.fell_back_in += 1;
        }
        return None;
    }
    let (map, key) = (&raw const SPLICE, &raw mut flow.peer);
    // SAFETY: the helper is given the program's context, a map and a key of it.
    let found = unsafe {
        bpf_msg_redirect_hash(ctx.msg, map.cast_mut().cast(), key.cast(), u64::from(BPF_F_INGRESS))
    };
    if found != i64::from(sk_action::SK_PASS) {
        // The peer is not in the map. It may come: what goes by TCP now must not be overtaken then.
        flow.mode = Flow::MODE_TCP;
        return None;
    }
    flow.messages += 1;
    flow.redirected = flow.redirected.wrapping_add(size);
    if to_app {
        slot.redirected_out = slot.redirected_out.wrapping_add(size);
    } else {
        slot.redirected_in = slot.redirected_in.wrapping_add(size);
    }
    Some(())
}

/// The first message of a socket that did not enter by itself: one of the proxy.
#[inline(always)]
fn enter_leg(ctx: &SkMsgContext, sk: *mut bpf_sock) -> Option<&'static mut Flow> {
    // SAFETY: the helper takes the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let own = key_of(ctx.msg, netns);
    let leg = leg(own)?;
    flow_or(sk, Flow::new(own, leg.peer_netns, leg.active != 0))
}

/// Finds the slot in which the reader's progress is published.
#[inline(always)]
fn resolve(flow: &mut Flow, sk: *mut bpf_sock) -> Option<()> {
    if flow.own.netns != flow.peer.netns {
        prove(flow, sk)?;
    }
    // The reader is the proxy, or else an application that the proxy asks about.
    let (leg, to_app) = match leg(flow.peer) {
        Some(leg) => (leg, false),
        None => (leg(flow.own)?, true),
    };
    flow.slot = leg.slot;
    flow.generation = leg.generation;
    if to_app {
        flow.flags |= Flow::IS_TO_APP;
    }
    flow.mode = Flow::MODE_TCP;
    if DECLINED.get_ptr(flow.own).is_some() || DECLINED.get_ptr(flow.peer).is_some() {
        flow.mode = Flow::MODE_OFF;
        if let Some(slot) = SLOTS.get_ptr_mut(flow.slot) {
            // SAFETY: as in `direct`.
            unsafe { (*slot).off = Slot::OFF_OPTION };
        }
        return None;
    }
    Some(())
}

/// Makes sure that a leg in another namespace is the other end of this connection, and not of one with the same addresses
/// in a network of its own. Both publish where their sequence numbers began, with their first message.
#[inline(always)]
fn prove(flow: &Flow, sk: *mut bpf_sock) -> Option<()> {
    let (own, peer) = (leg(flow.own)?, leg(flow.peer)?);
    let (sends, receives) = Tcp::of(sk)?.beginnings(flow.flags);
    let slot = SLOTS.get_ptr_mut(own.slot)?;
    // SAFETY: as in `direct`.
    unsafe { (*slot).beginnings = u64::from(sends) << 32 | u64::from(receives) };
    let slot = SLOTS.get_ptr_mut(peer.slot)?;
    // SAFETY: as in `direct`.
    let theirs = unsafe { (*slot).beginnings };
    (theirs == u64::from(receives) << 32 | u64::from(sends)).then_some(())
}

#[inline(always)]
fn leg(key: SocketKey) -> Option<&'static Leg> {
    // SAFETY: entries are inserted and removed, never edited; a removed one outlives this program run.
    unsafe { LEGS.get(key) }
}

/// Whether the socket still has the connection that is noted of it.
#[inline(always)]
fn is_own(msg: *mut sk_msg_md, own: &SocketKey) -> bool {
    field!(u32, msg => sk_msg_md.local_port) as u16 == own.local_port
        && u32::from_be(field!(u32, msg => sk_msg_md.remote_port)) as u16 == own.remote_port
}

/// The sending socket.
#[inline(always)]
fn key_of(msg: *mut sk_msg_md, netns: u64) -> SocketKey {
    let (local, remote) = if field!(u32, msg => sk_msg_md.family) == AF_INET {
        let local = Address::from_v4_word(field!(u32, msg => sk_msg_md.local_ip4));
        (local, Address::from_v4_word(field!(u32, msg => sk_msg_md.remote_ip4)))
    } else {
        (field_v6!(msg => sk_msg_md.local_ip6), field_v6!(msg => sk_msg_md.remote_ip6))
    };
    let local_port = field!(u32, msg => sk_msg_md.local_port) as u16;
    // In network byte order, and in the upper half of a little-endian word.
    let remote_port = u32::from_be(field!(u32, msg => sk_msg_md.remote_port)) as u16;
    SocketKey::new(netns, (local, local_port), (remote, remote_port))
}
