//! The direct path: what pods may dial without the proxy, who has, and what came of it.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{HashMap as KernelMap, LpmTrie, MapData, MapError, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
pub use culvert_bpf_common::DirectTally;
use culvert_bpf_common::{
    Address, BypassKey, DirectFlow as Recorded, DirectKey, DirectService, DirectSlot, DirectSlotKey,
};
use ipnet::IpNet;

use crate::{
    Error,
    maps::{empty, optional, typed},
};

/// Where the connections of a pod to some destinations go.
///
/// Of two rules of a pod the one that names the port goes first, whatever its prefix; then the longer prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectRule {
    /// Cookie of the network namespace of the pod that dials.
    pub netns: u64,
    /// Destination port; 0 for all ports that no rule of the pod names.
    pub port: u16,
    /// Destination addresses.
    pub prefix: IpNet,
    /// What is connected instead, by weight. With none, or none that has a weight, connections go to the proxy.
    pub endpoints: Arc<[DirectEndpoint]>,
}

/// An endpoint of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectEndpoint {
    /// Where to connect. Connections from sockets of the other family go to the proxy.
    pub address: SocketAddr,
    /// Cookie of the network namespace of the pod whose address it is.
    pub netns: u64,
    /// How much it gets in proportion to the others; 0 for nothing new.
    pub weight: u32,
    /// What its connections are counted under: the caller's number, the same after a restart.
    pub tally: u64,
}

/// A direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlow {
    /// Cookie of the client's socket.
    pub cookie: u64,
    /// Cookie of the network namespace of the client.
    pub netns: u64,
    /// Cookie of the network namespace of the endpoint.
    pub peer: u64,
    /// The client's end.
    pub client: SocketAddr,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Where the application meant to go.
    pub meant: SocketAddr,
    /// What it is counted under.
    pub tally: u64,
}

/// Rules, connections and counts of all pods, as the programs see them.
pub struct DirectTable {
    services: LpmTrie<MapData, DirectKey, DirectService>,
    slots: KernelMap<MapData, DirectSlotKey, DirectSlot>,
    tallies: PerCpuHashMap<MapData, u64, DirectTally>,
    read: KernelMap<MapData, u64, DirectTally>,
    flows: KernelMap<MapData, BypassKey, Recorded>,
}

/// A rule as the programs look it up: length of the prefix and key.
type Lookup = (u32, DirectKey);

