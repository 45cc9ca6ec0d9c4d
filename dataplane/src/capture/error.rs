//! What can go wrong with a pod, and which pod it is.

use culvert_model::TrafficDirection;

use crate::capture::{Direction, InPodError, PodError, iptables::IptablesError, record::RecordError};

/// Why capture, or the capture of one pod, does not work.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The name is in use.
    #[error("pod {0}: a pod of this name is enrolled already; remove it first")]
    AlreadyEnrolled(String),
    /// eBPF as a whole.
    #[error("eBPF capture: {0}")]
    Bpf(#[source] culvert_bpf::Error),
    /// More than one listener would do.
    #[error("pod {pod}: {direction}: several listeners have traffic_direction {}: {}; name one", wanted(*.direction), .listeners.join(", "))]
    AmbiguousListener {
        /// The pod.
        pod: String,
        /// The direction that names none.
        direction: Direction,
        /// Those it could be.
        listeners: Vec<String>,
    },
    /// Only eBPF programs can send connections past the proxy.
    #[error("pod {0}: direct: needs --capture ebpf")]
    DirectIptables(String),
    /// The network namespace went away while the pod was being enrolled.
    #[error("pod {0}: netns: the network namespace is gone")]
    Gone(String),
    /// Listening inside the pod.
    #[error("pod {pod}: {source}")]
    InPod {
        /// The pod.
        pod: String,
        /// Why not.
        source: InPodError,
    },
    /// REDIRECT rules.
    #[error("pod {pod}: {source}")]
    Iptables {
        /// The pod.
        pod: String,
        /// Why not.
        source: IptablesError,
    },
    /// eBPF, for one pod.
    #[error("pod {pod}: {source}")]
    Kernel {
        /// The pod.
        pod: String,
        /// Why not.
        source: culvert_bpf::Error,
    },
    /// The network namespace belongs to an enrolled pod.
    #[error("pod {pod}: netns: this is the network namespace of pod {other}")]
    NetnsTaken {
        /// The pod.
        pod: String,
        /// Who has it.
        other: String,
    },
    /// No listener would do.
    #[error("pod {pod}: {direction}: no listener has traffic_direction {}; name one, or write `off`", wanted(*.direction))]
    NoListener {
        /// The pod.
        pod: String,
        /// The direction that names none.
        direction: Direction,
    },
    /// `--capture none`.
    #[error("pod {0}: capture is off (--capture none)")]
    Off(String),
    /// The policy cannot be kept by REDIRECT rules.
    #[error("pod {0}: policy: permissive needs --capture ebpf; REDIRECT rules refuse when nobody listens")]
    PermissiveIptables(String),
    /// The description of the pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// What is remembered on disk.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is no such pod.
    #[error("pod {0}: not enrolled")]
    Unknown(String),
    /// The listener named is not configured.
    #[error("pod {pod}: {direction}: no listener is called {listener:?}")]
    UnknownListener {
        /// The pod.
        pod: String,
        /// The direction that names it.
        direction: Direction,
        /// The name.
        listener: String,
    },
}

/// What an operator writes into the listener.
fn wanted(direction: Direction) -> &'static str {
    match TrafficDirection::from(direction) {
        TrafficDirection::Inbound => "INBOUND",
        TrafficDirection::Outbound => "OUTBOUND",
        TrafficDirection::Unspecified => "UNSPECIFIED",
    }
}
