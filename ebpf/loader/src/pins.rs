//! The directory on the bpf file system in which everything is pinned.
//!
//! ```text
//! <pin_dir>/          0700
//!   maps/<NAME>       all maps
//!   links/connect4, connect6, getpeername4, getpeername6, sock_ops
//!   links/sk_lookup-<network namespace cookie>
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open, statfs},
    mount::{MountFlags, mount},
};

use crate::{Error, links::Link};

/// Where the bpf file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Type of the bpf file system in statfs(2).
const BPFFS_MAGIC: u64 = libc::BPF_FS_MAGIC as u64;

/// The pins of one instance.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Makes the directories, and mounts the bpf file system where it belongs if nobody has.
    pub(crate) fn create(dir: &Path) -> Result<Self, Error> {
        ensure_bpffs(dir)?;
        let pins = Self { dir: dir.to_owned() };
        for dir in [pins.dir.clone(), pins.dir.join("maps"), pins.dir.join("links")] {
            let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir);
            made.map_err(|e| Error::pin(dir, e))?;
        }
        Ok(pins)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.dir.join("links").join(name)
    }

    /// The link of the pod with this network namespace cookie.
    pub(crate) fn pod_link(&self, cookie: u64) -> PathBuf {
        self.link(&format!("sk_lookup-{cookie}"))
    }

    /// The cookies of all pods that have a link.
    pub(crate) fn pod_links(&self) -> Result<Vec<u64>, Error> {
        let names = list(&self.dir.join("links"))?;
        let cookies = names
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.strip_prefix("sk_lookup-")?.parse().ok());
        Ok(cookies.collect())
    }

    /// Keeps other processes from opening or removing the same pins until the returned file is dropped.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        locked(&self.dir).map_err(|e| Error::pin(&self.dir, e))
    }
}

/// Detaches everything pinned in `dir` and removes the pins and the directory: pods are connected directly again.
///
/// Needs no working capture, so that it can also clean up after another version. Succeeds when there is nothing.
pub fn uninstall(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let links = dir.join("links");
    for path in list(&links)? {
        Link::remove(&path)?;
    }
    let maps = dir.join("maps");
    for path in list(&maps)? {
        fs::remove_file(&path).map_err(|e| Error::pin(path, e))?;
    }
    for dir in [&links, &maps, dir] {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::pin(dir, e)),
            _ => {}
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::pin(dir, e))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(|e| Error::pin(dir, e))).collect()
}

fn ensure_bpffs(dir: &Path) -> Result<(), Error> {
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    if is_bpffs(existing)? {
        return Ok(());
    }
    let mount_point = Path::new(BPFFS);
    if !dir.starts_with(mount_point) {
        return Err(Error::NotBpffs { path: dir.into() });
    }
    // Two processes must not mount one over the other: the lower one's pins would be out of reach.
    let _lock = locked(mount_point).map_err(|e| Error::pin(mount_point, e))?;
    if !is_bpffs(mount_point)? {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
        mount("bpf", mount_point, "bpf", flags, c"mode=0700").map_err(|e| Error::pin(mount_point, e))?;
    }
    Ok(())
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let stat = statfs(path).map_err(|e| Error::pin(path, e))?;
    Ok(stat.f_type as u64 == BPFFS_MAGIC)
}

fn locked(dir: &Path) -> io::Result<File> {
    let dir = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir.into())
}