impl DirectTable {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            services: typed(ebpf, "DIRECT_SERVICES")?,
            slots: typed(ebpf, "DIRECT_SLOTS")?,
            tallies: typed(ebpf, "DIRECT_TALLIES")?,
            read: typed(ebpf, "DIRECT_READ")?,
            flows: typed(ebpf, "DIRECT_FLOWS")?,
        })
    }

    /// Makes `rules` those that are in force, for connections made from now on. At no moment a connection goes directly
    /// that neither the rules before nor these would let.
    ///
    /// # Errors
    /// Of a map, which may be full. Then no rule at all is in force.
    pub fn apply(&mut self, rules: &[DirectRule]) -> Result<(), Error> {
        self.try_apply(rules).inspect_err(|_| {
            let _ = self.try_apply(&[]);
        })
    }

    /// All direct connections, those that are being made included.
    ///
    /// # Errors
    /// Of the map.
    pub fn flows(&self) -> Result<Vec<DirectFlow>, Error> {
        let all = self.flows.iter().map(|entry| entry.map(|(key, flow)| flow_of(&key, &flow)));
        all.collect::<Result<_, _>>().map_err(|e| Error::map("DIRECT_FLOWS", e))
    }

    /// Removes what is known of a connection whose socket is gone. One that has taken its place is left alone.
    ///
    /// # Errors
    /// Of the map.
    pub fn forget(&mut self, flow: &DirectFlow) -> Result<(), Error> {
        let error = |e| Error::map("DIRECT_FLOWS", e);
        let end = |address: SocketAddr| (Address::from(address.ip()), address.port());
        let key = BypassKey::new(flow.peer, end(flow.endpoint), end(flow.client));
        match optional(self.flows.get(&key, 0)).map_err(error)? {
            Some(known) if known.cookie == flow.cookie => empty(self.flows.remove(&key)).map_err(error),
            _ => Ok(()),
        }
    }

    /// What was counted, over all CPUs and since the beginning, by [`DirectEndpoint::tally`].
    ///
    /// # Errors
    /// Of the map.
    pub fn tallies(&self) -> Result<HashMap<u64, DirectTally>, Error> {
        let sum = |values: PerCpuValues<DirectTally>| {
            values.iter().fold(DirectTally::default(), |mut sum, one| {
                sum += *one;
                sum
            })
        };
        let all = self.tallies.iter().map(|entry| entry.map(|(tally, values)| (tally, sum(values))));
        all.collect::<Result<_, _>>().map_err(|e| Error::map("DIRECT_TALLIES", e))
    }

    /// How far a tally was read, by whoever said so last.
    ///
    /// # Errors
    /// Of the map.
    pub fn read(&self, tally: u64) -> Result<DirectTally, Error> {
        let read = optional(self.read.get(&tally, 0)).map_err(|e| Error::map("DIRECT_READ", e))?;
        Ok(read.unwrap_or_default())
    }

    /// Remembers, for the next process too, how far a tally was read.
    ///
    /// # Errors
    /// Of the map.
    pub fn set_read(&mut self, tally: u64, read: DirectTally) -> Result<(), Error> {
        self.read.insert(tally, read, 0).map_err(|e| Error::map("DIRECT_READ", e))
    }

    /// Removes a tally that no rule and no connection refers to.
    ///
    /// # Errors
    /// Of the maps.
    pub fn remove_tally(&mut self, tally: u64) -> Result<(), Error> {
        empty(self.tallies.remove(&tally)).map_err(|e| Error::map("DIRECT_TALLIES", e))?;
        empty(self.read.remove(&tally)).map_err(|e| Error::map("DIRECT_READ", e))
    }

    fn try_apply(&mut self, rules: &[DirectRule]) -> Result<(), Error> {
        let services = |e| Error::map("DIRECT_SERVICES", e);
        let mut wanted: HashMap<Lookup, DirectService> = HashMap::new();
        let mut tables: HashMap<u64, Vec<DirectSlot>> = HashMap::new();
        for rule in rules {
            let number = table_number(&rule.endpoints);
            let slots = tables.entry(number).or_insert_with(|| slots(&rule.endpoints));
            wanted.insert(lookup(rule), DirectService::new(number, slots.len() as u32));
        }
        let tallies = rules.iter().flat_map(|rule| rule.endpoints.iter().map(|endpoint| endpoint.tally));
        self.add_tallies(tallies.collect())?;
        self.add_tables(&tables)?;
        let present: HashMap<Lookup, DirectService> = self
            .services
            .iter()
            .map(|entry| entry.map(|(key, service)| ((key.prefix_len(), key.data()), service)))
            .collect::<Result<_, MapError>>()
            .map_err(services)?;
        // An exception comes before the rule that it is one from, and goes after it.
        let (exceptions, direct): (Vec<_>, Vec<_>) = wanted
            .iter()
            .filter(|(key, service)| present.get(key) != Some(service))
            .partition(|(_, service)| service.slots == 0);
        for (&(len, key), service) in exceptions.into_iter().chain(direct) {
            self.services.insert(&Key::new(len, key), service, 0).map_err(services)?;
        }
        let (exceptions, direct): (Vec<_>, Vec<_>) = present
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key))
            .partition(|(_, service)| service.slots == 0);
        for (&(len, key), _) in direct.into_iter().chain(exceptions) {
            empty(self.services.remove(&Key::new(len, key))).map_err(services)?;
        }
        self.remove_tables(&tables)
    }

    fn add_tallies(&mut self, wanted: HashSet<u64>) -> Result<(), Error> {
        let error = |e: MapError| Error::map("DIRECT_TALLIES", e);
        let cpus = nr_cpus().map_err(|(_, e)| error(e.into()))?;
        for tally in wanted {
            if optional(self.tallies.get(&tally, 0)).map_err(error)?.is_none() {
                let zeroes = PerCpuValues::try_from(vec![DirectTally::default(); cpus]);
                self.tallies.insert(tally, zeroes.map_err(|e| error(e.into()))?, 0).map_err(error)?;
            }
        }
        Ok(())
    }

    fn add_tables(&mut self, tables: &HashMap<u64, Vec<DirectSlot>>) -> Result<(), Error> {
        let error = |e| Error::map("DIRECT_SLOTS", e);
        for (&number, slots) in tables {
            for (index, slot) in (0..).zip(slots) {
                self.slots.insert(DirectSlotKey::new(number, index), slot, 0).map_err(error)?;
            }
        }
        Ok(())
    }

    fn remove_tables(&mut self, wanted: &HashMap<u64, Vec<DirectSlot>>) -> Result<(), Error> {
        let error = |e| Error::map("DIRECT_SLOTS", e);
        let present: Vec<DirectSlotKey> = self.slots.keys().collect::<Result<_, _>>().map_err(error)?;
        for key in present.into_iter().filter(|key| !wanted.contains_key(&key.table)) {
            empty(self.slots.remove(&key)).map_err(error)?;
        }
        Ok(())
    }
}

