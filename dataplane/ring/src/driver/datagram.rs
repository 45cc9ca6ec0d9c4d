//! Datagrams by plain calls: recvmsg(2) and sendmsg(2) with what travels beside the bytes.
//!
//! Both drivers use them. A train of 64 KiB for one call leaves nothing that a completion could save, nothing is in flight
//! that would have to be kept, and io_uring's multishot receive needs buffers that are given away before anything arrives.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use socket2::SockAddr;

/// linux/udp.h: SOL_UDP, UDP_SEGMENT, UDP_GRO
pub(crate) const SOL_UDP: libc::c_int = 17;
pub(crate) const UDP_SEGMENT: libc::c_int = 103;
pub(crate) const UDP_GRO: libc::c_int = 104;

/// Room for every control message that is asked for or sent.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// What came with received bytes.
pub(crate) struct Arrived {
    pub(crate) len: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    pub(crate) segment: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    /// The two bits of ECN (RFC 3168).
    pub(crate) ecn: u8,
    pub(crate) truncated: bool,
}

/// What goes with bytes that are sent.
pub(crate) struct Beside {
    /// Already in the family of the socket; `None` where it is connected.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) ecn: u8,
    /// The datagrams leave as IPv4.
    pub(crate) v4: bool,
    /// The bytes are several datagrams of this size each.
    pub(crate) segment: Option<u16>,
}

/// Receives one datagram or train of datagrams. `None` when there is nothing.
pub(crate) fn recv(fd: BorrowedFd<'_>, space: &mut [u8]) -> Option<io::Result<Arrived>> {
    let mut control = Control([0; 256]);
    // SAFETY: plain data, valid when zeroed.
    let mut name: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut slice = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() };
    // SAFETY: plain data, valid when zeroed.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = ptr::from_mut(&mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let len = loop {
        // SAFETY: the header refers to a name, a buffer and a control block that outlive the call, with their true sizes.
        let outcome = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, libc::MSG_DONTWAIT) };
        if outcome >= 0 {
            break outcome as usize;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return None,
            _ => return Some(Err(error)),
        }
    };
    let Some(peer) = address(&name) else { return Some(Err(io::ErrorKind::InvalidData.into())) };
    let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    let mut arrived = Arrived { len, segment: len, peer, local: None, ecn: 0, truncated };
    // SAFETY: the kernel has written whole control messages into the block and their total length into the header.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&header);
        while !message.is_null() {
            arrived.note(&*message, libc::CMSG_DATA(message));
            message = libc::CMSG_NXTHDR(&header, message);
        }
    }
    Some(Ok(arrived))
}

impl Arrived {
    /// # Safety
    /// `data` is the content of `message`, of the length that it states.
    unsafe fn note(&mut self, message: &libc::cmsghdr, data: *const u8) {
        // SAFETY: the kernel makes these messages with a content of the type that is read, at no particular alignment.
        unsafe {
            match (message.cmsg_level, message.cmsg_type) {
                // A byte, unlike the class of IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) => self.ecn = data.read() & 3,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    self.ecn = (data.cast::<libc::c_int>().read_unaligned() & 3) as u8;
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    self.local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    self.local = Some(IpAddr::from(Ipv6Addr::from(info.ipi6_addr.s6_addr)).to_canonical());
                }
                (SOL_UDP, UDP_GRO) => {
                    let segment = data.cast::<libc::c_int>().read_unaligned();
                    if let Ok(segment @ 1..) = usize::try_from(segment) {
                        self.segment = segment.min(self.len);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Sends one datagram, or several of one size in one call. Never waits.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8], beside: &Beside) -> io::Result<usize> {
    let mut control = Control([0; 256]);
    let name = beside.peer.map(SockAddr::from);
    let mut slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: plain data, valid when zeroed.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    if let Some(name) = &name {
        header.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_namelen = name.len();
    }
    header.msg_iov = &mut slice;
    header.msg_iovlen = 1;
    let used = beside.encode(&mut control);
    if used > 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = used as _;
    }
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header refers to a name, bytes and a control block that outlive the call; nothing is written to them.
        let outcome = unsafe { libc::sendmsg(fd.as_raw_fd(), &header, flags) };
        if outcome >= 0 {
            return Ok(outcome as usize);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

impl Beside {
    /// Writes the control messages and returns their length.
    fn encode(&self, control: &mut Control) -> usize {
        let mut used = 0;
        if self.ecn != 0 {
            let bits = libc::c_int::from(self.ecn);
            let (level, kind) = if self.v4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            put(control, &mut used, level, kind, bits);
        }
        match self.source {
            Some(IpAddr::V4(ip)) => {
                let ip = libc::in_addr { s_addr: u32::from(ip).to_be() };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: ip, ipi_addr: ip };
                put(control, &mut used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(ip)) => {
                let ip = libc::in6_addr { s6_addr: ip.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: ip, ipi6_ifindex: 0 };
                put(control, &mut used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        if let Some(segment) = self.segment {
            put(control, &mut used, SOL_UDP, UDP_SEGMENT, segment);
        }
        used
    }
}

/// Appends a control message; `T` is one of the plain types used above.
fn put<T: Copy>(control: &mut Control, used: &mut usize, level: libc::c_int, kind: libc::c_int, value: T) {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: computes lengths.
    let (len, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
    assert!(*used + space <= control.0.len(), "the control block holds every message there is");
    // SAFETY: the block has room for the message, as was just checked; it is aligned for a header, and lengths with padding
    // keep what follows aligned. The content is written without regard to alignment.
    unsafe {
        let message = control.0.as_mut_ptr().add(*used).cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = len as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
    }
    *used += space;
}

/// An IP address; IPv4 in the form of IPv6 is told as IPv4.
fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let family = libc::c_int::from(name.ss_family);
    let name = ptr::from_ref(name);
    match family {
        libc::AF_INET => {
            // SAFETY: the storage is large enough for each of its kinds, and the family says which it is.
            let it = unsafe { name.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(it.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let it = unsafe { name.cast::<libc::sockaddr_in6>().read() };
            let (ip, port) = (Ipv6Addr::from(it.sin6_addr.s6_addr), u16::from_be(it.sin6_port));
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, it.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}
