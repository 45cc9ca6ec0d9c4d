//! The cluster's load balancing policy over this worker's hosts.

use std::{rc::Rc, sync::Arc};

use culvert_model::LoadAssignment;
use culvert_proto::balance::{ActiveRequests, Balance as _, Balancer as Policy, HostSet};

use crate::{snapshot::ClusterSpec, upstream::Host};

/// A policy with its state.
pub(super) struct Balancer(Policy);

impl Balancer {
    /// The policy of `spec` over its hosts.
    pub(super) fn new(spec: &ClusterSpec) -> Self {
        let endpoints = spec.hosts.iter().map(|host| host.endpoint.clone()).collect();
        let hosts = Arc::new(HostSet::new(&LoadAssignment { endpoints }));
        Self(Policy::new(&spec.config.lb_policy, hosts, &mut fastrand::Rng::new()))
    }

    /// The index of the host for one request.
    pub(super) fn pick(&mut self, hosts: &[Rc<Host>], rng: &mut fastrand::Rng) -> Option<usize> {
        self.0.pick(&Active(hosts), rng)
    }
}

struct Active<'h>(&'h [Rc<Host>]);

impl ActiveRequests for Active<'_> {
    fn active(&self, endpoint: usize) -> u32 {
        self.0.get(endpoint).map_or(0, |host| host.active())
    }
}
