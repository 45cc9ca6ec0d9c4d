//! Choosing an endpoint. One policy a file.
//!
//! A [`HostSet`] is made once for every change of a cluster's endpoints and shared; a [`Balancer`] is made from it for
//! every worker. Picking allocates nothing and locks nothing.

mod edf;
mod hashed;
mod hosts;
mod least_request;
mod priority;
mod random;
mod round_robin;

use std::sync::Arc;

use culvert_model::LbPolicy;

pub use hashed::Hashed;
pub use hosts::HostSet;
pub use least_request::LeastRequest;
pub use priority::child_shares;
pub use random::Random;
pub use round_robin::RoundRobin;

/// Requests in flight per endpoint, as far as the caller counts them.
pub trait ActiveRequests {
    /// Requests in flight at the endpoint of that index in the load assignment.
    fn active(&self, endpoint: usize) -> u32;
}

impl ActiveRequests for [u32] {
    fn active(&self, endpoint: usize) -> u32 {
        self.get(endpoint).copied().unwrap_or(0)
    }
}

impl ActiveRequests for Vec<u32> {
    fn active(&self, endpoint: usize) -> u32 {
        self.as_slice().active(endpoint)
    }
}

/// A policy with its state: one per cluster and worker.
pub trait Balance {
    /// The index of the endpoint to use, in the load assignment; `None` when there is none at all.
    fn pick(&mut self, active: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize>;
}

/// Any of the policies.
#[derive(Debug)]
pub enum Balancer {
    /// `MAGLEV`, `RING_HASH`
    Hashed(Hashed),
    /// `LEAST_REQUEST`
    LeastRequest(LeastRequest),
    /// `RANDOM`
    Random(Random),
    /// `ROUND_ROBIN`
    RoundRobin(RoundRobin),
}

impl Balancer {
    /// The policy over these endpoints. Make a new one when they change. `rng` decides where a round starts, so that
    /// workers do not all begin with the same endpoint.
    #[must_use]
    pub fn new(policy: &LbPolicy, hosts: Arc<HostSet>, rng: &mut fastrand::Rng) -> Self {
        match policy {
            LbPolicy::LeastRequest { choices } => Self::LeastRequest(LeastRequest::new(hosts, *choices, rng)),
            LbPolicy::Maglev { .. } | LbPolicy::RingHash { .. } => Self::Hashed(Hashed::new(hosts)),
            LbPolicy::Random => Self::Random(Random::new(hosts)),
            LbPolicy::RoundRobin => Self::RoundRobin(RoundRobin::new(hosts, rng)),
        }
    }

    /// As [`Balance::pick`], for what hashes to `hash`; policies that do not hash disregard it.
    pub fn pick_for(
        &mut self,
        hash: Option<u64>,
        active: &dyn ActiveRequests,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        match (self, hash) {
            (Self::Hashed(policy), Some(hash)) => policy.pick_for(hash),
            (policy, _) => policy.pick(active, rng),
        }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        match self {
            Self::Hashed(policy) => policy.hosts(),
            Self::LeastRequest(policy) => policy.hosts(),
            Self::Random(policy) => policy.hosts(),
            Self::RoundRobin(policy) => policy.hosts(),
        }
    }
}

impl Balance for Balancer {
    fn pick(&mut self, active: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        match self {
            Self::Hashed(policy) => policy.pick(active, rng),
            Self::LeastRequest(policy) => policy.pick(active, rng),
            Self::Random(policy) => policy.pick(active, rng),
            Self::RoundRobin(policy) => policy.pick(active, rng),
        }
    }
}
