//! The cluster's load balancing policy over this worker's hosts.

use std::{rc::Rc, time::Instant};

use culvert_model::SlowStart;
use culvert_proto::balance::{
    Balancer as Whole, Choice as Chosen, Load, SubsetBalancer, SubsetChoice, warmth,
};
use culvert_ring::time;
use smallvec::SmallVec;

use crate::{
    snapshot::{Arranged, ClusterSpec},
    upstream::{Choice, Host},
};

/// How many sets of priorities have a policy of their own: more than requests that are retried come to avoid.
const AVOIDED_SETS_MAX: usize = 32;

/// A policy with its state.
pub(super) struct Balancer {
    policy: Policy,
    /// Without some priorities, each from the first request on that avoids these.
    without: Vec<(SmallVec<[u32; 4]>, Policy)>,
    /// The index of the one in `without` that was asked last; `None` for `policy`.
    last: Option<usize>,
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
        let is_young = |slow: &SlowStart| spec.hosts.iter().any(|host| host.state.age(now) < slow.window);
        let slow_start = spec.config.slow_start.filter(is_young);
        let policy = Policy::new(spec, spec.arranged(), slow_start.is_some());
        Self { policy, without: Vec::new(), last: None, slow_start }
    }

    /// The index of the host for one request to the cluster of `spec`.
    pub(super) fn pick(
        &mut self,
        spec: &ClusterSpec,
        choice: Choice<'_>,
        hosts: &[Rc<Host>],
        total: u32,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let load = Seen { hosts, total, slow_start: self.slow_start, now: time::now() };
        // As in Envoy, what hashes goes where the hash says.
        let without = if spec.config.lb_policy.hashes() { &[] } else { choice.without };
        self.last = (!without.is_empty()).then(|| self.index_without(spec, without));
        match self.last_policy() {
            Policy::Subsets(policy) => policy.pick(choice.subset, (choice.hash, choice.attempt), &load, rng),
            Policy::Whole(policy) => policy.pick_again(choice.hash, choice.attempt, &load, rng),
        }
    }

    fn index_without(&mut self, spec: &ClusterSpec, without: &[u32]) -> usize {
        if let Some(index) = self.without.iter().position(|(known, _)| known.as_slice() == without) {
            return index;
        }
        if self.without.len() == AVOIDED_SETS_MAX {
            self.without.clear();
        }
        let policy = Policy::new(spec, &spec.arranged_without(without), self.slow_start.is_some());
        self.without.push((SmallVec::from_slice(without), policy));
        self.without.len() - 1
    }

    fn last_policy(&mut self) -> &mut Policy {
        match self.last {
            Some(index) => &mut self.without[index].1,
            None => &mut self.policy,
        }
    }

    /// How the last choice came about.
    pub(super) fn last_choice(&mut self) -> (Chosen, SubsetChoice) {
        match self.last_policy() {
            Policy::Subsets(policy) => policy.last_choice(),
            Policy::Whole(policy) => (policy.last_choice(), SubsetChoice::None),
        }
    }
}

impl Policy {
    /// The policy of `spec` over hosts of it. `slow`: some of them start slowly.
    fn new(spec: &ClusterSpec, arranged: &Arranged, slow: bool) -> Self {
        let config = spec.config.lb_policy;
        match arranged {
            Arranged::Subsets(index) => {
                Self::Subsets(Box::new(SubsetBalancer::new(config, index.clone(), slow)))
            }
            Arranged::Whole(hosts) => {
                let make = if slow { Whole::slow_start } else { Whole::new };
                Self::Whole(make(&config, hosts.clone(), &mut fastrand::Rng::new()))
            }
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
