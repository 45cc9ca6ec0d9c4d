//! Zone-aware routing (`zone_aware_lb_config`): requests stay in Culvert's own zone as far as its share of the upstream
//! cluster reaches.

use culvert_model::{Endpoint, Health, Locality, ZoneAware};

use crate::balance::{
    Rules,
    hosts::{HostSet, Placed, Spread},
    locality::groups,
};

/// Where the instances are that Culvert is one of (`cluster_manager.local_cluster_name`).
#[derive(Clone, Debug, PartialEq)]
pub struct LocalZones {
    here: Locality,
    /// Healthy endpoints by locality, and their weights.
    zones: Vec<(Locality, [u64; 2])>,
    /// Localities with endpoints, whatever their health.
    localities: usize,
    /// Whether there are endpoints here.
    is_here: bool,
    /// Of endpoints that are counted: how many percent can be used.
    available: f64,
}

impl LocalZones {
    /// `here` is Culvert's own locality, `endpoints` are those of the local cluster; only its first priority counts.
    #[must_use]
    pub fn new(here: &Locality, endpoints: &[&Endpoint]) -> Self {
        let first = endpoints.iter().map(|endpoint| endpoint.priority).min();
        let counted: Vec<Placed<'_>> = endpoints
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, endpoint)| Some(endpoint.priority) == first)
            .collect();
        let mut zones = Vec::new();
        let groups = groups(&counted);
        for (locality, members) in &groups {
            let place = Locality { weight: 0, socket_match: None, ..(*locality).clone() };
            zones.push((place, sizes(members.iter().filter(|(_, e)| e.health == Health::Healthy))));
        }
        let included = counted.iter().filter(|(_, endpoint)| endpoint.health != Health::Excluded).count();
        let usable = counted
            .iter()
            .filter(|(_, endpoint)| matches!(endpoint.health, Health::Healthy | Health::Degraded))
            .count();
        Self {
            is_here: groups.iter().any(|(locality, _)| locality.is_same_place(here)),
            localities: groups.len(),
            here: here.clone(),
            zones,
            available: if included == 0 { 0.0 } else { 100.0 * usable as f64 / included as f64 },
        }
    }

    fn size(&self, locality: &Locality, basis: usize) -> u64 {
        let found = self.zones.iter().find(|(zone, _)| zone.is_same_place(locality));
        found.map_or(0, |(_, sizes)| sizes[basis])
    }
}

/// Number of endpoints, and the sum of their weights.
fn sizes<'p, 'e: 'p>(members: impl Iterator<Item = &'p Placed<'e>>) -> [u64; 2] {
    members.fold([0; 2], |[count, weight], (_, endpoint)| {
        [count + 1, weight + u64::from(endpoint.weight.max(1))]
    })
}

/// Envoy's `ZoneAwareLoadBalancerBase::regenerateLocalityRoutingStructures`.
#[derive(Debug)]
pub(super) struct Zones {
    /// The pool of all zones, for the requests that are not routed by zone.
    whole: usize,
    /// Of a hundred requests so many are routed by zone.
    percent: u32,
    /// The pool of Culvert's own zone, and how many of 10,000 requests it takes.
    here: Option<(usize, u64)>,
    /// Pools of other zones with the capacity they have left, summed up.
    others: Box<[(usize, u64)]>,
    /// Pools of all zones.
    all: Box<[usize]>,
}

/// What zone-aware routing did with a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ZoneChoice {
    /// All requests stay in the zone: `lb_zone_routing_all_directly`.
    Direct,
    /// It stays in the zone: `lb_zone_routing_sampled`.
    Sampled,
    /// It goes to another zone: `lb_zone_routing_cross_zone`.
    Crossed,
    /// Zones did not matter.
    #[default]
    None,
}

impl Zones {
    /// How the `eligible` endpoints, the healthy ones of `all`, are spread; `None` when zones do not matter.
    pub(super) fn spread(
        set: &mut HostSet,
        eligible: &[Placed<'_>],
        all: &[Placed<'_>],
        config: &ZoneAware,
        rules: &Rules<'_>,
    ) -> Option<Spread> {
        let local = rules.local?;
        let forced = config.force_local.is_some();
        if groups(all).len() < 2
            || (local.localities < 2 && !forced)
            || !local.is_here
            || (eligible.len() as u64) < config.min_cluster_size
            || config.percent == 0
        {
            return None;
        }
        if local.available < f64::from(rules.panic_percent) {
            return config.fail_on_panic.then_some(Spread::Nobody);
        }
        let basis = usize::from(config.by_weight);
        let local_total: u64 = local.zones.iter().map(|(_, sizes)| sizes[basis]).sum();
        let total = sizes(eligible.iter())[basis];
        let share = |part: u64, whole: u64| (10_000 * part).checked_div(whole).unwrap_or(0);
        let mut zones = Self {
            whole: set.add(eligible, None),
            percent: config.percent,
            here: None,
            others: Box::default(),
            all: Box::default(),
        };
        let (mut others, mut pools, mut end) = (Vec::new(), Vec::new(), 0);
        for (locality, members) in groups(eligible) {
            let pool = set.add(&members, None);
            pools.push(pool);
            let ours = share(local.size(locality, basis), local_total);
            let theirs = share(sizes(members.iter())[basis], total);
            if locality.is_same_place(&local.here) {
                let enough = config.force_local.is_some_and(|min| members.len() >= min as usize);
                let taken = if theirs >= ours || enough { 10_000 } else { theirs * 10_000 / ours };
                zones.here = Some((pool, taken));
            } else if theirs > ours {
                end += theirs - ours;
                others.push((pool, end));
            }
        }
        zones.others = others.into();
        zones.all = pools.into();
        Some(Spread::Zones(Box::new(zones)))
    }

    /// The pool for a request, and why.
    pub(super) fn pick(&self, rng: &mut fastrand::Rng) -> (usize, ZoneChoice) {
        if self.percent < 100 && rng.u32(..100) >= self.percent {
            return (self.whole, ZoneChoice::None);
        }
        match self.here {
            Some((pool, 10_000..)) => return (pool, ZoneChoice::Direct),
            Some((pool, taken)) if rng.u64(..10_000) < taken => return (pool, ZoneChoice::Sampled),
            _ => {}
        }
        let Some((_, end)) = self.others.last() else {
            // Only rounding leaves no capacity anywhere.
            return (self.all[rng.usize(..self.all.len())], ZoneChoice::Crossed);
        };
        let drawn = rng.u64(..*end);
        let at = self.others.partition_point(|(_, end)| *end <= drawn);
        (self.others[at].0, ZoneChoice::Crossed)
    }
}
