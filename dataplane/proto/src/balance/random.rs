//! `RANDOM`: by chance, heavier endpoints more often.

use std::sync::Arc;

use crate::balance::{ActiveRequests, Balance, HostSet};

/// `RANDOM`, by weight.
#[derive(Debug)]
pub struct Random {
    hosts: Arc<HostSet>,
}

impl Random {
    /// Has no state.
    #[must_use]
    pub fn new(hosts: Arc<HostSet>) -> Self {
        Self { hosts }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }
}

impl Balance for Random {
    fn pick(&mut self, _: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        let pool = &self.hosts.pools()[self.hosts.pick_pool(rng)?];
        let members = pool.members();
        let member = if pool.is_uniform() {
            rng.usize(..members.len())
        } else {
            let drawn = rng.u64(..pool.weight());
            members.partition_point(|member| member.weight_end <= drawn)
        };
        Some(members[member].endpoint)
    }
}
