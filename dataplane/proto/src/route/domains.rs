//! From an authority to a virtual host.

use std::collections::HashMap;

use culvert_model::RouteConfiguration;
use smallvec::SmallVec;

use crate::host;

/// Longer authorities are put into lower case on the heap.
const STACK_AUTHORITY_BYTES: usize = 128;

/// The domains of all virtual hosts: exact > longest `*.b` > longest `a.*` > `*`.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: HashMap<Box<[u8]>, usize>,
    /// `*.b` and `*-b`, without the star.
    suffixes: Wildcards,
    /// `a.*` and `a-*`, without the star.
    prefixes: Wildcards,
    /// `*`
    any: Option<usize>,
    ignore_port: bool,
}

#[derive(Debug, Default)]
struct Wildcards {
    by_literal: HashMap<Box<[u8]>, usize>,
    /// The lengths there are, longest first.
    lens: Vec<usize>,
}

impl Domains {
    pub(super) fn compile(config: &RouteConfiguration) -> Self {
        let mut domains = Self { ignore_port: config.ignore_port, ..Self::default() };
        for (index, vhost) in config.virtual_hosts.iter().enumerate() {
            for domain in &vhost.domains {
                domains.add(&domain.to_ascii_lowercase(), index);
            }
        }
        domains.suffixes.sort();
        domains.prefixes.sort();
        domains
    }

    /// The index of the virtual host.
    pub(super) fn find(&self, authority: &[u8]) -> Option<usize> {
        let host = if self.ignore_port { host::split_port(authority).0 } else { authority };
        if !host.iter().any(u8::is_ascii_uppercase) {
            return self.find_lower(host);
        }
        let mut lower = SmallVec::<[u8; STACK_AUTHORITY_BYTES]>::from_slice(host);
        lower.make_ascii_lowercase();
        self.find_lower(&lower)
    }

    fn find_lower(&self, host: &[u8]) -> Option<usize> {
        // A star stands for at least one byte.
        let suffix = || self.suffixes.find(host.len(), |len| &host[host.len() - len..]);
        let prefix = || self.prefixes.find(host.len(), |len| &host[..len]);
        self.exact.get(host).copied().or_else(suffix).or_else(prefix).or(self.any)
    }

    fn add(&mut self, domain: &str, index: usize) {
        if domain == "*" {
            self.any.get_or_insert(index);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            self.suffixes.add(suffix, index);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            self.prefixes.add(prefix, index);
        } else {
            self.exact.entry(domain.as_bytes().into()).or_insert(index);
        }
    }
}

impl Wildcards {
    fn add(&mut self, literal: &str, index: usize) {
        self.by_literal.entry(literal.as_bytes().into()).or_insert(index);
        self.lens.push(literal.len());
    }

    fn sort(&mut self) {
        self.lens.sort_unstable_by(|a, b| b.cmp(a));
        self.lens.dedup();
    }

    fn find<'h>(&self, host_len: usize, part: impl Fn(usize) -> &'h [u8]) -> Option<usize> {
        let fitting = self.lens.iter().filter(|&&len| len < host_len);
        fitting.into_iter().find_map(|&len| self.by_literal.get(part(len)).copied())
    }
}
