//! The direct path: which destinations are connected without the proxy, and what is counted of it.

use crate::Address;

/// What `DIRECT_SERVICES` is asked by: a destination as a pod dials it.
///
/// A longest-prefix match: the first [`Self::FIXED_BITS`] bits have to be equal, the address may be a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectKey {
    /// Cookie of the network namespace of the pod that dials; in halves, as a key of 28 bytes has no 64-bit fields.
    netns: [u32; 2],
    /// Destination port; 0 for ports without an entry of their own.
    pub port: u16,
    pad: u16,
    /// Destination address, or the beginning of it.
    pub address: Address,
}

impl DirectKey {
    /// Bits in front of the address.
    pub const FIXED_BITS: u32 = 96;

    /// The key for what the pod of `netns` dials.
    #[inline(always)]
    pub const fn new(netns: u64, port: u16, address: Address) -> Self {
        Self { netns: [netns as u32, (netns >> 32) as u32], port, pad: 0, address }
    }

    /// Cookie of the network namespace.
    pub const fn netns(&self) -> u64 {
        self.netns[0] as u64 | (self.netns[1] as u64) << 32
    }
}

/// Value of `DIRECT_SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectService {
    /// Its endpoints in `DIRECT_SLOTS`. Two tables with different content never have the same number.
    pub table: u64,
    /// How many there are; with none its connections go to the proxy.
    pub slots: u32,
    pad: u32,
}

impl DirectService {
    /// A service with this table of endpoints.
    pub const fn new(table: u64, slots: u32) -> Self {
        Self { table, slots, pad: 0 }
    }
}

/// Key of `DIRECT_SLOTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectSlotKey {
    /// See [`DirectService::table`].
    pub table: u64,
    /// Below [`DirectService::slots`].
    pub index: u32,
    pad: u32,
}

impl DirectSlotKey {
    /// One place of a table.
    #[inline(always)]
    pub const fn new(table: u64, index: u32) -> Self {
        Self { table, index, pad: 0 }
    }
}

/// Value of `DIRECT_SLOTS`: an endpoint, and its part of an alias table (A. J. Walker, 1977), by which two random numbers
/// choose among any number of weights exactly.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectSlot {
    /// Where to connect.
    pub address: Address,
    /// Cookie of the network namespace of the pod whose address it is.
    pub netns: u64,
    /// What its connections are counted under, in `DIRECT_TALLIES`.
    pub tally: u64,
    /// Random numbers below this choose this endpoint, others that at `alias`.
    pub threshold: u32,
    /// Index of another endpoint of the table; its own index where it is always chosen.
    pub alias: u32,
    /// Port to connect to.
    pub port: u16,
    pad: [u16; 3],
}

impl DirectSlot {
    /// An endpoint that is always chosen when its slot is drawn.
    pub const fn new(address: Address, port: u16, netns: u64, tally: u64, index: u32) -> Self {
        Self { address, netns, tally, threshold: u32::MAX, alias: index, port, pad: [0; 3] }
    }
}

/// Value of `DIRECT_TALLIES`, one per CPU: what direct connections have come to. Bytes are those of connections that have
/// ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectTally {
    /// Connections that were established.
    pub opened: u64,
    /// Of these, those that have ended.
    pub closed: u64,
    /// Connects that failed.
    pub failed: u64,
    /// Bytes that clients sent and the endpoint acknowledged.
    pub sent: u64,
    /// Bytes that clients received.
    pub received: u64,
}

impl core::ops::AddAssign for DirectTally {
    fn add_assign(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// Value of `DIRECT_FLOWS`, whose key is a [`BypassKey`](crate::BypassKey) with the namespace of the endpoint: a direct
/// connection, from its SYN to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlow {
    /// Cookie of the client's socket: another connection of the same addresses and ports has another.
    pub cookie: u64,
    /// Cookie of the network namespace of the client.
    pub netns: u64,
    /// What it is counted under.
    pub tally: u64,
    /// Where the application meant to go.
    pub meant: Address,
    /// The port of it.
    pub meant_port: u16,
    pad: [u16; 3],
}

impl DirectFlow {
    /// A connection of the socket `cookie`.
    #[inline(always)]
    pub const fn new(cookie: u64, netns: u64, tally: u64, meant: Address, meant_port: u16) -> Self {
        Self { cookie, netns, tally, meant, meant_port, pad: [0; 3] }
    }
}

/// What is kept with the socket of a direct connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectSocket {
    /// Cookie of the network namespace of the endpoint.
    pub peer: u64,
    /// What it is counted under.
    pub tally: u64,
    /// Bytes that had been received when the end of what it sends was acknowledged.
    pub mark: u64,
    /// Bits of `FLAG_*`.
    pub flags: u64,
}

impl DirectSocket {
    /// It has been established.
    pub const FLAG_OPEN: u64 = 1;
    /// The end of what the endpoint sends has arrived.
    pub const FLAG_READ_ALL: u64 = 1 << 1;
    /// The end of what the client sends was acknowledged.
    pub const FLAG_SENT_ALL: u64 = 1 << 2;

    /// A connection that is about to be made.
    #[inline(always)]
    pub const fn new(peer: u64, tally: u64) -> Self {
        Self { peer, tally, mark: 0, flags: 0 }
    }
}

// Nothing may be left to the compiler's padding.
const _: () = assert!(size_of::<DirectKey>() == 8 + 2 + 2 + 16);
const _: () = assert!(DirectKey::FIXED_BITS == 8 * 12);
const _: () = assert!(size_of::<DirectService>() == 8 + 4 + 4);
const _: () = assert!(size_of::<DirectSlotKey>() == 8 + 4 + 4);
const _: () = assert!(size_of::<DirectSlot>() == 16 + 8 + 8 + 4 + 4 + 2 + 6);
const _: () = assert!(size_of::<DirectTally>() == 5 * 8);
const _: () = assert!(size_of::<DirectFlow>() == 8 + 8 + 8 + 16 + 2 + 6);
const _: () = assert!(size_of::<DirectSocket>() == 4 * 8);

#[cfg(feature = "user")]
mod user {
    use super::{DirectFlow, DirectKey, DirectService, DirectSlot, DirectSlotKey, DirectTally};

    // SAFETY: `repr(C)`, only integers, no implicit padding (asserted above).
    unsafe impl aya::Pod for DirectKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectService {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectSlotKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectTally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectFlow {}
}
