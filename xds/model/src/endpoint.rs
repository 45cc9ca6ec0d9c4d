//! Endpoints (`config.endpoint.v3`).

use std::sync::Arc;

use crate::{Address, EndpointCheck, Metadata, Struct};

/// `config.endpoint.v3.ClusterLoadAssignment` with resolved addresses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LoadAssignment {
    /// All endpoints of all localities, priority 0 first.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// `policy`
    pub policy: AssignmentPolicy,
}

/// `ClusterLoadAssignment.Policy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AssignmentPolicy {
    /// `overprovisioning_factor` in percent: 140.
    pub overprovisioning: u32,
    /// `weighted_priority_health`: a priority is as healthy as its weights are, not its number of endpoints.
    pub weighted_priority_health: bool,
    /// `drop_overloads`, in order: each takes its share of what those before it left.
    pub drops: Vec<DropOverload>,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { overprovisioning: 140, weighted_priority_health: false, drops: Vec::new() }
    }
}

/// `ClusterLoadAssignment.Policy.DropOverload`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DropOverload {
    /// `drop_percentage` of a million.
    pub per_million: u32,
}

/// One endpoint that can be connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// `additional_addresses`: tried after `address` when it does not answer (happy eyeballs).
    pub additional: Box<[Address]>,
    /// `hostname`, for `auto_host_rewrite`; for DNS the name that was resolved.
    pub hostname: Arc<str>,
    /// `metadata`
    pub metadata: Option<Arc<Metadata>>,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// `load_balancing_weight`: 1.
    pub weight: u32,
    /// `priority`: 0 is used first.
    pub priority: u32,
    /// `health_status`
    pub health: Health,
    /// `health_check_config`
    pub check: Option<Arc<EndpointCheck>>,
}

/// Where endpoints are (`config.core.v3.Locality`), with what they share (`LocalityLbEndpoints`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Locality {
    /// `region`
    pub region: String,
    /// `zone`
    pub zone: String,
    /// `sub_zone`
    pub sub_zone: String,
    /// `load_balancing_weight`: 0.
    pub weight: u32,
    /// `envoy.transport_socket_match` in its metadata.
    pub socket_match: Option<Arc<Struct>>,
}

impl Locality {
    /// Whether both are the same place.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.place() == other.place()
    }

    /// Region, zone and sub-zone.
    #[must_use]
    pub fn place(&self) -> (&str, &str, &str) {
        (&self.region, &self.zone, &self.sub_zone)
    }
}

/// `core.v3.HealthStatus`, reduced to what it means for choosing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Health {
    /// `DEGRADED`
    Degraded,
    /// `UNKNOWN`, `HEALTHY`
    #[default]
    Healthy,
    /// Unhealthy, and not counted when it is asked how many are; no status of EDS.
    Excluded,
    /// `UNHEALTHY`, `DRAINING`, `TIMEOUT`
    Unhealthy,
}

/// The names of a DNS cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DnsAssignment {
    /// In configuration order.
    pub names: Vec<DnsEndpoint>,
    /// `policy`
    pub policy: AssignmentPolicy,
}

/// One name of a DNS cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsEndpoint {
    /// Name or literal address.
    pub host: String,
    /// `port_value`
    pub port: u16,
    /// See [`Endpoint::hostname`]; empty for the name itself.
    pub hostname: String,
    /// See [`Endpoint::metadata`].
    pub metadata: Option<Arc<Metadata>>,
    /// See [`Endpoint::locality`].
    pub locality: Arc<Locality>,
    /// See [`Endpoint::weight`].
    pub weight: u32,
    /// See [`Endpoint::priority`].
    pub priority: u32,
    /// See [`Endpoint::health`].
    pub health: Health,
    /// See [`Endpoint::check`].
    pub check: Option<Arc<EndpointCheck>>,
}
