//! Access to the kernel's context structures.
//!
//! The verifier rewrites each access to a field by its offset, so a field must be read by one instruction with that
//! constant offset. The compiler knows nothing of this: it merges reads of two fields into one read at a computed
//! address, which is refused. Hence [`field`], which it cannot merge, for every read.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use culvert_bpf_common::{Address, OrigDst, SocketNote, TRANSPARENT_MARK, TRANSPARENT_MARK_MASK};

use crate::maps::SOCKETS;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;

/// Reads one field of a structure that the verifier guards, as in `field!(u32, ctx => bpf_sock_addr.user_port)`.
///
/// The pointer must be one that the verifier knows: the context, or a socket that it led to and that is not null.
macro_rules! field {
    ($int:ident, $ptr:expr => $structure:ident.$field:ident $(+ $offset:expr)?) => {{
        let ptr: *mut $structure = $ptr;
        let value: u64;
        // SAFETY: reads an integer inside the structure; the verifier checks that it may be read.
        unsafe {
            ::core::arch::asm!(
                concat!("{value} = *(", stringify!($int), " *)({ptr} + {offset})"),
                value = out(reg) value,
                ptr = in(reg) ptr,
                offset = const ::core::mem::offset_of!($structure, $field) $(+ $offset)?,
                options(nostack, readonly, preserves_flags),
            );
        }
        value as $int
    }};
}
pub(crate) use field;

/// Reads a field of four words, an IPv6 address.
macro_rules! field_v6 {
    ($ptr:expr => $structure:ident.$field:ident) => {{
        let ptr = $ptr;
        ::culvert_bpf_common::Address::from_words([
            $crate::context::field!(u32, ptr => $structure.$field),
            $crate::context::field!(u32, ptr => $structure.$field + 4),
            $crate::context::field!(u32, ptr => $structure.$field + 8),
            $crate::context::field!(u32, ptr => $structure.$field + 12),
        ])
    }};
}
pub(crate) use field_v6;

/// Cookie of the network namespace the context's socket lives in. Not in `sock_ops` programs, which have it since Linux
/// 5.15 only: there it is in the socket's [`note`].
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The note on a socket, if it has one.
#[inline(always)]
pub fn note(sk: *mut bpf_sock) -> Option<&'static mut SocketNote> {
    storage_get(sk, ptr::null_mut(), 0)
}

/// The original destination that is noted on a socket.
#[inline(always)]
pub fn storage(sk: *mut bpf_sock) -> Option<&'static mut OrigDst> {
    Some(&mut note(sk)?.original)
}

/// Notes `original` on the socket. `None` when the kernel is out of memory.
#[inline(always)]
pub fn store(sk: *mut bpf_sock, netns: u64, original: OrigDst) -> Option<()> {
    let mut note = SocketNote::new(netns, original);
    *storage_get(sk, &raw mut note, u64::from(BPF_SK_STORAGE_GET_F_CREATE))? = note;
    Some(())
}

/// Whether the proxy speaks on this socket with a client's address.
#[inline(always)]
pub fn is_transparent(sk: *mut bpf_sock) -> bool {
    field!(u32, sk => bpf_sock.mark) & TRANSPARENT_MARK_MASK == TRANSPARENT_MARK
}

#[inline(always)]
fn storage_get(sk: *mut bpf_sock, init: *mut SocketNote, flags: u64) -> Option<&'static mut SocketNote> {
    let map = ptr::from_ref(&SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the helper is given a map, a socket and a value of that map; it answers null or that socket's value,
    // which lives as long as the socket. The socket is locked by the system call that runs this program.
    unsafe { bpf_sk_storage_get(map, sk.cast(), init.cast(), flags).cast::<SocketNote>().as_mut() }
}

/// The address and port that `connect` or `getpeername` is about.
pub struct SockAddr<'a>(pub &'a SockAddrContext);

impl SockAddr<'_> {
    #[inline(always)]
    pub fn sk(&self) -> *mut bpf_sock {
        // SAFETY: reads a field of the context.
        unsafe { (*self.0.sock_addr).__bindgen_anon_1.sk }
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        field!(u32, self.0.sock_addr => bpf_sock_addr.protocol)
    }

    #[inline(always)]
    pub fn v4(&self) -> Address {
        Address::from_v4_word(field!(u32, self.0.sock_addr => bpf_sock_addr.user_ip4))
    }

    #[inline(always)]
    pub fn v6(&self) -> Address {
        field_v6!(self.0.sock_addr => bpf_sock_addr.user_ip6)
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(field!(u32, self.0.sock_addr => bpf_sock_addr.user_port) as u16)
    }

    #[inline(always)]
    pub fn set_v4(&self, address: Address, port: u16) {
        // SAFETY: writes fields of the context that connect4 and getpeername4 may write.
        unsafe {
            (*self.0.sock_addr).user_ip4 = address.words()[3];
            (*self.0.sock_addr).user_port = u32::from(port.to_be());
        }
    }

    #[inline(always)]
    pub fn set_v6(&self, address: Address, port: u16) {
        let ctx = self.0.sock_addr;
        let words = address.words();
        // SAFETY: writes fields of the context that connect6 and getpeername6 may write.
        unsafe {
            (*ctx).user_ip6[0] = words[0];
            (*ctx).user_ip6[1] = words[1];
            (*ctx).user_ip6[2] = words[2];
            (*ctx).user_ip6[3] = words[3];
            (*ctx).user_port = u32::from(port.to_be());
        }
    }
}
