//! Capture: a pod's connections are turned to listeners inside the pod, and their original destination is on record.
//!
//! A pod is a network namespace. culvert enters it to make listening sockets, one per worker, and hands them to the
//! workers; then the pod's connections are turned to them, by eBPF programs or by REDIRECT rules. The listeners are on
//! loopback addresses inside the pod, so the pod's own addresses, routes and network policies stay as they were.
//!
//! - [`pods`] says what a pod is, [`manager`] enrols and removes pods, [`control_socket`] lets root ask for it;
//! - [`handle`] is what workers see: listeners, original destinations; [`dial`] makes sockets inside a pod for them;
//! - [`splice`] is about bytes of pods' connections that skip TCP;
//! - [`iptables`] is the one way to turn traffic, the crate `culvert-bpf` the other;
//! - [`record`] remembers on disk what was done to which pod, so that it can be taken over or undone after a crash.
//!
//! # Without a proxy
//! Whether a connection is turned is decided when it is made, by whether a listener is there. Killing culvert closes its
//! listeners; from then on a permissive pod's connections pass by and a strict pod's are refused. Stopping it in an
//! orderly way gives permissive pods their traffic back completely, and leaves strict pods as they are: refused until the
//! next start takes them over, or until `culvert pod remove` or `culvert pod repair` lets them go.

pub mod control_socket;
pub mod dial;
pub mod direct;
pub mod error;
pub mod handle;
pub mod iptables;
pub mod manager;
pub mod pods;
pub mod protocol;
pub mod record;
pub mod repair;
pub mod splice;

mod backend;
mod inpod;
mod nftables;
mod targets;
#[cfg(test)]
mod testing;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use culvert_model::CaptureSettings;
use serde::{Deserialize, Serialize};

pub use control_socket::{Call, CallError, ControlSocket, ControlSocketError, InstanceLock, call};
pub use dial::upstream_socket;
pub use direct::DirectPod;
pub use error::CaptureError;
pub use handle::{Direction, InPodListener, Origin, PodHandle, WorkerPort};
pub use inpod::InPodError;
pub use manager::CaptureManager;
pub use pods::{PodError, PodSpec, Policy, Target};
pub use protocol::{PodCounters, PodReport, Request, Response};
pub use repair::{call_or_repair, clear_leftovers, repair_offline};

/// How traffic is taken over: `--capture`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureMode {
    /// eBPF programs at connect and at socket lookup.
    Ebpf,
    /// REDIRECT rules inside the pod. Strict pods only.
    Iptables,
    /// Not at all: ordinary listeners only.
    #[default]
    None,
}

/// Settings of capture as a whole.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// `--capture`
    pub mode: CaptureMode,
    /// Where what was done to pods is remembered: [`state_dir`] of the control socket, whose lock guards it.
    pub state_dir: PathBuf,
    /// Where eBPF links and maps are pinned; a directory on a bpffs. Not shared between running instances.
    pub pin_dir: PathBuf,
    /// The cgroup (v2) below which connects are seen. `None`: the root of the hierarchy.
    pub cgroup_root: Option<PathBuf>,
    /// `--direct`: whether pods that do not say allow direct connections.
    pub direct: bool,
    /// `culvert.v1.Capture`: what is never captured, in any pod. Loopback connections and the proxy's own never are either.
    pub settings: CaptureSettings,
    /// What has come of `--splice`; eBPF only.
    pub splice: Arc<splice::Decision>,
    /// Length of the accept queue of every in-pod listener; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
}

/// Where the instance with this control socket remembers its pods: `PATH.d`.
pub fn state_dir(control_socket: &Path) -> PathBuf {
    let mut path = control_socket.as_os_str().to_owned();
    path.push(".d");
    path.into()
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            mode: CaptureMode::default(),
            state_dir: state_dir(Path::new(control_socket::DEFAULT_PATH)),
            pin_dir: "/sys/fs/bpf/culvert".into(),
            cgroup_root: None,
            direct: false,
            settings: CaptureSettings::default(),
            splice: Arc::new(splice::Decision::off("not asked for")),
            backlog: 4096,
        }
    }
}

/// `--capture` was given something else.
#[derive(Debug, thiserror::Error)]
#[error("capture mode {0:?}: expected ebpf, iptables or none")]
pub struct UnknownMode(String);

impl FromStr for CaptureMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "ebpf" => Ok(Self::Ebpf),
            "iptables" => Ok(Self::Iptables),
            "none" => Ok(Self::None),
            _ => Err(UnknownMode(text.to_owned())),
        }
    }
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}
