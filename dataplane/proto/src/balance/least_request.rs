//! `LEAST_REQUEST`: the less busy of a few, or of all.

use crate::balance::{
    Load,
    edf::Edf,
    hosts::{Member, Pool},
    round_robin::weighted_round,
};

/// How the less busy one is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeastRequest {
    /// How many are compared; `None` for all. 2 are nearly as good as all, and cannot herd.
    pub(super) choices: Option<u32>,
    /// What requests in flight count where weights differ.
    pub(super) bias: f64,
}

/// The weighted round of a pool, in which an endpoint counts `weight / (requests in flight + 1) ^ bias`; `None` where all
/// weights are equal, and `weighted` is not asked for.
pub(super) fn round(pool: &Pool, weighted: bool, rng: &mut fastrand::Rng) -> Option<Edf> {
    let turns = rng.usize(..pool.members.len());
    (!pool.uniform || weighted).then(|| weighted_round(pool, turns))
}

impl LeastRequest {
    /// The index of the endpoint for one request.
    pub(super) fn pick(
        self,
        pool: &Pool,
        round: Option<&mut Edf>,
        load: &dyn Load,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let members = &pool.members;
        match (round, self.choices) {
            (Some(edf), _) => {
                let member = edf.next(|member| self.weight(members[member], load))?;
                Some(members[member].endpoint)
            }
            (None, Some(choices)) => Some(less_busy(members, choices, load, rng)),
            (None, None) => least_busy(members, load, rng),
        }
    }

    fn weight(self, member: Member, load: &dyn Load) -> f64 {
        let busy = f64::from(load.active(member.endpoint)) + 1.0;
        f64::from(member.weight) / busy.powf(self.bias) * load.warmth(member.endpoint)
    }
}

/// Draws with repetition, as Envoy does; the first of equals stays.
fn less_busy(members: &[Member], choices: u32, load: &dyn Load, rng: &mut fastrand::Rng) -> usize {
    let mut best = members[rng.usize(..members.len())].endpoint;
    let mut best_active = load.active(best);
    for _ in 1..choices {
        let other = members[rng.usize(..members.len())].endpoint;
        let other_active = load.active(other);
        if other_active < best_active {
            (best, best_active) = (other, other_active);
        }
    }
    best
}

/// The least busy of all; equals have the same chance.
fn least_busy(members: &[Member], load: &dyn Load, rng: &mut fastrand::Rng) -> Option<usize> {
    let (mut best, mut best_active, mut equals) = (None, u32::MAX, 0);
    for member in members {
        let active = load.active(member.endpoint);
        if active < best_active || best.is_none() {
            (best, best_active, equals) = (Some(member.endpoint), active, 1);
        } else if active == best_active {
            equals += 1;
            if rng.u32(..equals) == 0 {
                best = Some(member.endpoint);
            }
        }
    }
    best
}
