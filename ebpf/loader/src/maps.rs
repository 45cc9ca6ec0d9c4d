//! The maps that the loader writes, by type.

use std::{collections::HashSet, hash::Hash, os::fd::BorrowedFd};

use aya::{
    Ebpf, Pod as Plain,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, SockMap, lpm_trie::Key},
    util::nr_cpus,
};
use culvert_bpf_common::{Address, Counters, OwnAddressKey, Pod, PortKey, listener_slot};
use ipnet::IpNet;

use crate::Error;

pub(crate) const ORIG_DST: &str = "ORIG_DST";

/// Maps shared by all programs; what is written here takes effect for the next connection.
pub(crate) struct Maps {
    pods: HashMap<MapData, u64, Pod>,
    own_addresses: HashMap<MapData, OwnAddressKey, u32>,
    listeners: SockMap<MapData>,
    excluded_prefixes: LpmTrie<MapData, Address, u32>,
    excluded_ports: HashMap<MapData, PortKey, u32>,
    counters: PerCpuArray<MapData, Counters>,
}

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            pods: typed(ebpf, "PODS")?,
            own_addresses: typed(ebpf, "OWN_ADDRESSES")?,
            listeners: typed(ebpf, "LISTENERS")?,
            excluded_prefixes: typed(ebpf, "EXCLUDED_PREFIXES")?,
            excluded_ports: typed(ebpf, "EXCLUDED_PORTS")?,
            counters: typed(ebpf, "COUNTERS")?,
        })
    }

    pub(crate) fn pods(&self) -> Result<Vec<(u64, Pod)>, Error> {
        self.pods.iter().collect::<Result<_, _>>().map_err(|e| Error::map("PODS", e))
    }

    pub(crate) fn pod(&self, cookie: u64) -> Result<Option<Pod>, Error> {
        optional(self.pods.get(&cookie, 0)).map_err(|e| Error::map("PODS", e))
    }

    pub(crate) fn set_pod(&mut self, cookie: u64, pod: Pod) -> Result<(), Error> {
        self.pods.insert(cookie, pod, 0).map_err(|e| Error::map("PODS", e))
    }

    pub(crate) fn remove_pod(&mut self, cookie: u64) -> Result<(), Error> {
        optional(self.pods.remove(&cookie)).map(drop).map_err(|e| Error::map("PODS", e))
    }

    pub(crate) fn own_addresses(&self) -> Result<Vec<OwnAddressKey>, Error> {
        self.own_addresses.keys().collect::<Result<_, _>>().map_err(|e| Error::map("OWN_ADDRESSES", e))
    }

    /// Makes `addresses` the addresses of the pod; none removes them all.
    pub(crate) fn set_own_addresses(&mut self, netns: u64, addresses: &[Address]) -> Result<(), Error> {
        let wanted = addresses.iter().map(|&address| OwnAddressKey { netns, address });
        let map = &mut self.own_addresses;
        let is_ours = |key: &OwnAddressKey| key.netns == netns;
        sync(map, wanted.collect(), is_ours, |map, key| map.insert(key, 1, 0), |map, key| map.remove(&key))
            .map_err(|e| Error::map("OWN_ADDRESSES", e))
    }

    /// Puts a listener in its place, in one step if another is there, or empties the place.
    pub(crate) fn set_listener(
        &mut self,
        index: u32,
        v6: bool,
        listener: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let slot = listener_slot(index, v6);
        let result = match listener {
            Some(listener) => self.listeners.set(slot, &listener, 0),
            None => empty(self.listeners.clear_index(&slot)),
        };
        result.map_err(|e| Error::map("LISTENERS", e))
    }

    pub(crate) fn set_excluded_prefixes(&mut self, prefixes: &[IpNet]) -> Result<(), Error> {
        let wanted = prefixes.iter().map(prefix_key).map(|key| (key.prefix_len(), key.data()));
        let map = &mut self.excluded_prefixes;
        sync(
            map,
            wanted.collect(),
            |_| true,
            |map, (len, address)| map.insert(&Key::new(len, address), 1, 0),
            |map, (len, address)| map.remove(&Key::new(len, address)),
        )
        .map_err(|e| Error::map("EXCLUDED_PREFIXES", e))
    }

    pub(crate) fn set_excluded_ports(&mut self, ports: impl Iterator<Item = PortKey>) -> Result<(), Error> {
        let map = &mut self.excluded_ports;
        sync(map, ports.collect(), |_| true, |map, key| map.insert(key, 1, 0), |map, key| map.remove(&key))
            .map_err(|e| Error::map("EXCLUDED_PORTS", e))
    }

    /// The sum over all CPUs.
    pub(crate) fn counters(&self, index: u32) -> Result<Counters, Error> {
        let per_cpu = self.counters.get(&index, 0).map_err(|e| Error::map("COUNTERS", e))?;
        Ok(per_cpu.iter().fold(Counters::default(), |mut sum, one| {
            sum += *one;
            sum
        }))
    }

    pub(crate) fn reset_counters(&mut self, index: u32) -> Result<(), Error> {
        let error = |e: MapError| Error::map("COUNTERS", e);
        let cpus = nr_cpus().map_err(|(_, e)| error(e.into()))?;
        let zeroes = PerCpuValues::try_from(vec![Counters::default(); cpus]).map_err(|e| error(e.into()))?;
        self.counters.set(index, zeroes, 0).map_err(error)
    }
}

/// The prefix with IPv4 in its v4-mapped form, whose first 96 bits are fixed.
fn prefix_key(net: &IpNet) -> Key<Address> {
    let offset = if net.network().is_ipv4() { 96 } else { 0 };
    Key::new(u32::from(net.prefix_len()) + offset, net.network().into())
}

/// A map whose set of keys says everything.
trait KeySet {
    type Key: Copy + Eq + Hash;
    fn present(&self) -> Result<Vec<Self::Key>, MapError>;
}

impl<K: Plain + Eq + Hash> KeySet for HashMap<MapData, K, u32> {
    type Key = K;
    fn present(&self) -> Result<Vec<K>, MapError> {
        self.keys().collect()
    }
}

impl KeySet for LpmTrie<MapData, Address, u32> {
    type Key = (u32, Address);
    fn present(&self) -> Result<Vec<Self::Key>, MapError> {
        self.keys().map(|key| key.map(|key| (key.prefix_len(), key.data()))).collect()
    }
}

/// Makes the keys for which `is_ours` holds exactly `wanted`: first adds, then removes, and leaves alone what stays.
fn sync<M: KeySet>(
    map: &mut M,
    wanted: HashSet<M::Key>,
    is_ours: impl Fn(&M::Key) -> bool,
    insert: impl Fn(&mut M, M::Key) -> Result<(), MapError>,
    remove: impl Fn(&mut M, M::Key) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let present: HashSet<M::Key> = map.present()?.into_iter().filter(is_ours).collect();
    for &key in wanted.difference(&present) {
        insert(map, key)?;
    }
    for &key in present.difference(&wanted) {
        empty(remove(map, key))?;
    }
    Ok(())
}

pub(crate) fn typed<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, Error> {
    let map = ebpf.take_map(name).ok_or_else(|| Error::map(name, MapError::ElementNotFound))?;
    M::try_from(map).map_err(|e| Error::map(name, e))
}

/// Absence as a value.
pub(crate) fn optional<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Success whether or not there was anything to remove. A sockmap says EINVAL for an empty place.
pub(crate) fn empty(result: Result<(), MapError>) -> Result<(), MapError> {
    match optional(result) {
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result.map(drop),
    }
}
