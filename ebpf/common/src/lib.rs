//! Keys and values of the maps shared by the eBPF programs and the loader.
//!
//! Every type is `#[repr(C)]` with its padding spelled out as fields, because the verifier refuses a key with
//! uninitialised bytes and because two values are equal to the kernel only when all their bytes are. Ports are in
//! host byte order throughout; the programs convert at the edge of the context they read.
//!
//! A change to any layout, or to the meaning of a field, must raise [`LAYOUT_VERSION`]: pinned maps outlive the
//! process that made them.

#![no_std]

#[cfg(test)]
extern crate std;

mod address;
mod direct;
mod keys;
mod marks;
mod pod;
mod splice;

pub use address::Address;
pub use direct::{
    DirectFlow, DirectKey, DirectService, DirectSlot, DirectSlotKey, DirectSocket, DirectTally,
};
pub use keys::{BypassKey, Direction, OrigDst, OrigDstKey, OwnAddressKey, PortKey, SocketNote};
pub use marks::{PROXY_MARK, PROXY_MARK_MASK, TRANSPARENT_MARK, TRANSPARENT_MARK_MASK, TRANSPARENT_PORTS};
pub use pod::{Counters, Pod, listener_slot};
pub use splice::{
    Flow, Leg, MAX_DECLINED, MAX_DIALS, MAX_LEGS, MAX_LISTENING, Slot, SocketKey, SpliceSettings, SplicedPod,
};

/// Version of everything in this crate, stored in the pinned `LAYOUT` map and compared before it is adopted.
pub const LAYOUT_VERSION: u32 = 3;

/// Pods one instance can hold: the size of the `PODS`, `COUNTERS` and (twice) `LISTENERS` maps.
pub const MAX_PODS: u32 = 1024;

/// Addresses all pods of one instance can have together.
pub const MAX_OWN_ADDRESSES: u32 = 8 * MAX_PODS;

/// Connections between their SYN and the proxy's accept: recorded original destinations, oldest evicted first.
pub const MAX_ORIG_DSTS: u32 = 65_536;

/// Source-preserving connections from the proxy into pods that exist at one time.
pub const MAX_BYPASS: u32 = 65_536;

/// Excluded prefixes of one instance.
pub const MAX_EXCLUDED_PREFIXES: u32 = 4096;

/// Excluded ports of one instance, both directions together.
pub const MAX_EXCLUDED_PORTS: u32 = 4096;

/// Prefixes of destinations whose way is told, over all pods of one instance.
pub const MAX_DIRECT_SERVICES: u32 = 65_536;

/// Endpoints of direct services of one instance; services with the same endpoints share them.
pub const MAX_DIRECT_SLOTS: u32 = 65_536;

/// Names that direct connections are counted under.
pub const MAX_DIRECT_TALLIES: u32 = 16_384;

/// Direct connections that exist at one time.
pub const MAX_DIRECT_FLOWS: u32 = 65_536;

/// The constant in the `sk_lookup` program that the loader replaces by the cookie of the pod's network namespace.
pub const POD_COOKIE_PLACEHOLDER: u64 = 0x5ca1_ab1e_0ddb_a11f;
