//! Finding the cgroup that contains all pods.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::Error;

/// The inode number of the root of the cgroup2 hierarchy, which no other cgroup has.
const ROOT_INODE: u64 = 1;

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
        let path = match path {
            Some(path) => path.to_owned(),
            None => root()?,
        };
        let open = || {
            let dir = File::open(&path)?;
            if rustix::fs::fstatfs(&dir)?.f_type != libc::CGROUP2_SUPER_MAGIC {
                return Err(io::Error::other("not a directory of a cgroup2 file system"));
            }
            let id = dir.metadata()?.ino();
            Ok(Self { dir, id })
        };
        let cgroup = open().map_err(|source| Error::Cgroup { path: path.clone(), source })?;
        cgroup.warn_unless_it_contains_this_process(&path);
        Ok(cgroup)
    }

    /// The programs tell the proxy's own connections apart by seeing them being made. Attached where they do not, they
    /// would give the proxy's connection to the application back to the proxy, until a limit ends it.
    fn warn_unless_it_contains_this_process(&self, path: &Path) {
        let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return };
        let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
        let Ok(root) = root() else { return };
        let contains =
            root.join(own).ancestors().any(|dir| fs::metadata(dir).is_ok_and(|m| m.ino() == self.id));
        if !contains {
            log::warn!(
                "cgroup {}: this process is not below it (it is in /{own}); inbound capture will not work",
                path.display()
            );
        }
    }
}

/// The mount point of the cgroup2 hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
fn root() -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = fs::read(path).map_err(|source| Error::Cgroup { path: path.into(), source })?;
    let mounts = cgroup2_mounts(&mountinfo);
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

/// The mount points of type cgroup2, proc_pid_mountinfo(5).
fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mounts = mountinfo.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let mount_point = fields.nth(4)?;
        // Optional fields end with a single hyphen; the type follows.
        fields.find(|field| *field == b"-")?;
        (fields.next()? == b"cgroup2").then(|| unescape(mount_point))
    });
    mounts.collect()
}

/// Undoes the `\ooo` escapes for blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::cgroup2_mounts;
    use std::path::Path;

    #[test]
    fn mounts_are_found_by_type_and_not_by_place() {
        let hybrid = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                       35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n\
                       41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mounts(hybrid), [Path::new("/sys/fs/cgroup/unified")]);
        assert!(cgroup2_mounts(b"31 23 0:28 / /cgroup2 rw - tmpfs cgroup2 rw\n").is_empty());
    }

    #[test]
    fn mount_points_are_unescaped() {
        let odd = br"41 31 0:38 / /a\040b\134c\12 rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mounts(odd), [Path::new(r"/a b\c\12")]);
    }
}
