//! `RING_HASH` and `MAGLEV`: the same hash meets the same endpoint, also when others come and go.

use std::{fmt::Write as _, sync::Arc};

use culvert_model::{Endpoint, LbPolicy, Value};

use crate::{
    balance::{ActiveRequests, Balance, HostSet},
    hash::{murmur2, xxh64},
};

/// `RING_HASH` or `MAGLEV`, whose tables are part of the [`HostSet`].
#[derive(Debug)]
pub struct Hashed {
    hosts: Arc<HostSet>,
}

impl Hashed {
    /// Has no state.
    #[must_use]
    pub fn new(hosts: Arc<HostSet>) -> Self {
        Self { hosts }
    }

    /// The endpoints it chooses from.
    #[must_use]
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.hosts
    }

    /// The index of the endpoint for `hash`, in the load assignment.
    #[must_use]
    pub fn pick_for(&self, hash: u64) -> Option<usize> {
        let pool = &self.hosts.pools()[self.hosts.pool_of(hash)?];
        let member = pool.table().map(|table| table.member(hash))?;
        Some(pool.members()[member].endpoint)
    }
}

impl Balance for Hashed {
    fn pick(&mut self, _: &dyn ActiveRequests, rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick_for(rng.u64(..))
    }
}

/// From hashes to members of a pool.
#[derive(Debug)]
pub(super) enum Table {
    Maglev(Box<[u32]>),
    /// Sorted.
    Ring(Box<[(u64, u32)]>),
}

impl Table {
    /// The table of these endpoints with their weights (above 0); `None` for a policy that has none.
    pub(super) fn new(policy: &LbPolicy, members: &[(&Endpoint, u32)]) -> Option<Self> {
        if members.is_empty() {
            return None;
        }
        let sum: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
        match *policy {
            LbPolicy::Maglev { table_size, by_hostname } => {
                let entries = members
                    .iter()
                    .map(|(endpoint, weight)| (key(endpoint, by_hostname), f64::from(*weight) / sum));
                Some(Self::Maglev(maglev(&entries.collect::<Vec<_>>(), u64::from(table_size))))
            }
            LbPolicy::RingHash { min, max, murmur, by_hostname } => {
                let entries = members
                    .iter()
                    .map(|(endpoint, weight)| (key(endpoint, by_hostname), f64::from(*weight) / sum));
                Some(Self::Ring(ring(&entries.collect::<Vec<_>>(), min, max, murmur)))
            }
            LbPolicy::LeastRequest { .. } | LbPolicy::Random | LbPolicy::RoundRobin => None,
        }
    }

    fn member(&self, hash: u64) -> usize {
        let member = match self {
            Self::Maglev(table) => table[(hash % table.len() as u64) as usize],
            Self::Ring(ring) => {
                let at = ring.partition_point(|(point, _)| *point < hash);
                ring[if at == ring.len() { 0 } else { at }].1
            }
        };
        member as usize
    }
}

/// What an endpoint is hashed by: `envoy.lb`/`hash_key` of its metadata, else its hostname or address.
fn key(endpoint: &Endpoint, by_hostname: bool) -> String {
    let own = endpoint.metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb", ["hash_key"]));
    match own {
        Some(Value::String(key)) if !key.is_empty() => key.to_string(),
        _ if by_hostname => endpoint.hostname.to_string(),
        _ => endpoint.address.to_string(),
    }
}

/// Envoy's `RingHashLoadBalancer::Ring`: as many points per endpoint as its share of a ring in which the lightest
/// endpoint has a whole number of them.
fn ring(entries: &[(String, f64)], min: u64, max: u64, murmur: bool) -> Box<[(u64, u32)]> {
    let lightest = entries.iter().map(|(_, weight)| *weight).fold(1.0, f64::min);
    let scale = f64::min((lightest * min as f64).ceil() / lightest, max as f64);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    let mut text = String::new();
    for (member, (key, weight)) in entries.iter().enumerate() {
        target += scale * weight;
        let mut point = 0_u64;
        while current < target {
            text.clear();
            // Writing to a string cannot fail.
            let _ = write!(text, "{key}_{point}");
            let hash = if murmur { murmur2(text.as_bytes()) } else { xxh64(text.as_bytes(), 0) };
            points.push((hash, member as u32));
            point += 1;
            current += 1.0;
        }
    }
    points.sort_unstable();
    points.into_boxed_slice()
}

/// Envoy's `OriginalMaglevTable`: endpoints take turns to claim the next free place of their own permutation; lighter
/// ones sit out turns.
fn maglev(entries: &[(String, f64)], size: u64) -> Box<[u32]> {
    struct Claim {
        offset: u64,
        skip: u64,
        next: u64,
        weight: f64,
        due: f64,
    }
    const FREE: u32 = u32::MAX;
    let heaviest = entries.iter().map(|(_, weight)| *weight).fold(0.0, f64::max);
    let mut claims: Vec<Claim> = entries
        .iter()
        .map(|(key, weight)| Claim {
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % size.saturating_sub(1).max(1) + 1,
            next: 0,
            weight: *weight,
            due: 0.0,
        })
        .collect();
    let mut table = vec![FREE; size as usize];
    let mut taken = 0;
    let mut turn = 1.0;
    while taken < size {
        for (member, claim) in claims.iter_mut().enumerate() {
            if taken == size {
                break;
            }
            if turn * claim.weight < claim.due {
                continue;
            }
            claim.due += heaviest;
            loop {
                let place = (claim.offset + claim.skip * claim.next) % size;
                claim.next += 1;
                if table[place as usize] == FREE {
                    table[place as usize] = member as u32;
                    taken += 1;
                    break;
                }
            }
        }
        turn += 1.0;
    }
    table.into_boxed_slice()
}
