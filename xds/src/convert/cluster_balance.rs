//! How a cluster chooses among its endpoints: `lb_policy`, `load_balancing_policy` and `common_lb_config`.

use std::time::Duration;

use culvert_model::{HashPolicy, Hashing, LbPolicy, LocalityPolicy, SlowStart, Subsets, ZoneAware};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as pb,
                cluster::{
                    LbConfig, LbPolicy as PbPolicy, SlowStartConfig as PbSlowStart,
                    common_lb_config::LocalityConfigSpecifier, ring_hash_lb_config::HashFunction,
                },
            },
            core::v3::RuntimeDouble,
        },
        extensions::load_balancing_policies::{
            cluster_provided::v3::ClusterProvided,
            common::v3::{
                ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
                locality_lb_config::{self, zone_aware_lb_config::LocalityBasis},
            },
            least_request::v3::{LeastRequest, least_request::SelectionMethod},
            maglev::v3::Maglev,
            random::v3::Random,
            ring_hash::v3::{RingHash, ring_hash},
            round_robin::v3::RoundRobin,
            subset::v3::Subset,
            wrr_locality::v3::WrrLocality,
        },
        r#type::v3::Percent,
    },
    google::protobuf,
};

use super::{core, hash_policy::hash_policies, subset, unpack};
use crate::{NoteKind, at::At};

/// `Maglev.table_size` when there is none.
const MAGLEV_TABLE: u64 = 65_537;
/// `RingHash.minimum_ring_size` and `maximum_ring_size` when there are none.
const RING: (u64, u64) = (1_024, 8 * 1_024 * 1_024);
/// `PeakEwma.decay_time` when there is none.
const DECAY: Duration = Duration::from_secs(10);

/// What was asked for.
#[derive(Default)]
pub(super) struct Balancing {
    /// `None`: `CLUSTER_PROVIDED`.
    pub(super) policy: Option<LbPolicy>,
    pub(super) localities: LocalityPolicy,
    pub(super) slow_start: Option<SlowStart>,
    /// Of the policy itself.
    pub(super) hash_policy: Vec<HashPolicy>,
    pub(super) subsets: Option<Subsets>,
}

/// `culvert.v1.PeakEwma`; a test holds it to its descriptor.
#[derive(Clone, PartialEq, prost::Message)]
struct PeakEwma {
    #[prost(message, optional, tag = "1")]
    decay_time: Option<protobuf::Duration>,
}

impl prost::Name for PeakEwma {
    const NAME: &'static str = "PeakEwma";
    const PACKAGE: &'static str = "culvert.v1";
}

