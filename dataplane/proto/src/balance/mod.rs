//! Choosing an endpoint. One policy a file.

use std::sync::Arc;

use culvert_model::{LbPolicy, LoadAssignment};

/// The endpoints of a cluster, arranged for choosing. Immutable; share it between workers.
#[derive(Debug, Default)]
pub struct HostSet {
    len: usize,
}

impl HostSet {
    /// Arranges the endpoints. Indexes returned by [`Balance::pick`] are into `assignment.endpoints`.
    #[must_use]
    pub fn new(assignment: &LoadAssignment) -> Self {
        Self { len: assignment.endpoints.len() }
    }

    /// Number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no endpoint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Requests in flight per endpoint, as far as the caller counts them.
pub trait ActiveRequests {
    /// Requests in flight at the endpoint of that index.
    fn active(&self, endpoint: usize) -> u32;
}

impl ActiveRequests for [u32] {
    fn active(&self, endpoint: usize) -> u32 {
        self.get(endpoint).copied().unwrap_or(0)
    }
}

/// A policy with its state: one per cluster and worker.
pub trait Balance {
    /// The index of the endpoint to use; `None` when there is none at all.
    fn pick(&mut self, active: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize>;
}

/// Any of the policies.
#[derive(Debug)]
pub struct Balancer {
    hosts: Arc<HostSet>,
}

impl Balancer {
    /// The policy over these endpoints. Make a new one when they change.
    #[must_use]
    pub fn new(policy: &LbPolicy, hosts: Arc<HostSet>, rng: &mut fastrand::Rng) -> Self {
        let _ = (policy, rng);
        Self { hosts }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }
}

impl Balance for Balancer {
    fn pick(&mut self, active: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        let _ = active;
        (!self.hosts.is_empty()).then(|| rng.usize(..self.hosts.len()))
    }
}
