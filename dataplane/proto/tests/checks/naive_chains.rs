//! The plainest way to choose a filter chain: step by step, only the chains that match best stay.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use culvert_model::{Address, FilterChain, FilterChainMatch, Listener, SourceType, TrafficDirection};
use culvert_proto::chain::{Chains, Facts};
use ipnet::IpNet;

/// One value, or none, of each kind that a chain matches on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Rule {
    port: Option<u16>,
    destination: Option<IpNet>,
    name: Option<String>,
    transport: String,
    protocol: Option<String>,
    direct: Option<IpNet>,
    kind: SourceType,
    source: Option<IpNet>,
    source_port: Option<u16>,
}

fn each<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
}

fn rules(matches: &FilterChainMatch) -> Vec<Rule> {
    let mut rules = Vec::new();
    for destination in each(&matches.destination_prefixes) {
        for name in each(&matches.server_names) {
            for protocol in each(&matches.application_protocols) {
                for direct in each(&matches.direct_source_prefixes) {
                    for source in each(&matches.source_prefixes) {
                        for source_port in each(&matches.source_ports) {
                            rules.push(Rule {
                                port: matches.destination_port,
                                destination,
                                name: name.clone(),
                                transport: matches.transport_protocol.clone(),
                                protocol: protocol.clone(),
                                direct,
                                kind: matches.source_type,
                                source,
                                source_port,
                            });
                        }
                    }
                }
            }
        }
    }
    rules
}

/// Those chains that no earlier one shares a rule with, as configuration has them.
pub(crate) fn without_overlap(matches: Vec<FilterChainMatch>) -> Vec<FilterChainMatch> {
    let mut seen = HashSet::new();
    matches
        .into_iter()
        .filter(|matches| {
            let rules = rules(matches);
            let fresh: HashSet<_> = rules.iter().cloned().collect();
            let good = fresh.len() == rules.len() && fresh.is_disjoint(&seen);
            if good {
                seen.extend(fresh);
            }
            good
        })
        .collect()
}

/// The chains as a listener has them.
pub(crate) fn compile(matches: &[FilterChainMatch]) -> Chains {
    let chain = |matches: &FilterChainMatch| {
        Arc::new(FilterChain {
            name: String::new(),
            matches: matches.clone(),
            filters: Vec::new(),
            terminal: None,
            tls: None,
            handshake_timeout: None,
            fingerprint: 0,
        })
    };
    Chains::compile(&Listener {
        name: String::new(),
        address: Address::Pipe { path: "/x".into(), mode: 0 },
        additional_addresses: Vec::new(),
        sockets: Vec::new(),
        freebind: false,
        transparent: false,
        bind_to_port: true,
        direction: TrafficDirection::Unspecified,
        filter_chains: matches.iter().map(chain).collect(),
        default_filter_chain: None,
        filter_chain_matcher: None,
        listener_filters: Vec::new(),
        listener_filters_timeout: None,
        continue_on_timeout: false,
        use_original_dst: false,
        access_log: Vec::new(),
        stat_prefix: String::new(),
        buffer_limit_bytes: 1,
        backlog: None,
        reuse_port: true,
        drain_modify_only: false,
        quic: None,
        ignore_global_limit: false,
        splice: true,
        fingerprint: 0,
    })
}

/// Keeps the rules for which `score` is highest; `None` does not match.
fn best(rules: Vec<(usize, &Rule)>, score: impl Fn(&Rule) -> Option<usize>) -> Vec<(usize, &Rule)> {
    let top = rules.iter().filter_map(|(_, rule)| score(rule)).max();
    rules.into_iter().filter(|(_, rule)| top.is_some() && score(rule) == top).collect()
}

fn range_score(range: Option<IpNet>, address: IpAddr) -> Option<usize> {
    match range {
        None => Some(0),
        Some(range) => range.contains(&address).then(|| 1 + usize::from(range.prefix_len())),
    }
}

/// The index of the chain; `None` for the default one.
pub(crate) fn naive(matches: &[FilterChainMatch], facts: &Facts<'_>) -> Option<usize> {
    let all: Vec<(usize, Rule)> = matches
        .iter()
        .enumerate()
        .flat_map(|(i, it)| rules(it).into_iter().map(move |rule| (i, rule)))
        .collect();
    let opening = facts.opening.expect("the first bytes");
    let ip = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(|| IpAddr::from([255, 255, 255, 255]), |address| address.ip())
    };
    let local = facts.source.is_none_or(|source| {
        source.ip().is_loopback() || facts.destination.is_some_and(|it| it.ip() == source.ip())
    });
    let mut left: Vec<(usize, &Rule)> = all.iter().map(|(index, rule)| (*index, rule)).collect();
    left = best(left, |rule| match rule.port {
        None => Some(0),
        Some(port) => facts.destination.is_some_and(|it| it.port() == port).then_some(1),
    });
    left = best(left, |rule| range_score(rule.destination, ip(facts.destination)));
    left = best(left, |rule| match rule.name.as_deref() {
        None => Some(0),
        Some(name) => match name.strip_prefix('*') {
            Some(suffix) => (opening.server_name.len() > suffix.len()
                && opening.server_name.ends_with(suffix))
            .then_some(suffix.len()),
            None => (name == opening.server_name).then_some(usize::MAX),
        },
    });
    left = best(left, |rule| match rule.transport.as_str() {
        "" => Some(0),
        "tls" => opening.tls.then_some(1),
        _ => (!opening.tls).then_some(1),
    });
    left = best(left, |rule| match &rule.protocol {
        None => Some(0),
        // The client's order of preference.
        Some(protocol) => {
            opening.protocols.iter().position(|it| it == protocol).map(|place| usize::MAX - place)
        }
    });
    left = best(left, |rule| range_score(rule.direct, ip(facts.direct_source)));
    left = best(left, |rule| match rule.kind {
        SourceType::Any => Some(0),
        SourceType::Local => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    });
    left = best(left, |rule| range_score(rule.source, ip(facts.source)));
    left = best(left, |rule| match rule.source_port {
        None => Some(0),
        Some(port) => (facts.source.map_or(0, |it| it.port()) == port).then_some(1),
    });
    left.first().map(|(index, _)| *index)
}
