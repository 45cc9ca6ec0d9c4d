//! `filter_chain_match`: one table after the other.

use std::{collections::HashMap, net::IpAddr};

use culvert_model::{FilterChainMatch, SourceType};
use ipnet::IpNet;

use super::{Facts, Opening, Selection};
use crate::prefixes::Prefixes;

/// What an address that is none, of a Unix socket, is matched as.
const NO_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);

/// By destination port. Once a port has a table, the chains for every port are not looked at.
#[derive(Debug, Default)]
pub(super) struct Cascade {
    ports: HashMap<u16, ByAddress<ByName>>,
    any: Option<ByAddress<ByName>>,
}

/// By address: the longest prefix, else chains that do not look at the address.
#[derive(Debug)]
struct ByAddress<T> {
    ranges: Prefixes<T>,
    any: Option<Box<T>>,
}

#[derive(Debug, Default)]
struct ByName {
    exact: HashMap<String, ByTransport>,
    /// `.b.c` for `*.b.c`
    suffixes: HashMap<String, ByTransport>,
    any: Option<ByTransport>,
}

#[derive(Debug, Default)]
struct ByTransport {
    named: HashMap<String, ByProtocol>,
    any: Option<ByProtocol>,
}

#[derive(Debug, Default)]
struct ByProtocol {
    named: HashMap<String, ByAddress<BySource>>,
    any: Option<ByAddress<BySource>>,
}

/// By [`SourceType`], and what follows.
#[derive(Debug, Default)]
struct BySource {
    local: Option<ByAddress<ByPort>>,
    external: Option<ByAddress<ByPort>>,
    any: Option<ByAddress<ByPort>>,
}

#[derive(Debug, Default)]
struct ByPort {
    ports: HashMap<u16, usize>,
    any: Option<usize>,
}

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self { ranges: Prefixes::default(), any: None }
    }
}

impl<T: Default> ByAddress<T> {
    fn place(&mut self, range: Option<IpNet>) -> &mut T {
        match range {
            Some(range) => self.ranges.entry(range, T::default),
            None => self.any.get_or_insert_default(),
        }
    }

    fn find(&self, ip: IpAddr) -> Option<&T> {
        self.ranges.matches(ip).next().or(self.any.as_deref())
    }
}

impl Cascade {
    pub(super) fn compile<'a>(chains: impl Iterator<Item = &'a FilterChainMatch>) -> Self {
        let mut cascade = Self::default();
        for (index, matches) in chains.enumerate() {
            let addresses = match matches.destination_port {
                Some(port) => cascade.ports.entry(port).or_default(),
                None => cascade.any.get_or_insert_default(),
            };
            for range in each(&matches.destination_prefixes) {
                addresses.place(range.copied()).insert(index, matches);
            }
        }
        cascade
    }

    pub(super) fn select(&self, facts: &Facts<'_>) -> Selection {
        let addresses = facts
            .destination
            .and_then(|destination| self.ports.get(&destination.port()))
            .or(self.any.as_ref());
        let found = addresses.and_then(|addresses| addresses.find(ip(facts.destination)));
        let Some(names) = found else { return Selection::Default };
        let protocols = match facts.opening {
            Some(opening) => names.find(opening),
            None => match names.regardless() {
                Ok(found) => found,
                Err(Depends) => return Selection::Undecided,
            },
        };
        let index = protocols
            .and_then(|sources| sources.find(ip(facts.direct_source)))
            .and_then(|types| types.of(facts))
            .and_then(|sources| sources.find(ip(facts.source)))
            .and_then(|ports| ports.find(facts.source.map_or(0, |source| source.port())));
        index.map_or(Selection::Default, Selection::Chain)
    }
}

/// The answer depends on the first bytes.
struct Depends;

impl ByName {
    fn insert(&mut self, index: usize, matches: &FilterChainMatch) {
        for name in each(&matches.server_names) {
            let transports = match name {
                None => self.any.get_or_insert_default(),
                Some(name) => match name.strip_prefix('*') {
                    Some(suffix) => self.suffixes.entry(suffix.to_owned()).or_default(),
                    None => self.exact.entry(name.clone()).or_default(),
                },
            };
            let protocols = match matches.transport_protocol.as_str() {
                "" => transports.any.get_or_insert_default(),
                transport => transports.named.entry(transport.to_owned()).or_default(),
            };
            for protocol in each(&matches.application_protocols) {
                let sources = match protocol {
                    None => protocols.any.get_or_insert_default(),
                    Some(protocol) => protocols.named.entry(protocol.clone()).or_default(),
                };
                for range in each(&matches.direct_source_prefixes) {
                    sources.place(range.copied()).insert(index, matches);
                }
            }
        }
    }

    fn find(&self, opening: &Opening) -> Option<&ByAddress<BySource>> {
        let transports = self.by_name(&opening.server_name)?;
        let transport = if opening.tls { "tls" } else { "raw_buffer" };
        let protocols = transports.named.get(transport).or(transports.any.as_ref())?;
        opening.protocols.iter().find_map(|protocol| protocols.named.get(protocol)).or(protocols.any.as_ref())
    }

    fn by_name(&self, name: &str) -> Option<&ByTransport> {
        if let Some(exact) = self.exact.get(name) {
            return Some(exact);
        }
        let mut rest = name;
        // A suffix has something before its dot and behind it.
        while let Some(dot) = rest.get(1..).and_then(|tail| tail.find('.')) {
            rest = &rest[dot + 1..];
            if rest.len() < 2 {
                break;
            }
            if let Some(suffix) = self.suffixes.get(rest) {
                return Some(suffix);
            }
        }
        self.any.as_ref()
    }

    /// What is found whatever the first bytes are.
    fn regardless(&self) -> Result<Option<&ByAddress<BySource>>, Depends> {
        if !self.exact.is_empty() || !self.suffixes.is_empty() {
            return Err(Depends);
        }
        let Some(transports) = &self.any else { return Ok(None) };
        if !transports.named.is_empty() {
            return Err(Depends);
        }
        let Some(protocols) = &transports.any else { return Ok(None) };
        if protocols.named.is_empty() { Ok(protocols.any.as_ref()) } else { Err(Depends) }
    }
}

impl BySource {
    fn insert(&mut self, index: usize, matches: &FilterChainMatch) {
        let sources = match matches.source_type {
            SourceType::Any => self.any.get_or_insert_default(),
            SourceType::External => self.external.get_or_insert_default(),
            SourceType::Local => self.local.get_or_insert_default(),
        };
        for range in each(&matches.source_prefixes) {
            let ports = sources.place(range.copied());
            for port in each(&matches.source_ports) {
                match port {
                    Some(port) => ports.ports.insert(*port, index),
                    None => ports.any.replace(index),
                };
            }
        }
    }

    fn of(&self, facts: &Facts<'_>) -> Option<&ByAddress<ByPort>> {
        let specific = if facts.is_local() { &self.local } else { &self.external };
        specific.as_ref().or(self.any.as_ref())
    }
}

impl ByPort {
    fn find(&self, port: u16) -> Option<usize> {
        self.ports.get(&port).copied().or(self.any)
    }
}

fn ip(address: Option<std::net::SocketAddr>) -> IpAddr {
    address.map_or(NO_IP, |address| address.ip())
}

/// Every value, or none when there are none.
fn each<T>(values: &[T]) -> impl Iterator<Item = Option<&T>> {
    values.iter().map(Some).chain(values.is_empty().then_some(None))
}
