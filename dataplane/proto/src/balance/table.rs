//! `RING_HASH` and `MAGLEV`: the same hash meets the same endpoint, also when others come and go.

use std::fmt::Write as _;

use culvert_model::{Endpoint, Hashing, LbPolicy, Value};

use crate::{
    balance::hosts::Placed,
    hash::{murmur2, xxh64},
};

/// From hashes to members of a pool.
#[derive(Debug)]
pub(super) struct Table {
    places: Places,
    /// The share of each member; all together they are 1, or less where localities are empty.
    pub(super) shares: Box<[f64]>,
    /// `hash_balance_factor`
    pub(super) balance_factor: Option<u32>,
}

#[derive(Debug)]
enum Places {
    Maglev(Box<[u32]>),
    /// Sorted.
    Ring(Box<[(u64, u32)]>),
}

impl Table {
    /// The table of these endpoints with their shares (above 0); `None` without any, or for a policy that has none.
    pub(super) fn new(policy: &LbPolicy, members: &[(Placed<'_>, f64)]) -> Option<Self> {
        if members.is_empty() {
            return None;
        }
        let entries = |hashing: Hashing| {
            members
                .iter()
                .map(|((_, endpoint), share)| (key(endpoint, hashing.by_hostname), *share))
                .collect::<Vec<_>>()
        };
        let (places, hashing) = match *policy {
            LbPolicy::Maglev { table_size, hashing } => {
                (Places::Maglev(maglev(&entries(hashing), u64::from(table_size))), hashing)
            }
            LbPolicy::RingHash { min, max, murmur, hashing } => {
                (Places::Ring(ring(&entries(hashing), min, max, murmur)), hashing)
            }
            LbPolicy::LeastRequest { .. }
            | LbPolicy::PeakEwma { .. }
            | LbPolicy::Random
            | LbPolicy::RoundRobin => return None,
        };
        let shares = members.iter().map(|(_, share)| *share).collect();
        Some(Self { places, shares, balance_factor: hashing.balance_factor })
    }

    /// The member for `hash`; another one, mostly, for each further `attempt` to find one that will do.
    pub(super) fn member(&self, hash: u64, attempt: u32) -> usize {
        let member = match &self.places {
            Places::Maglev(table) => {
                let hash = hash ^ u64::from(attempt).wrapping_neg();
                table[(hash % table.len() as u64) as usize]
            }
            Places::Ring(ring) => {
                let at = ring.partition_point(|(point, _)| *point < hash);
                let at = if at == ring.len() { 0 } else { at };
                ring[(at + attempt as usize) % ring.len()].1
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
    // With a minimum of 0 there would be no point at all, and nobody to choose.
    let scale = f64::min((lightest * min.max(1) as f64).ceil() / lightest, max.max(1) as f64);
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

/// Envoy's `OriginalMaglevTable`: endpoints take turns, in the order of their keys, to claim the next free place of their
/// own permutation; lighter ones sit out turns.
fn maglev(entries: &[(String, f64)], size: u64) -> Box<[u32]> {
    struct Claim {
        member: u32,
        offset: u64,
        skip: u64,
        next: u64,
        weight: f64,
        due: f64,
    }
    const FREE: u32 = u32::MAX;
    let heaviest = entries.iter().map(|(_, weight)| *weight).fold(0.0, f64::max);
    let mut order: Vec<_> = entries.iter().enumerate().collect();
    order.sort_by(|(_, (one, _)), (_, (other, _))| one.cmp(other));
    let mut claims: Vec<Claim> = order
        .into_iter()
        .map(|(member, (key, weight))| Claim {
            member: member as u32,
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
        for claim in &mut claims {
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
                    table[place as usize] = claim.member;
                    taken += 1;
                    break;
                }
            }
        }
        turn += 1.0;
    }
    table.into_boxed_slice()
}
