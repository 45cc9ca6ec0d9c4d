//! How a cluster chooses among its endpoints: `lb_policy`, `load_balancing_policy` and `common_lb_config`.

use culvert_model::{HashPolicy, LbPolicy};
use envoy_types::pb::envoy::{
    config::cluster::v3::{
        self as pb,
        cluster::{
            LbConfig, LbPolicy as PbPolicy, common_lb_config::LocalityConfigSpecifier,
            ring_hash_lb_config::HashFunction,
        },
    },
    extensions::load_balancing_policies::{
        cluster_provided::v3::ClusterProvided,
        common::v3::{ConsistentHashingLbConfig, LocalityLbConfig, locality_lb_config},
        least_request::v3::LeastRequest,
        maglev::v3::Maglev,
        random::v3::Random,
        ring_hash::v3::{RingHash, ring_hash},
        round_robin::v3::RoundRobin,
    },
    r#type::v3::Percent,
};

use super::{Localities, hash_policy::hash_policies, unpack};
use crate::{NoteKind, at::At};

/// `Maglev.table_size` when there is none.
const MAGLEV_TABLE: u64 = 65_537;
/// `RingHash.minimum_ring_size` and `maximum_ring_size` when there are none.
const RING: (u64, u64) = (1_024, 8 * 1_024 * 1_024);

/// What was asked for.
pub(super) struct Balancing {
    /// `None`: `CLUSTER_PROVIDED`.
    pub(super) policy: Option<LbPolicy>,
    pub(super) localities: Localities,
    /// Of the policy itself.
    pub(super) hash_policy: Vec<HashPolicy>,
}

/// The policy, from whichever of the two places it can be given in.
pub(super) fn balancing(at: &At<'_>, message: &pb::Cluster) -> Option<Balancing> {
    if let Some(policy) = message.load_balancing_policy.as_ref() {
        return typed(&at.field("load_balancing_policy"), policy);
    }
    let common = message.common_lb_config.as_ref();
    let localities = match common.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Localities::Weighted,
        _ => Localities::Ignored,
    };
    let by_hostname = common
        .and_then(|config| config.consistent_hashing_lb_config.as_ref())
        .is_some_and(|config| config.use_hostname_for_hashing);
    let at_policy = at.field("lb_policy");
    let policy = match (message.lb_policy(), message.lb_config.as_ref()) {
        (PbPolicy::RoundRobin, _) => Some(LbPolicy::RoundRobin),
        (PbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let choices = config.choice_count.as_ref().map_or(2, |count| count.value);
            Some(LbPolicy::LeastRequest { choices })
        }
        (PbPolicy::LeastRequest, _) => Some(LbPolicy::LeastRequest { choices: 2 }),
        (PbPolicy::Random, _) => Some(LbPolicy::Random),
        (PbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => Some(ring(
            &at.field("ring_hash_lb_config"),
            config.minimum_ring_size.as_ref().map(|size| size.value),
            config.maximum_ring_size.as_ref().map(|size| size.value),
            config.hash_function() == HashFunction::MurmurHash2,
            by_hostname,
        )?),
        (PbPolicy::RingHash, _) => {
            Some(LbPolicy::RingHash { min: RING.0, max: RING.1, murmur: false, by_hostname })
        }
        (PbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            let size = config.table_size.as_ref().map(|size| size.value);
            Some(maglev(&at.field("maglev_lb_config"), size, by_hostname)?)
        }
        (PbPolicy::Maglev, _) => Some(maglev(at, None, by_hostname)?),
        (PbPolicy::ClusterProvided, _) => None,
        (PbPolicy::LoadBalancingPolicyConfig, _) => {
            return at_policy.error("load_balancing_policy is required");
        }
    };
    let fits = matches!(
        (&policy, message.lb_config.as_ref()),
        (_, None)
            | (Some(LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(_)))
            | (Some(LbPolicy::LeastRequest { .. }), Some(LbConfig::LeastRequestLbConfig(_)))
            | (Some(LbPolicy::RingHash { .. }), Some(LbConfig::RingHashLbConfig(_)))
            | (Some(LbPolicy::Maglev { .. }), Some(LbConfig::MaglevLbConfig(_)))
            | (None, Some(LbConfig::OriginalDstLbConfig(_)))
    );
    if !fits {
        at_policy.note(NoteKind::NoEffect, "settings of another load-balancing policy are given");
    }
    Some(Balancing { policy, localities, hash_policy: Vec::new() })
}

