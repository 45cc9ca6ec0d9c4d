//! The maps. All are pinned; their names are the names of the pins.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap},
};
use culvert_bpf_common::{
    Address, BypassKey, Counters, MAX_BYPASS, MAX_EXCLUDED_PORTS, MAX_EXCLUDED_PREFIXES, MAX_ORIG_DSTS,
    MAX_OWN_ADDRESSES, MAX_PODS, OrigDst, OrigDstKey, OwnAddressKey, Pod, PortKey, SocketNote,
};

/// The layout version of these maps, in entry 0; written and checked by the loader.
#[map]
pub static LAYOUT: Array<u32> = Array::with_max_entries(1, 0);

/// The enrolled pods, by network namespace cookie.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(MAX_PODS, 0);

/// Which addresses are whose. Traffic of a pod with itself is not captured.
#[map]
pub static OWN_ADDRESSES: HashMap<OwnAddressKey, u32> = HashMap::with_max_entries(MAX_OWN_ADDRESSES, 0);

/// Inbound listeners, two per pod. A listener that is closed leaves the map by itself: its absence is how a dead
/// proxy is known.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(2 * MAX_PODS, 0);

/// Original destinations of captured connections, from their SYN to the proxy's accept.
#[map]
pub static ORIG_DST: LruHashMap<OrigDstKey, OrigDst> = LruHashMap::with_max_entries(MAX_ORIG_DSTS, 0);

/// Connections of the proxy into pods with a client's source address, from their SYN to their close.
#[map]
pub static BYPASS: LruHashMap<BypassKey, u32> = LruHashMap::with_max_entries(MAX_BYPASS, 0);

/// Destinations that are not captured.
#[map]
pub static EXCLUDED_PREFIXES: LpmTrie<Address, u32> = LpmTrie::with_max_entries(MAX_EXCLUDED_PREFIXES, 0);

/// Destination ports that are not captured, for each direction.
#[map]
pub static EXCLUDED_PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(MAX_EXCLUDED_PORTS, 0);

/// What became of each pod's connections.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_PODS, 0);

/// What is known of a pod's socket: freed with the socket, so it can neither leak nor be evicted.
#[btf_map]
pub static SOCKETS: SkStorage<SocketNote> = SkStorage::new();

/// The pod of a network namespace.
#[inline(always)]
pub fn pod(netns: u64) -> Option<&'static Pod> {
    // SAFETY: the loader replaces entries and never edits them in place; a replaced one outlives this program run.
    unsafe { PODS.get(netns) }
}

/// Counts one connection of the pod.
#[inline(always)]
pub fn count(pod: &Pod, event: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(pod.index) {
        // SAFETY: the entry belongs to this CPU, on which cgroup and socket-lookup programs are not preempted by
        // each other for long enough to matter: a lost count is the worst case.
        event(unsafe { &mut *counters });
    }
}

/// Whether the address belongs to the pod itself.
#[inline(always)]
pub fn is_own(netns: u64, address: Address) -> bool {
    OWN_ADDRESSES.get_ptr(OwnAddressKey { netns, address }).is_some()
}
