//! Pods as the caller describes and sees them.

use std::{net::IpAddr, os::fd::BorrowedFd};

pub use culvert_bpf_common::Counters as PodCounters;

/// A pod to be enrolled.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// For people: appears in lists and errors. At most 64 bytes are kept.
    pub name: String,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// The cookie of that namespace, see [`netns_cookie`](crate::netns_cookie). It identifies the pod.
    pub cookie: u64,
    /// Port of the outbound listener in the pod, on `127.0.0.1`, and on `::1` where the pod has IPv6; 0 leaves outbound
    /// connections alone.
    ///
    /// The listener must not be bound to a device.
    pub outbound_port: u16,
    /// Port of the inbound listener in the pod; `None` leaves inbound connections alone.
    pub inbound_port: Option<u16>,
    /// The inbound listening sockets; at least one when `inbound_port` is set.
    pub inbound_listener: InboundListener<'a>,
    /// Whether connections are refused (`true`) or pass by (`false`) while no listener is there.
    pub strict: bool,
    /// All addresses of the pod; connections among them are not captured.
    pub addresses: Vec<IpAddr>,
}

/// The sockets that accept a pod's inbound connections.
///
/// Each may be any member of a SO_REUSEPORT group, in which the kernel then chooses. A dual-stack IPv6 socket serves
/// both families when it is the only one given. The sockets must carry no mark: an accepted connection takes its
/// mark from the client's packets only then.
#[derive(Clone, Copy, Debug, Default)]
pub struct InboundListener<'a> {
    /// The listener for clients with IPv4 addresses.
    pub v4: Option<BorrowedFd<'a>>,
    /// The listener for clients with IPv6 addresses.
    pub v6: Option<BorrowedFd<'a>>,
}

/// An enrolled pod, as the pinned maps have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// The name given at enrolment.
    pub name: String,
    /// The cookie of the pod's network namespace.
    pub cookie: u64,
    /// Port of the outbound listener; 0 when outbound connections are not captured.
    pub outbound_port: u16,
    /// Port of the inbound listener, if inbound connections are captured.
    pub inbound_port: Option<u16>,
    /// Whether connections are refused while no listener is there.
    pub strict: bool,
    /// The pod's addresses, sorted.
    pub addresses: Vec<IpAddr>,
}
