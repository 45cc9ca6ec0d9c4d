//! Version 2 cgroups, wherever the host has them mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::LabError;

/// What the names of this process's cgroups begin with; the process id follows.
pub const PREFIX: &str = "culvert-bench-";

/// How long processes in a cgroup may take to die.
const EMPTY_WITHIN: Duration = Duration::from_secs(3);

/// A cgroup, removed when dropped, with all that runs in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A cgroup at the top of the tree, named after this process.
    ///
    /// # Errors
    /// When there is no version 2 hierarchy or it cannot be written.
    pub fn create(label: &str) -> Result<Self, LabError> {
        Self::create_at(mount_point()?.join(super::own_name(label)))
    }

    /// A cgroup inside this one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn child(&self, label: &str) -> Result<Self, LabError> {
        Self::create_at(self.path.join(label))
    }

    fn create_at(path: PathBuf) -> Result<Self, LabError> {
        fs::create_dir(&path).map_err(LabError::file(&path))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_tree(&self.path);
    }
}

/// CPU time used so far by everything in the cgroup at `path`, microseconds. Accounted for every version 2 cgroup,
/// whether or not the cpu controller is enabled.
///
/// # Errors
/// When `path` is no version 2 cgroup.
pub fn cpu_usage_us(path: &Path) -> io::Result<u64> {
    let file = path.join("cpu.stat");
    let text = fs::read_to_string(&file)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    let value = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    value.ok_or_else(|| io::Error::other(format!("{}: no usage_usec", file.display())))
}

/// Where the version 2 hierarchy is mounted: `/sys/fs/cgroup`, or elsewhere on hosts that have both versions.
///
/// # Errors
/// [`LabError::NoCgroup2`].
pub fn mount_point() -> Result<PathBuf, LabError> {
    let file = "/proc/self/mountinfo";
    let text = fs::read_to_string(file).map_err(LabError::file(file))?;
    find_mount(&text).ok_or(LabError::NoCgroup2)
}

/// proc_pid_mountinfo(5): the mount point is the fifth field, the type the first after a lone hyphen.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (source.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(unescape(point)))
    })
}

/// Undoes the octal escapes the kernel uses for blanks.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// Kills what runs in a cgroup and its children and removes them, as far as that is possible.
pub(super) fn remove_tree(path: &Path) {
    // Linux 5.14; before, the processes have to end by themselves.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    // Busy until the last process is reaped.
    while fs::remove_dir(path).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
        if Instant::now() >= deadline {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_hosts() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            32 30 0:28 / /odd\\040place rw shared:5 master:1 - cgroup2 none rw\n";
        assert_eq!(find_mount(hybrid), Some("/odd place".into()));
        assert_eq!(find_mount("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn processes_in_a_cgroup_are_accounted_and_end_with_it() {
        if super::super::require_root().is_err() {
            return;
        }
        let parent = Cgroup::create("cgroup-test").expect("cgroup");
        let child = parent.child("inner").expect("cgroup");
        assert_eq!(cpu_usage_us(child.path()).expect("cpu.stat"), 0);
        let procs = child.path().join("cgroup.procs");
        let script = format!("echo $$ > {}; i=0; while :; do i=$((i+1)); done", procs.display());
        let mut busy = std::process::Command::new("sh").args(["-c", &script]).spawn().expect("sh");
        let deadline = Instant::now() + Duration::from_secs(20);
        while cpu_usage_us(child.path()).expect("cpu.stat") < 20_000 {
            assert!(Instant::now() < deadline, "no CPU time was accounted");
            thread::sleep(Duration::from_millis(5));
        }
        let path = parent.path().to_owned();
        let reaper = thread::spawn(move || busy.wait().expect("wait"));
        drop(parent);
        assert!(!reaper.join().expect("reaper").success());
        assert!(!path.exists());
        // Its directory is gone already; that must not disturb.
        drop(child);
    }
}
