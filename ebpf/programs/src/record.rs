//! The record that joins the two ends of a captured connection.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock},
    macros::sock_ops,
    programs::SockOpsContext,
};
use culvert_bpf_common::{Address, BypassKey, OrigDstKey, SocketNote};

use crate::{
    context::{AF_INET, field, field_v6, is_transparent, note},
    direct,
    maps::{BYPASS, ORIG_DST, pod},
};

/// States of `enum bpf_tcp_state`.
pub const TCP_SYN_SENT: u32 = 2;
pub const TCP_CLOSE: u32 = 7;

/// Runs at the state changes of TCP sockets. Its answer means something for other operations only.
#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        connecting(&ctx);
    } else if op == BPF_SOCK_OPS_STATE_CB && !direct::changed(&ctx) && ctx.arg(1) == TCP_CLOSE {
        closed(&ctx);
    }
    1
}

/// The local port is chosen and the SYN is about to leave: the last moment before the proxy can ask.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // All that matter here were noted when they were told where to connect.
    let Some((conn, note)) = Connection::of(ctx) else { return };
    let Some(pod) = pod(conn.netns) else { return };
    let original = Some(&note.original).filter(|original| original.captured != 0);
    let tracked = match original {
        Some(original) if original.is_direct() => direct::connecting(ctx, original, &conn),
        Some(original) => ORIG_DST.insert(conn.orig_dst_key(), original, 0).is_ok(),
        None if is_transparent(conn.sk) => BYPASS.insert(conn.bypass_key(), 1_u32, 0).is_ok(),
        None => {
            // Somebody dials the listener itself. A record left under this tuple by a connection that was never
            // accepted must not become theirs.
            if conn.remote_port == pod.outbound_port {
                let _ = ORIG_DST.remove(conn.orig_dst_key());
            }
            false
        }
    };
    if tracked {
        // Other programs on this socket may have asked for other callbacks.
        let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    }
}

/// Only sockets that were tracked come here, and also those of a pod that has been removed since.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some((conn, _)) = Connection::of(ctx) else { return };
    if is_transparent(conn.sk) {
        let _ = BYPASS.remove(conn.bypass_key());
    } else if ctx.arg(0) == TCP_SYN_SENT {
        // Never accepted, never will be. A connection that was established keeps its record although its client is
        // gone: what the client sent before is still the proxy's to deliver.
        let _ = ORIG_DST.remove(conn.orig_dst_key());
    }
}

/// A connecting socket of a pod.
pub struct Connection {
    pub netns: u64,
    pub sk: *mut bpf_sock,
    local: Address,
    local_port: u16,
    remote: Address,
    remote_port: u16,
}

impl Connection {
    /// The connection, and what was noted of it. `None` for a socket without a note.
    #[inline(always)]
    pub fn of(ctx: &SockOpsContext) -> Option<(Self, &'static SocketNote)> {
        // SAFETY: reads a field of the context.
        let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
        if sk.is_null() {
            return None;
        }
        let note = note(sk)?;
        let (local, remote) = addresses(sk);
        let local_port = field!(u32, sk => bpf_sock.src_port) as u16;
        let remote_port = u16::from_be(field!(u16, sk => bpf_sock.dst_port));
        Some((Self { netns: note.netns, sk, local, local_port, remote, remote_port }, note))
    }

    #[inline(always)]
    const fn orig_dst_key(&self) -> OrigDstKey {
        OrigDstKey::new(self.netns, self.local, self.local_port)
    }

    /// Named from the accepting side: what is local here is remote there.
    #[inline(always)]
    const fn bypass_key(&self) -> BypassKey {
        self.key_in(self.netns)
    }

    /// The same where the accepting side is in another namespace.
    #[inline(always)]
    pub const fn key_in(&self, netns: u64) -> BypassKey {
        BypassKey::new(netns, (self.remote, self.remote_port), (self.local, self.local_port))
    }
}

/// The addresses of a socket. One of family IPv6 that dials IPv4 has v4-mapped addresses here already.
#[inline(always)]
pub fn addresses(sk: *mut bpf_sock) -> (Address, Address) {
    if field!(u32, sk => bpf_sock.family) == AF_INET {
        let local = Address::from_v4_word(field!(u32, sk => bpf_sock.src_ip4));
        return (local, Address::from_v4_word(field!(u32, sk => bpf_sock.dst_ip4)));
    }
    (field_v6!(sk => bpf_sock.src_ip6), field_v6!(sk => bpf_sock.dst_ip6))
}
