//! Cgroups, and the bpf file system.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use culvert_bpf_common::LAYOUT_VERSION;

use super::{Finding, Group, Need, Status};
use crate::{
    CaptureConfig,
    cgroup::{Cgroup, ROOT_INODE},
    mounts::{Mount, mounts},
    sys,
};

pub(super) fn examine(config: &CaptureConfig) -> Vec<Finding> {
    let mounts = mounts().unwrap_or_default();
    vec![
        hierarchy(&mounts),
        target(config),
        socket_controllers(&mounts),
        bpffs(&mounts, config),
        pins(config),
    ]
}

/// How cgroups are laid out, and where version 2 is.
fn hierarchy(mounts: &[Mount]) -> Finding {
    let v2: Vec<&Mount> = mounts.iter().filter(|mount| mount.kind == "cgroup2").collect();
    let v1 = mounts.iter().filter(|mount| mount.kind == "cgroup").count();
    let places: Vec<String> = v2.iter().map(|mount| place(mount)).collect();
    let places = places.join(", ");
    let (status, found) = match (v2.len(), v1) {
        (0, 0) => (Status::Missing, "no cgroup file system is mounted".to_owned()),
        (0, _) => (Status::Missing, "version 1 only".to_owned()),
        (1, 0) => (Status::Ok, format!("version 2 at {places}")),
        (1, _) => (Status::Ok, format!("hybrid: version 2 at {places}, {v1} of version 1")),
        (_, 0) => (Status::Ok, format!("version 2 mounted {} times: {places}", v2.len())),
        _ => {
            (Status::Ok, format!("hybrid: version 2 mounted {} times: {places}; {v1} of version 1", v2.len()))
        }
    };
    Finding::new(Group::FileSystems, "cgroup_layout", status, found)
        .meaning("programs for pods are attached to a cgroup of version 2", "no eBPF capture")
        .needed(Need::Ebpf)
}

fn place(mount: &Mount) -> String {
    let mut text = mount.point.display().to_string();
    if fs::metadata(&mount.point).is_ok_and(|m| m.ino() != ROOT_INODE) {
        text.push_str(" (not the root: a container's view)");
    }
    if mount.is_read_only() {
        text.push_str(" (read-only)");
    }
    text
}

/// The cgroup that programs would be attached to.
fn target(config: &CaptureConfig) -> Finding {
    let (status, found) = match Cgroup::find(config.cgroup.as_deref()) {
        Ok(path) => judge_target(&path),
        Err(error) => (Status::Missing, error.to_string()),
    };
    Finding::new(Group::FileSystems, "cgroup", status, found)
        .meaning("where the programs for pods are attached", "pods outside of it are not captured")
        .needed(Need::Ebpf)
}

fn judge_target(path: &Path) -> (Status, String) {
    let text = path.display().to_string();
    match fs::metadata(path) {
        Err(error) => (Status::Missing, format!("{text}: {error}")),
        Ok(dir) if dir.ino() == ROOT_INODE => (Status::Ok, format!("{text}, the root of the hierarchy")),
        Ok(_) => match Cgroup::contains_this_process(path) {
            Some(false) => {
                (Status::Degraded, format!("{text}; this process is not below it: no inbound capture"))
            }
            _ => (Status::Ok, text),
        },
    }
}

/// Before Linux 5.15 a socket of a process that uses these has no cgroup of version 2.
fn socket_controllers(mounts: &[Mount]) -> Finding {
    let names = ["net_cls", "net_prio"];
    let used: Vec<&str> = names
        .into_iter()
        .filter(|name| {
            let has = |mount: &&Mount| mount.options.split(',').any(|option| option == *name);
            mounts.iter().filter(|mount| mount.kind == "cgroup").any(|mount| has(&mount))
        })
        .collect();
    let (status, found) = if used.is_empty() {
        (Status::Ok, "net_cls and net_prio are not mounted".to_owned())
    } else {
        (Status::Degraded, format!("{} mounted", used.join(" and ")))
    };
    Finding::new(Group::FileSystems, "cgroup_v1_net", status, found).meaning(
        "net_cls and net_prio of version 1 take sockets away from version 2 before Linux 5.15",
        "before Linux 5.15 processes in such groups are not captured",
    )
}

fn bpffs(mounts: &[Mount], config: &CaptureConfig) -> Finding {
    let points: Vec<&PathBuf> =
        mounts.iter().filter(|mount| mount.kind == "bpf").map(|mount| &mount.point).collect();
    let dir = &config.pin_dir;
    let list = points.iter().map(|point| point.display().to_string()).collect::<Vec<_>>().join(", ");
    let (status, found) = if points.iter().any(|point| dir.starts_with(point)) {
        (Status::Ok, format!("mounted at {list}; pins in {}", dir.display()))
    } else if !dir.starts_with("/sys/fs/bpf") {
        let list = if list.is_empty() { "nowhere".to_owned() } else { format!("at {list}") };
        (Status::Missing, format!("{} is not on one; mounted {list}", dir.display()))
    } else if Path::new("/sys/fs/bpf").is_dir() {
        (Status::Degraded, "not mounted; Culvert mounts it at /sys/fs/bpf at start".to_owned())
    } else {
        (Status::Missing, "the kernel has none".to_owned())
    };
    Finding::new(Group::FileSystems, "bpffs", status, found)
        .meaning(
            "keeps programs and maps when Culvert restarts",
            "mounted in a container alone it is gone with it: mount it on the host",
        )
        .needed(Need::Ebpf)
}

/// What an earlier process has left, which the next one takes over.
fn pins(config: &CaptureConfig) -> Finding {
    let layout = config.pin_dir.join("maps/LAYOUT");
    let mut need = Need::None;
    let (status, found) = match sys::obj_get(&layout) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => (Status::Ok, "none".to_owned()),
        Err(error) => (Status::Unknown, format!("{}: {error}", layout.display())),
        Ok(map) => match sys::lookup::<u32, u32>(map.as_fd(), &0).map(Option::unwrap_or_default) {
            Ok(0 | LAYOUT_VERSION) => (Status::Ok, format!("layout {LAYOUT_VERSION}, to be taken over")),
            Ok(version) => {
                need = Need::Ebpf;
                let text =
                    format!("layout {version}, this version has {LAYOUT_VERSION}: remove {}", dir(config));
                (Status::Missing, text)
            }
            Err(error) => (Status::Unknown, format!("{}: {error}", layout.display())),
        },
    };
    Finding::new(Group::FileSystems, "pins", status, found)
        .meaning("of an earlier process, taken over at start", "another layout is refused at start")
        .needed(need)
}

fn dir(config: &CaptureConfig) -> std::path::Display<'_> {
    config.pin_dir.display()
}
