//! `config.endpoint.v3`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use culvert_model::{
    Address, AssignmentPolicy, DnsAssignment, DnsEndpoint, DropOverload, Endpoint, EndpointCheck, Health,
    LoadAssignment, Locality, Metadata,
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{self as pb_core, HealthStatus},
        endpoint::v3::{self as pb, lb_endpoint::HostIdentifier},
    },
    r#type::v3::fractional_percent::DenominatorType,
};

use super::{
    core::{self, HostPort},
    health_check, metadata,
};
use crate::at::At;

/// A load assignment with literal addresses. Of endpoints with the same address the first one counts.
pub(crate) fn load_assignment(at: &At<'_>, assignment: &pb::ClusterLoadAssignment) -> Option<LoadAssignment> {
    let mut seen = HashSet::new();
    let mut endpoints: Vec<_> = hosts(at, assignment, addresses)?;
    endpoints.retain(|host| seen.insert(host.place.0.clone()));
    let mut endpoints: Vec<_> = endpoints
        .into_iter()
        .map(|host| Endpoint {
            address: host.place.0,
            additional: host.place.1.into(),
            hostname: if host.hostname.is_empty() { Arc::default() } else { host.hostname.into() },
            metadata: host.metadata,
            locality: host.locality,
            weight: host.weight,
            priority: host.priority,
            health: host.health,
            check: host.check,
        })
        .map(Arc::new)
        .collect();
    // The hosts' own memory was taken over, of which pointers need little.
    endpoints.shrink_to_fit();
    Some(LoadAssignment { endpoints, policy: policy(assignment.policy.as_ref()) })
}

/// The address of an endpoint, and what it has besides it.
fn addresses(at: &At<'_>, endpoint: &pb::Endpoint) -> Option<(Address, Vec<Address>)> {
    let first = core::address(&at.field("address"), endpoint.address.as_ref())?;
    let at = at.field("additional_addresses");
    let mut additional = Vec::with_capacity(endpoint.additional_addresses.len());
    for (index, other) in endpoint.additional_addresses.iter().enumerate() {
        let at = at.index(index);
        match core::address(&at.field("address"), other.address.as_ref())? {
            Address::Pipe { .. } => {
                return at.field("address").error("additional addresses have to be IP addresses");
            }
            address => additional.push(address),
        }
    }
    Some((first, additional))
}

fn policy(policy: Option<&pb::cluster_load_assignment::Policy>) -> AssignmentPolicy {
    let Some(policy) = policy else { return AssignmentPolicy::default() };
    let drops = policy.drop_overloads.iter().map(|drop| {
        let share = drop.drop_percentage.as_ref();
        let numerator = share.map_or(0, |share| share.numerator);
        let scale = match share.map_or(
            DenominatorType::Hundred,
            envoy_types::pb::envoy::r#type::v3::FractionalPercent::denominator,
        ) {
            DenominatorType::Hundred => 10_000,
            DenominatorType::TenThousand => 100,
            DenominatorType::Million => 1,
        };
        let per_million = numerator.saturating_mul(scale).min(1_000_000);
        DropOverload { per_million }
    });
    AssignmentPolicy {
        overprovisioning: policy.overprovisioning_factor.as_ref().map_or(140, |factor| factor.value),
        weighted_priority_health: policy.weighted_priority_health,
        drops: drops.collect(),
    }
}

/// The names of a DNS cluster.
pub(super) fn dns_assignment(at: &At<'_>, assignment: &pb::ClusterLoadAssignment) -> Option<DnsAssignment> {
    let names = hosts(at, assignment, |at, endpoint| {
        let at = at.field("address");
        let Some(address) = endpoint.address.as_ref() else { return at.error("value is required") };
        match core::host_port(&at, address)? {
            HostPort::Address(Address::Ip(address)) => Some((address.ip().to_string(), address.port())),
            HostPort::Address(Address::Pipe { .. }) => {
                at.field("pipe").error("a cluster that resolves names cannot have Unix sockets")
            }
            HostPort::Name(name, port) => Some((name, port)),
        }
    })?;
    let names = names
        .into_iter()
        .map(|host| DnsEndpoint {
            host: host.place.0,
            port: host.place.1,
            hostname: host.hostname,
            metadata: host.metadata,
            locality: host.locality,
            weight: host.weight,
            priority: host.priority,
            health: host.health,
            check: host.check,
        })
        .collect();
    Some(DnsAssignment { names, policy: policy(assignment.policy.as_ref()) })
}

