//! Sockets of applications enter the map when their connection is made, before they can send.

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
    },
    cty::c_void,
    helpers::generated::{bpf_map_delete_elem, bpf_sock_hash_update},
    macros::sock_ops,
    programs::SockOpsContext,
};
use culvert_bpf_common::{Address, Flow, OwnAddressKey, PROXY_MARK, PROXY_MARK_MASK, SocketKey, SplicedPod};

use crate::{
    context::{AF_INET, field, field_v6, netns_cookie, storage},
    maps::{DECLINED, DIALS, LISTENING, OWN_ADDRESSES, SPLICE, SPLICED_PODS, flow, flow_or, setting},
    tcp::Tcp,
};

/// The socket has a program of another map.
const EBUSY: i64 = -16;
/// A state of `enum bpf_tcp_state`.
const TCP_CLOSE: u32 = 7;

/// Runs at the state changes of TCP sockets. Its answer means something for other operations only.
#[sock_ops]
pub fn splice_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            forget(&ctx);
            dialling(&ctx);
        }
        BPF_SOCK_OPS_TCP_LISTEN_CB => {
            forget(&ctx);
            listening(&ctx);
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => closed(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        _ => {}
    }
    1
}

/// The proxy dials its pod's application: the socket that will accept is one to enter.
#[inline(always)]
fn dialling(ctx: &SockOpsContext) {
    let netns = netns_cookie(ctx);
    if pod(netns).is_none() {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    if field!(u32, sk => bpf_sock.mark) & PROXY_MARK_MASK != PROXY_MARK {
        return;
    }
    let key = key_of(sk, netns);
    let own = OwnAddressKey { netns, address: key.remote };
    if key.remote.is_loopback() || OWN_ADDRESSES.get_ptr(own).is_some() {
        let _ = DIALS.insert(key.peer_in(netns), 1_u32, 0);
    }
}

/// A connect has succeeded. The captured ones lead to the proxy.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let netns = netns_cookie(ctx);
    let Some(pod) = pod(netns) else { return };
    let Some(sk) = socket(ctx) else { return };
    if storage(sk).is_some_and(|original| original.captured == 1) {
        enter(ctx, pod, sk, key_of(sk, netns), true);
    }
}

/// A connection has come in. The application cannot have accepted it yet.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let netns = netns_cookie(ctx);
    let Some(pod) = pod(netns) else { return };
    let Some(sk) = socket(ctx) else { return };
    let key = key_of(sk, netns);
    if DIALS.get_ptr(key).is_some() {
        let _ = DIALS.remove(key);
        enter(ctx, pod, sk, key, false);
    }
}

/// Why a socket does not enter.
enum Declined {
    Blocking,
    Busy,
    Mptcp,
    Option,
    Other,
}

#[inline(always)]
fn enter(ctx: &SockOpsContext, pod: *mut SplicedPod, sk: *mut bpf_sock, mut key: SocketKey, active: bool) {
    // A socket of the same name may have died without being closed: nobody may take the one for the other.
    let _ = take_out(&mut key);
    // Other programs on this socket may have asked for other callbacks.
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    // SAFETY: an entry of a map, which stays valid while this program runs. A lost count is the worst case.
    let pod = unsafe { &mut *pod };
    match try_enter(ctx, sk, key, active) {
        Ok(()) => {
            let _ = DECLINED.remove(key);
            pod.entered += 1;
            return;
        }
        Err(Declined::Blocking) => pod.declined_blocking += 1,
        Err(Declined::Busy) => pod.declined_busy += 1,
        Err(Declined::Mptcp) => pod.declined_mptcp += 1,
        Err(Declined::Option) => pod.declined_option += 1,
        Err(Declined::Other) => pod.declined_other += 1,
    }
    let _ = DECLINED.insert(key, 1_u32, 0);
}

