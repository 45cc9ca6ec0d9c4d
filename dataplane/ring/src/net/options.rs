//! Socket options that the standard library does not know.

use std::{
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use socket2::SockRef;

/// linux/netfilter_ipv4.h
const SO_ORIGINAL_DST: libc::c_int = 80;
/// linux/netfilter_ipv6/ip6_tables.h
const IP6T_SO_ORIGINAL_DST: libc::c_int = 80;
/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Sets TCP_NODELAY.
///
/// # Errors
/// When `fd` is not a TCP socket.
pub fn set_nodelay(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_tcp_nodelay(true)
}

/// Sets SO_MARK, by which routing and eBPF know the proxy's own traffic.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    SockRef::from(&fd).set_mark(mark)
}

/// Sets IP_TRANSPARENT (or IPV6_TRANSPARENT, by the family of `addr`): the socket may be bound to foreign addresses.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn set_transparent(fd: BorrowedFd<'_>, addr: &SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V4(_) => set(fd, libc::SOL_IP, libc::IP_TRANSPARENT, &1i32),
        SocketAddr::V6(_) => set(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, &1i32),
    }
}

/// Sets IP_FREEBIND (or IPV6_FREEBIND, by the family of `addr`): the socket may be bound to addresses that the host does
/// not have.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_freebind(fd: BorrowedFd<'_>, addr: &SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V4(_) => set(fd, libc::SOL_IP, libc::IP_FREEBIND, &1i32),
        SocketAddr::V6(_) => set(fd, libc::SOL_IPV6, IPV6_FREEBIND, &1i32),
    }
}

/// Sets any option, as configured.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let Ok(len) = libc::socklen_t::try_from(value.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if level == libc::SOL_SOCKET && FILTERS.contains(&name) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // SAFETY: the kernel reads `len` bytes of a slice that outlives the call; options that would make it follow a pointer
    // within were refused above.
    let outcome = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets nothing in any more: a listening socket still gives out the connections that are complete, and is silent towards
/// those that are not.
///
/// # Errors
/// Those of setsockopt(2).
pub fn drop_packets(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Return 0: of each packet nothing is kept.
    let mut program = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Options whose value holds a pointer: SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF.
const FILTERS: [libc::c_int; 2] = [26, 51];
/// linux/in6.h
const IPV6_FREEBIND: libc::c_int = 78;

/// Binds a socket that is about to connect to a source address. With port 0 the port is chosen by connect(2)
/// (IP_BIND_ADDRESS_NO_PORT), so that it only has to be unique together with the destination.
///
/// # Errors
/// Those of bind(2): the address is not this host's, or is in use.
pub fn bind_source(fd: BorrowedFd<'_>, source: &SocketAddr) -> io::Result<()> {
    if source.port() == 0 {
        // The option of the IP level serves IPv6 sockets too (ip(7)).
        set(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
    }
    SockRef::from(&fd).bind(&(*source).into())
}

/// Makes the close of the socket a reset (RST) that discards what is queued.
///
/// # Errors
/// When `fd` is not a socket.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_linger(Some(Duration::ZERO))
}

/// Where the client of a connection redirected by netfilter wanted to go (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST). On a
/// dual-stack socket that took an IPv4 connection the answer is an IPv4 address.
///
/// # Errors
/// `NotFound` when the connection was not redirected; `ENOPROTOOPT` when netfilter is not there.
pub fn original_dst(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let local = SockRef::from(&fd).local_addr()?;
    let v6 = local.as_socket_ipv6().is_some_and(|it| it.ip().to_ipv4_mapped().is_none());
    if v6 {
        // SAFETY: sockaddr_in6 is plain data, valid when zeroed.
        let addr: libc::sockaddr_in6 =
            get(fd, libc::SOL_IPV6, IP6T_SO_ORIGINAL_DST, unsafe { mem::zeroed() })?;
        let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
        return Ok(SocketAddrV6::new(ip, u16::from_be(addr.sin6_port), 0, addr.sin6_scope_id).into());
    }
    // SAFETY: sockaddr_in is plain data, valid when zeroed.
    let addr: libc::sockaddr_in = get(fd, libc::SOL_IP, SO_ORIGINAL_DST, unsafe { mem::zeroed() })?;
    let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
    Ok(SocketAddrV4::new(ip, u16::from_be(addr.sin_port)).into())
}

/// The cookie of the network namespace the socket belongs to (SO_NETNS_COOKIE, Linux 5.14), as eBPF sees it.
///
/// # Errors
/// `ENOPROTOOPT` on older kernels.
pub fn netns_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    get(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, 0u64)
}

