//! Keys and values of the programs that splice the two ends of a connection together.

use crate::Address;

/// A socket, named from its own side: key of `SPLICE`, `LEGS`, `DIALS` and `DECLINED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// The socket's own address.
    pub local: Address,
    /// Its peer's address.
    pub remote: Address,
    /// The socket's own port.
    pub local_port: u16,
    /// Its peer's port.
    pub remote_port: u16,
    pad: u32,
}

impl SocketKey {
    /// The key of the socket with these two ends in the namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, local: (Address, u16), remote: (Address, u16)) -> Self {
        Self { netns, local: local.0, remote: remote.0, local_port: local.1, remote_port: remote.1, pad: 0 }
    }

    /// The key of its peer, if that lives in the namespace `netns`.
    #[inline(always)]
    pub const fn peer_in(&self, netns: u64) -> Self {
        Self::new(netns, (self.remote, self.remote_port), (self.local, self.local_port))
    }
}

/// Value of `LEGS`, keyed by a socket of the proxy: where its progress is published.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Position in `SLOTS`.
    pub slot: u32,
    /// The generation of the slot for which this is said.
    pub generation: u32,
    /// Cookie of the namespace that the peer lives in.
    pub peer_netns: u64,
    /// 1 when the proxy has made the connection, 0 when it has accepted it.
    pub active: u32,
    pad: u32,
}

impl Leg {
    /// A leg whose progress is published in `slot`.
    pub const fn new(slot: u32, generation: u32, peer_netns: u64, active: bool) -> Self {
        Self { slot, generation, peer_netns, active: active as u32, pad: 0 }
    }
}

/// Value of `SLOTS`: one cache line for each leg, mapped into the proxy's memory.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Raised by the proxy when the slot is given to a leg and when it is taken back; even while it is free.
    pub generation: u64,
    /// Bytes that the proxy has read from the leg, from its first byte on. Written by the proxy.
    pub read: u64,
    /// Bytes of those sent to the leg that the application is known to have read. Written by the proxy.
    pub peer_read: u64,
    /// Not 0: nothing is to be redirected any more, one of `OFF_*`. Written by the programs.
    pub off: u64,
    /// Bytes redirected towards the proxy. Written by the programs.
    pub redirected_in: u64,
    /// Bytes redirected towards the application. Written by the programs.
    pub redirected_out: u64,
    /// How often the direction towards the proxy has returned to TCP for the limit. Written by the programs.
    pub fell_back_in: u32,
    /// How often the direction towards the application has. Written by the programs.
    pub fell_back_out: u32,
    /// The sequence numbers at which the connection began, its own and its peer's; 0 until it has sent. Written by the
    /// programs.
    pub beginnings: u64,
}

impl Slot {
    /// The application has set a socket option that redirected bytes do not obey.
    pub const OFF_OPTION: u64 = 1;
    /// More was read than was sent: the accounting cannot be trusted.
    pub const OFF_MISCOUNT: u64 = 2;
}

/// Storage of a socket in `SPLICE`: what it sends, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The socket itself.
    pub own: SocketKey,
    /// Where its bytes are redirected to.
    pub peer: SocketKey,
    /// Bytes it has sent by redirection.
    pub redirected: u64,
    /// Bytes it had sent by TCP when it changed to redirection.
    pub by_tcp: u64,
    /// Position in `SLOTS` of the slot that tells how much of this direction has been read.
    pub slot: u32,
    /// The generation of that slot.
    pub generation: u32,
    /// One of `MODE_*`.
    pub mode: u32,
    /// Bits of `IS_*`.
    pub flags: u32,
    /// Messages redirected since the reader had last caught up.
    pub messages: u32,
    pad: u32,
}

impl Flow {
    /// No slot is known yet.
    pub const MODE_NEW: u32 = 0;
    /// Bytes go by TCP until the reader has caught up.
    pub const MODE_TCP: u32 = 1;
    /// Bytes are redirected.
    pub const MODE_SPLICED: u32 = 2;
    /// Bytes go by TCP for ever.
    pub const MODE_OFF: u32 = 3;

    /// The socket has made its connection: its SYN counts among the bytes that the peer has acknowledged.
    pub const IS_ACTIVE: u32 = 1;
    /// The reader is an application: its progress is in `peer_read`, not in `read`.
    pub const IS_TO_APP: u32 = 2;
    /// The socket, an application's, is in the map under its name.
    pub const IS_ENTERED: u32 = 4;

