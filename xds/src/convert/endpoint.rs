//! `config.endpoint.v3`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use culvert_model::{
    Address, AssignmentPolicy, DnsAssignment, DnsEndpoint, DropOverload, Endpoint, EndpointCheck, Health,
    LoadAssignment, Metadata, Struct,
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::HealthStatus,
        endpoint::v3::{self as pb, lb_endpoint::HostIdentifier},
    },
    r#type::v3::fractional_percent::DenominatorType,
};

use super::{
    core::{self, HostPort},
    health_check, metadata,
};
use crate::at::At;

/// Scaled weights stay below this, so that sums of many stay within 32 bits.
const SCALED_MAX: u128 = 1 << 20;

/// What the weights of localities mean to a cluster.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Localities {
    /// Nothing: endpoints are chosen by their own weights.
    #[default]
    Ignored,
    /// `locality_weighted_lb_config`: a locality gets its share whatever the number of its endpoints; one without
    /// weight gets nothing.
    Weighted,
}

/// A load assignment with literal addresses. Of endpoints with the same address the first one counts.
pub(crate) fn load_assignment(
    at: &At<'_>,
    assignment: &pb::ClusterLoadAssignment,
    localities: Localities,
) -> Option<LoadAssignment> {
    let mut seen = HashSet::new();
    let mut endpoints: Vec<_> = hosts(at, assignment, localities, addresses)?;
    endpoints.retain(|host| seen.insert(host.place.0.clone()));
    let mut endpoints: Vec<_> = endpoints
        .into_iter()
        .map(|host| Endpoint {
            address: host.place.0,
            additional: host.place.1.into(),
            hostname: if host.hostname.is_empty() { Arc::default() } else { host.hostname.into() },
            metadata: host.metadata,
            locality_match: host.locality_match,
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
pub(super) fn dns_assignment(
    at: &At<'_>,
    assignment: &pb::ClusterLoadAssignment,
    localities: Localities,
) -> Option<DnsAssignment> {
    let names = hosts(at, assignment, localities, |at, endpoint| {
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
            locality_match: host.locality_match,
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
    locality_match: Option<Arc<Struct>>,
    weight: u32,
    priority: u32,
    health: Health,
    check: Option<Arc<EndpointCheck>>,
}

/// Endpoints that share a weight.
struct Locality<P> {
    weight: u32,
    hosts: Vec<Host<P>>,
}

/// Endpoints of all localities, priority 0 first.
fn hosts<P>(
    at: &At<'_>,
    assignment: &pb::ClusterLoadAssignment,
    localities: Localities,
    place: impl Fn(&At<'_>, &pb::Endpoint) -> Option<P>,
) -> Option<Vec<Host<P>>> {
    let at = at.field("endpoints");
    let mut complete = true;
    let mut priorities: BTreeMap<u32, Vec<Locality<P>>> = BTreeMap::new();
    for (index, locality) in assignment.endpoints.iter().enumerate() {
        let at = at.index(index);
        let at = at.field("lb_endpoints");
        let locality_match = metadata::metadata(locality.metadata.as_ref())
            .and_then(|mut all| all.0.remove(SOCKET_MATCH))
            .map(Arc::new);
        let mut converted = Vec::with_capacity(locality.lb_endpoints.len());
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            match host(&at.index(index), endpoint, locality.priority, &place) {
                Some(host) => converted.push(Host { locality_match: locality_match.clone(), ..host }),
                None => complete = false,
            }
        }
        if converted.iter().map(|host| u64::from(host.weight)).sum::<u64>() > u64::from(u32::MAX) {
            return at.error(format!("the sum of weights of a locality exceeds {}", u32::MAX));
        }
        let weight = locality.load_balancing_weight.as_ref().map_or(0, |weight| weight.value);
        priorities.entry(locality.priority).or_default().push(Locality { weight, hosts: converted });
    }
    if !complete {
        return None;
    }
    if localities == Localities::Weighted {
        priorities.values_mut().for_each(spread);
    }
    Some(priorities.into_values().flatten().flat_map(|locality| locality.hosts).collect())
}

fn host<P>(
    at: &At<'_>,
    endpoint: &pb::LbEndpoint,
    priority: u32,
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
    Some(Host { place, hostname, metadata, locality_match: None, weight, priority, health, check })
}

/// The namespace of the metadata that `transport_socket_matches` look at.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Gives each endpoint of one priority its share of its locality's weight, in the smallest whole numbers.
fn spread<P>(localities: &mut Vec<Locality<P>>) {
    localities.retain(|locality| locality.weight > 0 && !locality.hosts.is_empty());
    let sum =
        |locality: &Locality<P>| locality.hosts.iter().map(|host| u128::from(host.weight)).sum::<u128>();
    // Ends where further precision could not be told apart.
    let common = localities.iter().fold(1, |common, locality| lcm(common, sum(locality)).min(1 << 40));
    let share = |locality: &Locality<P>, host: &Host<P>| {
        u128::from(host.weight) * u128::from(locality.weight) * common / sum(locality)
    };
    let shares: Vec<Vec<u128>> = localities
        .iter()
        .map(|locality| locality.hosts.iter().map(|host| share(locality, host)).collect())
        .collect();
    let divisor = shares.iter().flatten().fold(0, |divisor, share| gcd(divisor, *share)).max(1);
    let largest = shares.iter().flatten().max().map_or(1, |largest| largest / divisor).max(1);
    for (locality, shares) in localities.iter_mut().zip(shares) {
        for (host, share) in locality.hosts.iter_mut().zip(shares) {
            let share = share / divisor;
            let scaled = if largest > SCALED_MAX { share * SCALED_MAX / largest } else { share };
            host.weight = u32::try_from(scaled.max(1)).unwrap_or(u32::MAX);
        }
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn lcm(a: u128, b: u128) -> u128 {
    a / gcd(a, b) * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(given: &[(u32, &[u32])]) -> Vec<Vec<u32>> {
        let host = |weight: &u32| Host {
            place: (),
            hostname: String::new(),
            metadata: None,
            locality_match: None,
            weight: *weight,
            priority: 0,
            health: Health::Healthy,
            check: None,
        };
        let locality = |(weight, hosts): &(u32, &[u32])| Locality {
            weight: *weight,
            hosts: hosts.iter().map(host).collect(),
        };
        let mut localities: Vec<_> = given.iter().map(locality).collect();
        spread(&mut localities);
        localities.iter().map(|locality| locality.hosts.iter().map(|host| host.weight).collect()).collect()
    }

    #[test]
    fn localities_get_their_share_whatever_their_size() {
        // 1 : 3, over two endpoints and one.
        assert_eq!(weights(&[(1, &[1, 1]), (3, &[1])]), [vec![1, 1], vec![6]]);
        assert_eq!(weights(&[(1, &[1, 2]), (1, &[5])]), [vec![1, 2], vec![3]]);
        assert_eq!(weights(&[(7, &[4])]), [vec![1]]);
        assert_eq!(weights(&[(0, &[1]), (2, &[1])]), [vec![1]], "no weight, no traffic");
        assert_eq!(weights(&[]), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn large_weights_are_scaled_down() {
        let spread = weights(&[(u32::MAX, &[u32::MAX - 1, 1]), (1, &[3, 4])]);
        assert!(spread.iter().flatten().all(|weight| (1..=1 << 20).contains(weight)), "{spread:?}");
        assert_eq!(spread[0][0], 1 << 20);
    }
}
