//! `ROUND_ROBIN`: in turn, heavier endpoints more often.

use std::sync::Arc;

use crate::balance::{ActiveRequests, Balance, HostSet, edf::Edf, hosts::Pool};

/// `ROUND_ROBIN`. Equal weights: one after the other; else earliest deadline first, as in Envoy.
#[derive(Debug)]
pub struct RoundRobin {
    hosts: Arc<HostSet>,
    /// By pool.
    rounds: Vec<Round>,
}

#[derive(Debug)]
enum Round {
    /// The next member.
    Uniform(usize),
    Weighted(Edf),
}

impl RoundRobin {
    /// Starts at a place that `rng` decides.
    #[must_use]
    pub fn new(hosts: Arc<HostSet>, rng: &mut fastrand::Rng) -> Self {
        let rounds = hosts.pools().iter().map(|pool| Round::new(pool, rng)).collect();
        Self { hosts, rounds }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }
}

impl Balance for RoundRobin {
    fn pick(&mut self, _: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        let index = self.hosts.pick_pool(rng)?;
        let members = self.hosts.pools()[index].members();
        let member = match &mut self.rounds[index] {
            Round::Uniform(next) => {
                let member = *next;
                *next = if member + 1 < members.len() { member + 1 } else { 0 };
                member
            }
            Round::Weighted(edf) => edf.next(|member| f64::from(members[member].weight))?,
        };
        Some(members[member].endpoint)
    }
}

impl Round {
    fn new(pool: &Pool, rng: &mut fastrand::Rng) -> Self {
        let members = pool.members();
        let start = rng.usize(..members.len());
        if pool.is_uniform() {
            return Self::Uniform(start);
        }
        let mut edf = Edf::new(members.iter().map(|member| member.weight));
        for _ in 0..start {
            edf.next(|member| f64::from(members[member].weight));
        }
        Self::Weighted(edf)
    }
}
