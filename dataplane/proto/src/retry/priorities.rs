//! Which priorities the attempts of a request avoid: Envoy's `envoy.retry_priorities.previous_priorities`.

use smallvec::SmallVec;

/// The priorities that a request was sent to.
#[derive(Clone, Debug)]
pub struct PreviousPriorities {
    /// `update_frequency`, at least 1.
    frequency: u32,
    /// Since the beginning, or since all priorities were tried.
    attempts: u32,
    tried: SmallVec<[u32; 4]>,
    /// In order.
    avoided: SmallVec<[u32; 4]>,
}

impl PreviousPriorities {
    /// Avoids what was tried after every `frequency` attempts, at least 1.
    #[must_use]
    pub fn new(frequency: u32) -> Self {
        let (tried, avoided) = (SmallVec::new(), SmallVec::new());
        Self { frequency: frequency.max(1), attempts: 0, tried, avoided }
    }

    /// An attempt goes to a host of this priority.
    pub fn tries(&mut self, priority: u32) {
        self.attempts = self.attempts.saturating_add(1);
        if !self.tried.contains(&priority) {
            self.tried.push(priority);
        }
    }

    /// The priorities to be avoided by the next attempt, in order.
    pub fn avoided(&mut self) -> &[u32] {
        if self.attempts > 0 && self.attempts.is_multiple_of(self.frequency) {
            self.avoided.clone_from(&self.tried);
            self.avoided.sort_unstable();
        }
        &self.avoided
    }

    /// Nothing is available at other priorities: it begins from the beginning.
    pub fn exhausted(&mut self) {
        self.attempts = 0;
        self.tried.clear();
        self.avoided.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The priorities of so many attempts, each the first of three that is not avoided. As Envoy 1.40 chose them.
    fn chosen(frequency: u32, attempts: usize) -> Vec<u32> {
        let mut priorities = PreviousPriorities::new(frequency);
        let next = |_| {
            let avoided = priorities.avoided();
            let priority = (0..3).find(|priority| !avoided.contains(priority));
            let priority = priority.unwrap_or_else(|| {
                priorities.exhausted();
                0
            });
            priorities.tries(priority);
            priority
        };
        (0..attempts).map(next).collect()
    }

    #[test]
    fn what_was_tried_is_avoided_until_all_were_tried() {
        assert_eq!(chosen(1, 10), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(chosen(2, 9), [0, 0, 1, 1, 2, 2, 0, 0, 1]);
        assert_eq!(chosen(3, 9), [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    }

    #[test]
    fn a_priority_that_was_tried_once_is_known_when_it_counts() {
        let mut priorities = PreviousPriorities::new(2);
        priorities.tries(3);
        assert!(priorities.avoided().is_empty());
        priorities.tries(1);
        assert_eq!(priorities.avoided(), [1, 3]);
        priorities.tries(0);
        assert_eq!(priorities.avoided(), [1, 3], "not before the next time");
        priorities.tries(0);
        assert_eq!(priorities.avoided(), [0, 1, 3]);
        priorities.exhausted();
        assert!(priorities.avoided().is_empty());
    }
}
