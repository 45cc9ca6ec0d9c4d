//! Others who use the hooks that Culvert would use.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapType, loaded_maps},
    programs::loaded_programs,
};
use aya_obj::generated::{BPF_F_ALLOW_MULTI, bpf_attach_type as Attach};

use super::{
    Finding, Group, Status,
    finding::Denial,
    trial::{self, Refusal},
};
use crate::{CaptureConfig, cgroup::Cgroup, sys};

/// Hooks that Culvert uses on its cgroup.
const HOOKS: [(&str, Attach); 6] = [
    ("connect4", Attach::BPF_CGROUP_INET4_CONNECT),
    ("connect6", Attach::BPF_CGROUP_INET6_CONNECT),
    ("getpeername4", Attach::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", Attach::BPF_CGROUP_INET6_GETPEERNAME),
    ("sock_ops", Attach::BPF_CGROUP_SOCK_OPS),
    ("cgroup_setsockopt", Attach::BPF_CGROUP_SETSOCKOPT),
];

pub(super) fn examine(config: &CaptureConfig, denial: &Denial) -> Vec<Finding> {
    let own = own_programs(&config.pin_dir);
    let names = program_names();
    let cgroup = Cgroup::find(config.cgroup.as_deref());
    let mut findings: Vec<Finding> = HOOKS
        .iter()
        .map(|&(key, hook)| {
            let (status, found) = match &cgroup {
                Ok(path) => on_the_way(path, hook, &own, &names, denial),
                Err(error) => (Status::Unknown, error.to_string()),
            };
            Finding::new(Group::Others, key, status, found).meaning(
                "programs of others on the same cgroup and above it",
                "theirs run too: what they rewrite, Culvert may not see, and the other way round",
            )
        })
        .collect();
    findings.push(socket_maps(&own, denial));
    findings
}

/// Asks each cgroup from the root of the hierarchy down to the one that Culvert would use.
fn on_the_way(
    path: &Path,
    hook: Attach,
    own: &Own,
    names: &BTreeMap<u32, String>,
    denial: &Denial,
) -> (Status, String) {
    let mut found = Vec::new();
    let mut ours = 0;
    let mut status = Status::Ok;
    for dir in cgroups_above(path) {
        let asked = File::open(&dir).and_then(|file| trial::attached(file.as_fd(), hook));
        let (ids, flags) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                let refusal = Refusal::from(error);
                let absent = refusal.is_absence();
                let (_, why) = denial.judge(&refusal);
                return if absent { (Status::Ok, why) } else { (Status::Unknown, why) };
            }
        };
        ours += ids.iter().filter(|id| own.programs.contains(id)).count();
        let others: Vec<String> = ids
            .iter()
            .filter(|id| !own.programs.contains(id))
            .map(|id| format!("{} (id {id})", names.get(id).map_or("?", |name| name.as_str())))
            .collect();
        if others.is_empty() {
            continue;
        }
        let alone = flags & BPF_F_ALLOW_MULTI == 0;
        status = status.max(if alone { Status::Missing } else { Status::Degraded });
        let alone = if alone { ", which tolerates no other below it" } else { "" };
        found.push(format!("{} on {}{alone}", others.join(", "), dir.display()));
    }
    if ours > 0 {
        found.push("Culvert's own, pinned".to_owned());
    }
    if found.is_empty() { (status, "nobody".to_owned()) } else { (status, found.join("; ")) }
}

fn cgroups_above(path: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        path.ancestors().take_while(|dir| Cgroup::is_cgroup2(dir)).map(Path::to_path_buf).collect();
    dirs.reverse();
    dirs
}

/// What an earlier Culvert has pinned here.
#[derive(Default)]
struct Own {
    programs: Vec<u32>,
    maps: Vec<u32>,
}

fn own_programs(pins: &Path) -> Own {
    let list = |name: &str| {
        let entries = std::fs::read_dir(pins.join(name)).into_iter().flatten().flatten();
        entries.filter_map(|entry| sys::obj_get(&entry.path()).ok())
    };
    Own {
        programs: list("links").filter_map(|link| sys::link_program(link.as_fd()).ok()).collect(),
        maps: list("maps").filter_map(|map| sys::map_id(map.as_fd()).ok()).collect(),
    }
}

fn program_names() -> BTreeMap<u32, String> {
    let programs = loaded_programs().filter_map(Result::ok);
    programs.map(|program| (program.id(), program.name_as_str().unwrap_or("?").to_owned())).collect()
}

/// Maps of sockets. Which sockets are in them nobody can ask.
fn socket_maps(own: &Own, denial: &Denial) -> Finding {
    let mut names = Vec::new();
    let mut status = Status::Ok;
    let mut refused = None;
    for map in loaded_maps() {
        match map {
            Ok(map) => {
                let holds_sockets = matches!(map.map_type(), Ok(MapType::SockMap | MapType::SockHash));
                if holds_sockets && !own.maps.contains(&map.id()) {
                    names.push(format!("{} (id {})", map.name_as_str().unwrap_or("?"), map.id()));
                }
            }
            // One that went away meanwhile.
            Err(aya::maps::MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let mut found = match names.len() {
        0 => "no map of sockets of others".to_owned(),
        count => {
            status = Status::Degraded;
            let more = if count > 4 { format!(" and {} more", count - 4) } else { String::new() };
            names.truncate(4);
            format!("maps of sockets of others: {}{more}", names.join(", "))
        }
    };
    if let Some(error) = refused {
        status = Status::Unknown;
        found = match error {
            aya::maps::MapError::SyscallError(e) => denial.explain(&e.io_error),
            other => other.to_string(),
        };
    }
    found.push_str("; which sockets are in a map of others cannot be asked");
    Finding::new(Group::Others, "sockmaps", status, found).meaning(
        "a socket takes part in the programs of one map only",
        "a socket that another user has enrolled (EBUSY) is not spliced; its bytes go the usual way",
    )
}
