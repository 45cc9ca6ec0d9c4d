//! Outbound capture: `connect` and `getpeername`.

use core::mem;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release},
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use culvert_bpf_common::{Address, Direction, OrigDst, PROXY_MARK, PROXY_MARK_MASK, Pod, PortKey};

use crate::{
    context::{IPPROTO_TCP, SockAddr, field, is_transparent, netns_cookie, storage, store},
    direct,
    maps::{EXCLUDED_PORTS, EXCLUDED_PREFIXES, count, is_own, pod},
    say::{say, shown},
};

/// The answers of a `connect` program: the call fails with EPERM, or goes on.
const REJECT: i32 = 0;
const ALLOW: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr(&ctx);
    match decide(&addr, || addr.v4()) {
        Verdict::Pass => ALLOW,
        Verdict::Reject => REJECT,
        Verdict::Redirect { to, port } => {
            addr.set_v4(to, port);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr(&ctx);
    match decide(&addr, || addr.v6()) {
        Verdict::Pass => ALLOW,
        Verdict::Reject => REJECT,
        Verdict::Redirect { to, port } => {
            addr.set_v6(to, port);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr(&ctx);
    if let Some(original) = captured(&addr) {
        addr.set_v4(original.address, original.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr(&ctx);
    if let Some(original) = captured(&addr) {
        addr.set_v6(original.address, original.port);
    }
    ALLOW
}

enum Verdict {
    Pass,
    Reject,
    Redirect { to: Address, port: u16 },
}

#[inline(always)]
fn captured(addr: &SockAddr<'_>) -> Option<&'static OrigDst> {
    let original = storage(addr.sk())?;
    (original.captured != 0).then_some(&*original)
}

/// What to do with a connect to `destination`, which is read only for sockets of pods.
#[inline(always)]
fn decide(addr: &SockAddr<'_>, destination: impl FnOnce() -> Address) -> Verdict {
    if addr.protocol() != IPPROTO_TCP {
        return Verdict::Pass;
    }
    let netns = netns_cookie(addr.0);
    let Some(pod) = pod(netns) else { return Verdict::Pass };
    // A socket whose first connect failed may be used again, for a destination that is not captured.
    if let Some(stale) = storage(addr.sk()) {
        stale.captured = 0;
    }
    let (destination, port) = (destination(), addr.port());
    // What `sock_ops` keeps account of besides what is captured: the proxy's way around the capture, and who dials the
    // listener itself.
    if is_transparent(addr.sk()) || port == pod.outbound_port {
        let _ = store(addr.sk(), netns, OrigDst::NONE);
    }
    if pod.outbound_port == 0 {
        return Verdict::Pass;
    }
    match exemption(addr, netns, destination, port) {
        None => capture(addr, netns, pod, destination, port),
        Some(Exemption::Internal) => Verdict::Pass,
        Some(Exemption::Proxy) => {
            count(pod, |c| c.bypassed_out_marked += 1);
            Verdict::Pass
        }
        Some(Exemption::Excluded) => {
            count(pod, |c| c.bypassed_out_excluded += 1);
            Verdict::Pass
        }
        // The redirect cannot work from a socket tied to a device, and letting it go would be a way around.
        Some(Exemption::BoundDevice) if pod.is_strict() => {
            count(pod, |c| c.refused_out += 1);
            say!(
                warn,
                addr.0,
                "namespace {}: connect to [{:i}]:{} refused: its socket is bound to a device",
                netns,
                shown(destination),
                port
            );
            Verdict::Reject
        }
        Some(Exemption::BoundDevice) => {
            count(pod, |c| c.bypassed_out_excluded += 1);
            Verdict::Pass
        }
    }
}

/// Why a connect of a pod is not captured.
enum Exemption {
    /// The pod talks to itself.
    Internal,
    /// The proxy itself connects.
    Proxy,
    /// The configuration says so, or the address has no meaning to anyone else.
    Excluded,
    /// The socket may only use one device, and the listener is on another.
    BoundDevice,
}

#[inline(always)]
fn exemption(addr: &SockAddr<'_>, netns: u64, destination: Address, port: u16) -> Option<Exemption> {
    if destination.is_loopback() || is_own(netns, destination) {
        return Some(Exemption::Internal);
    }
    let sk = addr.sk();
    let mark = field!(u32, sk => bpf_sock.mark);
    if mark & PROXY_MARK_MASK == PROXY_MARK {
        return Some(Exemption::Proxy);
    }
    if destination.is_link_local_v6()
        || EXCLUDED_PORTS.get_ptr(PortKey::new(port, Direction::Outbound)).is_some()
        || EXCLUDED_PREFIXES.get(Key::new(128, destination)).is_some()
    {
        return Some(Exemption::Excluded);
    }
    (field!(u32, sk => bpf_sock.bound_dev_if) != 0).then_some(Exemption::BoundDevice)
}

/// Turns the connect to the in-pod listener, or decides what its absence means.
#[inline(always)]
fn capture(addr: &SockAddr<'_>, netns: u64, pod: &Pod, destination: Address, port: u16) -> Verdict {
    let to = if destination.is_v4() { Address::LOOPBACK_V4 } else { Address::LOOPBACK_V6 };
    let listening = is_listening(addr, to, pod.outbound_port);
    if !listening && !pod.is_strict() {
        count(pod, |c| c.bypassed_out_no_listener += 1);
        return Verdict::Pass;
    }
    // What is allowed is known for as long as somebody is there to withdraw it.
    if listening && let Some((to, port)) = direct::choose(addr, netns, destination, port) {
        count(pod, |c| c.direct_out += 1);
        return Verdict::Redirect { to, port };
    }
    if store(addr.sk(), netns, OrigDst::captured(destination, port)).is_none() {
        // Without its original destination the proxy could only reset the connection.
        say!(
            error,
            addr.0,
            "namespace {}: connect to [{:i}]:{} not captured: no memory for its destination",
            netns,
            shown(destination),
            port
        );
        return if pod.is_strict() { Verdict::Reject } else { Verdict::Pass };
    }
    // A strict pod's connect is turned even when nobody listens: the application gets ECONNREFUSED, which it
    // understands, at once.
    if listening {
        count(pod, |c| c.captured_out += 1);
    } else {
        count(pod, |c| c.refused_out += 1);
        say!(
            info,
            addr.0,
            "namespace {}: connect to [{:i}]:{} refused: no proxy listened",
            netns,
            shown(destination),
            port
        );
    }
    Verdict::Redirect { to, port: pod.outbound_port }
}

/// Whether somebody listens on `address`:`port` in the pod, right now.
#[inline(always)]
fn is_listening(addr: &SockAddr<'_>, address: Address, port: u16) -> bool {
    // SAFETY: all zeroes is a valid tuple, and no connection has port 0: only a listener can be found.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let words = address.words();
    // SAFETY: writes plain integers of a union of plain integers.
    let size = unsafe {
        if address.is_v4() {
            tuple.__bindgen_anon_1.ipv4.daddr = words[3];
            tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = words;
            tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        }
    };
    // SAFETY: the helper reads `size` bytes of the tuple and answers null or a socket that must be released.
    unsafe {
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        let sk = bpf_sk_lookup_tcp(addr.0.as_ptr(), &raw mut tuple, size as u32, netns, 0);
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk.cast());
    }
    true
}
