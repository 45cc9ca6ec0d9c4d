//! The endpoints of a cluster, arranged for choosing.

use culvert_model::{AssignmentPolicy, Endpoint, Health, LbPolicy, LocalityPolicy};

use crate::balance::{
    LocalZones,
    locality::{self, Localities},
    priority::{self, Level, Share},
    table::Table,
    zone::Zones,
};

/// What decides how endpoints are arranged.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Who chooses.
    pub policy: &'a LbPolicy,
    /// `ClusterLoadAssignment.policy`
    pub assignment: &'a AssignmentPolicy,
    /// Health is disregarded at a priority of which less than this is available while all priorities together are not
    /// enough (Envoy's panic mode; 0 turns it off).
    pub panic_percent: u32,
    /// What localities mean.
    pub localities: LocalityPolicy,
    /// The zones of the cluster that Culvert is a part of, where that is known.
    pub local: Option<&'a LocalZones>,
    /// Priorities that are not chosen, unless nothing is available elsewhere.
    pub without: &'a [u32],
}

/// The endpoints of a cluster: which can be chosen, and how often. Immutable; share it between workers.
#[derive(Debug, Default)]
pub struct HostSet {
    len: usize,
    healthy: usize,
    exhausted: bool,
    tiers: Vec<Tier>,
    pools: Vec<Pool>,
}

/// Endpoints of one priority and health, with their share of the requests.
#[derive(Debug)]
pub(super) struct Tier {
    /// Percent of the picks up to and including this tier; 100 in the last.
    share_end: u8,
    /// Whether health is disregarded here.
    pub(super) panics: bool,
    /// How they are spread over pools.
    pub(super) spread: Spread,
}

/// How the requests of a tier are spread.
#[derive(Debug)]
pub(super) enum Spread {
    /// In turn, by the weights of localities.
    Localities(Localities),
    /// They are refused.
    Nobody,
    /// One pool has all.
    Pool(usize),
    /// By zones.
    Zones(Box<Zones>),
}

/// Endpoints among which a policy chooses. Never empty.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) members: Vec<Member>,
    /// Whether all weights are equal.
    pub(super) uniform: bool,
    /// Of policies that hash.
    pub(super) table: Option<Table>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Index in the load assignment.
    pub(super) endpoint: usize,
    /// At least 1.
    pub(super) weight: u32,
}

/// An endpoint with its index in the load assignment.
pub(super) type Placed<'e> = (usize, &'e Endpoint);

impl HostSet {
    /// Arranges the endpoints. Indexes returned by [`super::Balance::pick`] are places in `endpoints`.
    #[must_use]
    pub fn new(endpoints: &[&Endpoint], rules: &Rules<'_>) -> Self {
        let placed: Vec<_> = endpoints.iter().copied().enumerate().collect();
        Self::of(&placed, rules, &placed)
    }

