//! The cluster's load balancing policy over this worker's hosts.

use std::{rc::Rc, time::Instant};

use culvert_model::SlowStart;
use culvert_proto::balance::{
    Balancer as Whole, Choice as Chosen, Load, SubsetBalancer, SubsetChoice, warmth,
};
use culvert_ring::time;

use crate::{
    snapshot::{Arranged, ClusterSpec},
    upstream::{Choice, Host},
};

/// A policy with its state.
pub(super) struct Balancer {
    policy: Policy,
    /// While some hosts start slowly.
    slow_start: Option<SlowStart>,
}

enum Policy {
    Subsets(Box<SubsetBalancer>),
    Whole(Whole),
}

impl Balancer {
    /// The policy of `spec` over its hosts.
    pub(super) fn new(spec: &ClusterSpec) -> Self {
        let now = time::now();
        let rng = &mut fastrand::Rng::new();
        let is_young = |slow: &SlowStart| spec.hosts.iter().any(|host| host.state.age(now) < slow.window);
        let slow_start = spec.config.slow_start.filter(is_young);
        let config = spec.config.lb_policy;
        let policy = match spec.arranged() {
            Arranged::Subsets(index) => {
                let policy = SubsetBalancer::new(config, index.clone(), slow_start.is_some());
                Policy::Subsets(Box::new(policy))
            }
            Arranged::Whole(hosts) => {
                let make = if slow_start.is_some() { Whole::slow_start } else { Whole::new };
                Policy::Whole(make(&config, hosts.clone(), rng))
            }
        };
        Self { policy, slow_start }
    }

    /// The index of the host for one request.
    pub(super) fn pick(
        &mut self,
        choice: Choice<'_>,
        hosts: &[Rc<Host>],
        total: u32,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let load = Seen { hosts, total, slow_start: self.slow_start, now: time::now() };
        match &mut self.policy {
            Policy::Subsets(policy) => policy.pick(choice.subset, (choice.hash, choice.attempt), &load, rng),
            Policy::Whole(policy) => policy.pick_again(choice.hash, choice.attempt, &load, rng),
        }
    }

    /// How the last choice came about.
    pub(super) fn last_choice(&self) -> (Chosen, SubsetChoice) {
        match &self.policy {
            Policy::Subsets(policy) => policy.last_choice(),
            Policy::Whole(policy) => (policy.last_choice(), SubsetChoice::None),
        }
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
        warmth(&slow, host.age(self.now))
    }

    fn cost(&self, endpoint: usize) -> f64 {
        self.hosts.get(endpoint).map_or(f64::MAX, |host| host.cost())
    }
}
