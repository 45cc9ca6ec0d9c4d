//! `LEAST_REQUEST`: the less busy of a few.

use std::sync::Arc;

use crate::balance::{
    ActiveRequests, Balance, HostSet,
    edf::Edf,
    hosts::{Member, Pool},
};

/// `LEAST_REQUEST`. Equal weights: the least busy of `choice_count` endpoints drawn by chance; else a weighted round in
/// which an endpoint counts `weight / (requests in flight + 1)` (Envoy's `active_request_bias` of 1).
#[derive(Debug)]
pub struct LeastRequest {
    hosts: Arc<HostSet>,
    choices: u32,
    /// By pool; `None` where all weights are equal.
    rounds: Vec<Option<Edf>>,
}

impl LeastRequest {
    /// `choices` is how many endpoints are compared: 2 is nearly as good as all, and cannot herd.
    #[must_use]
    pub fn new(hosts: Arc<HostSet>, choices: u32, rng: &mut fastrand::Rng) -> Self {
        let rounds = hosts.pools().iter().map(|pool| weighted_round(pool, rng)).collect();
        Self { hosts, choices, rounds }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }
}

impl Balance for LeastRequest {
    fn pick(&mut self, active: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        let index = self.hosts.pick_pool(rng)?;
        let members = self.hosts.pools()[index].members();
        match &mut self.rounds[index] {
            Some(edf) => {
                let member = edf.next(|member| effective_weight(&members[member], active))?;
                Some(members[member].endpoint)
            }
            None => Some(least_busy(members, self.choices, active, rng)),
        }
    }
}

fn weighted_round(pool: &Pool, rng: &mut fastrand::Rng) -> Option<Edf> {
    if pool.is_uniform() {
        return None;
    }
    let members = pool.members();
    let mut edf = Edf::new(members.iter().map(|member| member.weight));
    for _ in 0..rng.usize(..members.len()) {
        edf.next(|member| f64::from(members[member].weight));
    }
    Some(edf)
}

fn effective_weight(member: &Member, active: &dyn ActiveRequests) -> f64 {
    f64::from(member.weight) / (f64::from(active.active(member.endpoint)) + 1.0)
}

/// Draws with repetition, as Envoy does; the first of equals stays.
fn least_busy(
    members: &[Member],
    choices: u32,
    active: &dyn ActiveRequests,
    rng: &mut fastrand::Rng,
) -> usize {
    let mut best = members[rng.usize(..members.len())].endpoint;
    let mut best_active = active.active(best);
    for _ in 1..choices {
        let other = members[rng.usize(..members.len())].endpoint;
        let other_active = active.active(other);
        if other_active < best_active {
            (best, best_active) = (other, other_active);
        }
    }
    best
}
