//! A pod: a network namespace and a cgroup.

use std::path::PathBuf;

use super::exec::Placement;
use super::{Cgroup, LabError, NetNs};

/// A network namespace and a cgroup, as a container runtime would make them; both end with it.
#[derive(Debug)]
pub struct Pod {
    name: String,
    cgroup: Cgroup,
    netns: NetNs,
}

impl Pod {
    /// Makes a pod whose cgroup is a child of `parent`.
    ///
    /// # Errors
    /// When namespace or cgroup cannot be made.
    pub fn create(name: &str, parent: &Cgroup) -> Result<Self, LabError> {
        Ok(Self { name: name.to_owned(), cgroup: parent.child(name)?, netns: NetNs::create(name)? })
    }

    /// Its name, without the process id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Where a process of this pod runs; `cpus` as [`Placement::cpus`].
    pub fn placement(&self, cpus: &[usize]) -> Placement {
        Placement {
            cgroup: Some(PathBuf::from(self.cgroup.path())),
            netns: Some(PathBuf::from(self.netns.path())),
            cpus: cpus.to_vec(),
        }
    }
}
