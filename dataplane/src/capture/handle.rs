//! What workers hold of a pod, and the seam through which they get its listeners.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use culvert_model::TrafficDirection;

use crate::capture::{CaptureMode, Policy, splice::PodSplice};

/// Which way a captured connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Direction {
    /// Made to the pod.
    Inbound,
    /// Made by the pod.
    Outbound,
}

/// How the original destination of a captured connection is learnt.
pub enum Origin {
    /// eBPF: the table that the programs fill for outbound connections; inbound ones keep their local address.
    Bpf(culvert_bpf::OrigDstTable),
    /// iptables: conntrack, through `SO_ORIGINAL_DST`.
    Iptables,
}

/// A pod, as workers and their connections know it. Shared; lives for as long as one of its connections does, and
/// keeps the pod's network namespace alive meanwhile.
pub struct PodHandle {
    /// Unique while this process lives; never 0, and never given to another pod.
    pub id: u32,
    /// As enrolled.
    pub name: Arc<str>,
    /// For `setns(2)`: the sockets of the pod's connections are made inside.
    pub netns: OwnedFd,
    /// `SO_NETNS_COOKIE`; unique until reboot. Upstream pools are keyed by it.
    pub netns_cookie: u64,
    /// How the pod is captured.
    pub mode: CaptureMode,
    /// What happens to its connections without a proxy.
    pub policy: Policy,
    /// Its addresses when it was enrolled, loopback not among them.
    pub addresses: Vec<IpAddr>,
    /// The port of its outbound in-pod listeners.
    pub outbound_port: u16,
    /// The port of its inbound in-pod listeners.
    pub inbound_port: u16,
    /// How original destinations are learnt.
    pub origin: Origin,
    /// What its connections are spliced with, if they are.
    pub splice: Option<PodSplice>,
    pub(super) dialled_directly: AtomicU64,
}

/// A listening socket inside a pod, non-blocking, for one worker. Accepted sockets are in the pod's namespace.
#[derive(Debug)]
pub struct InPodListener {
    /// One of a `SO_REUSEPORT` group that has a member per worker (per address, for outbound: IPv4 and IPv6).
    pub fd: OwnedFd,
    /// The pod.
    pub pod: Arc<PodHandle>,
    /// Which of the pod's connections arrive here.
    pub direction: Direction,
    /// The configured listener whose filter chain they meet. It existed when the pod was enrolled; when it is gone by the
    /// time a connection arrives, the connection is to be reset.
    pub listener_name: Arc<str>,
}

/// The workers, as capture sees them. Calls are queued, not waited for, and a worker sees them in the order made.
pub trait WorkerPort: Send {
    /// Number of workers, at least 1; does not change.
    fn workers(&self) -> usize;

    /// Start to accept. Called for every worker and every listener of a pod before its traffic is turned.
    fn add_listener(&self, worker: usize, listener: InPodListener);

    /// Connections accepted from now on on a pod's listeners of this direction meet this configured listener: the
    /// configuration changed what the pod's choice means.
    fn retarget(&self, pod: u32, direction: Direction, listener_name: Arc<str>);

    /// Accept what is queued, then close the pod's listeners, on all workers. Called after its traffic is no longer
    /// turned. Connections go on.
    fn remove_listeners(&self, pod: u32);
}

impl Origin {
    /// Whether both learn from the same source.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bpf(own), Self::Bpf(other)) => own.is_same(other),
            (Self::Iptables, Self::Iptables) => true,
            _ => false,
        }
    }
}

impl PodHandle {
    /// Where the client of an accepted connection meant to go. To be called once, right after accept: the record of an
    /// outbound connection is taken out of its table.
    ///
    /// `None` when there is no record: then a process of the pod dialled the in-pod listener itself, and the connection is
    /// to be reset, or it would be sent to the listener again. Such connections are counted here.
    pub fn original_dst(
        &self,
        stream: BorrowedFd<'_>,
        peer: SocketAddr,
        direction: Direction,
    ) -> Option<SocketAddr> {
        let found = self.find_original_dst(stream, peer, direction);
        if found.is_none() {
            // Never on the path of a captured connection.
            self.dialled_directly.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Whether a destination is the pod itself.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// How often [`PodHandle::original_dst`] found nothing.
    pub fn dialled_directly(&self) -> u64 {
        self.dialled_directly.load(Ordering::Relaxed)
    }

    fn find_original_dst(
        &self,
        stream: BorrowedFd<'_>,
        peer: SocketAddr,
        direction: Direction,
    ) -> Option<SocketAddr> {
        let local = canonical(rustix::net::getsockname(stream).ok()?.try_into().ok()?);
        let found = match (&self.origin, direction) {
            (Origin::Bpf(table), Direction::Outbound) => table.take(self.netns_cookie, canonical(peer))?,
            (Origin::Bpf(_), Direction::Inbound) => local,
            (Origin::Iptables, _) => culvert_ring::net::original_dst(stream).ok()?,
        };
        let found = canonical(found);
        (!self.is_own(found, local)).then_some(found)
    }

    /// A pod for tests of what does not look at it.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self {
            id: 1,
            name: "nobody".into(),
            netns: std::fs::File::open("/proc/self/ns/net").unwrap().into(),
            netns_cookie: 0,
            mode: CaptureMode::Ebpf,
            policy: Policy::Strict,
            addresses: Vec::new(),
            outbound_port: 0,
            inbound_port: 0,
            origin: Origin::Iptables,
            splice: None,
            dialled_directly: AtomicU64::new(0),
        }
    }

    /// Whether a destination is an in-pod listener of this pod. Following it would lead back here.
    fn is_own(&self, destination: SocketAddr, local: SocketAddr) -> bool {
        let at_pod = destination.ip() == local.ip() || destination.ip().is_loopback();
        at_pod && [self.outbound_port, self.inbound_port].contains(&destination.port())
    }
}

/// IPv4 addresses in their IPv6-mapped form, as a dual-stack socket gives them, become IPv4 addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

impl fmt::Debug for PodHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodHandle")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("netns_cookie", &self.netns_cookie)
            .field("mode", &self.mode)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl From<Direction> for TrafficDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::Inbound,
            Direction::Outbound => Self::Outbound,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}
