//! `ROUND_ROBIN`: in turn, heavier endpoints more often.

use crate::balance::{Load, edf::Edf, hosts::Pool};

/// The round of one pool. Equal weights: one after the other; else earliest deadline first, as in Envoy.
#[derive(Debug)]
pub(super) enum Round {
    /// The next member.
    Uniform(usize),
    Weighted(Edf),
}

impl Round {
    /// Starts at a place that `rng` decides. `weighted`: also where all weights are equal.
    pub(super) fn new(pool: &Pool, weighted: bool, rng: &mut fastrand::Rng) -> Self {
        let start = rng.usize(..pool.members.len());
        if pool.uniform && !weighted {
            return Self::Uniform(start);
        }
        Self::Weighted(weighted_round(pool, start))
    }

    /// The index of the endpoint whose turn it is.
    pub(super) fn pick(&mut self, pool: &Pool, load: &dyn Load) -> Option<usize> {
        let members = &pool.members;
        let member = match self {
            Self::Uniform(next) => {
                let member = *next;
                *next = if member + 1 < members.len() { member + 1 } else { 0 };
                member
            }
            Self::Weighted(edf) => edf.next(|member| {
                let member = members[member];
                f64::from(member.weight) * load.warmth(member.endpoint)
            })?,
        };
        Some(members[member].endpoint)
    }
}

/// A weighted round of a pool, after so many turns.
pub(super) fn weighted_round(pool: &Pool, turns: usize) -> Edf {
    let weights: Vec<_> = pool.members.iter().map(|member| f64::from(member.weight)).collect();
    Edf::after(turns, &weights)
}
