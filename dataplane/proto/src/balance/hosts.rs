//! The endpoints of a cluster, arranged for choosing.

use culvert_model::{AssignmentPolicy, Endpoint, Health, LbPolicy};

use crate::balance::{
    hashed::Table,
    priority::{self, Level, Share},
};

/// The endpoints of a cluster: which can be chosen, and how often. Immutable; share it between workers.
#[derive(Debug, Default)]
pub struct HostSet {
    len: usize,
    healthy: usize,
    panics: bool,
    pools: Vec<Pool>,
}

/// Endpoints among which a policy chooses: those of one priority and health.
#[derive(Debug)]
pub(super) struct Pool {
    /// Not empty.
    members: Vec<Member>,
    /// Percent of the picks up to and including this pool; 100 in the last.
    share_end: u8,
    /// Whether all weights are equal.
    uniform: bool,
    /// Of policies that hash.
    table: Option<Table>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Index in the load assignment.
    pub(super) endpoint: usize,
    /// At least 1.
    pub(super) weight: u32,
    /// Sum of the weights up to and including this member.
    pub(super) weight_end: u64,
}

impl HostSet {
    /// Arranges the endpoints for a policy. Health is disregarded at a priority of which less than `panic_percent` is
    /// available while all priorities together are not enough (Envoy's panic mode; 0 turns it off). Indexes returned by
    /// [`super::Balance::pick`] are places in `endpoints`.
    #[must_use]
    pub fn new(
        endpoints: &[&Endpoint],
        assignment: &AssignmentPolicy,
        panic_percent: u32,
        policy: &LbPolicy,
    ) -> Self {
        let plan = priority::plan(&levels(endpoints, assignment), assignment.overprovisioning, panic_percent);
        let mut pools: Vec<Pool> = Vec::new();
        for Share { priority, health, percent } in plan.shares {
            let members = members(endpoints, priority, health);
            if members.is_empty() || percent == 0 {
                continue;
            }
            let share_end = pools.last().map_or(0, |pool| pool.share_end) + percent;
            let uniform = members.iter().all(|member| member.weight == members[0].weight);
            let weighted: Vec<_> =
                members.iter().map(|member| (endpoints[member.endpoint], member.weight)).collect();
            let table = Table::new(policy, &weighted);
            pools.push(Pool { members, share_end, uniform, table });
        }
        let healthy = endpoints.iter().filter(|endpoint| endpoint.health == Health::Healthy).count();
        Self { len: endpoints.len(), healthy, panics: plan.panics, pools }
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

    /// Number of healthy endpoints.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.healthy
    }

    /// Whether health is disregarded somewhere because too few endpoints are healthy (`lb_healthy_panic`).
    #[must_use]
    pub fn panics(&self) -> bool {
        self.panics
    }

    pub(super) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The index of the pool for a hash.
    pub(super) fn pool_of(&self, hash: u64) -> Option<usize> {
        let end = u64::from(self.pools.last()?.share_end);
        let drawn = (hash % 100).min(end - 1);
        Some(self.pools.partition_point(|pool| u64::from(pool.share_end) <= drawn))
    }

    /// The index of the pool to choose from.
    pub(super) fn pick_pool(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        match &self.pools[..] {
            [] => None,
            [_] => Some(0),
            pools => {
                let end = pools.last().map_or(1, |pool| pool.share_end);
                let drawn = rng.u8(..end);
                Some(pools.partition_point(|pool| pool.share_end <= drawn))
            }
        }
    }
}

impl Pool {
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn is_uniform(&self) -> bool {
        self.uniform
    }

    pub(super) fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// Sum of the weights.
    pub(super) fn weight(&self) -> u64 {
        self.members.last().map_or(0, |member| member.weight_end)
    }
}

/// What there is at each priority; priorities without endpoints are skipped.
pub(super) fn levels(endpoints: &[&Endpoint], assignment: &AssignmentPolicy) -> Vec<Level> {
    let mut levels: Vec<Level> = Vec::new();
    for endpoint in endpoints {
        let position = match levels.binary_search_by_key(&endpoint.priority, |level| level.priority) {
            Ok(position) => position,
            Err(position) => {
                levels.insert(position, Level { priority: endpoint.priority, ..Level::default() });
                position
            }
        };
        let level = &mut levels[position];
        let counts = if assignment.weighted_priority_health { u64::from(endpoint.weight.max(1)) } else { 1 };
        match endpoint.health {
            Health::Healthy => level.healthy += counts,
            Health::Degraded => level.degraded += counts,
            Health::Unhealthy => {}
            Health::Excluded => continue,
        }
        level.total += counts;
    }
    for level in &mut levels {
        // With all of them excluded it is as if there were one, and that unhealthy.
        level.total = level.total.max(1);
    }
    levels
}

fn members(endpoints: &[&Endpoint], priority: u32, health: Option<Health>) -> Vec<Member> {
    let mut weight_end = 0;
    let fitting = endpoints.iter().enumerate().filter(|(_, endpoint)| {
        endpoint.priority == priority && health.is_none_or(|health| endpoint.health == health)
    });
    fitting
        .map(|(index, endpoint)| {
            let weight = endpoint.weight.max(1);
            weight_end += u64::from(weight);
            Member { endpoint: index, weight, weight_end }
        })
        .collect()
}
