//! Access to the kernel's context structures.
//!
//! The verifier rewrites each field access by its offset, so fields must be read one at a time through the context
//! pointer itself: no copies of the structure, no pointers to arrays inside it.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use culvert_bpf_common::{Address, OrigDst};

use crate::maps::SOCKETS;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;

/// Cookie of the network namespace the context's socket lives in.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The storage of a socket, if it has any.
#[inline(always)]
pub fn storage(sk: *mut bpf_sock) -> Option<&'static mut OrigDst> {
    storage_get(sk, ptr::null_mut(), 0)
}

/// Puts `value` into the socket's storage. `None` when the kernel is out of memory.
#[inline(always)]
pub fn store(sk: *mut bpf_sock, mut value: OrigDst) -> Option<()> {
    *storage_get(sk, &raw mut value, u64::from(BPF_SK_STORAGE_GET_F_CREATE))? = value;
    Some(())
}

#[inline(always)]
fn storage_get(sk: *mut bpf_sock, init: *mut OrigDst, flags: u64) -> Option<&'static mut OrigDst> {
    let map = ptr::from_ref(&SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the helper is given a map, a socket and a value of that map; it answers null or that socket's value,
    // which lives as long as the socket. The socket is locked by the system call that runs this program.
    unsafe { bpf_sk_storage_get(map, sk.cast(), init.cast(), flags).cast::<OrigDst>().as_mut() }
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
        // SAFETY: reads a field of the context.
        unsafe { (*self.0.sock_addr).protocol }
    }

    #[inline(always)]
    pub fn v4(&self) -> Address {
        // SAFETY: reads a field of the context.
        Address::from_v4_word(unsafe { (*self.0.sock_addr).user_ip4 })
    }

    #[inline(always)]
    pub fn v6(&self) -> Address {
        let ctx = self.0.sock_addr;
        // SAFETY: reads fields of the context.
        Address::from_words(unsafe {
            [(*ctx).user_ip6[0], (*ctx).user_ip6[1], (*ctx).user_ip6[2], (*ctx).user_ip6[3]]
        })
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: reads a field of the context.
        u16::from_be(unsafe { (*self.0.sock_addr).user_port } as u16)
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
