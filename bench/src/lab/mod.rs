//! Pods without a cluster: network namespaces, veth pairs, cgroups, and processes placed in them.
//!
//! Everything made here carries the process id in its name and is removed when it is dropped; [`sweep`] removes what a
//! killed process left behind. Needs root and the `ip` command.

pub mod cgroup;
pub mod cpus;
pub mod exec;
pub mod interrupt;
pub mod iptables;
pub mod netns;
pub mod pod;
pub mod process;
pub mod tool;
pub mod usage;

use std::io;
use std::path::{Path, PathBuf};

pub use cgroup::Cgroup;
pub use cpus::Cpus;
pub use netns::NetNs;
pub use pod::Pod;
pub use process::Process;

/// Where files of a run are kept: only root can write there.
pub const RUN_DIRECTORY: &str = "/run";

/// Where the BPF file system is mounted.
pub const BPF_DIRECTORY: &str = "/sys/fs/bpf";

/// Why a piece of the lab could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file of the cgroup tree, of /proc, or of /run refused.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Ctrl-C or a termination signal.
    #[error("interrupted")]
    Interrupted,
    /// A command that is needed is not installed.
    #[error("{tool} is not installed (Debian, Ubuntu: apt-get install {package})")]
    MissingTool {
        /// The command.
        tool: String,
        /// Where Debian and Ubuntu have it.
        package: &'static str,
    },
    /// No version 2 cgroup hierarchy is mounted.
    #[error("no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoCgroup2,
    /// Namespaces and cgroups are root's.
    #[error("must be root: network namespaces and cgroups are to be made")]
    NotRoot,
    /// A process that was started did not do its work.
    #[error("{name}: {what}{log}")]
    Process {
        /// What the process is here.
        name: String,
        /// What happened.
        what: String,
        /// The end of what it wrote to stderr, on lines of its own; may be empty.
        log: String,
    },
    /// A command failed.
    #[error("{command}: {output}")]
    Tool {
        /// The whole command line.
        command: String,
        /// What it wrote, or its exit status.
        output: String,
    },
}

impl LabError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }
}

/// Refuses unless the process may make namespaces and cgroups.
///
/// # Errors
/// [`LabError::NotRoot`].
pub fn require_root() -> Result<(), LabError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

/// Removes namespaces, cgroups, files and BPF pins of processes that no longer exist. What cannot be removed is left.
pub fn sweep() {
    for name in netns::names() {
        if owner_is_gone(&name, netns::PREFIX) {
            let _ = netns::delete(&name);
        }
    }
    for path in [RUN_DIRECTORY, BPF_DIRECTORY].into_iter().flat_map(leftovers) {
        let _ = std::fs::remove_dir_all(path);
    }
    if let Ok(mount) = cgroup::mount_point() {
        leftovers(mount).iter().for_each(|path| cgroup::remove_tree(path));
    }
}

/// A directory name below [`RUN_DIRECTORY`] or [`BPF_DIRECTORY`] that [`sweep`] knows as this process's.
pub fn own_name(label: &str) -> String {
    format!("{}{}-{label}", cgroup::PREFIX, std::process::id())
}

/// What dead processes left in a directory.
fn leftovers(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let dead = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| owner_is_gone(name, cgroup::PREFIX)));
    dead.map(|entry| entry.path()).collect()
}

/// Whether `name` is `<prefix><pid>` or `<prefix><pid>-...` and there is no such process.
fn owner_is_gone(name: &str, prefix: &str) -> bool {
    let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
    let pid = pid.and_then(|pid| pid.parse::<i32>().ok()).and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leftovers_of_dead_processes_are_swept() {
        let own = std::process::id();
        assert!(!owner_is_gone(&format!("cvb-{own}-client"), "cvb-"));
        assert!(!owner_is_gone("cvb-client", "cvb-"));
        assert!(!owner_is_gone("other-1", "cvb-"));
        // Process ids end at 4194304 (PID_MAX_LIMIT).
        assert!(owner_is_gone("cvb-4999999-client", "cvb-"));
        assert!(owner_is_gone("cvb-4999999", "cvb-"));
    }
}
