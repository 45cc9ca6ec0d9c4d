//! Aggregate clusters: which of the clusters they stand for serves what.

use std::sync::Arc;

use culvert_model::{Discovery, LoadAssignment};
use culvert_proto::balance::ChildPriorities;

use super::Builder;
use crate::snapshot::{Children, ClusterSpec};

impl Builder {
    /// Decides which share of an aggregate cluster's requests goes to which of the clusters it stands for.
    pub(super) fn update_aggregates(&mut self, changed: &mut Vec<Arc<str>>) {
        let aggregates: Vec<Arc<str>> = self.aggregates.iter().cloned().collect();
        for name in aggregates {
            let mut leaves = Vec::new();
            let mut named = Vec::new();
            self.leaves(&name, &mut Vec::new(), &mut named, &mut leaves);
            if !changed.iter().any(|changed| named.contains(changed)) {
                continue;
            }
            let present = leaves.iter().map(|leaf| {
                let spec = &self.clusters[leaf].spec;
                let endpoints = spec.hosts.iter().map(|host| Arc::new(host.now().into_owned())).collect();
                (LoadAssignment { endpoints, policy: spec.policy.clone() }, spec.config.panic_percent)
            });
            let present: Vec<_> = present.collect();
            let assignments: Vec<_> =
                present.iter().map(|(assignment, panic)| (assignment, *panic)).collect();
            let priorities = ChildPriorities::new(&assignments);
            let shares = priorities.shares();
            let children = Children { shares: leaves.into_iter().zip(shares).collect(), priorities };
            let Some(known) = self.clusters.get_mut(&name) else { continue };
            if *known.spec.children == children {
                continue;
            }
            let children = Arc::new(children);
            known.spec = Arc::new(ClusterSpec { children, ..known.spec.version() });
            if !changed.contains(&name) {
                changed.push(name);
            }
        }
    }

    /// The clusters with endpoints that `name` stands for, in order. Unknown ones are left out, and so is one that
    /// stands for itself. All names that were met come to `named`.
    fn leaves(
        &self,
        name: &Arc<str>,
        above: &mut Vec<Arc<str>>,
        named: &mut Vec<Arc<str>>,
        leaves: &mut Vec<Arc<str>>,
    ) {
        named.push(name.clone());
        let Some(known) = self.clusters.get(name) else { return };
        let Discovery::Aggregate(children) = &known.spec.config.discovery else {
            if !leaves.contains(name) && !matches!(known.spec.config.discovery, Discovery::OriginalDst(_)) {
                leaves.push(name.clone());
            }
            return;
        };
        if above.contains(name) {
            log::warn!(target: "config", "aggregate cluster {name} stands for itself");
            return;
        }
        above.push(name.clone());
        for child in children {
            self.leaves(child, above, named, leaves);
        }
        above.pop();
    }
}