/// The first policy that is supported; the walk has seen that there is one.
fn typed(at: &At<'_>, policy: &pb::LoadBalancingPolicy) -> Option<Balancing> {
    let at_policies = at.field("policies");
    for (index, entry) in policy.policies.iter().enumerate() {
        let any = entry.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        let Some(any) = any else { continue };
        let at = at_policies.index(index);
        let at = at.field("typed_extension_config");
        let at = at.field("typed_config");
        let of = |policy: LbPolicy, config: Option<&LocalityLbConfig>| {
            let localities = localities(config);
            Some(Balancing { policy: Some(policy), localities, hash_policy: Vec::new() })
        };
        if let Some(policy) = unpack::<RoundRobin>(any) {
            return of(LbPolicy::RoundRobin, policy.locality_lb_config.as_ref());
        }
        if let Some(policy) = unpack::<LeastRequest>(any) {
            let choices = policy.choice_count.as_ref().map_or(2, |count| count.value);
            return of(LbPolicy::LeastRequest { choices }, policy.locality_lb_config.as_ref());
        }
        if let Some(policy) = unpack::<Random>(any) {
            return of(LbPolicy::Random, policy.locality_lb_config.as_ref());
        }
        let weighted = |given: bool| if given { Localities::Weighted } else { Localities::Ignored };
        if let Some(policy) = unpack::<RingHash>(any) {
            let by_hostname =
                policy.use_hostname_for_hashing || named(policy.consistent_hashing_lb_config.as_ref());
            let ring = ring(
                &at,
                policy.minimum_ring_size.as_ref().map(|size| size.value),
                policy.maximum_ring_size.as_ref().map(|size| size.value),
                policy.hash_function() == ring_hash::HashFunction::MurmurHash2,
                by_hostname,
            )?;
            let localities = weighted(policy.locality_weighted_lb_config.is_some());
            let hash_policy = own_hash_policy(&at, policy.consistent_hashing_lb_config.as_ref())?;
            return Some(Balancing { policy: Some(ring), localities, hash_policy });
        }
        if let Some(policy) = unpack::<Maglev>(any) {
            let by_hostname = named(policy.consistent_hashing_lb_config.as_ref());
            let maglev = maglev(&at, policy.table_size.as_ref().map(|size| size.value), by_hostname)?;
            let localities = weighted(policy.locality_weighted_lb_config.is_some());
            let hash_policy = own_hash_policy(&at, policy.consistent_hashing_lb_config.as_ref())?;
            return Some(Balancing { policy: Some(maglev), localities, hash_policy });
        }
        if unpack::<ClusterProvided>(any).is_some() {
            return Some(Balancing {
                policy: None,
                localities: Localities::Ignored,
                hash_policy: Vec::new(),
            });
        }
    }
    at.unsupported("no policy that is supported")
}

fn localities(config: Option<&LocalityLbConfig>) -> Localities {
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(locality_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            Localities::Weighted
        }
        _ => Localities::Ignored,
    }
}

fn own_hash_policy(at: &At<'_>, config: Option<&ConsistentHashingLbConfig>) -> Option<Vec<HashPolicy>> {
    let Some(config) = config else { return Some(Vec::new()) };
    let at = at.field("consistent_hashing_lb_config");
    hash_policies(&at.field("hash_policy"), &config.hash_policy)
}

fn named(config: Option<&ConsistentHashingLbConfig>) -> bool {
    config.is_some_and(|config| config.use_hostname_for_hashing)
}

fn ring(
    at: &At<'_>,
    min: Option<u64>,
    max: Option<u64>,
    murmur: bool,
    by_hostname: bool,
) -> Option<LbPolicy> {
    let (min, max) = (min.unwrap_or(RING.0), max.unwrap_or(RING.1));
    if min > max {
        return at.error(format!("minimum_ring_size {min} is greater than maximum_ring_size {max}"));
    }
    Some(LbPolicy::RingHash { min, max, murmur, by_hostname })
}

fn maglev(at: &At<'_>, size: Option<u64>, by_hostname: bool) -> Option<LbPolicy> {
    let size = size.unwrap_or(MAGLEV_TABLE);
    match u32::try_from(size) {
        Ok(table_size) if is_prime(size) => Some(LbPolicy::Maglev { table_size, by_hostname }),
        _ => at.field("table_size").error("the table size of maglev must be prime number"),
    }
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// `healthy_panic_threshold`: present and empty it is 0.
pub(super) fn panic_percent(threshold: Option<&Percent>) -> u32 {
    // The walk has seen that it is between 0 and 100.
    threshold.map_or(50, |percent| percent.value.round().clamp(0.0, 100.0) as u32)
}
