//! What the process itself is given: I/O driver, limits, settings of the kernel that matter.

use std::fs;

use culvert_bpf::doctor::{Finding, Group, Status};
use culvert_ring::Probe;
use rustix::process::{Resource, Rlimit, getrlimit};

/// The length that in-pod listeners ask for.
const BACKLOG: u64 = 4096;
/// Connections of a busy node, each with one to its upstream.
const FILES: u64 = 65_536;
/// What maps took together before Linux 5.11, which charges them to a cgroup instead.
const MEMLOCK: u64 = 64 << 20;

pub(super) fn driver(probe: &Probe) -> Finding {
    let status = if probe.tier == "uring-full" { Status::Ok } else { Status::Degraded };
    Finding::new(Group::Io, "driver", status, format!("tier {}: {}", probe.tier, probe.reason)).meaning(
        "what workers wait with",
        "more CPU per request and per connection than with io_uring of Linux 6.6",
    )
}

pub(super) fn limits() -> [Finding; 3] {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = Finding::new(Group::Limits, "cpus", Status::Ok, format!("{cpus} may be used"))
        .meaning("one worker for each, unless --concurrency says otherwise", "");
    [
        limit("nofile", Resource::Nofile, FILES).meaning(
            "one descriptor for each connection, one for each upstream connection",
            "connections beyond the limit are refused (LimitNOFILE=, ulimit -n)",
        ),
        limit("memlock", Resource::Memlock, MEMLOCK).meaning(
            "io_uring's rings without CAP_IPC_LOCK; eBPF maps before Linux 5.11",
            "before Linux 5.11 no eBPF capture unless CAP_SYS_RESOURCE lets it be raised, without CAP_IPC_LOCK fewer workers with \
             io_uring (LimitMEMLOCK=)",
        ),
        cpus,
    ]
}

fn limit(key: &'static str, resource: Resource, enough: u64) -> Finding {
    let Rlimit { current, maximum } = getrlimit(resource);
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let status = if current.is_none_or(|current| current >= enough) { Status::Ok } else { Status::Degraded };
    Finding::new(Group::Limits, key, status, format!("{} (hard {})", text(current), text(maximum)))
}

/// A setting of the kernel.
struct Sysctl {
    name: &'static str,
    is_good: fn(u64) -> bool,
    purpose: &'static str,
    cost: &'static str,
}

const SYSCTLS: [Sysctl; 7] = [
    Sysctl {
        name: "net.core.somaxconn",
        is_good: |value| value >= BACKLOG,
        purpose: "the longest accept queue",
        cost: "bursts of connections beyond it wait for a second or more",
    },
    Sysctl {
        name: "net.core.bpf_jit_enable",
        is_good: |value| value != 0,
        purpose: "eBPF programs are compiled",
        cost: "programs are interpreted: connects cost more CPU",
    },
    Sysctl {
        name: "net.core.bpf_jit_harden",
        is_good: |value| value < 2,
        purpose: "2 blinds the constants of root's programs too",
        cost: "programs run a little slower",
    },
    Sysctl {
        name: "kernel.bpf_stats_enabled",
        is_good: |value| value == 0,
        purpose: "times every run of every program",
        cost: "each run costs two readings of the clock",
    },
    Sysctl {
        name: "kernel.unprivileged_bpf_disabled",
        is_good: |_| true,
        purpose: "nothing: Culvert's programs need privilege anyway",
        cost: "nothing",
    },
    Sysctl {
        name: "kernel.io_uring_disabled",
        is_good: |value| value == 0,
        purpose: "0 allows io_uring, 1 to a group and CAP_SYS_ADMIN, 2 to nobody",
        cost: "epoll in place of io_uring where it applies",
    },
    Sysctl {
        name: "user.max_net_namespaces",
        is_good: |value| value > 0,
        purpose: "programs are tried in a throw-away network namespace",
        cost: "no self-test, hence no splicing under --splice auto",
    },
];

pub(super) fn sysctls() -> Vec<Finding> {
    SYSCTLS.iter().map(|sysctl| examine(sysctl, fs::read_to_string(path(sysctl.name)))).collect()
}

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn examine(sysctl: &Sysctl, text: std::io::Result<String>) -> Finding {
    let (status, found) = match text {
        Ok(text) => match text.trim().parse() {
            Ok(value) if !(sysctl.is_good)(value) => (Status::Degraded, value.to_string()),
            _ => (Status::Ok, text.trim().to_owned()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (Status::Ok, "this kernel has no such setting".to_owned())
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            (Status::Unknown, "readable by root only".to_owned())
        }
        Err(error) => (Status::Unknown, error.to_string()),
    };
    Finding::new(Group::Sysctls, sysctl.name, status, found).meaning(sysctl.purpose, sysctl.cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_setting_is_judged_by_its_value() {
        let somaxconn = &SYSCTLS[0];
        assert_eq!(examine(somaxconn, Ok("4096\n".to_owned())).status, Status::Ok);
        assert_eq!(examine(somaxconn, Ok("128\n".to_owned())).status, Status::Degraded);
        assert_eq!(examine(somaxconn, Err(io::ErrorKind::NotFound.into())).status, Status::Ok);
        assert_eq!(examine(somaxconn, Err(io::ErrorKind::PermissionDenied.into())).status, Status::Unknown);
    }

    #[test]
    fn only_the_newest_tier_is_without_loss() {
        let probe = |tier| Probe {
            driver: culvert_ring::DriverKind::Uring,
            tier,
            reason: "single issuer".to_owned(),
        };
        assert_eq!(driver(&probe("uring-full")).status, Status::Ok);
        assert_eq!(driver(&probe("uring-core")).status, Status::Degraded);
        assert_eq!(driver(&probe("epoll")).found, "tier epoll: single issuer");
    }
}
