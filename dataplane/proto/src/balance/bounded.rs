//! `hash_balance_factor`: an endpoint that has more than its bound passes requests on, each value to others of its own.

use crate::balance::{Load, hosts::Pool, table::Table};

/// What choosing another endpoint needs, kept so that nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Detour {
    order: Vec<u32>,
    random: Option<Box<Mt19937>>,
}

impl Detour {
    /// The member for `hash`: Envoy's `BoundedLoadHashingLoadBalancer::chooseHost`. The loads are this worker's, and so is
    /// the average: where every worker keeps the bound all together do.
    pub(super) fn pick(
        &mut self,
        pool: &Pool,
        table: &Table,
        (hash, attempt): (u64, u32),
        load: &dyn Load,
    ) -> usize {
        let first = table.member(hash, attempt);
        let Some(factor) = table.balance_factor else { return first };
        let total = u64::from(load.total());
        let slots = (total + 1).saturating_mul(u64::from(factor)).saturating_add(99) / 100;
        let overload = |member: usize| {
            let slots = (slots as f64 * table.shares[member]).ceil().max(1.0);
            f64::from(load.active(pool.members[member].endpoint)) / slots
        };
        let mut best = (first, overload(first));
        if best.1 <= 1.0 {
            return first;
        }
        let count = pool.members.len() as u32;
        self.order.clear();
        self.order.extend(0..count);
        let random = self.random.get_or_insert_default();
        random.seed(hash as u32);
        for place in 0..count {
            let other = place + random.below(count - place);
            self.order.swap(place as usize, other as usize);
            let member = self.order[place as usize] as usize;
            if member == first {
                continue;
            }
            let overload = overload(member);
            if overload <= 1.0 {
                return member;
            }
            if overload < best.1 {
                best = (member, overload);
            }
        }
        best.0
    }
}

/// The Mersenne Twister of C++'s `std::mt19937`, whose numbers Envoy goes by.
#[derive(Debug)]
struct Mt19937 {
    state: [u32; 624],
    next: usize,
}

impl Default for Mt19937 {
    fn default() -> Self {
        Self { state: [0; 624], next: 0 }
    }
}

impl Mt19937 {
    fn seed(&mut self, seed: u32) {
        self.state[0] = seed;
        for index in 1..self.state.len() {
            let before = self.state[index - 1];
            self.state[index] =
                (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        self.next = self.state.len();
    }

    fn number(&mut self) -> u32 {
        let length = self.state.len();
        if self.next == length {
            for index in 0..length {
                let joined =
                    (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % length] & 0x7fff_ffff);
                let twist = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[index] = self.state[(index + 397) % length] ^ (joined >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut number = self.state[self.next];
        self.next += 1;
        number ^= number >> 11;
        number ^= (number << 7) & 0x9d2c_5680;
        number ^= (number << 15) & 0xefc6_0000;
        number ^ (number >> 18)
    }

    /// A number below `end`, which is above 0.
    fn below(&mut self, end: u32) -> u32 {
        let step = (1_u64 << 32) / u64::from(end);
        loop {
            let drawn = u64::from(self.number()) / step;
            if drawn < u64::from(end) {
                return drawn as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10,000th number of a generator that is made without a seed, as the C++ standard demands it.
    #[test]
    fn numbers_of_the_standard() {
        let mut random = Mt19937::default();
        random.seed(5_489);
        let last = (0..10_000).map(|_| random.number()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
