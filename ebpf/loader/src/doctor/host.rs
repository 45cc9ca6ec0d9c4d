//! The kernel, and what the process may ask of it.

use std::{fs, path::Path};

use super::{
    Finding, Group, Need, Status,
    finding::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, Denial},
};

const TYPE_INFORMATION: &str = "/sys/kernel/btf/vmlinux";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

pub(super) fn examine(denial: &Denial) -> Vec<Finding> {
    vec![release(), type_information(), lockdown(), capabilities(denial), seccomp(denial)]
}

fn release() -> Finding {
    let uname = rustix::system::uname();
    let found = format!("{} {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy());
    Finding::new(Group::Kernel, "release", Status::Ok, found)
        .meaning("nothing: features are asked for one by one, as distributions backport", "")
}

fn type_information() -> Finding {
    let (status, found) = match fs::metadata(TYPE_INFORMATION) {
        Ok(file) => (Status::Ok, format!("{TYPE_INFORMATION}, {} KiB", file.len() >> 10)),
        Err(error) => (Status::Missing, format!("{TYPE_INFORMATION}: {error}")),
    };
    Finding::new(Group::Kernel, "btf", status, found)
        .meaning("tells splicing where this kernel keeps the fields of a socket", "no splicing")
}

fn lockdown() -> Finding {
    let (status, found) = match fs::read_to_string(LOCKDOWN) {
        Ok(text) => match lockdown_mode(&text) {
            mode @ ("integrity" | "confidentiality") => (Status::Degraded, mode.to_owned()),
            mode => (Status::Ok, mode.to_owned()),
        },
        Err(_) if Path::new("/sys/kernel/security").join("lsm").exists() => {
            (Status::Ok, "not built into this kernel".to_owned())
        }
        Err(_) => (Status::Unknown, format!("{LOCKDOWN} cannot be read (securityfs is not mounted)")),
    };
    Finding::new(Group::Kernel, "lockdown", status, found)
        .meaning("forbids tracing programs; no other type", "no tracing programs, which Culvert does not use")
}

/// The mode in brackets of `none [integrity] confidentiality`.
fn lockdown_mode(text: &str) -> &str {
    let chosen = text.split_ascii_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    chosen.unwrap_or_else(|| text.trim())
}

fn capabilities(denial: &Denial) -> Finding {
    let names = [
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
        ("CAP_NET_ADMIN", CAP_NET_ADMIN),
        ("CAP_BPF", CAP_BPF),
        ("CAP_PERFMON", CAP_PERFMON),
    ];
    let named = |has: bool| {
        let names = names.iter().filter(|(_, bit)| denial.has(*bit) == has).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(", ")
    };
    let (have, lack) = (named(true), named(false));
    let mut found = match (have.is_empty(), lack.is_empty()) {
        (true, _) => format!("none of {lack}"),
        (_, true) => have,
        _ => format!("{have}; not {lack}"),
    };
    if !denial.first_user_namespace {
        found.push_str("; in a user namespace, to which bpf(2) grants nothing");
    }
    let enough = denial.may_use_bpf() && denial.may_use_namespaces() && denial.has(CAP_NET_ADMIN);
    Finding::new(Group::Kernel, "capabilities", if enough { Status::Ok } else { Status::Missing }, found)
        .meaning(
            "loads programs, enters the network namespaces of pods",
            "no capture of pods (run as root or privileged, or --capture none)",
        )
        .needed(Need::Capture)
}

fn seccomp(denial: &Denial) -> Finding {
    let (status, found) = match denial.seccomp {
        0 => (Status::Ok, "no filter"),
        2 => (Status::Degraded, "a filter is installed"),
        _ => (Status::Degraded, "strict mode"),
    };
    Finding::new(Group::Kernel, "seccomp", status, found)
        .meaning("may forbid bpf(2), namespaces and io_uring", "what it forbids shows below, one by one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(lockdown_mode("none [integrity] confidentiality\n"), "integrity");
        assert_eq!(lockdown_mode("[none] integrity confidentiality\n"), "none");
    }

    #[test]
    fn capabilities_that_are_missing_are_named() {
        let denial = Denial::parse(&format!("CapEff:\t{:016x}\n", 1_u64 << CAP_NET_ADMIN), "");
        let finding = capabilities(&denial);
        assert_eq!(finding.status, Status::Missing);
        assert_eq!(finding.found, "CAP_NET_ADMIN; not CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON");
    }
}
