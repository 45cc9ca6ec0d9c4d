//! The maps. `SOCKETS` and `OWN_ADDRESSES` are those of the capture; the others live and die with this object.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, SockHash},
};
use culvert_bpf_common::{
    Flow, Leg, MAX_DECLINED, MAX_DIALS, MAX_LEGS, MAX_LISTENING, MAX_OWN_ADDRESSES, MAX_PODS, OwnAddressKey,
    Slot, SocketKey, SocketNote, SpliceSettings, SplicedPod,
};

/// The pods whose sockets enter.
#[map]
pub static SPLICED_PODS: HashMap<u64, SplicedPod> = HashMap::with_max_entries(MAX_PODS, 0);

/// The sockets that bytes are redirected from and to.
#[map]
pub static SPLICE: SockHash<SocketKey> = SockHash::with_max_entries(2 * MAX_LEGS, 0);

/// The proxy's sockets among them.
#[map]
pub static LEGS: HashMap<SocketKey, Leg> = HashMap::with_max_entries(MAX_LEGS, BPF_F_NO_PREALLOC);

/// What has been read, in memory shared with the proxy.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(MAX_LEGS, BPF_F_MMAPABLE);

/// Sockets that are about to accept a connection of the proxy.
#[map]
pub static DIALS: LruHashMap<SocketKey, u32> = LruHashMap::with_max_entries(MAX_DIALS, 0);

/// Sockets to which nothing may be redirected: they have an option which redirected bytes do not obey, or could not enter.
/// Removed when they close.
#[map]
pub static DECLINED: HashMap<SocketKey, u32> = HashMap::with_max_entries(MAX_DECLINED, BPF_F_NO_PREALLOC);

/// Addresses that sockets in non-blocking mode listen on, as the local ends of keys without a remote one.
#[map]
pub static LISTENING: LruHashMap<SocketKey, u32> = LruHashMap::with_max_entries(MAX_LISTENING, 0);

/// What each socket in the map has sent; freed with the socket.
#[btf_map]
pub static FLOWS: SkStorage<Flow> = SkStorage::new();

/// The capture's: addresses of pods.
#[map]
pub static OWN_ADDRESSES: HashMap<OwnAddressKey, u32> = HashMap::with_max_entries(MAX_OWN_ADDRESSES, 0);

/// The capture's: original destinations of captured sockets.
#[btf_map]
pub static SOCKETS: SkStorage<SocketNote> = SkStorage::new();

/// Filled in by the loader.
#[unsafe(no_mangle)]
pub static SETTINGS: SpliceSettings = SpliceSettings {
    limit: 0,
    sk_flags: 0,
    zerocopy_bit: 0,
    rcvlowat: 0,
    ulp_ops: 0,
    snd_una: 0,
    write_seq: 0,
    bytes_acked: 0,
    rcv_nxt: 0,
    bytes_received: 0,
    is_mptcp: 0,
    socket: 0,
    file: 0,
    file_flags: 0,
    blocking: 0,
};

/// Reads a setting. The verifier knows the value as a constant: code behind a limit of 0 is as good as not there.
macro_rules! setting {
    ($field:ident) => {
        $crate::maps::read_setting(&raw const $crate::maps::SETTINGS.$field)
    };
}
pub(crate) use setting;

#[inline(always)]
pub fn read_setting<T>(field: *const T) -> T {
    // SAFETY: a field of a static. Volatile, or the compiler would use the value it was built with.
    unsafe { ptr::read_volatile(field) }
}

/// What a socket in the map has sent.
#[inline(always)]
pub fn flow(sk: *mut bpf_sock) -> Option<&'static mut Flow> {
    get(sk, ptr::null_mut(), 0)
}

/// The same, made from `new` where there is none. `None` when the kernel is out of memory.
#[inline(always)]
pub fn flow_or(sk: *mut bpf_sock, mut new: Flow) -> Option<&'static mut Flow> {
    get(sk, &raw mut new, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
}

#[inline(always)]
fn get(sk: *mut bpf_sock, init: *mut Flow, flags: u64) -> Option<&'static mut Flow> {
    let map = ptr::from_ref(&FLOWS).cast_mut().cast::<c_void>();
    // SAFETY: the helper is given a map, a socket and a value of that map; it answers null or that socket's value, which
    // lives as long as the socket. The socket is locked by the system call that runs this program.
    unsafe { bpf_sk_storage_get(map, sk.cast(), init.cast(), flags).cast::<Flow>().as_mut() }
}
