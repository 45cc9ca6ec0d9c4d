//! The direct path: a connect that needs no proxy goes to the endpoint itself.
//!
//! Which destinations these are, the control plane of the proxy has worked out beforehand: `DIRECT_SERVICES` says what a
//! pod may dial directly, `DIRECT_SLOTS` what endpoints there are. What becomes of a connection is kept with its socket
//! (`DIRECT_SOCKETS`) and ends with it; while it lives, `DIRECT_FLOWS` has it for the endpoint's own lookup program, and
//! for whoever has to close it when it is allowed no more.

use core::{arch::asm, ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops},
    btf_maps::SkStorage,
    helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{HashMap, LpmTrie, PerCpuHashMap, lpm_trie::Key},
    programs::SockOpsContext,
};
use culvert_bpf_common::{
    Address, BypassKey, DirectFlow, DirectKey, DirectService, DirectSlot, DirectSlotKey, DirectSocket,
    DirectTally, MAX_DIRECT_FLOWS, MAX_DIRECT_SERVICES, MAX_DIRECT_SLOTS, MAX_DIRECT_TALLIES, OrigDst,
};

use crate::{
    context::{SockAddr, field, storage, store},
    record::{Connection, TCP_CLOSE, TCP_SYN_SENT, addresses},
};

/// `BPF_F_NO_PREALLOC`: most nodes have few direct connections.
const NO_PREALLOC: u32 = 1;

/// States of `enum bpf_tcp_state`.
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// What may be dialled directly.
#[map]
pub static DIRECT_SERVICES: LpmTrie<DirectKey, DirectService> =
    LpmTrie::with_max_entries(MAX_DIRECT_SERVICES, 0);

/// The endpoints of services.
#[map]
pub static DIRECT_SLOTS: HashMap<DirectSlotKey, DirectSlot> =
    HashMap::with_max_entries(MAX_DIRECT_SLOTS, NO_PREALLOC);

/// What is counted. The entries are made before any service refers to them.
#[map]
pub static DIRECT_TALLIES: PerCpuHashMap<u64, DirectTally> =
    PerCpuHashMap::with_max_entries(MAX_DIRECT_TALLIES, NO_PREALLOC);

/// What of it has been read by a process that counted on; only processes use it.
#[map]
pub static DIRECT_READ: HashMap<u64, DirectTally> =
    HashMap::with_max_entries(MAX_DIRECT_TALLIES, NO_PREALLOC);

/// The connections, as the endpoint sees them.
#[map]
pub static DIRECT_FLOWS: HashMap<BypassKey, DirectFlow> =
    HashMap::with_max_entries(MAX_DIRECT_FLOWS, NO_PREALLOC);

/// What is kept with their sockets.
#[btf_map]
pub static DIRECT_SOCKETS: SkStorage<DirectSocket> = SkStorage::new();

/// The endpoint to connect to in the place of `destination`, if that needs no proxy. The socket remembers it.
#[inline(always)]
pub fn choose(addr: &SockAddr<'_>, netns: u64, destination: Address, port: u16) -> Option<(Address, u16)> {
    let service = service(netns, destination, port)?;
    if service.slots == 0 {
        return None;
    }
    // A source that no packet may leave the pod with: only the proxy can be reached from it.
    let (source, _) = addresses(addr.sk());
    if source.is_loopback() && !is_unspecified(source) {
        return None;
    }
    // SAFETY: the helper only returns a number.
    let (place, chance) = unsafe { (bpf_get_prandom_u32() as u32, bpf_get_prandom_u32() as u32) };
    let index = ((u64::from(place) * u64::from(service.slots)) >> 32) as u32;
    let mut slot = slot(service.table, index)?;
    if chance >= slot.threshold && slot.alias != index {
        slot = self::slot(service.table, slot.alias)?;
    }
    if slot.address.is_v4() != destination.is_v4() {
        return None;
    }
    let (to, port_to) = (slot.address, slot.port);
    *socket_get(addr.sk(), Some(&mut DirectSocket::new(slot.netns, slot.tally)))? =
        DirectSocket::new(slot.netns, slot.tally);
    store(addr.sk(), netns, OrigDst::direct(destination, port))?;
    Some((to, port_to))
}

/// Whether a connection that has arrived at an endpoint's pod is a direct one.
#[inline(always)]
pub fn passes(key: BypassKey) -> bool {
    DIRECT_FLOWS.get_ptr(key).is_some()
}

/// The SYN of a direct connection is about to leave: the endpoint's pod has to know it by then. Whether its further way is
/// to be followed.
#[inline(always)]
pub fn connecting(ctx: &SockOpsContext, meant: &OrigDst, conn: &Connection) -> bool {
    let Some(socket) = socket_get(conn.sk, None) else { return false };
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let flow = DirectFlow::new(cookie, conn.netns, socket.tally, meant.address, meant.port);
    socket.flags = 0;
    // Without a record it goes through the proxy of the endpoint's pod.
    let _ = DIRECT_FLOWS.insert(conn.key_in(socket.peer), flow, 0);
    true
}

