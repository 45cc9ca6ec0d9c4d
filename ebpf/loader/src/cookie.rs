//! The cookie of a network namespace where the kernel has no `SO_NETNS_COOKIE` (before Linux 5.14) but eBPF programs can
//! ask for it: a program is attached for a moment that sees this thread connect, and says where that was.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_CALL, BPF_DW, BPF_EXIT, BPF_IMM, BPF_JMP, BPF_JNE, BPF_K, BPF_LD, BPF_LDX,
    BPF_MEM, BPF_MOV, BPF_PSEUDO_MAP_FD, BPF_ST, BPF_STX, BPF_W, BPF_X, bpf_attach_type, bpf_func_id,
    bpf_insn, bpf_map_type, bpf_prog_type,
};
use socket2::{Domain, Socket, Type};

use crate::{cgroup::Cgroup, memlock, sys};

/// The kernel's answer for a system call that a program of the cgroup forbids.
const FORBIDDEN: i32 = libc::EPERM;

/// The cookie of the network namespace that the calling thread is in.
///
/// # Errors
/// When there is no cgroup2 hierarchy, eBPF may not be used, or the kernel cannot tell a program either.
pub(crate) fn ask() -> io::Result<u64> {
    memlock::allow();
    let cgroup = Cgroup::open(None).map_err(io::Error::other)?;
    let map = sys::map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY, size_of::<u32>(), size_of::<u64>(), 1)?;
    let sign = sign();
    let (kind, hook) =
        (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_INET4_CONNECT);
    let program = sys::prog_load(kind, hook, c"netns_cookie", c"GPL", &program(sign, map.as_fd()))?;
    // Detached when it is closed.
    let _link = sys::link_create(program.as_fd(), cgroup.dir.as_fd(), hook)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    match socket.connect(&sign.into()) {
        Err(e) if e.raw_os_error() == Some(FORBIDDEN) => {}
        Err(e) => return Err(e),
        Ok(()) => {
            return Err(io::Error::other(
                "this process is not in the cgroup that the program is attached to",
            ));
        }
    }
    match sys::lookup(map.as_fd(), &0_u32)? {
        Some(cookie) if cookie != 0 => Ok(cookie),
        _ => Err(io::Error::other("another eBPF program has forbidden the connect")),
    }
}

/// An address that nobody dials, by which the program knows whom it is about: in "this network", 0.0.0.0/8. As a word it is
/// positive, because instructions extend the sign of what they compare with.
fn sign() -> SocketAddrV4 {
    let [a, b, c, d, e, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    SocketAddrV4::new(Ipv4Addr::new(0, a, b, c & 0x7f | 1), u16::from_ne_bytes([d | 1, e | 1]))
}

/// Forbids the connect to `sign`, keeping the cookie in the first entry of `map`, and lets pass all others.
fn program(sign: SocketAddrV4, map: BorrowedFd<'_>) -> Vec<bpf_insn> {
    // struct bpf_sock_addr
    const USER_IP4: i16 = 4;
    const USER_PORT: i16 = 24;
    // Registers, and places on the stack.
    const R0: u8 = 0;
    const R1: u8 = 1;
    const R2: u8 = 2;
    const R3: u8 = 3;
    const R4: u8 = 4;
    const R6: u8 = 6;
    const R10: u8 = 10;
    const KEY: i16 = -4;
    const VALUE: i16 = -16;

    let address = u32::from_ne_bytes(sign.ip().octets()) as i32;
    let port = i32::from(sign.port().to_be());
    let mov = |to, from| insn(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
    let set = |to, value| insn(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
    let add = |to, value| insn(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);
    let load = |to, from, offset| insn(BPF_LDX | BPF_MEM | BPF_W, to, from, offset, 0);
    let call = |helper: bpf_func_id| insn(BPF_JMP | BPF_CALL, 0, 0, 0, helper as i32);
    let exit = || insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    // Over the rest of the first part, to the last two.
    let unless = |register, value, over| insn(BPF_JMP | BPF_JNE | BPF_K, register, 0, over, value);
    vec![
        mov(R6, R1),
        load(R2, R6, USER_IP4),
        unless(R2, address, 16),
        load(R2, R6, USER_PORT),
        unless(R2, port, 14),
        mov(R1, R6),
        call(bpf_func_id::BPF_FUNC_get_netns_cookie),
        insn(BPF_STX | BPF_MEM | BPF_DW, R10, R0, VALUE, 0),
        insn(BPF_ST | BPF_MEM | BPF_W, R10, 0, KEY, 0),
        insn(BPF_LD | BPF_IMM | BPF_DW, R1, BPF_PSEUDO_MAP_FD as u8, 0, map.as_raw_fd()),
        insn(0, 0, 0, 0, 0),
        mov(R2, R10),
        add(R2, i32::from(KEY)),
        mov(R3, R10),
        add(R3, i32::from(VALUE)),
        set(R4, 0),
        call(bpf_func_id::BPF_FUNC_map_update_elem),
        set(R0, 0),
        exit(),
        set(R0, 1),
        exit(),
    ]
}

fn insn(code: u32, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(to, from);
    bpf_insn { code: code as u8, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::cookie_of_this_thread;

    #[test]
    fn the_program_and_the_socket_option_say_the_same() {
        let Ok(by_option) = cookie_of_this_thread() else { return };
        assert_eq!(ask().unwrap(), by_option);
    }
}
