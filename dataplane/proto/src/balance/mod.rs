//! Choosing an endpoint. One policy a file.
//!
//! A [`HostSet`] is made once for every change of a cluster's endpoints and shared; a [`Balancer`] is made from it for
//! every worker. First the share of a priority decides, then localities, then the policy within a pool of endpoints.
//! Picking allocates nothing and locks nothing.

mod bounded;
mod children;
mod edf;
mod hosts;
mod least_request;
mod locality;
mod peak_ewma;
mod priority;
mod round_robin;
mod slow_start;
mod subset;
mod table;
mod zone;

use std::sync::Arc;

use culvert_model::LbPolicy;

pub use children::ChildPriorities;
pub use hosts::{HostSet, Rules};
pub use peak_ewma::Ewma;
pub use slow_start::warmth;
pub use subset::{SubsetBalancer, SubsetChoice, SubsetIndex};
pub use zone::{LocalZones, ZoneChoice};

use bounded::Detour;
use edf::Edf;
use hosts::Spread;
use least_request::LeastRequest;
use round_robin::Round;

/// What endpoints have to do, as far as the caller knows. Endpoints are called by their index in the load assignment.
pub trait Load {
    /// Requests in flight.
    fn active(&self, endpoint: usize) -> u32;

    /// Requests in flight at all endpoints.
    fn total(&self) -> u32;

    /// Which part of its weight an endpoint has while it starts slowly: above 0, at most 1.
    fn warmth(&self, _endpoint: usize) -> f64 {
        1.0
    }

    /// How long a request would wait: see [`Ewma::cost`].
    fn cost(&self, endpoint: usize) -> f64 {
        f64::from(self.active(endpoint))
    }
}

impl Load for [u32] {
    fn active(&self, endpoint: usize) -> u32 {
        self.get(endpoint).copied().unwrap_or(0)
    }

    fn total(&self) -> u32 {
        self.iter().sum()
    }
}

impl Load for Vec<u32> {
    fn active(&self, endpoint: usize) -> u32 {
        self.as_slice().active(endpoint)
    }

    fn total(&self) -> u32 {
        self.as_slice().total()
    }
}

/// A policy with its state: one per cluster and worker.
pub trait Balance {
    /// The index of the endpoint to use, in the load assignment; `None` when there is none at all.
    fn pick(&mut self, load: &dyn Load, rng: &mut fastrand::Rng) -> Option<usize>;
}

/// The policy of a cluster over its endpoints.
#[derive(Debug)]
pub struct Balancer {
    hosts: Arc<HostSet>,
    /// By tier: whose turn it is among localities with weights.
    localities: Vec<Option<Edf>>,
    policy: Policy,
    choice: Choice,
}

/// How the last choice came about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Choice {
    /// Health was disregarded: `lb_healthy_panic`.
    pub panics: bool,
    /// What zones had to do with it.
    pub zone: ZoneChoice,
    /// See [`HostSet::is_exhausted`].
    pub exhausted: bool,
}

/// The state of a policy, by pool where there is any.
#[derive(Debug)]
enum Policy {
    Hashed(Detour),
    LeastRequest(LeastRequest, Vec<Option<Edf>>),
    PeakEwma,
    Random,
    RoundRobin(Vec<Round>),
}

impl Balancer {
    /// The policy over these endpoints. Make a new one when they change. `rng` decides where a round starts, so that
    /// workers do not all begin with the same endpoint.
    #[must_use]
    pub fn new(policy: &LbPolicy, hosts: Arc<HostSet>, rng: &mut fastrand::Rng) -> Self {
        Self::with(policy, hosts, false, rng)
    }

    /// As [`Balancer::new`], where some endpoints start slowly: [`Load::warmth`] counts.
    #[must_use]
    pub fn slow_start(policy: &LbPolicy, hosts: Arc<HostSet>, rng: &mut fastrand::Rng) -> Self {
        Self::with(policy, hosts, true, rng)
    }

    fn with(policy: &LbPolicy, hosts: Arc<HostSet>, slow: bool, rng: &mut fastrand::Rng) -> Self {
        let pools = hosts.pools();
        let policy = match *policy {
            LbPolicy::LeastRequest { choices, full_scan, bias } => {
                let policy = LeastRequest { choices: (!full_scan).then_some(choices), bias };
                let rounds = pools.iter().map(|pool| least_request::round(pool, slow, rng));
                Policy::LeastRequest(policy, rounds.collect())
            }
            LbPolicy::Maglev { .. } | LbPolicy::RingHash { .. } => Policy::Hashed(Detour::default()),
            LbPolicy::PeakEwma { .. } => Policy::PeakEwma,
            LbPolicy::Random => Policy::Random,
            LbPolicy::RoundRobin => {
                Policy::RoundRobin(pools.iter().map(|pool| Round::new(pool, slow, rng)).collect())
            }
        };
        let turns = hosts.tiers().iter().map(|tier| match &tier.spread {
            Spread::Localities(localities) => {
                Some(Edf::after(rng.usize(..localities.weights.len()), &localities.weights))
            }
            Spread::Nobody | Spread::Pool(_) | Spread::Zones(_) => None,
        });
        let localities = turns.collect();
        Self { hosts, localities, policy, choice: Choice::default() }
    }

    /// As [`Balance::pick`], for what hashes to `hash`; policies that do not hash disregard it.
    pub fn pick_for(&mut self, hash: Option<u64>, load: &dyn Load, rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick_again(hash, 0, load, rng)
    }

    /// As [`Balancer::pick_for`], where so many endpoints before would not do.
    pub fn pick_again(
        &mut self,
        hash: Option<u64>,
        attempt: u32,
        load: &dyn Load,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        self.choice = Choice { exhausted: self.hosts.is_exhausted(), ..Choice::default() };
        let number = match (&self.policy, hash) {
            (Policy::Hashed(_), Some(hash)) => hash,
            _ if self.hosts.tiers().len() == 1 && !matches!(self.policy, Policy::Hashed(_)) => 0,
            _ => rng.u64(..),
        };
        let at = self.hosts.tier_of(number)?;
        let tier = &self.hosts.tiers()[at];
        self.choice.panics = tier.panics;
        let index = match &tier.spread {
            Spread::Localities(localities) => {
                let edf = self.localities[at].as_mut()?;
                localities.pools[edf.next(|locality| localities.weights[locality])?]
            }
            Spread::Nobody => return None,
            Spread::Pool(index) => *index,
            Spread::Zones(zones) => {
                let (index, zone) = zones.pick(rng);
                self.choice.zone = zone;
                index
            }
        };
        let pool = &self.hosts.pools()[index];
        match &mut self.policy {
            Policy::Hashed(detour) => {
                let table = pool.table.as_ref()?;
                let member = detour.pick(pool, table, (number, attempt), load);
                Some(pool.members[member].endpoint)
            }
            Policy::LeastRequest(policy, rounds) => policy.pick(pool, rounds[index].as_mut(), load, rng),
            Policy::PeakEwma => Some(peak_ewma::pick(pool, load, rng)),
            Policy::Random => Some(pool.members[rng.usize(..pool.members.len())].endpoint),
            Policy::RoundRobin(rounds) => rounds[index].pick(pool, load),
        }
    }

    /// How the last choice came about.
    #[must_use]
    pub fn last_choice(&self) -> Choice {
        self.choice
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }
}

impl Balance for Balancer {
    fn pick(&mut self, load: &dyn Load, rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick_for(None, load, rng)
    }
}