/// What the kernel knows about a TCP connection (an excerpt of `struct tcp_info`, linux/tcp.h).
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpInfo {
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Segments retransmitted over the connection's life.
    pub total_retrans: u32,
    /// Bytes the peer has acknowledged.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes queued that were not sent yet.
    pub notsent_bytes: u32,
}

/// Reads TCP_INFO.
///
/// # Errors
/// When `fd` is not a TCP socket.
pub fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // Offsets in struct tcp_info, which only ever grows at its end.
    const UNACKED: usize = 24;
    const RTT: usize = 68;
    const TOTAL_RETRANS: usize = 100;
    const BYTES_ACKED: usize = 120;
    const BYTES_RECEIVED: usize = 128;
    const NOTSENT_BYTES: usize = 144;
    let raw: [u8; 256] = get(fd, libc::SOL_TCP, libc::TCP_INFO, [0; 256])?;
    let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let long = |at: usize| {
        let (mut bytes, range) = ([0; 8], at..at + 8);
        bytes.copy_from_slice(&raw[range]);
        u64::from_ne_bytes(bytes)
    };
    Ok(TcpInfo {
        unacked: word(UNACKED),
        rtt_us: word(RTT),
        total_retrans: word(TOTAL_RETRANS),
        bytes_acked: long(BYTES_ACKED),
        bytes_received: long(BYTES_RECEIVED),
        notsent_bytes: word(NOTSENT_BYTES),
    })
}

/// `T` is one of the plain types used here.
pub(super) fn set<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of a plain value that outlives the call.
    let outcome =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `T` is one of the plain types used here, for which every bit pattern is valid.
pub(super) fn get<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into a plain value of that size.
    let outcome = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut len)
    };
    if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn tcp_info_counts_what_was_moved() {
        let (mut client, mut server) = pair();
        client.write_all(&[7; 1000]).unwrap();
        let mut buffer = [0; 1000];
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(tcp_info(server.as_fd()).unwrap().bytes_received, 1000);
        let info = tcp_info(client.as_fd()).unwrap();
        assert_eq!(info.notsent_bytes, 0);
        assert!(info.bytes_acked <= 1001);
    }

    #[test]
    fn both_ends_are_in_one_namespace() {
        let (client, server) = pair();
        assert_eq!(netns_cookie(client.as_fd()).unwrap(), netns_cookie(server.as_fd()).unwrap());
    }

    #[test]
    fn a_direct_connection_has_no_original_destination() {
        let (_client, server) = pair();
        assert!(original_dst(server.as_fd()).is_err());
    }

    #[test]
    fn the_source_address_is_the_one_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let fd = super::super::tcp_socket(&peer).unwrap();
        SockRef::from(&fd).set_nonblocking(false).unwrap();
        bind_source(fd.as_fd(), &"127.0.0.9:0".parse().unwrap()).unwrap();
        SockRef::from(&fd).connect(&peer.into()).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), Ipv4Addr::new(127, 0, 0, 9));
    }

    #[test]
    fn closing_with_a_reset_is_seen_by_the_peer() {
        let (client, mut server) = pair();
        reset_on_close(client.as_fd()).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
