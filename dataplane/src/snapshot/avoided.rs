//! How the hosts of a cluster are arranged for requests that avoid some of its priorities.

use std::sync::OnceLock;

use super::Arranged;

/// For how many sets of priorities that is kept: more than requests that are retried come to avoid.
const SETS_MAX: usize = 32;

/// One arrangement for each set of priorities that was avoided, made for the first who asks and shared by all workers.
#[derive(Default)]
pub struct AvoidedSets(OnceLock<Box<AvoidedSet>>);

struct AvoidedSet {
    priorities: Box<[u32]>,
    arranged: Arranged,
    next: AvoidedSets,
}

impl AvoidedSets {
    /// The arrangement without these priorities, which `arrange` makes. With too many sets it is not kept.
    pub(super) fn get(&self, priorities: &[u32], arrange: impl Fn() -> Arranged) -> Arranged {
        let mut next = self;
        for _ in 0..SETS_MAX {
            let set = next.0.get_or_init(|| {
                let next = Self::default();
                Box::new(AvoidedSet { priorities: priorities.into(), arranged: arrange(), next })
            });
            if *set.priorities == *priorities {
                return set.arranged.clone();
            }
            next = &set.next;
        }
        arrange()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use culvert_proto::balance::HostSet;

    use super::*;

    fn hosts(arranged: &Arranged) -> *const HostSet {
        match arranged {
            Arranged::Whole(hosts) => Arc::as_ptr(hosts),
            Arranged::Subsets(_) => unreachable!("no subsets were made"),
        }
    }

    #[test]
    fn every_set_is_arranged_once() {
        let sets = AvoidedSets::default();
        let made = Cell::new(0);
        let arrange = || {
            made.set(made.get() + 1);
            Arranged::Whole(Arc::default())
        };
        let get = |priorities: &[u32]| sets.get(priorities, arrange);
        let (first, second) = (get(&[0]), get(&[0, 1]));
        assert_ne!(hosts(&first), hosts(&second));
        assert_eq!((hosts(&get(&[0])), hosts(&get(&[0, 1]))), (hosts(&first), hosts(&second)));
        assert_eq!(made.get(), 2);
        // What nobody would ever ask for is not kept for ever.
        for priority in 0..100 {
            get(&[priority]);
        }
        assert_eq!(made.get(), 101);
        get(&[99]);
        get(&[0]);
        assert_eq!(made.get(), 102);
    }
}
