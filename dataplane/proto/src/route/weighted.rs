//! Choosing among weighted clusters.

use culvert_model::{WeightedCluster, WeightedClusters};

/// Chooses a cluster by weight; `None` when all weights are 0.
///
/// The same `random` gives the same cluster, as in Envoy.
#[must_use]
pub fn pick_cluster(clusters: &WeightedClusters, random: u64) -> Option<&WeightedCluster> {
    let mut left = random.checked_rem(clusters.total)?;
    clusters.clusters.iter().find(|cluster| {
        let weight = u64::from(cluster.weight);
        let chosen = left < weight;
        left = left.saturating_sub(weight);
        chosen
    })
}

#[cfg(test)]
mod tests {
    use culvert_model::HeaderMutations;

    use super::*;

    fn clusters(weights: &[u32]) -> WeightedClusters {
        let cluster = |(index, &weight): (usize, &u32)| WeightedCluster {
            name: index.to_string().into(),
            weight,
            subset: None,
            host_rewrite: None,
            headers: HeaderMutations::default(),
            filters: Vec::new(),
        };
        let total = weights.iter().copied().map(u64::from).sum();
        WeightedClusters {
            clusters: weights.iter().enumerate().map(cluster).collect(),
            total,
            use_hash_policy: false,
            random_header: None,
        }
    }

    #[test]
    fn every_weight_gets_exactly_its_numbers() {
        let weights = [1, 0, 99, 0, 50];
        let clusters = clusters(&weights);
        let mut counts = [0; 5];
        for random in 0..300 {
            let chosen = pick_cluster(&clusters, random).unwrap();
            counts[chosen.name.parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(counts, [2, 0, 198, 0, 100]);
    }

    #[test]
    fn nothing_to_choose_from() {
        assert!(pick_cluster(&clusters(&[0, 0]), 7).is_none());
        assert!(pick_cluster(&clusters(&[]), 7).is_none());
        let huge = clusters(&[u32::MAX, u32::MAX]);
        assert_eq!(&*pick_cluster(&huge, u64::from(u32::MAX)).unwrap().name, "1");
    }
}