#[inline(always)]
fn try_enter(
    ctx: &SockOpsContext,
    sk: *mut bpf_sock,
    mut key: SocketKey,
    active: bool,
) -> Result<(), Declined> {
    let tcp = Tcp::of(sk).ok_or(Declined::Other)?;
    if tcp.is_mptcp() {
        return Err(Declined::Mptcp);
    }
    if tcp.has_options() {
        return Err(Declined::Option);
    }
    // What has just come in is nobody's yet; it will be used as the socket that listened for it.
    if setting!(blocking) == 0 && if active { tcp.is_blocking() } else { !is_listening(key) } {
        return Err(Declined::Blocking);
    }
    let new = Flow::new(key, key.netns, active);
    let flow = flow_or(sk, new).ok_or(Declined::Other)?;
    // The socket may have had another connection.
    *flow = new;
    // SAFETY: the helper is given the program's context, a map and a key of it.
    let result =
        unsafe { bpf_sock_hash_update(ctx.ops, sockets(), (&raw mut key).cast(), u64::from(BPF_ANY)) };
    if result == 0 {
        flow.flags |= Flow::IS_ENTERED;
        return Ok(());
    }
    flow.mode = Flow::MODE_OFF;
    Err(if result == EBUSY { Declined::Busy } else { Declined::Other })
}

/// The socket is about to be used anew, after a `connect` to nowhere has ended its connection: what is left of that must
/// not come to the next one.
#[inline(always)]
fn forget(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(flow) = flow(sk) else { return };
    flow.mode = Flow::MODE_OFF;
    if flow.flags & Flow::IS_ENTERED != 0 {
        flow.flags &= !Flow::IS_ENTERED;
        let mut own = flow.own;
        let _ = take_out(&mut own);
    }
}

/// Whoever listens in non-blocking mode uses what it accepts in the same way.
#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(tcp) = Tcp::of(sk) else { return };
    let own = key_of(sk, netns_cookie(ctx));
    let key = listener_key(own.netns, own.local, own.local_port);
    if tcp.is_blocking() {
        let _ = LISTENING.remove(key);
    } else {
        let _ = LISTENING.insert(key, 1_u32, 0);
    }
}

/// Whether a socket in non-blocking mode listens, or has listened last, where this one came in.
#[inline(always)]
fn is_listening(key: SocketKey) -> bool {
    let any = [key.local, Address::from_v4_word(0), Address::from_words([0; 4])];
    let at = |address| LISTENING.get_ptr(listener_key(key.netns, address, key.local_port)).is_some();
    at(any[0]) || at(any[1]) || at(any[2])
}

#[inline(always)]
const fn listener_key(netns: u64, address: Address, port: u16) -> SocketKey {
    SocketKey::new(netns, (address, port), (Address::from_words([0; 4]), 0))
}

/// A socket has closed.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    if let Some(flow) = flow(sk) {
        let _ = DECLINED.remove(flow.own);
    } else {
        let _ = DECLINED.remove(key_of(sk, netns_cookie(ctx)));
    }
}

/// Removes who goes by this name.
#[inline(always)]
fn take_out(key: &mut SocketKey) -> i64 {
    // SAFETY: the helper is given a map and a key of it.
    unsafe { bpf_map_delete_elem(sockets(), ptr::from_mut(key).cast()) }
}

#[inline(always)]
fn sockets() -> *mut c_void {
    ptr::from_ref(&SPLICE).cast_mut().cast()
}

#[inline(always)]
fn pod(netns: u64) -> Option<*mut SplicedPod> {
    SPLICED_PODS.get_ptr_mut(netns)
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: reads a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    (!sk.is_null()).then_some(sk)
}

/// One of family IPv6 that speaks IPv4 has v4-mapped addresses here already.
#[inline(always)]
fn key_of(sk: *mut bpf_sock, netns: u64) -> SocketKey {
    let (local, remote) = if field!(u32, sk => bpf_sock.family) == AF_INET {
        let local = Address::from_v4_word(field!(u32, sk => bpf_sock.src_ip4));
        (local, Address::from_v4_word(field!(u32, sk => bpf_sock.dst_ip4)))
    } else {
        (field_v6!(sk => bpf_sock.src_ip6), field_v6!(sk => bpf_sock.dst_ip6))
    };
    let local_port = field!(u32, sk => bpf_sock.src_port) as u16;
    let remote_port = u16::from_be(field!(u16, sk => bpf_sock.dst_port));
    SocketKey::new(netns, (local, local_port), (remote, remote_port))
}
