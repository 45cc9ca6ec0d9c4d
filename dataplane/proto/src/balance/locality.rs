//! Localities with weights (`locality_weighted_lb_config`).

use culvert_model::{Endpoint, Health, Locality};

use crate::balance::hosts::{HostSet, Placed};

/// Localities that take turns by weight: Envoy's `HostSetImpl::rebuildLocalityScheduler`.
#[derive(Debug)]
pub(super) struct Localities {
    /// Their pools.
    pub(super) pools: Box<[usize]>,
    /// Above 0, one for each pool.
    pub(super) weights: Box<[f64]>,
}

impl Localities {
    /// `None` when there is none with weight. `eligible` are of `all`; a locality of which few are has that much less,
    /// as far as overprovisioning does not make up for it. Where only some of the `whole` cluster are chosen from, it has
    /// less by these too.
    pub(super) fn new(
        set: &mut HostSet,
        eligible: &[Placed<'_>],
        all: &[Placed<'_>],
        whole: &[Placed<'_>],
        overprovisioning: u32,
    ) -> Option<Self> {
        let (mut pools, mut weights) = (Vec::new(), Vec::new());
        for (locality, members) in groups(eligible) {
            let here = |(_, endpoint): &&Placed<'_>| endpoint.locality.is_same_place(locality);
            let counted = all.iter().filter(here).filter(|(_, endpoint)| endpoint.health != Health::Excluded);
            let available = members.len() as f64 / counted.count().max(1) as f64;
            let priority = members[0].1.priority;
            let scale = match whole.len() == all.len() {
                true => 1.0,
                false => {
                    let of_cluster =
                        whole.iter().filter(here).filter(|(_, endpoint)| endpoint.priority == priority);
                    all.iter().filter(here).count() as f64 / of_cluster.count().max(1) as f64
                }
            };
            let share = (f64::from(overprovisioning) / 100.0 * available).min(1.0);
            let weight = (f64::from(locality.weight) * scale).round() * share;
            if weight > 0.0 {
                pools.push(set.add(&members, None));
                weights.push(weight);
            }
        }
        (!pools.is_empty()).then(|| Self { pools: pools.into(), weights: weights.into() })
    }
}

/// Endpoints by where they are, in order of appearance.
pub(super) fn groups<'e>(endpoints: &[Placed<'e>]) -> Vec<(&'e Locality, Vec<Placed<'e>>)> {
    let mut groups: Vec<(&Locality, Vec<Placed<'e>>)> = Vec::new();
    for placed in endpoints {
        let locality: &Locality = &placed.1.locality;
        // Endpoints of a locality mostly come one after the other.
        match groups.iter().rposition(|(known, _)| known.is_same_place(locality)) {
            Some(at) => groups[at].1.push(*placed),
            None => groups.push((locality, vec![*placed])),
        }
    }
    groups
}

/// The share of each endpoint, as policies that hash need it: Envoy's `normalizeWeights`. With the endpoints of the whole
/// priority a locality has its share of their weights, else localities do not matter.
pub(super) fn normalized(eligible: &[Placed<'_>], by_locality: Option<&[Placed<'_>]>) -> Vec<f64> {
    let weight = |endpoint: &Endpoint| f64::from(endpoint.weight.max(1));
    let Some(all) = by_locality else {
        let sum: f64 = eligible.iter().map(|(_, endpoint)| weight(endpoint)).sum();
        return eligible.iter().map(|(_, endpoint)| weight(endpoint) / sum).collect();
    };
    let total: f64 = groups(all).iter().map(|(locality, _)| f64::from(locality.weight)).sum();
    let sums: Vec<(&Locality, f64)> = groups(eligible)
        .into_iter()
        .map(|(locality, members)| (locality, members.iter().map(|(_, endpoint)| weight(endpoint)).sum()))
        .collect();
    let share = |(_, endpoint): &Placed<'_>| {
        let of = sums.iter().find(|(locality, _)| locality.is_same_place(&endpoint.locality));
        of.map_or(0.0, |(locality, sum)| weight(endpoint) / sum * f64::from(locality.weight) / total)
    };
    if total > 0.0 { eligible.iter().map(share).collect() } else { vec![0.0; eligible.len()] }
}
