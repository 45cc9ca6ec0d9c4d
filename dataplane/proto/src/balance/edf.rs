//! Earliest deadline first: every member comes up as often as its weight says, evenly spaced, also while weights change.

use std::{cmp::Ordering, collections::BinaryHeap};

/// Envoy's `EdfScheduler`: a member's deadline is the time of its last turn plus the inverse of its weight.
#[derive(Debug, Default)]
pub(super) struct Edf {
    heap: BinaryHeap<Turn>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    deadline: f64,
    /// Equal deadlines come up in the order of the members.
    member: usize,
}

impl Edf {
    /// All members of these weights (above 0), before their first turn.
    pub(super) fn new(weights: impl Iterator<Item = f64>) -> Self {
        let turn = |(member, weight)| Turn { deadline: 1.0 / weight, member };
        Self { heap: weights.enumerate().map(turn).collect() }
    }

    /// As [`Edf::new`], after so many turns: not all schedules begin with the same member.
    pub(super) fn after(turns: usize, weights: &[f64]) -> Self {
        let mut edf = Self::new(weights.iter().copied());
        for _ in 0..turns {
            edf.next(|member| weights[member]);
        }
        edf
    }

    /// The member whose turn it is. `weight` gives its weight for the time until its next turn.
    pub(super) fn next(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let mut turn = self.heap.peek_mut()?;
        turn.deadline += 1.0 / weight(turn.member);
        Some(turn.member)
    }
}

/// The heap is one of maxima: the earliest deadline is the greatest.
impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.member.cmp(&self.member))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spaced_by_weight() {
        let weights = [1.0, 2.0, 4.0];
        let mut edf = Edf::new(weights.into_iter());
        let turns: Vec<usize> = (0..14).map(|_| edf.next(|member| weights[member]).unwrap()).collect();
        assert_eq!(turns, [2, 1, 2, 2, 0, 1, 2, 2, 1, 2, 2, 0, 1, 2]);
        assert_eq!(Edf::default().next(|_| 1.0), None);
    }

    #[test]
    fn equal_weights_take_turns() {
        let mut edf = Edf::new([7.0; 5].into_iter());
        for round in 0..3 {
            for expected in 0..5 {
                assert_eq!(edf.next(|_| 7.0), Some(expected), "round {round}");
            }
        }
    }
}