    /// Most messages in flight in one direction, however small: the kernel spends about a KiB on each besides its bytes.
    pub const MAX_MESSAGES: u32 = 64;

    /// The flow of a socket that has just entered the map.
    #[inline(always)]
    pub const fn new(own: SocketKey, peer_netns: u64, active: bool) -> Self {
        let flags = if active { Self::IS_ACTIVE } else { 0 };
        let peer = own.peer_in(peer_netns);
        Self {
            own,
            peer,
            redirected: 0,
            by_tcp: 0,
            slot: 0,
            generation: 0,
            mode: Self::MODE_NEW,
            flags,
            messages: 0,
            pad: 0,
        }
    }
}

/// Value of `SPLICED_PODS`, keyed by network namespace cookie: the pods whose connections may be spliced, and what became
/// of their sockets. The counts are of sockets of applications, since the pod was added.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplicedPod {
    /// Entered the map.
    pub entered: u64,
    /// Left out for a socket option (`SO_RCVLOWAT`, `SO_ZEROCOPY`, `TCP_ULP`).
    pub declined_option: u64,
    /// Left out as a subflow of MPTCP.
    pub declined_mptcp: u64,
    /// Left out because another program has the socket in a map of its own (EBUSY).
    pub declined_busy: u64,
    /// Left out because the kernel refused for another reason.
    pub declined_other: u64,
    /// Left out because they are, or may become, in blocking mode.
    pub declined_blocking: u64,
}

/// What the programs have to know about the running kernel and the configuration. Offsets are bytes from the beginning of
/// `struct tcp_sock`; 0 where there is no such field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpliceSettings {
    /// Most bytes in flight in one direction.
    pub limit: u64,
    /// `skc_flags`, unsigned long.
    pub sk_flags: u32,
    /// The bit of those that `SO_ZEROCOPY` sets.
    pub zerocopy_bit: u32,
    /// `sk_rcvlowat`, int.
    pub rcvlowat: u32,
    /// `icsk_ulp_ops`, a pointer.
    pub ulp_ops: u32,
    /// `snd_una`, u32.
    pub snd_una: u32,
    /// `write_seq`, u32.
    pub write_seq: u32,
    /// `bytes_acked`, u64.
    pub bytes_acked: u32,
    /// `rcv_nxt`, u32.
    pub rcv_nxt: u32,
    /// `bytes_received`, u64.
    pub bytes_received: u32,
    /// `is_mptcp`, bool; 0 on a kernel without MPTCP.
    pub is_mptcp: u32,
    /// `sk_socket`, a pointer to a `struct socket`.
    pub socket: u32,
    /// `file` of a `struct socket`, a pointer to a `struct file`.
    pub file: u32,
    /// `f_flags` of a `struct file`, u32.
    pub file_flags: u32,
    /// 1: sockets in blocking mode enter too.
    pub blocking: u32,
}

/// Legs that one instance can have at a time.
pub const MAX_LEGS: u32 = 65_536;

/// Connections of proxies into their own pods that are being made.
pub const MAX_DIALS: u32 = 8192;

/// Listening sockets in non-blocking mode that are remembered.
pub const MAX_LISTENING: u32 = 16_384;

/// Sockets with options that redirected bytes do not obey, which are remembered for legs to come.
pub const MAX_DECLINED: u32 = MAX_LEGS;

// Nothing may be left to the compiler's padding.
const _: () = assert!(size_of::<SocketKey>() == 8 + 16 + 16 + 2 + 2 + 4);
const _: () = assert!(size_of::<Leg>() == 4 + 4 + 8 + 4 + 4);
const _: () = assert!(size_of::<Slot>() == 64);
const _: () = assert!(size_of::<Flow>() == 2 * size_of::<SocketKey>() + 2 * 8 + 6 * 4);
const _: () = assert!(size_of::<SplicedPod>() == 6 * 8);
const _: () = assert!(size_of::<SpliceSettings>() == 8 + 14 * 4);

#[cfg(feature = "user")]
mod user {
    use super::{Leg, SocketKey, SpliceSettings, SplicedPod};

    // SAFETY: `repr(C)`, only integers, no implicit padding (asserted above).
    unsafe impl aya::Pod for SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Leg {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SplicedPod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SpliceSettings {}
}
