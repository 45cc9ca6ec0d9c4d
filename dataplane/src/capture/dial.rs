//! Sockets for connections that the proxy makes from inside a pod.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use culvert_bpf::{PROXY_MARK, TRANSPARENT_MARK, TRANSPARENT_PORTS};
use socket2::{Domain, Protocol, Socket, Type};

use crate::capture::PodHandle;

/// Ports tried at random before the kernel is asked. With half of the ports taken, one in 256 dials gets there.
const PORT_TRIES: u32 = 8;

/// Makes a non-blocking TCP socket in the pod's network namespace, for a connection to `destination`. It carries the
/// proxy's mark, so that it is not captured again.
///
/// With `source`, an application of the pod itself sees that address as its peer: that of the client on whose behalf the
/// connection is made (`IP_TRANSPARENT`; the answers find their way back by the rule and route that enrolling put into
/// the namespace). Towards any other destination `source` has no effect, because answers would go to the client.
///
/// Several system calls, no waiting; two of them move the calling thread into the namespace and back.
///
/// # Errors
/// `InvalidInput` when source and destination are of different families; else those of the system calls.
pub fn upstream_socket(
    pod: &PodHandle,
    destination: &SocketAddr,
    source: Option<IpAddr>,
) -> io::Result<OwnedFd> {
    let source = source.filter(|_| pod.is_local(destination.ip()));
    if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "source and destination of different families",
        ));
    }
    let domain = Domain::for_address(*destination);
    // A socket belongs to the namespace in which it was made, for ever: everything else can be done outside.
    let socket = culvert_ring::net::in_netns(pod.netns.as_fd(), || {
        Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
    })??;
    // Both keep the connection from being captured again; the first also makes every address local.
    socket.set_mark(if source.is_some() { TRANSPARENT_MARK } else { PROXY_MARK })?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // One bit of the socket, whatever its family; the IPv4 option reaches it for IPv6 too.
        socket.set_ip_transparent_v4(true)?;
        bind_source(&socket, source)?;
    }
    Ok(socket.into())
}

/// Binds to the client's address and a port that the client is unlikely to choose itself for the same destination. If it
/// did, its packets would meet the proxy's connection.
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let (first, last) = TRANSPARENT_PORTS;
    for _ in 0..PORT_TRIES {
        let port = fastrand::u16(first..=last);
        match socket.bind(&SocketAddr::new(source, port).into()) {
            // Another connection for this client, one that has closed lately, or a listener of the application.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    // Crowded: the kernel knows what is free.
    socket.bind(&SocketAddr::new(source, 0).into())
}
