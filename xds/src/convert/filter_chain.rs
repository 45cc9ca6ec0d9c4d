//! `config.listener.v3.FilterChain`: what it matches, and what its connections meet.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use culvert_model::{FilterChain, FilterChainMatch, SourceType};
use envoy_types::pb::envoy::config::{
    core::v3::CidrRange,
    listener::v3::{self as pb, filter_chain_match::ConnectionSourceType},
};
use ipnet::IpNet;
use prost::Message as _;

use super::{Clusters, core, network, tls};
use crate::at::At;

/// Most combinations that the chains of a listener may match on: what is told apart is kept for each of them.
const COMBINATIONS_MAX: usize = 1_000_000;

/// The chains of a listener but the default one.
pub(super) fn filter_chains(
    at: &At<'_>,
    message: &pb::Listener,
    clusters: &Clusters<'_>,
) -> Option<Vec<Arc<FilterChain>>> {
    let at = at.field("filter_chains");
    if message.filter_chains.is_empty() && message.default_filter_chain.is_none() {
        return at.error("no filter chains specified");
    }
    let chains: Vec<_> = message
        .filter_chains
        .iter()
        .enumerate()
        .map(|(i, chain)| filter_chain(&at.index(i), chain, clusters).map(Arc::new))
        .collect();
    let chains: Vec<_> = chains.into_iter().collect::<Option<_>>()?;
    match message.filter_chain_matcher {
        Some(_) => named(&at, &chains)?,
        None => disjoint(&at, &chains)?,
    }
    Some(chains)
}

/// One chain.
pub(super) fn filter_chain(
    at: &At<'_>,
    chain: &pb::FilterChain,
    clusters: &Clusters<'_>,
) -> Option<FilterChain> {
    let matches = chain.filter_chain_match.as_ref().map_or_else(
        || Some(FilterChainMatch::default()),
        |matches| chain_match(&at.field("filter_chain_match"), matches),
    );
    let filters = network::filters(&at.field("filters"), &chain.filters, clusters);
    let tls = tls::downstream(&at.field("transport_socket"), chain.transport_socket.as_ref());
    let handshake_timeout = core::timeout(
        &at.field("transport_socket_connect_timeout"),
        chain.transport_socket_connect_timeout.as_ref(),
        None,
    );
    let (filters, terminal) = filters?;
    Some(FilterChain {
        name: chain.name.clone(),
        matches: matches?,
        filters,
        terminal,
        tls: tls?,
        handshake_timeout: handshake_timeout?,
        fingerprint: fingerprint(chain),
    })
}

fn chain_match(at: &At<'_>, matches: &pb::FilterChainMatch) -> Option<FilterChainMatch> {
    let destination_prefixes = ranges(&at.field("prefix_ranges"), &matches.prefix_ranges);
    let direct_source_prefixes =
        ranges(&at.field("direct_source_prefix_ranges"), &matches.direct_source_prefix_ranges);
    let source_prefixes = ranges(&at.field("source_prefix_ranges"), &matches.source_prefix_ranges);
    let server_names = server_names(&at.field("server_names"), &matches.server_names);
    if let Some(empty) = matches.application_protocols.iter().position(String::is_empty) {
        return at.field("application_protocols").index(empty).unsupported("an empty name");
    }
    // Both are ports by Envoy's constraints, which were checked.
    let port = |port: u32| u16::try_from(port).ok();
    Some(FilterChainMatch {
        destination_port: matches.destination_port.as_ref().and_then(|value| port(value.value)),
        destination_prefixes: destination_prefixes?,
        server_names: server_names?,
        transport_protocol: matches.transport_protocol.clone(),
        application_protocols: matches.application_protocols.clone(),
        direct_source_prefixes: direct_source_prefixes?,
        source_type: match matches.source_type() {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::External => SourceType::External,
            ConnectionSourceType::SameIpOrLoopback => SourceType::Local,
        },
        source_prefixes: source_prefixes?,
        source_ports: matches.source_ports.iter().copied().filter_map(port).collect(),
    })
}

fn server_names(at: &At<'_>, names: &[String]) -> Option<Vec<String>> {
    let converted = names.iter().enumerate().map(|(i, name)| {
        if name.contains('*') && !name.starts_with("*.") {
            return at.index(i).error("partial wildcards are not supported in \"server_names\"");
        }
        if name.is_empty() {
            return at.index(i).unsupported("an empty name");
        }
        Some(name.to_ascii_lowercase())
    });
    converted.collect::<Vec<_>>().into_iter().collect()
}

