//! Sockets of applications enter the map when their connection is made, before they can send.

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
    },
    cty::c_void,
    helpers::generated::bpf_sock_hash_update,
    macros::sock_ops,
    programs::SockOpsContext,
};
use culvert_bpf_common::{Address, Flow, OwnAddressKey, PROXY_MARK, PROXY_MARK_MASK, SocketKey, SplicedPod};

use crate::{
    context::{AF_INET, field, field_v6, netns_cookie, storage},
    maps::{DECLINED, DIALS, OWN_ADDRESSES, SPLICE, SPLICED_PODS, flow_or},
    tcp::Tcp,
};

/// The socket has a program of another map.
const EBUSY: i64 = -16;

/// Runs at the state changes of TCP sockets. Its answer means something for other operations only.
#[sock_ops]
pub fn splice_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialling(&ctx),
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

#[inline(always)]
fn enter(ctx: &SockOpsContext, pod: *mut SplicedPod, sk: *mut bpf_sock, mut key: SocketKey, active: bool) {
    // What an earlier socket of this name wanted is no concern of this one.
    let _ = DECLINED.remove(key);
    let Some(tcp) = Tcp::of(sk) else { return };
    // SAFETY: an entry of a map, which stays valid while this program runs. A lost count is the worst case.
    let pod = unsafe { &mut *pod };
    if tcp.is_mptcp() {
        pod.declined_mptcp += 1;
        return;
    }
    if tcp.has_options() {
        pod.declined_option += 1;
        return;
    }
    let Some(flow) = flow_or(sk, Flow::new(key, key.netns, active)) else { return };
    let map = ptr::from_ref(&SPLICE).cast_mut().cast::<c_void>();
    // SAFETY: the helper is given the program's context, a map and a key of it.
    let result = unsafe { bpf_sock_hash_update(ctx.ops, map, (&raw mut key).cast(), u64::from(BPF_ANY)) };
    if result == 0 {
        pod.entered += 1;
        return;
    }
    flow.mode = Flow::MODE_OFF;
    if result == EBUSY {
        pod.declined_busy += 1;
    } else {
        pod.declined_other += 1;
    }
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
