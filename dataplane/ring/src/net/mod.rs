//! Making sockets and setting their options.

mod listen;
mod netns;
mod options;
mod udp;

pub use listen::{Keepalive, ListenOptions, RawOption, listener, set_keepalive, try_bind, unix_listener};
pub use netns::in_netns;
pub use options::{
    TcpInfo, bind_source, drop_packets, netns_cookie, original_dst, reset_on_close, set_freebind, set_mark,
    set_nodelay, set_option, set_transparent, tcp_info,
};

pub(crate) use udp::{Offers, prepare};
pub use udp::{UdpOptions, udp_socket};

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

/// A TCP socket for connecting to `peer`: non-blocking, close-on-exec, without Nagle's delay.
///
/// # Errors
/// Those of socket(2).
pub fn tcp_socket(peer: &SocketAddr) -> io::Result<OwnedFd> {
    let socket =
        Socket::new(Domain::for_address(*peer), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// A Unix stream socket: non-blocking, close-on-exec.
///
/// # Errors
/// Those of socket(2).
pub fn unix_socket() -> io::Result<OwnedFd> {
    Ok(Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?.into())
}
