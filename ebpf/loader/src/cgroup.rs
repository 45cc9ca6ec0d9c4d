//! Finding the cgroup that contains all pods.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{Error, mounts::mounts, sandbox::ProbeCgroup};

/// The inode number of the root of the cgroup2 hierarchy, which no other cgroup has.
pub(crate) const ROOT_INODE: u64 = 1;

/// A cgroup, open for attaching.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) dir: File,
    /// The id by which links name it.
    pub(crate) id: u64,
}

impl Cgroup {
    /// Opens the cgroup at `path`, or the root of the cgroup2 hierarchy.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let path = Self::find(path)?;
        let open = || {
            let dir = File::open(&path)?;
            if rustix::fs::fstatfs(&dir)?.f_type != libc::CGROUP2_SUPER_MAGIC {
                return Err(io::Error::other("not a directory of a cgroup2 file system"));
            }
            let id = dir.metadata()?.ino();
            Ok(Self { dir, id })
        };
        let cgroup = open().map_err(|source| Error::Cgroup { path: path.clone(), source })?;
        Self::warn_unless_it_contains_this_process(&path);
        Ok(cgroup)
    }

    /// Where the cgroup at `path` is, or the root of the cgroup2 hierarchy.
    pub(crate) fn find(path: Option<&Path>) -> Result<PathBuf, Error> {
        path.map_or_else(root, |path| Ok(path.to_owned()))
    }

    /// Whether the directory is one of a cgroup2 file system.
    pub(crate) fn is_cgroup2(dir: &Path) -> bool {
        rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type == libc::CGROUP2_SUPER_MAGIC)
    }

    /// Whether this process is in the cgroup or below it, if that can be told.
    pub(crate) fn contains_this_process(path: &Path) -> Option<bool> {
        let id = fs::metadata(path).ok()?.ino();
        let own = own()?;
        let root = root().ok()?;
        Some(root.join(own).ancestors().any(|dir| fs::metadata(dir).is_ok_and(|m| m.ino() == id)))
    }

    /// The programs tell the proxy's own connections apart by seeing them being made. Attached where they do not, they
    /// would give the proxy's connection to the application back to the proxy, until a limit ends it.
    fn warn_unless_it_contains_this_process(path: &Path) {
        if Self::contains_this_process(path) == Some(false) && !ProbeCgroup::is_one(path) {
            log::warn!(
                "cgroup {}: this process is not below it (it is in /{}); inbound capture will not work",
                path.display(),
                own().unwrap_or_default()
            );
        }
    }
}

/// The cgroup of this process, from the root of the hierarchy as it sees it.
fn own() -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().find_map(|line| line.strip_prefix("0::/")).map(str::to_owned)
}

/// The mount point of the cgroup2 hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
fn root() -> Result<PathBuf, Error> {
    let mounts = mounts().map_err(|source| Error::Cgroup { path: "/proc/self/mountinfo".into(), source })?;
    let mounts: Vec<PathBuf> =
        mounts.into_iter().filter(|mount| mount.kind == "cgroup2").map(|mount| mount.point).collect();
    let is_root = |path: &&PathBuf| fs::metadata(path).is_ok_and(|m| m.ino() == ROOT_INODE);
    if let Some(mount) = mounts.iter().find(is_root) {
        return Ok(mount.clone());
    }
    let mount = mounts.into_iter().next().ok_or(Error::NoCgroup2)?;
    log::warn!(
        "{}: not the root of the cgroup hierarchy (a container's view?); pods outside of it are not captured",
        mount.display()
    );
    Ok(mount)
}
