//! Subsets of endpoints by their labels (`LbSubsetConfig`).

use std::sync::Arc;

use crate::{Struct, Value};

/// Labels of endpoints, or what a route asks of them: sorted by key.
pub type Labels = Struct;

/// `LbSubsetConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subsets {
    /// `fallback_policy`
    pub fallback: SubsetFallback,
    /// `default_subset`
    pub default_subset: Labels,
    /// `subset_selectors`
    pub selectors: Vec<SubsetSelector>,
    /// `locality_weight_aware`
    pub locality_weight_aware: bool,
    /// `scale_locality_weight`
    pub scale_locality_weight: bool,
    /// `panic_mode_any`
    pub panic_any: bool,
    /// `list_as_any`
    pub list_as_any: bool,
    /// `metadata_fallback_policy: FALLBACK_LIST`
    pub fallback_list: bool,
    /// `allow_redundant_keys`
    pub redundant_keys: bool,
}

/// `LbSubsetConfig.LbSubsetFallbackPolicy`, and that of selectors.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum SubsetFallback {
    /// `ANY_ENDPOINT`
    Any,
    /// `DEFAULT_SUBSET`
    Default,
    /// `KEYS_SUBSET` of a selector: as if the request had asked for these keys alone, which are sorted.
    Keys(Vec<String>),
    /// `NO_FALLBACK`
    #[default]
    None,
}

/// `LbSubsetConfig.LbSubsetSelector`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubsetSelector {
    /// `keys`, sorted, each of them once.
    pub keys: Vec<String>,
    /// `single_host_per_subset`
    pub single_host: bool,
    /// `fallback_policy`; `None`: the cluster's.
    pub fallback: Option<SubsetFallback>,
}

/// What a route asks of the endpoint (`metadata_match`, the part in `envoy.lb`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SubsetMatch(pub Arc<[(String, Value)]>);