/// The policy, from whichever of the two places it can be given in.
pub(super) fn balancing(at: &At<'_>, message: &pb::Cluster) -> Option<Balancing> {
    if let Some(policy) = message.load_balancing_policy.as_ref() {
        return typed(&at.field("load_balancing_policy"), policy);
    }
    let common = message.common_lb_config.as_ref();
    let localities = match common.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => LocalityPolicy::Weighted,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => LocalityPolicy::ZoneAware(ZoneAware {
            percent: percent_or(config.routing_enabled.as_ref(), 100),
            min_cluster_size: config.min_cluster_size.as_ref().map_or(6, |size| size.value),
            fail_on_panic: config.fail_traffic_on_panic,
            ..ZoneAware::default()
        }),
        None => LocalityPolicy::default(),
    };
    let hashing = common.and_then(|config| config.consistent_hashing_lb_config.as_ref());
    let hashing = hashing.map_or_else(Hashing::default, |config| Hashing {
        by_hostname: config.use_hostname_for_hashing,
        balance_factor: config.hash_balance_factor.as_ref().map(|factor| factor.value),
    });
    let at_policy = at.field("lb_policy");
    let mut slow_start = None;
    let policy = match (message.lb_policy(), message.lb_config.as_ref()) {
        (PbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let at = at.field("round_robin_lb_config");
            slow_start = given(config.slow_start_config.as_ref(), |config| old_slow_start(&at, config))?;
            Some(LbPolicy::RoundRobin)
        }
        (PbPolicy::RoundRobin, _) => Some(LbPolicy::RoundRobin),
        (PbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let at = at.field("least_request_lb_config");
            slow_start = given(config.slow_start_config.as_ref(), |config| old_slow_start(&at, config))?;
            Some(LbPolicy::LeastRequest {
                choices: config.choice_count.as_ref().map_or(2, |count| count.value),
                full_scan: false,
                bias: bias(&at, config.active_request_bias.as_ref())?,
            })
        }
        (PbPolicy::LeastRequest, _) => Some(LbPolicy::least_request(2)),
        (PbPolicy::Random, _) => Some(LbPolicy::Random),
        (PbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => Some(ring(
            &at.field("ring_hash_lb_config"),
            config.minimum_ring_size.as_ref(),
            config.maximum_ring_size.as_ref(),
            config.hash_function() == HashFunction::MurmurHash2,
            hashing,
        )?),
        (PbPolicy::RingHash, _) => {
            Some(LbPolicy::RingHash { min: RING.0, max: RING.1, murmur: false, hashing })
        }
        (PbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            Some(maglev(&at.field("maglev_lb_config"), config.table_size.as_ref(), hashing)?)
        }
        (PbPolicy::Maglev, _) => Some(maglev(at, None, hashing)?),
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
    // As in Envoy: without a selector there are no subsets.
    let subsets = message.lb_subset_config.as_ref().filter(|config| !config.subset_selectors.is_empty());
    let subsets = match subsets {
        Some(_) if policy.is_none() => {
            return at.field("lb_subset_config").error("CLUSTER_PROVIDED cannot have subsets");
        }
        Some(config) => Some(subset::subsets(&at.field("lb_subset_config"), config)?),
        None => None,
    };
    Some(Balancing { policy, localities, slow_start, hash_policy: Vec::new(), subsets })
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
        if let Some(policy) = unpack::<RoundRobin>(any) {
            return Some(Balancing {
                policy: Some(LbPolicy::RoundRobin),
                localities: localities(policy.locality_lb_config.as_ref()),
                slow_start: given(policy.slow_start_config.as_ref(), |config| slow_start(&at, config))?,
                ..Balancing::default()
            });
        }
        if let Some(policy) = unpack::<LeastRequest>(any) {
            return least_request(&at, &policy);
        }
        if let Some(policy) = unpack::<Random>(any) {
            let localities = localities(policy.locality_lb_config.as_ref());
            return Some(Balancing { policy: Some(LbPolicy::Random), localities, ..Balancing::default() });
        }
        if let Some(policy) = unpack::<RingHash>(any) {
            return ring_hash(&at, &policy);
        }
        if let Some(policy) = unpack::<Maglev>(any) {
            let config = policy.consistent_hashing_lb_config.as_ref();
            let maglev = maglev(&at, policy.table_size.as_ref(), hashing(config))?;
            let weighted = policy.locality_weighted_lb_config.is_some();
            return hashed(&at, maglev, weighted, config);
        }
        if let Some(policy) = unpack::<PeakEwma>(any) {
            let at = at.field("decay_time");
            let decay = core::duration_or(&at, policy.decay_time.as_ref(), DECAY)?;
            let policy = Some(LbPolicy::PeakEwma { decay });
            return Some(Balancing { policy, ..Balancing::default() });
        }
        if let Some(policy) = unpack::<WrrLocality>(any) {
            let at = at.field("endpoint_picking_policy");
            let Some(inner) = policy.endpoint_picking_policy.as_ref() else {
                return at.error("value is required");
            };
            return typed(&at, inner)
                .map(|inner| Balancing { localities: LocalityPolicy::Weighted, ..inner });
        }
        if let Some(policy) = unpack::<Subset>(any) {
            let at_inner = at.field("subset_lb_policy");
            let Some(inner) = policy.subset_lb_policy.as_ref() else {
                return at_inner.error("value is required");
            };
            let inner = typed(&at_inner, inner)?;
            if inner.policy.is_none() || inner.subsets.is_some() {
                return at_inner.unsupported("the policy of a subset has to choose endpoints itself");
            }
            return Some(Balancing { subsets: Some(subset::typed(&at, &policy)?), ..inner });
        }
        if unpack::<ClusterProvided>(any).is_some() {
            return Some(Balancing::default());
        }
    }
    at.unsupported("no policy that is supported")
}

fn least_request(at: &At<'_>, policy: &LeastRequest) -> Option<Balancing> {
    let scans = policy.enable_full_scan.as_ref().is_some_and(|enabled| enabled.value);
    Some(Balancing {
        policy: Some(LbPolicy::LeastRequest {
            choices: policy.choice_count.as_ref().map_or(2, |count| count.value),
            full_scan: scans || policy.selection_method() == SelectionMethod::FullScan,
            bias: bias(at, policy.active_request_bias.as_ref())?,
        }),
        localities: localities(policy.locality_lb_config.as_ref()),
        slow_start: given(policy.slow_start_config.as_ref(), |config| slow_start(at, config))?,
        ..Balancing::default()
    })
}

fn ring_hash(at: &At<'_>, policy: &RingHash) -> Option<Balancing> {
    let config = policy.consistent_hashing_lb_config.as_ref();
    let own = hashing(config);
    let hashing = Hashing {
        by_hostname: policy.use_hostname_for_hashing || own.by_hostname,
        balance_factor: own
            .balance_factor
            .or_else(|| policy.hash_balance_factor.as_ref().map(|factor| factor.value)),
    };
    let ring = ring(
        at,
        policy.minimum_ring_size.as_ref(),
        policy.maximum_ring_size.as_ref(),
        policy.hash_function() == ring_hash::HashFunction::MurmurHash2,
        hashing,
    )?;
    hashed(at, ring, policy.locality_weighted_lb_config.is_some(), config)
}

