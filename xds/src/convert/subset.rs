//! Subsets of endpoints: `lb_subset_config`, `extensions.load_balancing_policies.subset.v3`, and `metadata_match`.

use std::collections::BTreeMap;

use culvert_model::{SubsetFallback, SubsetMatch, SubsetSelector, Subsets};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::{
            LbSubsetConfig,
            lb_subset_config::{
                LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
                lb_subset_selector::LbSubsetSelectorFallbackPolicy,
            },
        },
        core::v3::Metadata,
    },
    extensions::load_balancing_policies::subset::v3::{Subset, subset},
};

use super::metadata;
use crate::at::At;

/// `lb_subset_config`; `None` inside for one that selects nothing, which Envoy takes for none.
pub(super) fn subsets(at: &At<'_>, config: &LbSubsetConfig) -> Option<Subsets> {
    let at_selectors = at.field("subset_selectors");
    let selectors: Vec<_> = config
        .subset_selectors
        .iter()
        .enumerate()
        .map(|(index, given)| selector(&at_selectors.index(index), given))
        .collect();
    Some(Subsets {
        fallback: match config.fallback_policy() {
            LbSubsetFallbackPolicy::NoFallback => SubsetFallback::None,
            LbSubsetFallbackPolicy::AnyEndpoint => SubsetFallback::Any,
            LbSubsetFallbackPolicy::DefaultSubset => SubsetFallback::Default,
        },
        default_subset: config.default_subset.as_ref().map(metadata::structure).unwrap_or_default(),
        selectors: selectors.into_iter().collect::<Option<_>>()?,
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        fallback_list: config.metadata_fallback_policy() == LbSubsetMetadataFallbackPolicy::FallbackList,
        redundant_keys: false,
    })
}

/// The extension, which says the same in words of its own.
pub(super) fn typed(at: &At<'_>, config: &Subset) -> Option<Subsets> {
    let selector = |given: &subset::LbSubsetSelector| LbSubsetSelector {
        keys: given.keys.clone(),
        single_host_per_subset: given.single_host_per_subset,
        fallback_policy: given.fallback_policy,
        fallback_keys_subset: given.fallback_keys_subset.clone(),
    };
    let old = LbSubsetConfig {
        fallback_policy: config.fallback_policy,
        default_subset: config.default_subset.clone(),
        subset_selectors: config.subset_selectors.iter().map(selector).collect(),
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_mode_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        metadata_fallback_policy: config.metadata_fallback_policy,
    };
    let subsets = subsets(at, &old)?;
    Some(Subsets { redundant_keys: config.allow_redundant_keys, ..subsets })
}

fn selector(at: &At<'_>, given: &LbSubsetSelector) -> Option<SubsetSelector> {
    let sorted = |keys: &[String]| {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let keys = sorted(&given.keys);
    let fallback_keys = sorted(&given.fallback_keys_subset);
    let by_keys = given.fallback_policy() == LbSubsetSelectorFallbackPolicy::KeysSubset;
    let at_keys = at.field("fallback_keys_subset");
    if by_keys {
        if fallback_keys.is_empty() {
            return at_keys.error("cannot be empty");
        }
        if let Some(other) = fallback_keys.iter().find(|key| !keys.contains(key)) {
            return at_keys.error(format!("has to be a subset of the keys, which {other:?} is none of"));
        }
        if fallback_keys.len() == keys.len() {
            return at_keys.error("cannot be equal to the keys");
        }
    } else if !fallback_keys.is_empty() {
        return at_keys.error("can be given for the fallback policy KEYS_SUBSET only");
    }
    Some(SubsetSelector {
        keys,
        single_host: given.single_host_per_subset,
        fallback: match given.fallback_policy() {
            LbSubsetSelectorFallbackPolicy::NotDefined => None,
            LbSubsetSelectorFallbackPolicy::NoFallback => Some(SubsetFallback::None),
            LbSubsetSelectorFallbackPolicy::AnyEndpoint => Some(SubsetFallback::Any),
            LbSubsetSelectorFallbackPolicy::DefaultSubset => Some(SubsetFallback::Default),
            LbSubsetSelectorFallbackPolicy::KeysSubset => Some(SubsetFallback::Keys(fallback_keys)),
        },
    })
}

/// `metadata_match`: the labels in it. Those of a weighted cluster go over its `parent`'s.
pub(super) fn wanted(parent: Option<&SubsetMatch>, given: Option<&Metadata>) -> Option<SubsetMatch> {
    let Some(own) = given.and_then(|metadata| metadata.filter_metadata.get("envoy.lb")) else {
        return parent.cloned();
    };
    let mut labels: BTreeMap<_, _> = parent.into_iter().flat_map(|parent| parent.0.iter().cloned()).collect();
    labels.extend(metadata::structure(own));
    Some(SubsetMatch(labels.into_iter().collect()))
}
