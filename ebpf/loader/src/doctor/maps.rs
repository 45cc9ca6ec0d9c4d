//! Map types, and operations on them that not every kernel has.

use std::os::fd::AsFd as _;

use aya::{maps::MapType, sys::is_map_supported};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};

use super::{
    Finding, Group, Site, Status,
    trial::{self, Refusal},
};
use crate::sys::{self, MapUpdate};

const NO_CAPTURE: &str = "no eBPF capture; --capture iptables remains";
const NO_SPLICE: &str = "no splicing: pod-local connections go through the whole stack";

const TYPES: [(&str, MapType, &str, &str); 9] = [
    ("hash", MapType::Hash, "pods, addresses, ports", NO_CAPTURE),
    ("array", MapType::Array, "version of the layout", NO_CAPTURE),
    ("percpu_array", MapType::PerCpuArray, "counters of pods", NO_CAPTURE),
    ("lru_hash", MapType::LruHash, "original destinations", NO_CAPTURE),
    ("lpm_trie", MapType::LpmTrie, "excluded prefixes", NO_CAPTURE),
    ("sockmap", MapType::SockMap, "listeners of pods", NO_CAPTURE),
    ("sk_storage", MapType::SkStorage, "what belongs to one socket", NO_CAPTURE),
    ("sockhash", MapType::SockHash, "spliced sockets", NO_SPLICE),
    ("ringbuf", MapType::RingBuf, "messages of the programs", "no messages of the programs in the log"),
];

pub(super) fn examine(site: &Site<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = TYPES
        .iter()
        .map(|&(key, kind, purpose, cost)| {
            let (status, found) = match is_map_supported(kind) {
                Ok(true) => (Status::Ok, "can be made".to_owned()),
                Ok(false) => (Status::Missing, "this kernel has not got it".to_owned()),
                Err(error) => site.denial.judge(&Refusal::from(error.io_error)),
            };
            Finding::new(Group::Maps, key, status, found).meaning(purpose, cost)
        })
        .collect();

    let mapped = trial::create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_MMAPABLE);
    findings.push(
        finding(site, "array_mmap", mapped.map(|_| "can be made".to_owned())).meaning(
            "tells the programs what the proxy has read, without a system call (Linux 5.5)",
            NO_SPLICE,
        ),
    );
    findings.push(finding(site, "lru_lookup_and_delete", take_in_one_step()).meaning(
        "takes an original destination in one step (Linux 5.14)",
        "one more system call for each captured connection",
    ));
    findings
}

fn finding(site: &Site<'_>, key: &'static str, outcome: Result<String, Refusal>) -> Finding {
    let (status, found) = match outcome {
        Ok(found) => (Status::Ok, found),
        Err(refusal) => site.denial.judge(&refusal),
    };
    Finding::new(Group::Maps, key, status, found)
}

fn take_in_one_step() -> Result<String, Refusal> {
    let map = trial::create_map(bpf_map_type::BPF_MAP_TYPE_LRU_HASH, 4, 4, 16, 0)?;
    sys::update(map.as_fd(), &7_u32, &11_u32, MapUpdate::Any)?;
    let taken: Option<u32> = sys::lookup_and_delete(map.as_fd(), &7_u32)?;
    let left: Option<u32> = sys::lookup(map.as_fd(), &7_u32)?;
    match (taken, left) {
        (Some(11), None) => Ok("works".to_owned()),
        other => Err(std::io::Error::other(format!("gives {other:?}")).into()),
    }
}
