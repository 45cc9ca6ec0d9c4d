//! What the direct path has to know of pods.

use std::{net::IpAddr, sync::Arc};

use culvert_bpf::DirectTable;

use crate::capture::{
    CaptureManager, CaptureMode, PodHandle,
    manager::{Captured, Pod, State},
};

/// A captured pod, as an end of direct connections.
#[derive(Clone, Debug)]
pub struct DirectPod {
    /// As enrolled.
    pub name: Arc<str>,
    /// Of its network namespace.
    pub cookie: u64,
    /// Its addresses, IPv4 ones as such.
    pub addresses: Vec<IpAddr>,
    /// The listener that its connections enter; `None` when they are not captured.
    pub outbound: Option<Arc<str>>,
    /// The listener that connections to it enter; `None` when they are not captured.
    pub inbound: Option<Arc<str>>,
    /// Whether it allows direct connections, of both directions.
    pub direct: bool,
    /// Keeps its network namespace.
    pub handle: Arc<PodHandle>,
}

impl CaptureManager {
    /// The pods that are captured.
    pub fn direct_pods(&self) -> Vec<DirectPod> {
        let of = |pod: &Pod| {
            let State::Captured(Captured { handle, targets, .. }) = &pod.state else { return None };
            Some(DirectPod {
                name: handle.name.clone(),
                cookie: handle.netns_cookie,
                addresses: handle.addresses.iter().map(IpAddr::to_canonical).collect(),
                outbound: targets.outbound.clone(),
                inbound: targets.inbound.clone(),
                direct: handle.mode == CaptureMode::Ebpf && self.allows_direct(&pod.record.pod),
                handle: handle.clone(),
            })
        };
        self.pods.values().filter_map(of).collect()
    }

    /// Rules, connections and counts of the direct path; `None` without eBPF.
    pub fn direct_table(&mut self) -> Option<&mut DirectTable> {
        self.backend.direct_table()
    }

    /// `exclude_inbound_ports`
    pub fn excluded_inbound_ports(&self) -> Vec<u16> {
        self.config.settings.exclude_inbound_ports.clone()
    }
}
