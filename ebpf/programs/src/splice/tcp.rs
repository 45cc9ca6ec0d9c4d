//! What the kernel's own structure says about a TCP socket.
//!
//! Where its fields lie differs from kernel to kernel; the loader looks it up in the kernel's type information.

use core::arch::asm;

use aya_ebpf::{bindings::bpf_sock, cty::c_void, helpers::generated::bpf_skc_to_tcp_sock};
use culvert_bpf_common::Flow;

use crate::maps::setting;

/// asm-generic/fcntl.h
const O_NONBLOCK: u32 = 0o4000;

/// A `struct tcp_sock`, or a structure that it led to.
#[derive(Clone, Copy)]
pub struct Tcp(*mut c_void);

impl Tcp {
    #[inline(always)]
    pub fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: the helper takes a socket and answers null or the same one by its full type.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
        (!tcp.is_null()).then_some(Self(tcp.cast()))
    }

    /// Bytes that the socket has sent by TCP, acknowledged or not, since its connection was made: `bytes_acked` counts
    /// what lies before `snd_una`, and everything up to `write_seq` has been handed to TCP. Exact whatever path the bytes
    /// took there: urgent ones and those sent with the SYN are among them.
    ///
    /// To be asked while the socket is locked.
    #[inline(always)]
    pub fn bytes_sent(self, flags: u32) -> u64 {
        let acked = self.u64(setting!(bytes_acked));
        let pending = self.u32(setting!(write_seq)).wrapping_sub(self.u32(setting!(snd_una)));
        // Of who makes a connection the SYN has been acknowledged too.
        acked.wrapping_add(u64::from(pending)).wrapping_sub(u64::from(flags & Flow::IS_ACTIVE))
    }

    /// The sequence numbers at which the connection began: of what the socket sends, and of what it receives. Those of its
    /// peer are the same two the other way round, and nobody else's are.
    #[inline(always)]
    pub fn beginnings(self, flags: u32) -> (u32, u32) {
        let sent = self.u64(setting!(bytes_acked)).wrapping_sub(u64::from(flags & Flow::IS_ACTIVE));
        let own = self.u32(setting!(snd_una)).wrapping_sub(sent as u32);
        let received = self.u64(setting!(bytes_received)) as u32;
        (own, self.u32(setting!(rcv_nxt)).wrapping_sub(received))
    }

    /// Whether the socket wants of its receive queue what redirected bytes do not give.
    #[inline(always)]
    pub fn has_options(self) -> bool {
        let zerocopy = self.u64(setting!(sk_flags)) & (1 << (setting!(zerocopy_bit) & 63)) != 0;
        zerocopy || self.u32(setting!(rcvlowat)) > 1 || self.u64(setting!(ulp_ops)) != 0
    }

    /// Whether calls on the socket may wait. To be asked only of a socket that a process has.
    #[inline(always)]
    pub fn is_blocking(self) -> bool {
        let socket = Self(self.u64(setting!(socket)) as *mut c_void);
        if socket.0.is_null() {
            return true;
        }
        let file = Self(socket.u64(setting!(file)) as *mut c_void);
        file.0.is_null() || file.u32(setting!(file_flags)) & O_NONBLOCK == 0
    }

    #[inline(always)]
    pub fn is_mptcp(self) -> bool {
        let offset = setting!(is_mptcp);
        offset != 0 && self.u8(offset) != 0
    }

    #[inline(always)]
    fn u8(self, offset: u32) -> u8 {
        let value: u64;
        let at = self.at(offset);
        // SAFETY: reads a field; the verifier checks that there is one.
        unsafe {
            asm!("{v} = *(u8 *)({p} + 0)", v = out(reg) value, p = in(reg) at, options(nostack, readonly))
        };
        value as u8
    }

    #[inline(always)]
    fn u32(self, offset: u32) -> u32 {
        let value: u64;
        let at = self.at(offset);
        // SAFETY: as above.
        unsafe {
            asm!("{v} = *(u32 *)({p} + 0)", v = out(reg) value, p = in(reg) at, options(nostack, readonly))
        };
        value as u32
    }

    #[inline(always)]
    fn u64(self, offset: u32) -> u64 {
        let value: u64;
        let at = self.at(offset);
        // SAFETY: as above.
        unsafe {
            asm!("{v} = *(u64 *)({p} + 0)", v = out(reg) value, p = in(reg) at, options(nostack, readonly))
        };
        value
    }

    #[inline(always)]
    fn at(self, offset: u32) -> *mut c_void {
        self.0.wrapping_byte_add(offset as usize)
    }
}
