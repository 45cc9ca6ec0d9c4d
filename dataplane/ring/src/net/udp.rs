//! UDP sockets.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{
    listen::RawOption,
    options::{self, get, set},
};
use crate::driver::datagram::{SOL_UDP, UDP_GRO, UDP_SEGMENT};

/// How a UDP socket is made.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions<'o> {
    /// SO_REUSEPORT: every worker has a socket of its own on the same address. The kernel chooses by a hash of the
    /// addresses unless a program is attached, which then sees the sockets in the order in which they were bound.
    pub reuse_port: bool,
    /// IPV6_V6ONLY on IPv6 addresses; without it, `[::]` takes IPv4 datagrams too.
    pub v6only: bool,
    /// SO_RCVBUF in bytes, without CAP_NET_ADMIN capped at net.core.rmem_max; `None` leaves the kernel's default.
    pub receive_buffer: Option<usize>,
    /// SO_SNDBUF in bytes, without CAP_NET_ADMIN capped at net.core.wmem_max; `None` leaves the kernel's default.
    pub send_buffer: Option<usize>,
    /// IP_TRANSPARENT: bind to and send from addresses that are not this host's. Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// IP_FREEBIND: bind to an address that does not exist (yet).
    pub freebind: bool,
    /// SO_MARK. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Options before binding, and after it: level, name and value.
    pub options: [&'o [RawOption<'o>]; 2],
}

impl Default for UdpOptions<'_> {
    fn default() -> Self {
        Self {
            reuse_port: false,
            v6only: true,
            receive_buffer: None,
            send_buffer: None,
            transparent: false,
            freebind: false,
            mark: None,
            options: [&[]; 2],
        }
    }
}

/// A UDP socket bound to `addr` (port 0 lets the kernel choose).
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2): address in use, permission denied.
pub fn udp_socket(addr: &SocketAddr, udp: &UdpOptions<'_>) -> io::Result<OwnedFd> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(*addr), kind, Some(Protocol::UDP))?;
    if udp.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(udp.v6only)?;
    }
    let forced = |name, size: usize| {
        let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
        set(socket.as_fd(), libc::SOL_SOCKET, name, &size).is_ok()
    };
    if let Some(size) = udp.receive_buffer
        && !forced(libc::SO_RCVBUFFORCE, size)
    {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = udp.send_buffer
        && !forced(libc::SO_SNDBUFFORCE, size)
    {
        socket.set_send_buffer_size(size)?;
    }
    if udp.transparent {
        options::set_transparent(socket.as_fd(), addr)?;
    }
    if udp.freebind {
        options::set_freebind(socket.as_fd(), addr)?;
    }
    if let Some(mark) = udp.mark {
        options::set_mark(socket.as_fd(), mark)?;
    }
    let apply = |options: &[RawOption<'_>]| {
        options
            .iter()
            .try_for_each(|(level, name, value)| options::set_option(socket.as_fd(), *level, *name, value))
    };
    let [prebind, bound] = udp.options;
    apply(prebind)?;
    socket.bind(&SockAddr::from(*addr))?;
    apply(bound)?;
    Ok(socket.into())
}

/// What a socket can do, and which addresses it speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offers {
    /// UDP_SEGMENT (Linux 4.18).
    pub(crate) gso: bool,
    /// UDP_GRO (Linux 5.0).
    pub(crate) gro: bool,
    /// Addresses are given in the form of IPv6.
    pub(crate) v6: bool,
    /// The socket is connected to an IPv4 address.
    pub(crate) connected_v4: bool,
}

/// Asks for what is told beside received bytes (trains, the local address, ECN), and that datagrams are never fragmented:
/// the path's MTU is the sender's business, whatever ICMP says. What a kernel does not have is done without.
pub(crate) fn prepare(fd: BorrowedFd<'_>, room: usize) -> Offers {
    const ON: libc::c_int = 1;
    let socket = SockRef::from(&fd);
    let v6 = socket.local_addr().is_ok_and(|it| it.is_ipv6());
    let connected_v4 = !v6
        || socket
            .peer_addr()
            .is_ok_and(|it| it.as_socket_ipv6().is_some_and(|it| it.ip().to_ipv4_mapped().is_some()));
    // Sockets of IPv6 need the options of IPv4 for the IPv4 that they carry.
    let ip = [
        (libc::IPPROTO_IP, libc::IP_RECVTOS, ON),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, ON),
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
    ];
    let ipv6 = [
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, ON),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, ON),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, ON),
    ];
    for (level, name, value) in ip.into_iter().chain(ipv6.into_iter().filter(|_| v6)) {
        if let Err(error) = set(fd, level, name, &value) {
            log::debug!("socket option {level}/{name} of a datagram socket: {error}");
        }
    }
    let gso = get(fd, SOL_UDP, UDP_SEGMENT, 0 as libc::c_int).is_ok();
    // A train that does not fit is cut off.
    let gro = room >= usize::from(u16::MAX) && set(fd, SOL_UDP, UDP_GRO, &ON).is_ok();
    Offers { gso, gro, v6, connected_v4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_not_fragmented() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let fd = udp_socket(&addr.parse().unwrap(), &UdpOptions::default()).unwrap();
            let offers = prepare(fd.as_fd(), 1 << 16);
            assert!(offers.gso && offers.gro, "{offers:?}");
            let probe = get(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 0i32).unwrap();
            assert_eq!(probe, libc::IP_PMTUDISC_PROBE);
            if offers.v6 {
                let probe = get(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 0i32).unwrap();
                assert_eq!(probe, libc::IPV6_PMTUDISC_PROBE);
                assert_eq!(get(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0i32).unwrap(), 1);
            }
            // Small buffers take no trains.
            assert!(!prepare(fd.as_fd(), 1 << 12).gro);
        }
    }

    #[test]
    fn workers_share_a_port_and_strangers_do_not() {
        let shared = UdpOptions { reuse_port: true, ..UdpOptions::default() };
        let first = udp_socket(&"127.0.0.1:0".parse().unwrap(), &shared).unwrap();
        let addr = SockRef::from(&first).local_addr().unwrap().as_socket().unwrap();
        udp_socket(&addr, &shared).unwrap();
        assert_eq!(udp_socket(&addr, &UdpOptions::default()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
