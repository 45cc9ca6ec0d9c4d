//! eBPF capture of pod traffic: loads, attaches, pins and updates the programs, and tells them about pods.
//!
//! Everything that talks to bpf(2) is here, and nothing of the proxy: the caller makes the listening sockets inside a
//! pod's network namespace ([`run_in_netns`]), enrols the pod ([`Capture::enrol`]), accepts, and learns from
//! [`OrigDstTable`] where an outbound connection was going. An inbound connection's `getsockname` says it by itself.
//!
//! What the sockets of the proxy must look like:
//!  * listeners: on loopback addresses, not bound to a device, without a mark;
//!  * upstream sockets in a pod: marked [`PROXY_MARK`], or they are captured again;
//!  * sockets that dial the application with the client's address: IP_TRANSPARENT (IPV6_TRANSPARENT), marked
//!    [`TRANSPARENT_MARK`], from a port in [`TRANSPARENT_PORTS`], in a pod that [`prepare_netns`] was applied to.
//!
//! A connection that an in-pod listener accepts with its own port as local port was not captured but dialled; the
//! outbound listener knows by [`OrigDstTable::take`] too. Both must be reset. The process must not fork without exec
//! while it runs: a listener lives, and keeps connections coming, until its last copy is closed.

mod capture;
mod cgroup;
mod cookie;
mod diag;
mod direct;
pub mod doctor;
mod error;
mod interrupted;
mod links;
mod maps;
mod memlock;
mod mounts;
mod netns;
mod object;
mod orig_dst;
mod pins;
mod pod;
mod probe;
mod routing;
mod rtnetlink;
mod said;
mod sandbox;
pub mod selftest;
mod splice;
mod sys;

pub use culvert_bpf_common::{
    MAX_DIRECT_FLOWS as DIRECT_CONNECTIONS_MAX, PROXY_MARK, PROXY_MARK_MASK, SplicedPod, TRANSPARENT_MARK,
    TRANSPARENT_MARK_MASK, TRANSPARENT_PORTS,
};

pub use crate::{
    capture::{Capture, CaptureConfig},
    diag::{DiagSocket, OpenSocket},
    direct::{DirectEndpoint, DirectFlow, DirectRule, DirectTable, DirectTally},
    error::Error,
    netns::{netns_addresses, netns_cookie, run_in_netns},
    orig_dst::OrigDstTable,
    pins::uninstall,
    pod::{InboundListener, PodCounters, PodSpec, PodStatus},
    probe::probe,
    routing::{NetnsState, prepare_netns, restore_netns},
    sandbox::throwaway_netns,
    splice::{Diag, EnterError, Leg, LegProgress, LegSpec, SlotPool, Splice, SpliceConfig},
};