fn lookup(rule: &DirectRule) -> Lookup {
    // IPv4 in its v4-mapped form, whose first 96 bits are fixed.
    let offset = if rule.prefix.addr().is_ipv4() { 96 } else { 0 };
    let len = DirectKey::FIXED_BITS + offset + u32::from(rule.prefix.prefix_len());
    (len, DirectKey::new(rule.netns, rule.port, rule.prefix.network().into()))
}

/// A number that stands for the content of a table, so that one that stays the same stays in place.
fn table_number(endpoints: &[DirectEndpoint]) -> u64 {
    let mut hasher = DefaultHasher::new();
    endpoints.hash(&mut hasher);
    hasher.finish()
}

/// The endpoints that have a weight, as an alias table.
fn slots(endpoints: &[DirectEndpoint]) -> Vec<DirectSlot> {
    let weighted: Vec<&DirectEndpoint> = endpoints.iter().filter(|endpoint| endpoint.weight > 0).collect();
    let slot = |(index, endpoint): (u32, &&DirectEndpoint)| {
        let address = endpoint.address;
        DirectSlot::new(address.ip().into(), address.port(), endpoint.netns, endpoint.tally, index)
    };
    let mut slots: Vec<DirectSlot> = (0..).zip(&weighted).map(slot).collect();
    // Each slot holds the mean weight: who has less leaves room for one who has more.
    let mut shares: Vec<u128> =
        weighted.iter().map(|endpoint| u128::from(endpoint.weight) * weighted.len() as u128).collect();
    let mean: u128 = weighted.iter().map(|endpoint| u128::from(endpoint.weight)).sum();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
        (0..shares.len()).partition(|&index| shares[index] < mean);
    while let (Some(small), Some(&large)) = (poor.pop(), rich.last()) {
        slots[small].threshold = u32::try_from((shares[small] << 32) / mean).unwrap_or(u32::MAX);
        slots[small].alias = large as u32;
        shares[large] -= mean - shares[small];
        if shares[large] < mean {
            rich.pop();
            poor.push(large);
        }
    }
    slots
}

fn flow_of(key: &BypassKey, flow: &Recorded) -> DirectFlow {
    let end = |address: Address, port| SocketAddr::new(IpAddr::to_canonical(&address.to_ip()), port);
    DirectFlow {
        cookie: flow.cookie,
        netns: flow.netns,
        peer: key.netns,
        client: end(key.remote, key.remote_port),
        endpoint: end(key.local, key.local_port),
        meant: end(flow.meant, flow.meant_port),
        tally: flow.tally,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8, weight: u32) -> DirectEndpoint {
        DirectEndpoint { address: ([10, 0, 0, last], 80).into(), netns: 7, weight, tally: 1 }
    }

    /// How often each endpoint is chosen, of 2^32.
    fn shares(weights: &[u32]) -> Vec<f64> {
        let endpoints: Vec<_> = (0..).zip(weights).map(|(last, &weight)| endpoint(last, weight)).collect();
        let slots = slots(&endpoints);
        let mut shares = vec![0.0; slots.len()];
        for (index, slot) in slots.iter().enumerate() {
            let own = f64::from(slot.threshold) / 2_f64.powi(32);
            shares[index] += own / slots.len() as f64;
            shares[slot.alias as usize] += (1.0 - own) / slots.len() as f64;
        }
        shares
    }

    #[test]
    fn shares_are_weights() {
        for weights in [
            &[1][..],
            &[1, 1, 1],
            &[1, 2, 3, 4],
            &[1, 99],
            &[u32::MAX, 1, 7],
            &[5, 5, 90, 1, 1, 1, 300],
            &[u32::MAX; 3],
        ] {
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            for (share, &weight) in shares(weights).iter().zip(weights) {
                assert!((share - f64::from(weight) / sum).abs() < 1e-8, "{weights:?}: {share}");
            }
        }
    }

    #[test]
    fn who_has_no_weight_has_no_slot() {
        assert_eq!(slots(&[endpoint(1, 0), endpoint(2, 3)]).len(), 1);
        assert!(slots(&[endpoint(1, 0)]).is_empty() && slots(&[]).is_empty());
    }

    #[test]
    fn rules_are_told_apart_by_pod_port_and_prefix() {
        let rule = |netns, port, prefix: &str| {
            lookup(&DirectRule { netns, port, prefix: prefix.parse().unwrap(), endpoints: Arc::new([]) })
        };
        let base = rule(1 << 32, 80, "10.1.0.0/16");
        assert_eq!(base.0, 96 + 96 + 16);
        assert_eq!(base.1.netns(), 1 << 32);
        assert_eq!(base, rule(1 << 32, 80, "10.1.2.3/16"), "bits behind the prefix mean nothing");
        for other in [rule(1, 80, "10.1.0.0/16"), rule(1 << 32, 0, "10.1.0.0/16"), rule(1 << 32, 80, "::/0")]
        {
            assert_ne!(base, other);
        }
    }
}