/// Ranges of addresses, without the bits behind the prefix.
pub(super) fn ranges(at: &At<'_>, ranges: &[CidrRange]) -> Option<Vec<IpNet>> {
    let converted = ranges.iter().enumerate().map(|(i, range)| {
        let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
        cidr(&at.index(i), &range.address_prefix, length)
    });
    converted.collect::<Vec<_>>().into_iter().collect()
}

/// A range of addresses. Like Envoy's, a longer prefix than the address has bits is the whole address.
pub(super) fn cidr(at: &At<'_>, prefix: &str, length: u32) -> Option<IpNet> {
    let Ok(ip) = prefix.parse::<IpAddr>() else {
        return at.field("address_prefix").error(format!("malformed IP address: {prefix}"));
    };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(length).unwrap_or(u8::MAX).min(bits);
    // Addresses of connections are compared in their own version, never as mapped ones.
    if let (IpAddr::V4(v4), true, true) = (ip.to_canonical(), ip.is_ipv6(), length >= 96) {
        return IpNet::new(v4.into(), length - 96).ok().map(|range| range.trunc());
    }
    IpNet::new(ip, length).ok().map(|range| range.trunc())
}

/// A matcher chooses by name.
fn named(at: &At<'_>, chains: &[Arc<FilterChain>]) -> Option<()> {
    let mut seen = HashSet::new();
    for (index, chain) in chains.iter().enumerate() {
        let at = at.index(index);
        let at = at.field("name");
        if chain.name.is_empty() {
            return at.error("is required when using a listener matcher");
        }
        if !seen.insert(&chain.name) {
            return at.error(format!("duplicated with value {:?}", chain.name));
        }
    }
    Some(())
}

/// No connection may be one that two chains match equally well.
fn disjoint(at: &At<'_>, chains: &[Arc<FilterChain>]) -> Option<()> {
    let mut total = 0_usize;
    for (index, chain) in chains.iter().enumerate() {
        total = total.saturating_add(combinations(&chain.matches));
        if total > COMBINATIONS_MAX {
            return at.index(index).field("filter_chain_match").unsupported(format!(
                "the chains of a listener match on more than {COMBINATIONS_MAX} combinations"
            ));
        }
    }
    let mut seen: HashMap<_, usize> = HashMap::new();
    for (index, chain) in chains.iter().enumerate() {
        for combination in expand(&chain.matches) {
            let Some(other) = seen.insert(combination, index) else { continue };
            let at = at.index(index);
            let at = at.field("filter_chain_match");
            return match other {
                _ if other == index => at.error("the same matching rule twice"),
                _ if chains[other].matches == chain.matches => {
                    at.error(format!("the same matching rules as filter_chains[{other}]"))
                }
                _ => at.error(format!("matching rules overlap with those of filter_chains[{other}]")),
            };
        }
    }
    Some(())
}

fn combinations(matches: &FilterChainMatch) -> usize {
    [
        matches.destination_prefixes.len(),
        matches.server_names.len(),
        matches.application_protocols.len(),
        matches.direct_source_prefixes.len(),
        matches.source_prefixes.len(),
        matches.source_ports.len(),
    ]
    .into_iter()
    .fold(1, |product: usize, count| product.saturating_mul(count.max(1)))
}

/// One value, or none, for each thing that is matched on.
type Combination<'a> = (
    (Option<u16>, Option<IpNet>, Option<&'a str>, &'a str, Option<&'a str>),
    (Option<IpNet>, SourceType, Option<IpNet>, Option<u16>),
);

fn expand(matches: &FilterChainMatch) -> impl Iterator<Item = Combination<'_>> {
    each(&matches.destination_prefixes).flat_map(move |destination| {
        each(&matches.server_names).flat_map(move |name| {
            each(&matches.application_protocols).flat_map(move |protocol| {
                each(&matches.direct_source_prefixes).flat_map(move |direct| {
                    each(&matches.source_prefixes).flat_map(move |source| {
                        each(&matches.source_ports).map(move |port| {
                            (
                                (
                                    matches.destination_port,
                                    destination.copied(),
                                    name.map(String::as_str),
                                    matches.transport_protocol.as_str(),
                                    protocol.map(String::as_str),
                                ),
                                (direct.copied(), matches.source_type, source.copied(), port.copied()),
                            )
                        })
                    })
                })
            })
        })
    })
}

/// Every value, or none when there are none.
fn each<T>(values: &[T]) -> impl Iterator<Item = Option<&T>> {
    values.iter().map(Some).chain(values.is_empty().then_some(None))
}

/// Metadata has no effect, and no order.
fn fingerprint(chain: &pb::FilterChain) -> u64 {
    culvert_model::xxh64(&pb::FilterChain { metadata: None, ..chain.clone() }.encode_to_vec(), 0)
}
