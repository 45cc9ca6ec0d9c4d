//! Counters of one configuration source, with Envoy's names.

use std::sync::atomic::{AtomicU64, Ordering};

/// What Envoy counts per subscription (`cluster_manager.cds.*`, `listener_manager.lds.*`, `http.<prefix>.rds.<name>.*`,
/// `cluster.<name>.*`). Written by the control thread, read by anyone.
#[derive(Debug, Default)]
pub struct SourceCounters {
    /// `update_attempt`: times the source was read.
    pub update_attempt: AtomicU64,
    /// `update_success`: times what was read was accepted, changed or not.
    pub update_success: AtomicU64,
    /// `update_failure`: times the source could not be read, or not be parsed.
    pub update_failure: AtomicU64,
    /// `update_rejected`: times it was read and refused.
    pub update_rejected: AtomicU64,
    /// `init_fetch_timeout`: 1 when the first fetch took longer than allowed.
    pub init_fetch_timeout: AtomicU64,
    /// `config_reload`: times an update changed something (LDS, CDS and RDS).
    pub config_reload: AtomicU64,
    /// `config_reload_time_ms` gauge: when that last happened, in Unix milliseconds.
    pub config_reload_time_ms: AtomicU64,
    /// `update_time` gauge: when the last accepted update was applied, in Unix milliseconds.
    pub update_time_ms: AtomicU64,
    /// `version` gauge: the first 8 bytes of the version's xxHash64, as Envoy reports it.
    pub version: AtomicU64,
}

impl SourceCounters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set(gauge: &AtomicU64, value: u64) {
        gauge.store(value, Ordering::Relaxed);
    }
}