/// An endpoint wherever it is.
struct Host<P> {
    place: P,
    hostname: String,
    metadata: Option<Arc<Metadata>>,
    locality: Arc<Locality>,
    weight: u32,
    priority: u32,
    health: Health,
    check: Option<Arc<EndpointCheck>>,
}

/// Endpoints of all localities, priority 0 first.
fn hosts<P>(
    at: &At<'_>,
    assignment: &pb::ClusterLoadAssignment,
    place: impl Fn(&At<'_>, &pb::Endpoint) -> Option<P>,
) -> Option<Vec<Host<P>>> {
    let at = at.field("endpoints");
    let mut complete = true;
    let mut hosts = Vec::new();
    let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
    for (index, group) in assignment.endpoints.iter().enumerate() {
        let at_group = at.index(index);
        let locality = Arc::new(locality(group));
        let sum = sums.entry(group.priority).or_default();
        *sum += u64::from(locality.weight);
        if *sum > u64::from(u32::MAX) {
            let reason = format!(
                "the sum of weights of localities at priority {} exceeds {}",
                group.priority,
                u32::MAX
            );
            return at_group.field("load_balancing_weight").error(reason);
        }
        let at = at_group.field("lb_endpoints");
        let start = hosts.len();
        for (index, endpoint) in group.lb_endpoints.iter().enumerate() {
            match host(&at.index(index), endpoint, group.priority, &locality, &place) {
                Some(host) => hosts.push(host),
                None => complete = false,
            }
        }
        if hosts[start..].iter().map(|host: &Host<P>| u64::from(host.weight)).sum::<u64>()
            > u64::from(u32::MAX)
        {
            return at.error(format!("the sum of weights of a locality exceeds {}", u32::MAX));
        }
    }
    hosts.sort_by_key(|host| host.priority);
    complete.then_some(hosts)
}

/// Where the endpoints of a group are.
fn locality(group: &pb::LocalityLbEndpoints) -> Locality {
    let socket_match = metadata::metadata(group.metadata.as_ref())
        .and_then(|mut all| all.0.remove(SOCKET_MATCH))
        .map(Arc::new);
    let weight = group.load_balancing_weight.as_ref().map_or(0, |weight| weight.value);
    Locality { weight, socket_match, ..place(group.locality.as_ref()) }
}

/// `config.core.v3.Locality`.
pub(super) fn place(locality: Option<&pb_core::Locality>) -> Locality {
    let Some(locality) = locality else { return Locality::default() };
    Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        sub_zone: locality.sub_zone.clone(),
        ..Locality::default()
    }
}

fn host<P>(
    at: &At<'_>,
    endpoint: &pb::LbEndpoint,
    priority: u32,
    locality: &Arc<Locality>,
    place: impl Fn(&At<'_>, &pb::Endpoint) -> Option<P>,
) -> Option<Host<P>> {
    let health = match endpoint.health_status() {
        HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
        HealthStatus::Degraded => Health::Degraded,
        HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
    };
    let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    let metadata = metadata::metadata(endpoint.metadata.as_ref()).map(Arc::new);
    let at = at.field("endpoint");
    let Some(HostIdentifier::Endpoint(endpoint)) = endpoint.host_identifier.as_ref() else {
        return at.error("value is required");
    };
    let place = place(&at, endpoint)?;
    let hostname = endpoint.hostname.clone();
    let check = match endpoint.health_check_config.as_ref() {
        Some(config) => Some(Arc::new(health_check::of_endpoint(&at.field("health_check_config"), config)?)),
        None => None,
    };
    Some(Host { place, hostname, metadata, locality: locality.clone(), weight, priority, health, check })
}

/// The namespace of the metadata that `transport_socket_matches` look at.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";
