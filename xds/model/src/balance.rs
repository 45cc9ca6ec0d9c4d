//! How a cluster chooses among its endpoints (`lb_policy`, `load_balancing_policy`, `common_lb_config`).

use std::time::Duration;

/// The policy of a cluster with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    /// `LEAST_REQUEST`
    LeastRequest {
        /// `choice_count`: 2; at least 2.
        choices: u32,
        /// `selection_method: FULL_SCAN`, `enable_full_scan`: false, `choices` endpoints are compared, not all.
        full_scan: bool,
        /// `active_request_bias`: 1; at least 0. How much requests in flight count where weights differ.
        bias: f64,
    },
    /// `MAGLEV`
    Maglev {
        /// `table_size`: 65537; a prime.
        table_size: u32,
        /// What endpoints are hashed by.
        hashing: Hashing,
    },
    /// `culvert.v1.PeakEwma`
    PeakEwma {
        /// `decay_time`: 10 s. How long a response time is remembered, more or less.
        decay: Duration,
    },
    /// `RANDOM`. Weights of endpoints do not count, as in Envoy.
    Random,
    /// `RING_HASH`
    RingHash {
        /// `minimum_ring_size`: 1024.
        min: u64,
        /// `maximum_ring_size`: 8 Mi.
        max: u64,
        /// `hash_function: MURMUR_HASH_2` instead of `XX_HASH`.
        murmur: bool,
        /// What endpoints are hashed by.
        hashing: Hashing,
    },
    /// `ROUND_ROBIN`
    RoundRobin,
}

impl LbPolicy {
    /// `LEAST_REQUEST` that compares `choices` endpoints.
    #[must_use]
    pub const fn least_request(choices: u32) -> Self {
        Self::LeastRequest { choices, full_scan: false, bias: 1.0 }
    }

    /// Whether it goes by the hash of a request.
    #[must_use]
    pub const fn hashes(&self) -> bool {
        matches!(self, Self::Maglev { .. } | Self::RingHash { .. })
    }
}

/// `ConsistentHashingLbConfig`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hashing {
    /// `use_hostname_for_hashing`: false, endpoints are hashed by their addresses.
    pub by_hostname: bool,
    /// `hash_balance_factor` in percent: no endpoint has more than this share of the average load; `None` is no bound.
    pub balance_factor: Option<u32>,
}

/// What the localities of endpoints mean to a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LocalityPolicy {
    /// `locality_weighted_lb_config`: a locality gets its share whatever the number of its endpoints; one without
    /// weight gets nothing.
    Weighted,
    /// `zone_aware_lb_config`, and what there is without any: endpoints in Culvert's own zone go first as far as they
    /// reach. Has an effect where a local cluster is named.
    ZoneAware(ZoneAware),
}

impl Default for LocalityPolicy {
    fn default() -> Self {
        Self::ZoneAware(ZoneAware::default())
    }
}

/// `ZoneAwareLbConfig`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ZoneAware {
    /// `routing_enabled` in percent: 100.
    pub percent: u32,
    /// `min_cluster_size`: 6 healthy endpoints; smaller clusters disregard zones.
    pub min_cluster_size: u64,
    /// `fail_traffic_on_panic`: false. Instead of all endpoints none is chosen in panic.
    pub fail_on_panic: bool,
    /// `force_local_zone.min_size`: all requests stay in the zone while it has so many healthy endpoints.
    pub force_local: Option<u32>,
    /// `locality_basis: HEALTHY_HOSTS_WEIGHT`: false, endpoints are counted, not their weights.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { percent: 100, min_cluster_size: 6, fail_on_panic: false, force_local: None, by_weight: false }
    }
}

/// `SlowStartConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// `slow_start_window`: above zero.
    pub window: Duration,
    /// `aggression`: 1; above 0.
    pub aggression: f64,
    /// `min_weight_percent` as a part of 1: 0.1.
    pub min_weight: f64,
}
