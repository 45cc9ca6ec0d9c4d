//! Network namespaces: entering one, its cookie, its addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, BorrowedFd},
    panic, ptr, thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::{Error, cookie};

/// `SO_NETNS_COOKIE` of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Runs `f` on a thread of its own inside the network namespace. Sockets made there stay there for good.
///
/// # Errors
/// [`Error::Privilege`] without CAP_SYS_ADMIN, [`Error::Netns`] when `netns` is not a network namespace.
pub fn run_in_netns<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let entered = || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(f())
    };
    let result: io::Result<T> = thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, entered)?;
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    });
    result.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::Privilege { operation: "entering a network namespace".into() }
        }
        _ => Error::Netns { operation: "entering it", source },
    })
}

/// The cookie of a network namespace: unique until reboot, never reused.
///
/// Before Linux 5.14 a socket cannot tell; an eBPF program is asked then, which takes the privileges of capture.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> Result<u64, Error> {
    run_in_netns(netns, || match cookie_of_this_thread() {
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => cookie::ask().map_err(|source| {
            let operation =
                "reading its cookie by an eBPF program, as the kernel has no SO_NETNS_COOKIE (Linux 5.14)";
            Error::Netns { operation, source }
        }),
        result => result.map_err(|source| Error::Netns { operation: "reading its cookie", source }),
    })?
}

/// The addresses of a network namespace's interfaces, those of the loopback device excepted.
pub fn netns_addresses(netns: BorrowedFd<'_>) -> Result<Vec<IpAddr>, Error> {
    run_in_netns(netns, interface_addresses)?
        .map_err(|source| Error::Netns { operation: "listing its addresses", source })
}

/// As the kernel tells it a socket.
pub(crate) fn cookie_of_this_thread() -> io::Result<u64> {
    Socket::new(Domain::UNIX, Type::DGRAM, None).and_then(|socket| cookie_of(&socket))
}

fn cookie_of(socket: &Socket) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`.
    let ret = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len)
    };
    if ret == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: on success `first` is a list that lives until freeifaddrs.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: every element and its address are valid until the list is freed, after the loop.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if entry.ifa_flags & libc::IFF_LOOPBACK as libc::c_uint != 0 {
            continue;
        }
        // SAFETY: as above; null for interfaces without an address.
        addresses.extend(unsafe { entry.ifa_addr.as_ref() }.and_then(ip_of));
    }
    // SAFETY: the list came from getifaddrs and nothing refers to it any more.
    unsafe { libc::freeifaddrs(first) };
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn ip_of(address: &libc::sockaddr) -> Option<IpAddr> {
    let address = ptr::from_ref(address);
    // SAFETY: the family tells which structure the address is the beginning of.
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}
