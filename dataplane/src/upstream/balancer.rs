//! The cluster's load balancing policy over this worker's hosts.

use std::{rc::Rc, time::Instant};

use culvert_model::SlowStart;
use culvert_proto::balance::{Balancer as Policy, Choice as Chosen, Load};
use culvert_ring::time;

use crate::{snapshot::ClusterSpec, upstream::Host};

/// A policy with its state.
pub(super) struct Balancer {
    policy: Policy,
    /// While some hosts start slowly.
    slow_start: Option<SlowStart>,
}

impl Balancer {
    /// The policy of `spec` over its hosts.
    pub(super) fn new(spec: &ClusterSpec) -> Self {
        let now = time::now();
        let rng = &mut fastrand::Rng::new();
        let is_young = |slow: &SlowStart| spec.hosts.iter().any(|host| host.health.age(now) < slow.window);
        let slow_start = spec.config.slow_start.filter(is_young);
        let make = if slow_start.is_some() { Policy::slow_start } else { Policy::new };
        Self { policy: make(&spec.config.lb_policy, spec.arranged(), rng), slow_start }
    }

    /// The index of the host for one request, which hashes to `hash`, where so many hosts before would not do.
    pub(super) fn pick(
        &mut self,
        (hash, attempt): (Option<u64>, u32),
        hosts: &[Rc<Host>],
        total: u32,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let load = Seen { hosts, total, slow_start: self.slow_start, now: time::now() };
        self.policy.pick_again(hash, attempt, &load, rng)
    }

    /// How the last choice came about.
    pub(super) fn last_choice(&self) -> Chosen {
        self.policy.last_choice()
    }
}

/// What this worker has sent to the hosts.
struct Seen<'h> {
    hosts: &'h [Rc<Host>],
    total: u32,
    slow_start: Option<SlowStart>,
    now: Instant,
}

impl Load for Seen<'_> {
    fn active(&self, endpoint: usize) -> u32 {
        self.hosts.get(endpoint).map_or(0, |host| host.active())
    }

    fn total(&self) -> u32 {
        self.total
    }

    fn warmth(&self, endpoint: usize) -> f64 {
        let Some((slow, host)) = self.slow_start.zip(self.hosts.get(endpoint)) else { return 1.0 };
        slow.factor(host.age(self.now))
    }

    fn cost(&self, endpoint: usize) -> f64 {
        self.hosts.get(endpoint).map_or(f64::MAX, |host| host.cost())
    }
}
