//! The priorities of an aggregate cluster: those of the clusters that it stands for, one after the other.

use culvert_model::LoadAssignment;
use smallvec::SmallVec;

use super::{
    hosts,
    priority::{self, Level, Share},
};

/// The priorities of an aggregate cluster: as if the endpoints of the first of its children had the highest ones, those of
/// the second one the next ones, and so on. Only priorities with endpoints count.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChildPriorities {
    levels: Vec<Level>,
    /// Whose each level is: the index of the child, and the priority there.
    owners: Vec<(usize, u32)>,
    children: usize,
    overprovisioning: u32,
    panic_percent: u32,
}

impl ChildPriorities {
    /// Of children with these endpoints and panic thresholds. The first one's settings hold for all.
    #[must_use]
    pub fn new(children: &[(&LoadAssignment, u32)]) -> Self {
        let mut all = Self {
            children: children.len(),
            overprovisioning: children.first().map_or(140, |(first, _)| first.policy.overprovisioning),
            panic_percent: children.first().map_or(50, |(_, panic)| *panic),
            ..Self::default()
        };
        for (child, (assignment, _)) in children.iter().enumerate() {
            for level in hosts::levels(assignment.endpoints.iter().map(AsRef::as_ref), &assignment.policy) {
                all.owners.push((child, level.priority));
                all.levels.push(Level { priority: all.levels.len() as u32, ..level });
            }
        }
        all
    }

    /// How many percent of the requests each child gets. All 0 when none can serve any.
    #[must_use]
    pub fn shares(&self) -> Vec<u8> {
        let mut shares = vec![0; self.children];
        for share in priority::plan(&self.levels, self.overprovisioning, self.panic_percent).shares {
            if let Some((owner, _)) = self.owners.get(share.priority as usize) {
                shares[*owner] += share.percent;
            }
        }
        shares
    }

    /// The number of a child's priority among all; `None` if it has no endpoints there.
    #[must_use]
    pub fn number(&self, child: usize, priority: u32) -> Option<u32> {
        self.owners.iter().position(|owner| *owner == (child, priority)).map(|number| number as u32)
    }

    /// The child, and its priority, for a request that avoids the priorities with these numbers. `drawn` is a random
    /// percentage below 100. `None` when nothing is available elsewhere.
    #[must_use]
    pub fn avoiding(&self, without: &[u32], drawn: u8) -> Option<(usize, u32)> {
        let limits = (self.overprovisioning, self.panic_percent);
        let plan = priority::plan_without(&self.levels, limits, without)?;
        let mut end = 0;
        let holds = |share: &&Share| {
            end += share.percent;
            drawn < end
        };
        let chosen = plan.shares.iter().find(holds)?;
        self.owners.get(chosen.priority as usize).copied()
    }

    /// The priorities of a child but one of them, in order.
    #[must_use]
    pub fn others(&self, child: usize, but: u32) -> SmallVec<[u32; 4]> {
        let of_child = self.owners.iter().filter(|(owner, priority)| *owner == child && *priority != but);
        of_child.map(|(_, priority)| *priority).collect()
    }
}
