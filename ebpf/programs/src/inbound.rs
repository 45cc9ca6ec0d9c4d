//! Inbound capture: who accepts a connection that has arrived in the pod.

use core::arch::asm;

use aya_ebpf::{bindings::bpf_sk_lookup, macros::sk_lookup, programs::SkLookupContext};
use culvert_bpf_common::{
    Address, BypassKey, Direction, POD_COOKIE_PLACEHOLDER, Pod, PortKey, listener_slot,
};

use crate::{
    context::{AF_INET6, IPPROTO_TCP, field, field_v6},
    direct,
    maps::{BYPASS, EXCLUDED_PORTS, LISTENERS, count, is_own, pod},
};

/// The answers of a socket lookup program: nobody is there, or the usual lookup (unless a socket was assigned).
const DROP: u32 = 0;
const PASS: u32 = 1;

// Not `sk_lookup`: a function must not have the name of its section.
#[sk_lookup]
pub fn pod_lookup(ctx: SkLookupContext) -> u32 {
    // Datagrams come here one by one: they must not pay for what connections need.
    if field!(u32, ctx.lookup => bpf_sk_lookup.protocol) != IPPROTO_TCP {
        return PASS;
    }
    let arrival = Arrival::new(&ctx);
    if arrival.is_internal() {
        return PASS;
    }
    let netns = pod_cookie();
    let Some(pod) = pod(netns) else { return PASS };
    // The listeners are reached by assignment only; dialled by their own port they are a port like any other
    // that nobody may take for a captured connection.
    if arrival.local_port == pod.inbound_port || arrival.local_port == pod.outbound_port {
        return PASS;
    }
    if is_own(netns, arrival.remote) {
        return PASS;
    }
    if EXCLUDED_PORTS.get_ptr(PortKey::new(arrival.local_port, Direction::Inbound)).is_some() {
        count(pod, |c| c.bypassed_in_excluded += 1);
        return PASS;
    }
    if BYPASS.get_ptr(arrival.bypass_key(netns)).is_some() {
        count(pod, |c| c.bypassed_in_proxy += 1);
        return PASS;
    }
    if direct::passes(arrival.bypass_key(netns)) {
        count(pod, |c| c.direct_in += 1);
        return PASS;
    }
    hand_over(&ctx, pod, arrival.v6)
}

/// Gives the connection to the pod's listener. With a SO_REUSEPORT group the kernel goes on to choose among its
/// members, whichever of them the map holds.
#[inline(always)]
fn hand_over(ctx: &SkLookupContext, pod: &Pod, v6: bool) -> u32 {
    // One dual-stack listener may serve both families.
    if LISTENERS.redirect_sk_lookup(ctx, listener_slot(pod.index, v6), 0).is_ok()
        || LISTENERS.redirect_sk_lookup(ctx, listener_slot(pod.index, !v6), 0).is_ok()
    {
        count(pod, |c| c.captured_in += 1);
        return PASS;
    }
    if pod.is_strict() {
        count(pod, |c| c.refused_in += 1);
        return DROP;
    }
    count(pod, |c| c.bypassed_in_no_listener += 1);
    PASS
}

/// The cookie of the namespace this program is attached to.
///
/// Socket lookup programs have no helper to ask for it, and addresses do not identify a pod. So the loader loads one
/// copy per pod with its cookie in place of the constant.
#[inline(always)]
fn pod_cookie() -> u64 {
    let cookie: u64;
    // SAFETY: loads a constant into a register. Assembly keeps the compiler from using what it knows of the value.
    unsafe { asm!("{} = {} ll", out(reg) cookie, const POD_COOKIE_PLACEHOLDER) };
    cookie
}

/// A connection that arrives.
struct Arrival {
    v6: bool,
    local: Address,
    local_port: u16,
    remote: Address,
    remote_port: u16,
}

impl Arrival {
    #[inline(always)]
    fn new(ctx: &SkLookupContext) -> Self {
        let ctx = ctx.lookup;
        let v6 = field!(u32, ctx => bpf_sk_lookup.family) == AF_INET6;
        let (local, remote) = if v6 {
            (field_v6!(ctx => bpf_sk_lookup.local_ip6), field_v6!(ctx => bpf_sk_lookup.remote_ip6))
        } else {
            let local = Address::from_v4_word(field!(u32, ctx => bpf_sk_lookup.local_ip4));
            (local, Address::from_v4_word(field!(u32, ctx => bpf_sk_lookup.remote_ip4)))
        };
        Self {
            v6,
            local,
            local_port: field!(u32, ctx => bpf_sk_lookup.local_port) as u16,
            remote,
            remote_port: u16::from_be(field!(u16, ctx => bpf_sk_lookup.remote_port)),
        }
    }

    /// Loopback traffic, or an address with itself: packets like these cannot have come from outside, where they
    /// are martians.
    #[inline(always)]
    fn is_internal(&self) -> bool {
        self.local.is_loopback() || self.remote.is_loopback() || self.local.words() == self.remote.words()
    }

    #[inline(always)]
    const fn bypass_key(&self, netns: u64) -> BypassKey {
        BypassKey::new(netns, (self.local, self.local_port), (self.remote, self.remote_port))
    }
}