    /// Arranges some of the endpoints of a cluster. Weights of localities are scaled down by how many of `whole` these
    /// are.
    pub(super) fn of(endpoints: &[Placed<'_>], rules: &Rules<'_>, whole: &[Placed<'_>]) -> Self {
        let mut set = Self {
            len: endpoints.len(),
            healthy: endpoints.iter().filter(|(_, endpoint)| endpoint.health == Health::Healthy).count(),
            ..Self::default()
        };
        let levels = levels(endpoints.iter().map(|(_, endpoint)| *endpoint), rules.assignment);
        let limits = (rules.assignment.overprovisioning, rules.panic_percent);
        let plan = match priority::plan_without(&levels, limits, rules.without) {
            Some(plan) => plan,
            None => {
                set.exhausted = !rules.without.is_empty();
                priority::plan(&levels, limits.0, limits.1)
            }
        };
        let mut share_end = 0;
        for share in plan.shares {
            let eligible: Vec<_> =
                endpoints.iter().copied().filter(|(_, endpoint)| fits(endpoint, &share)).collect();
            if eligible.is_empty() || share.percent == 0 {
                continue;
            }
            share_end += share.percent;
            let all = endpoints.iter().copied().filter(|(_, endpoint)| endpoint.priority == share.priority);
            let first = levels.first().is_some_and(|level| level.priority == share.priority);
            let spread = set.spread(&eligible, &all.collect::<Vec<_>>(), &share, rules, (whole, first));
            set.tiers.push(Tier { share_end, panics: share.health.is_none(), spread });
        }
        set
    }

    /// `eligible`: of `all` of the priority, those whose health fits. `first`: whether it is the first priority.
    fn spread(
        &mut self,
        eligible: &[Placed<'_>],
        all: &[Placed<'_>],
        share: &Share,
        rules: &Rules<'_>,
        (whole, first): (&[Placed<'_>], bool),
    ) -> Spread {
        if rules.policy.hashes() {
            let weighted = rules.localities == LocalityPolicy::Weighted;
            let weights = locality::normalized(eligible, weighted.then_some(all));
            // Localities without weight have nobody.
            let chosen: Vec<_> = eligible
                .iter()
                .zip(weights)
                .filter(|(_, weight)| *weight > 0.0)
                .map(|(placed, weight)| (*placed, weight))
                .collect();
            return match Table::new(rules.policy, &chosen) {
                Some(table) => {
                    let members: Vec<_> = chosen.iter().map(|(placed, _)| *placed).collect();
                    Spread::Pool(self.add(&members, Some(table)))
                }
                None => Spread::Nobody,
            };
        }
        match rules.localities {
            LocalityPolicy::ZoneAware(zones) if share.health.is_none() && zones.fail_on_panic => {
                Spread::Nobody
            }
            LocalityPolicy::Weighted if share.health.is_some() => {
                match Localities::new(self, eligible, all, whole, rules.assignment.overprovisioning) {
                    Some(localities) => Spread::Localities(localities),
                    None => Spread::Pool(self.add(eligible, None)),
                }
            }
            LocalityPolicy::ZoneAware(zones) if first && share.health == Some(Health::Healthy) => {
                match Zones::spread(self, eligible, all, &zones, rules) {
                    Some(spread) => spread,
                    None => Spread::Pool(self.add(eligible, None)),
                }
            }
            LocalityPolicy::Weighted | LocalityPolicy::ZoneAware(_) => Spread::Pool(self.add(eligible, None)),
        }
    }

    /// Makes a pool of these; its index.
    pub(super) fn add(&mut self, endpoints: &[Placed<'_>], table: Option<Table>) -> usize {
        let member =
            |(endpoint, config): &Placed<'_>| Member { endpoint: *endpoint, weight: config.weight.max(1) };
        let members: Vec<_> = endpoints.iter().map(member).collect();
        let uniform = members.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        self.pools.push(Pool { members, uniform, table });
        self.pools.len() - 1
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

    /// Whether nothing is available but at the priorities that were not to be chosen, which count again therefore.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether health is disregarded somewhere because too few endpoints are healthy (`lb_healthy_panic`).
    #[must_use]
    pub fn panics(&self) -> bool {
        self.tiers.iter().any(|tier| tier.panics)
    }

    pub(super) fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    pub(super) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The index of the tier that a number leads to, which may be a hash.
    pub(super) fn tier_of(&self, number: u64) -> Option<usize> {
        let end = u64::from(self.tiers.last()?.share_end);
        let drawn = number % end;
        Some(self.tiers.partition_point(|tier| u64::from(tier.share_end) <= drawn))
    }
}

fn fits(endpoint: &Endpoint, share: &Share) -> bool {
    endpoint.priority == share.priority && share.health.is_none_or(|health| endpoint.health == health)
}

/// What there is at each priority; priorities without endpoints are skipped.
pub(super) fn levels<'e>(
    endpoints: impl Iterator<Item = &'e Endpoint>,
    assignment: &AssignmentPolicy,
) -> Vec<Level> {
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
