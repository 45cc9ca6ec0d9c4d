//! Keys and small values.

use crate::Address;

/// Key of `ORIG_DST`: the connecting end as the accepting proxy sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDstKey {
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`); never reused until reboot.
    pub netns: u64,
    /// Source address of the connection.
    pub source: Address,
    /// Source port of the connection.
    pub source_port: u16,
    pad: [u16; 3],
}

impl OrigDstKey {
    /// The key for the connection from `source`:`source_port` in the namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, source: Address, source_port: u16) -> Self {
        Self { netns, source, source_port, pad: [0; 3] }
    }
}

/// An original destination: value of `ORIG_DST`, and part of what a socket carries from `connect` to the SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst {
    /// The address the application dialled.
    pub address: Address,
    /// The port the application dialled.
    pub port: u16,
    /// 1 when the socket's latest connect was captured, 2 when it went directly to an endpoint, and 0 when an earlier one
    /// did either. Always 1 in `ORIG_DST`.
    pub captured: u16,
}

impl OrigDst {
    /// Of a connect that was not captured.
    pub const NONE: Self = Self { address: Address::from_words([0; 4]), port: 0, captured: 0 };

    /// The destination of a captured connect.
    #[inline(always)]
    pub const fn captured(address: Address, port: u16) -> Self {
        Self { address, port, captured: 1 }
    }

    /// The destination in whose place an endpoint is connected directly.
    #[inline(always)]
    pub const fn direct(address: Address, port: u16) -> Self {
        Self { address, port, captured: 2 }
    }

    /// Whether the connection goes directly to an endpoint.
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        self.captured == 2
    }
}

/// Value of `SOCKETS`: what the `connect` programs leave on a pod's socket for the `sock_ops` program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketNote {
    /// Cookie of the socket's network namespace, which `sock_ops` programs cannot ask for before Linux 5.15.
    pub netns: u64,
    /// Where the socket meant to go, if its connect was captured.
    pub original: OrigDst,
    pad: u32,
}

impl SocketNote {
    /// The note of a socket in the namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, original: OrigDst) -> Self {
        Self { netns, original, pad: 0 }
    }
}

/// Key of `BYPASS`: a connection of the proxy into its pod, named from the accepting side.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BypassKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// Address of the application.
    pub local: Address,
    /// The client's address, which the proxy speaks with.
    pub remote: Address,
    /// Port of the application.
    pub local_port: u16,
    /// Port the proxy speaks from.
    pub remote_port: u16,
    pad: u32,
}

impl BypassKey {
    /// The key for a connection into the namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, local: (Address, u16), remote: (Address, u16)) -> Self {
        Self { netns, local: local.0, remote: remote.0, local_port: local.1, remote_port: remote.1, pad: 0 }
    }
}

/// Key of `OWN_ADDRESSES`: an address that belongs to a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnAddressKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// One of the pod's addresses.
    pub address: Address,
}

/// The way a connection goes, seen from the pod.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod connects.
    Outbound = 0,
    /// The pod is connected to.
    Inbound = 1,
}

/// Key of `EXCLUDED_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Destination port of the connection.
    pub port: u16,
    direction: u16,
}

impl PortKey {
    /// The key for `port` in one direction.
    #[inline(always)]
    pub const fn new(port: u16, direction: Direction) -> Self {
        Self { port, direction: direction as u16 }
    }
}

// Nothing may be left to the compiler's padding: it would hold stack bytes, and no lookup would ever hit.
const _: () = assert!(size_of::<OrigDstKey>() == 8 + 16 + 2 + 6);
const _: () = assert!(size_of::<OrigDst>() == 16 + 2 + 2);
const _: () = assert!(size_of::<SocketNote>() == 8 + 20 + 4);
const _: () = assert!(size_of::<BypassKey>() == 8 + 16 + 16 + 2 + 2 + 4);
const _: () = assert!(size_of::<OwnAddressKey>() == 8 + 16);
const _: () = assert!(size_of::<PortKey>() == 2 + 2);

#[cfg(feature = "user")]
mod user {
    use super::{BypassKey, OrigDst, OrigDstKey, OwnAddressKey, PortKey};
    use crate::Address;

    // SAFETY: `repr(C)`, only integers, no implicit padding (asserted above).
    unsafe impl aya::Pod for Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OrigDstKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OrigDst {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BypassKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OwnAddressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortKey {}
}
