//! What is mounted, from proc_pid_mountinfo(5).

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// A line of mountinfo, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which directory of the file system is mounted; `/` when it is all of it.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    /// Options of this mount and of the file system, separated by commas.
    pub(crate) options: String,
}

impl Mount {
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }
}

/// The mounts that the calling thread sees.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

pub(crate) fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    let mounts = mountinfo.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let root = fields.nth(3)?;
        let point = fields.next()?;
        let options = String::from_utf8_lossy(fields.next()?).into_owned();
        // Optional fields end with a single hyphen; type, source and the file system's own options follow.
        fields.find(|field| *field == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        let own = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
        let options = format!("{options},{own}");
        Some(Mount { root: unescape(root), point: unescape(point), kind, options })
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
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_options() {
        let text = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                     41 31 0:38 /pod /sys/fs/cgroup/unified ro,relatime shared:9 master:1 - cgroup2 cgroup2 rw\n\
                     35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n\
                     a line that is none\n";
        let mounts = parse(text);
        let kinds: Vec<&str> = mounts.iter().map(|mount| mount.kind.as_str()).collect();
        assert_eq!(kinds, ["tmpfs", "cgroup2", "cgroup"]);
        assert_eq!(mounts[1].root, PathBuf::from("/pod"));
        assert!(mounts[1].is_read_only() && !mounts[0].is_read_only());
        assert!(mounts[2].options.split(',').any(|option| option == "memory"));
    }

    #[test]
    fn mount_points_are_unescaped() {
        let odd = br"41 31 0:38 / /a\040b\134c\12 rw - cgroup2 cgroup2 rw";
        assert_eq!(parse(odd)[0].point, PathBuf::from(r"/a b\c\12"));
    }
}