fn hashed(
    at: &At<'_>,
    policy: LbPolicy,
    weighted: bool,
    config: Option<&ConsistentHashingLbConfig>,
) -> Option<Balancing> {
    let at = at.field("consistent_hashing_lb_config");
    let policies = config.map_or(&[][..], |config| &config.hash_policy);
    Some(Balancing {
        policy: Some(policy),
        localities: if weighted { LocalityPolicy::Weighted } else { LocalityPolicy::default() },
        hash_policy: hash_policies(&at.field("hash_policy"), policies)?,
        ..Balancing::default()
    })
}

fn localities(config: Option<&LocalityLbConfig>) -> LocalityPolicy {
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(locality_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            LocalityPolicy::Weighted
        }
        Some(locality_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let forced = config.force_local_zone.as_ref();
            let forced = forced.map(|forced| forced.min_size.as_ref().map_or(1, |size| size.value));
            LocalityPolicy::ZoneAware(ZoneAware {
                percent: percent_or(config.routing_enabled.as_ref(), 100),
                min_cluster_size: config.min_cluster_size.as_ref().map_or(6, |size| size.value),
                fail_on_panic: config.fail_traffic_on_panic,
                force_local: forced.or_else(|| config.force_locality_direct_routing.then_some(1)),
                by_weight: config.locality_basis() == LocalityBasis::HealthyHostsWeight,
            })
        }
        None => LocalityPolicy::default(),
    }
}

fn hashing(config: Option<&ConsistentHashingLbConfig>) -> Hashing {
    config.map_or_else(Hashing::default, |config| Hashing {
        by_hostname: config.use_hostname_for_hashing,
        balance_factor: config.hash_balance_factor.as_ref().map(|factor| factor.value),
    })
}

fn ring(
    at: &At<'_>,
    min: Option<&protobuf::UInt64Value>,
    max: Option<&protobuf::UInt64Value>,
    murmur: bool,
    hashing: Hashing,
) -> Option<LbPolicy> {
    let (min, max) = (min.map_or(RING.0, |size| size.value), max.map_or(RING.1, |size| size.value));
    if min > max {
        return at.error(format!("minimum_ring_size {min} is greater than maximum_ring_size {max}"));
    }
    Some(LbPolicy::RingHash { min, max, murmur, hashing })
}

fn maglev(at: &At<'_>, size: Option<&protobuf::UInt64Value>, hashing: Hashing) -> Option<LbPolicy> {
    let size = size.map_or(MAGLEV_TABLE, |size| size.value);
    match u32::try_from(size) {
        Ok(table_size) if is_prime(size) => Some(LbPolicy::Maglev { table_size, hashing }),
        _ => at.field("table_size").error("the table size of maglev must be prime number"),
    }
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// `active_request_bias`.
fn bias(at: &At<'_>, given: Option<&RuntimeDouble>) -> Option<f64> {
    let bias = given.map_or(1.0, |given| given.default_value);
    if bias >= 0.0 { Some(bias) } else { at.field("active_request_bias").error("must not be negative") }
}

fn old_slow_start(at: &At<'_>, config: &PbSlowStart) -> Option<Option<SlowStart>> {
    let common = SlowStartConfig {
        slow_start_window: config.slow_start_window,
        aggression: config.aggression.clone(),
        min_weight_percent: config.min_weight_percent,
    };
    slow_start(at, &common)
}

/// `None` for a window of nothing.
fn slow_start(at: &At<'_>, config: &SlowStartConfig) -> Option<Option<SlowStart>> {
    let at = at.field("slow_start_config");
    let window = config.slow_start_window.as_ref();
    let window = core::duration_or(&at.field("slow_start_window"), window, Duration::ZERO)?;
    let aggression = config.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
    if aggression.is_nan() || aggression <= 0.0 {
        return at.field("aggression").error("must be greater than 0");
    }
    let min_weight = config.min_weight_percent.as_ref().map_or(0.1, |percent| percent.value / 100.0);
    Some((!window.is_zero()).then_some(SlowStart { window, aggression, min_weight }))
}

/// `Some(None)` for what is not given.
fn given<T, R>(value: Option<T>, convert: impl FnOnce(T) -> Option<Option<R>>) -> Option<Option<R>> {
    match value {
        Some(value) => convert(value),
        None => Some(None),
    }
}

fn percent_or(given: Option<&Percent>, default: u32) -> u32 {
    // The walk has seen that it is between 0 and 100.
    given.map_or(default, |percent| percent.value.round().clamp(0.0, 100.0) as u32)
}

/// `healthy_panic_threshold`: present and empty it is 0.
pub(super) fn panic_percent(threshold: Option<&Percent>) -> u32 {
    percent_or(threshold, 50)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_reflect::DynamicMessage;

    use super::*;
    use crate::descriptor;

    #[test]
    fn peak_ewma_is_what_its_descriptor_says() {
        let message = PeakEwma { decay_time: Some(protobuf::Duration { seconds: 3, nanos: 5 }) };
        let descriptor = descriptor::message("culvert.v1.PeakEwma").unwrap();
        let decoded = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
        let json = serde_json::json!({"decayTime": "3.000000005s"});
        assert_eq!(serde_json::to_value(&decoded).unwrap(), json);
    }
}
