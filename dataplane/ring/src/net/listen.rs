//! Listening sockets.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::options;

/// How a TCP listener is made.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions<'o> {
    /// SO_REUSEPORT: every worker has a listener of its own on the same address, and the kernel spreads connections.
    pub reuse_port: bool,
    /// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
    pub backlog: u32,
    /// IP_TRANSPARENT: accept connections to addresses that are not this host's. Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// IP_FREEBIND: bind to an address that does not exist (yet).
    pub freebind: bool,
    /// IPV6_V6ONLY on IPv6 addresses; without it, `[::]` takes IPv4 connections too.
    pub v6only: bool,
    /// SO_MARK of the listener, which accepted sockets inherit. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Options before binding, after it, and after listening has begun: level, name and value.
    pub options: [&'o [RawOption<'o>]; 3],
    /// SO_KEEPALIVE, which accepted sockets inherit; what is `None` in it is the kernel's.
    pub keepalive: Option<Keepalive>,
}

/// Level, name and value of a socket option.
pub type RawOption<'o> = (i32, i32, &'o [u8]);

/// Times of TCP's keepalive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keepalive {
    /// TCP_KEEPIDLE
    pub time: Option<Duration>,
    /// TCP_KEEPINTVL
    pub interval: Option<Duration>,
    /// TCP_KEEPCNT
    pub probes: Option<u32>,
}

impl Default for ListenOptions<'_> {
    fn default() -> Self {
        Self {
            reuse_port: true,
            backlog: 4096,
            transparent: false,
            freebind: false,
            v6only: true,
            mark: None,
            options: [&[]; 3],
            keepalive: None,
        }
    }
}

/// A listening TCP socket on `addr` (port 0 lets the kernel choose). TCP_NODELAY is set, and inherited by what it accepts.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2): address in use, permission denied.
pub fn listener(addr: &SocketAddr, listen: &ListenOptions<'_>) -> io::Result<OwnedFd> {
    let socket = bound(addr, listen)?;
    socket.listen(i32::try_from(listen.backlog).unwrap_or(i32::MAX))?;
    set_options(&socket, listen.options[2])?;
    Ok(socket.into())
}

/// Whether [`listener`] could bind a socket now: it is bound, does not listen, and is closed again.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn try_bind(addr: &SocketAddr, listen: &ListenOptions<'_>) -> io::Result<()> {
    bound(addr, listen).map(drop)
}

fn bound(addr: &SocketAddr, listen: &ListenOptions<'_>) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(*addr), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    if listen.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(listen.v6only)?;
    }
    if listen.transparent {
        options::set_transparent(socket.as_fd(), addr)?;
    }
    if listen.freebind {
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    if let Some(mark) = listen.mark {
        options::set_mark(socket.as_fd(), mark)?;
    }
    if let Some(keepalive) = listen.keepalive {
        set_keepalive(socket.as_fd(), keepalive)?;
    }
    let [prebind, bound, _] = listen.options;
    set_options(&socket, prebind)?;
    socket.bind(&SockAddr::from(*addr))?;
    set_options(&socket, bound)?;
    Ok(socket)
}

fn set_options(socket: &Socket, options: &[RawOption<'_>]) -> io::Result<()> {
    let set =
        |(level, name, value): &RawOption<'_>| options::set_option(socket.as_fd(), *level, *name, value);
    options.iter().try_for_each(set)
}

/// Turns SO_KEEPALIVE on, with these times.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_keepalive(socket: BorrowedFd<'_>, keepalive: Keepalive) -> io::Result<()> {
    let mut options = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    let socket = SockRef::from(&socket);
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&options)
}

/// A listening Unix socket at `path` with the permission bits `mode` (such as 0o600). A socket that nobody listens on any
/// more is replaced.
///
/// # Errors
/// Those of socket(2), bind(2), listen(2) and chmod(2); `AddrInUse` when somebody listens there.
pub fn unix_listener(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    let addr = SockAddr::unix(path)?;
    match socket.bind(&addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let probe = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
            match probe.connect(&addr) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                _ => return Err(error),
            }
            socket.bind(&addr)?;
        }
        outcome => outcome?,
    }
    // Before listen(2): nobody can connect until the mode is right.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_share_a_port() {
        let first = listener(&"127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
        let addr = SockRef::from(&first).local_addr().unwrap().as_socket().unwrap();
        listener(&addr, &ListenOptions::default()).unwrap();
        let alone = ListenOptions { reuse_port: false, ..ListenOptions::default() };
        assert_eq!(listener(&addr, &alone).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_dead_unix_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("culvert-ring-{}.sock", std::process::id()));
        drop(unix_listener(&path, 0o600).unwrap());
        let live = unix_listener(&path, 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(unix_listener(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        fs::remove_file(&path).unwrap();
    }
}