/// Follows a change of state. Whether the socket is that of a direct connection.
#[inline(always)]
pub fn changed(ctx: &SockOpsContext) -> bool {
    // SAFETY: reads a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() || !storage(sk).is_some_and(|original| original.is_direct()) {
        return false;
    }
    let Some(socket) = socket_get(sk, None) else { return false };
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    if to == TCP_ESTABLISHED {
        socket.flags |= DirectSocket::FLAG_OPEN;
        count(socket.tally, |tally| add(&mut tally.opened, 1));
    } else if to == TCP_FIN_WAIT2 {
        socket.flags |= DirectSocket::FLAG_SENT_ALL;
        socket.mark = field!(u64, ctx.ops => bpf_sock_ops.bytes_received);
    } else if to == TCP_CLOSE_WAIT || to == TCP_CLOSING {
        socket.flags |= DirectSocket::FLAG_READ_ALL;
    } else if to == TCP_CLOSE {
        ended(ctx, socket, from);
        if let Some((conn, _)) = Connection::of(ctx) {
            let _ = DIRECT_FLOWS.remove(conn.key_in(socket.peer));
        }
    }
    true
}

/// Counts what a connection has come to.
#[inline(always)]
fn ended(ctx: &SockOpsContext, socket: &mut DirectSocket, from: u32) {
    if socket.flags & DirectSocket::FLAG_OPEN == 0 {
        if from == TCP_SYN_SENT {
            count(socket.tally, |tally| add(&mut tally.failed, 1));
        }
        return;
    }
    let received = field!(u64, ctx.ops => bpf_sock_ops.bytes_received);
    let acknowledged = field!(u64, ctx.ops => bpf_sock_ops.bytes_acked);
    let all_acknowledged =
        field!(u32, ctx.ops => bpf_sock_ops.snd_una) == field!(u32, ctx.ops => bpf_sock_ops.snd_nxt);
    // The kernel counts the SYN that was acknowledged as a byte, and each FIN.
    let sent_all = socket.flags & DirectSocket::FLAG_SENT_ALL != 0
        || (from == TCP_LAST_ACK || from == TCP_CLOSING) && all_acknowledged;
    let read_all =
        socket.flags & DirectSocket::FLAG_READ_ALL != 0 || from == TCP_FIN_WAIT2 && received > socket.mark;
    let sent = acknowledged.saturating_sub(1 + u64::from(sent_all));
    let received = received.saturating_sub(u64::from(read_all));
    // The storage may outlive the connection; a second end must count nothing.
    socket.flags = 0;
    count(socket.tally, |tally| {
        add(&mut tally.closed, 1);
        add(&mut tally.sent, sent);
        add(&mut tally.received, received);
    });
}

/// What is said of a destination: for its port, or else for ports without an entry.
#[inline(always)]
fn service(netns: u64, destination: Address, port: u16) -> Option<&'static DirectService> {
    const ALL: u32 = DirectKey::FIXED_BITS + 128;
    let of = |port| DIRECT_SERVICES.get(Key::new(ALL, DirectKey::new(netns, port, destination)));
    of(port).or_else(|| of(0))
}

#[inline(always)]
fn slot(table: u64, index: u32) -> Option<&'static DirectSlot> {
    // SAFETY: the loader makes tables anew and never edits them in place.
    unsafe { DIRECT_SLOTS.get(DirectSlotKey::new(table, index)) }
}

#[inline(always)]
fn count(tally: u64, event: impl FnOnce(&mut DirectTally)) {
    if let Some(tally) = DIRECT_TALLIES.get_ptr_mut(tally) {
        // SAFETY: the entry belongs to this CPU, and what interrupts this program adds in one instruction too.
        event(unsafe { &mut *tally });
    }
}

/// Adds in one instruction, which an interrupt cannot split: bytes are to be exact.
#[inline(always)]
fn add(to: &mut u64, value: u64) {
    // SAFETY: adds to an aligned integer that may be written; the compiler has no such operation for this target.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value) }
}

#[inline(always)]
const fn is_unspecified(address: Address) -> bool {
    let words = address.words();
    words[0] == 0 && words[1] == 0 && words[3] == 0
}

/// What is kept with a socket; made from `init` where there is nothing yet.
#[inline(always)]
fn socket_get(sk: *mut bpf_sock, init: Option<&mut DirectSocket>) -> Option<&'static mut DirectSocket> {
    let map = ptr::from_ref(&DIRECT_SOCKETS).cast_mut().cast::<c_void>();
    let (init, flags) = match init {
        Some(init) => (ptr::from_mut(init), u64::from(BPF_SK_STORAGE_GET_F_CREATE)),
        None => (ptr::null_mut(), 0),
    };
    // SAFETY: the helper is given a map, a socket and a value of that map; it answers null or that socket's value,
    // which lives as long as the socket.
    unsafe { bpf_sk_storage_get(map, sk.cast(), init.cast(), flags).cast::<DirectSocket>().as_mut() }
}
