//! The cluster's load balancing policy over this worker's hosts.

use std::rc::Rc;

use culvert_proto::balance::{ActiveRequests, Balancer as Policy};

use crate::{snapshot::ClusterSpec, upstream::Host};

/// A policy with its state.
pub(super) struct Balancer(Policy);

impl Balancer {
    /// The policy of `spec` over its hosts.
    pub(super) fn new(spec: &ClusterSpec) -> Self {
        Self(Policy::new(&spec.config.lb_policy, spec.arranged(), &mut fastrand::Rng::new()))
    }

    /// The index of the host for one request, which hashes to `hash`.
    pub(super) fn pick(
        &mut self,
        hash: Option<u64>,
        hosts: &[Rc<Host>],
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        self.0.pick_for(hash, &Active(hosts), rng)
    }

    /// Whether too few hosts are healthy for health to matter.
    pub(super) fn panics(&self) -> bool {
        self.0.hosts().panics()
    }
}

struct Active<'h>(&'h [Rc<Host>]);

impl ActiveRequests for Active<'_> {
    fn active(&self, endpoint: usize) -> u32 {
        self.0.get(endpoint).map_or(0, |host| host.active())
    }
}
