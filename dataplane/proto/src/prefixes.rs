//! The longest prefix of an address.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

/// Values by range of addresses. A look-up costs one hash for each length of prefix in use.
#[derive(Debug)]
pub(crate) struct Prefixes<T> {
    v4: Family<u32, T>,
    v6: Family<u128, T>,
}

#[derive(Debug)]
struct Family<K, T> {
    /// Longest first.
    lengths: Vec<(u8, HashMap<K, T>)>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { v4: Family { lengths: Vec::new() }, v6: Family { lengths: Vec::new() } }
    }
}

impl<T> Prefixes<T> {
    /// The value of a range; made when it is not there.
    pub(crate) fn entry(&mut self, range: IpNet, make: impl FnOnce() -> T) -> &mut T {
        match range.trunc() {
            IpNet::V4(range) => {
                self.v4.length(range.prefix_len()).entry(range.addr().into()).or_insert_with(make)
            }
            IpNet::V6(range) => {
                self.v6.length(range.prefix_len()).entry(range.addr().into()).or_insert_with(make)
            }
        }
    }

    /// The values of the ranges that hold `ip`, the smallest range first.
    pub(crate) fn matches(&self, ip: IpAddr) -> impl Iterator<Item = &T> {
        let (v4, v6) = match ip {
            IpAddr::V4(ip) => (Some(u32::from(ip)), None),
            IpAddr::V6(ip) => (None, Some(u128::from(ip))),
        };
        let v4 = v4.into_iter().flat_map(|bits| {
            let mask = move |length: u8| bits & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            self.v4.lengths.iter().filter_map(move |(length, values)| values.get(&mask(*length)))
        });
        let v6 = v6.into_iter().flat_map(|bits| {
            let mask = move |length: u8| bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            self.v6.lengths.iter().filter_map(move |(length, values)| values.get(&mask(*length)))
        });
        v4.chain(v6)
    }
}

impl<K, T> Family<K, T> {
    fn length(&mut self, length: u8) -> &mut HashMap<K, T> {
        let place = match self.lengths.binary_search_by(|(known, _)| length.cmp(known)) {
            Ok(place) => place,
            Err(place) => {
                self.lengths.insert(place, (length, HashMap::new()));
                place
            }
        };
        &mut self.lengths[place].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_range_comes_first() {
        let mut prefixes = Prefixes::default();
        for range in
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8", "fd00::1/128"]
        {
            prefixes.entry(range.parse().unwrap(), || range);
        }
        let found = |ip: &str| prefixes.matches(ip.parse().unwrap()).copied().collect::<Vec<_>>();
        assert_eq!(found("10.1.2.3"), ["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(found("10.2.2.3"), ["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(found("fd00::1"), ["fd00::1/128", "fd00::/8", "::/0"]);
        assert_eq!(found("::1"), ["::/0"]);
    }
}
