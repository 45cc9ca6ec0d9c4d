//! The listening sockets that a pod's connections are turned to.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::capture::Direction;

/// The in-pod listeners of one direction: for each worker the same number of sockets, in the same order of addresses.
pub(super) struct InPodSockets {
    pub(super) direction: Direction,
    /// By worker.
    pub(super) by_worker: Vec<Vec<OwnedFd>>,
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InPodError {
    /// A process of the pod listens there.
    #[error("port {0} is in use inside the pod; choose another with `{1}_port`")]
    InUse(SocketAddr, Direction),
    /// A system call failed.
    #[error("listen on {address} inside the pod: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What it gave.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("enter the network namespace: {0}")]
    Enter(io::Error),
    /// A listening socket could not be duplicated: out of descriptors.
    #[error("duplicate an in-pod listener: {0}")]
    Duplicate(io::Error),
}

/// Makes listening sockets inside a network namespace, one group per address with a member per worker.
///
/// Outbound: on both loopback addresses. Inbound: on all addresses, both families by one socket. Without IPv6 in the
/// namespace, IPv4 alone.
pub(super) fn listen(
    netns: BorrowedFd<'_>,
    direction: Direction,
    port: u16,
    workers: usize,
    backlog: u32,
) -> Result<InPodSockets, InPodError> {
    culvert_ring::net::in_netns(netns.as_fd(), || {
        let addresses = addresses(direction, port);
        let group = |_| addresses.iter().map(|address| listener(*address, backlog)).collect();
        let by_worker = (0..workers).map(group).collect::<Result<_, _>>()?;
        Ok(InPodSockets { direction, by_worker })
    })
    .map_err(InPodError::Enter)?
}

/// How often a port is looked at that listeners of ours are about to leave.
const FREE_PAUSE: Duration = Duration::from_millis(5);

/// Finds out whether someone listens already where [`listen`] is about to. `SO_REUSEPORT` would not tell: an application
/// of the same user that sets it too would silently share the connections. With `patience` the thread waits that long for
/// listeners to close.
pub(super) fn check_free(
    netns: BorrowedFd<'_>,
    direction: Direction,
    port: u16,
    patience: Duration,
) -> Result<(), InPodError> {
    let until = Instant::now() + patience;
    loop {
        match try_free(netns, direction, port) {
            Err(InPodError::InUse(..)) if Instant::now() < until => thread::sleep(FREE_PAUSE),
            result => return result,
        }
    }
}

fn try_free(netns: BorrowedFd<'_>, direction: Direction, port: u16) -> Result<(), InPodError> {
    culvert_ring::net::in_netns(netns.as_fd(), || {
        for address in addresses(direction, port) {
            let attempt = socket(address).and_then(|socket| socket.bind(&address.into()));
            attempt.map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => InPodError::InUse(address, direction),
                _ => InPodError::Listen { address, source },
            })?;
        }
        Ok(())
    })
    .map_err(InPodError::Enter)?
}

fn addresses(direction: Direction, port: u16) -> Vec<SocketAddr> {
    let has_v6 = Socket::new(Domain::IPV6, Type::STREAM, None)
        .and_then(|socket| socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()))
        .is_ok();
    match (direction, has_v6) {
        (Direction::Inbound, true) => vec![(Ipv6Addr::UNSPECIFIED, port).into()],
        (Direction::Inbound, false) => vec![(Ipv4Addr::UNSPECIFIED, port).into()],
        (Direction::Outbound, true) => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        (Direction::Outbound, false) => vec![(Ipv4Addr::LOCALHOST, port).into()],
    }
}

fn listener(address: SocketAddr, backlog: u32) -> Result<OwnedFd, InPodError> {
    let attempt = || {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit it.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    attempt().map_err(|source| InPodError::Listen { address, source })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // Connections of an instance that is gone may still be closing.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::capture::testing::TestNetns;

    fn open(netns: &TestNetns) -> OwnedFd {
        std::fs::File::open(netns.path()).unwrap().into()
    }

    #[test]
    fn both_families_and_every_worker_are_served() {
        let netns = TestNetns::new("inpod");
        let fd = open(&netns);
        let outbound = listen(fd.as_fd(), Direction::Outbound, 15001, 3, 64).unwrap();
        let inbound = listen(fd.as_fd(), Direction::Inbound, 15006, 3, 64).unwrap();
        let sizes = |sockets: &InPodSockets| sockets.by_worker.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((sizes(&outbound), sizes(&inbound)), (vec![2; 3], vec![1; 3]));
        netns.inside(|| {
            for address in ["127.0.0.1:15001", "[::1]:15001", "127.0.0.1:15006", "[::1]:15006"] {
                TcpStream::connect(address).unwrap();
            }
        });
        // Connections spread over the group.
        let streams: Vec<_> =
            (0..64).map(|_| netns.inside(|| TcpStream::connect("127.0.0.1:15001").unwrap())).collect();
        let served: HashSet<usize> = (0..3)
            .filter(|worker| {
                let listener = TcpListener::from(outbound.by_worker[*worker][0].try_clone().unwrap());
                listener.accept().is_ok()
            })
            .collect();
        assert_eq!(served.len(), 3, "64 connections left a worker of 3 without any");
        drop(streams);
    }

    #[test]
    fn a_port_that_the_application_has_is_named() {
        let netns = TestNetns::new("inpod-used");
        let fd = open(&netns);
        let taken = netns.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&"0.0.0.0:15001".parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.listen(1).unwrap();
            socket
        });
        let error =
            check_free(fd.as_fd(), Direction::Outbound, 15001, Duration::ZERO).err().unwrap().to_string();
        assert_eq!(
            error,
            "port 127.0.0.1:15001 is in use inside the pod; choose another with `outbound_port`"
        );
        // Free as soon as it is left, for whoever is told to wait for that.
        let leaving = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(taken);
        });
        check_free(fd.as_fd(), Direction::Outbound, 15001, Duration::from_secs(30)).unwrap();
        leaving.join().unwrap();
        // Ours can be joined by more of ours, when a pod is set up anew.
        let _first = listen(fd.as_fd(), Direction::Outbound, 15001, 1, 64).unwrap();
        let _second = listen(fd.as_fd(), Direction::Outbound, 15001, 1, 64).unwrap();
    }

    #[test]
    fn without_ipv6_there_is_ipv4() {
        let netns = TestNetns::new("inpod-v4");
        netns.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
        let fd = open(&netns);
        let inbound = listen(fd.as_fd(), Direction::Inbound, 15006, 1, 64).unwrap();
        let outbound = listen(fd.as_fd(), Direction::Outbound, 15001, 1, 64).unwrap();
        assert_eq!(outbound.by_worker[0].len(), 1);
        let local = rustix::net::getsockname(&inbound.by_worker[0][0]).unwrap();
        assert_eq!(SocketAddr::try_from(local).unwrap(), "0.0.0.0:15006".parse().unwrap());
    }
}
