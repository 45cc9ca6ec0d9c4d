//! What the tests of this room share: throw-away network namespaces and directories.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

/// A network namespace made by `ip netns`, removed with everything in it when dropped.
pub(crate) struct TestNetns {
    name: String,
    path: PathBuf,
}

impl TestNetns {
    /// With loopback up. The name is made unique by process and count.
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cvt-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let path = Path::new("/run/netns").join(&name);
        let netns = Self { name, path };
        netns.run(&["ip", "link", "set", "lo", "up"]);
        netns
    }

    /// Two namespaces joined by a veth pair `eth0`: `10.77.0.1`/`fd77::1` and `10.77.0.2`/`fd77::2`.
    pub(crate) fn pair(name: &str) -> (Self, Self) {
        let (a, b) = (Self::new(&format!("{name}-a")), Self::new(&format!("{name}-b")));
        run(&[
            "ip", "link", "add", "eth0", "netns", &a.name, "type", "veth", "peer", "name", "eth0", "netns",
            &b.name,
        ]);
        for (netns, host) in [(&a, "1"), (&b, "2")] {
            netns.run(&["ip", "address", "add", &format!("10.77.0.{host}/24"), "dev", "eth0"]);
            netns.run(&["ip", "address", "add", &format!("fd77::{host}/64"), "dev", "eth0", "nodad"]);
            netns.run(&["ip", "link", "set", "eth0", "up"]);
        }
        (a, b)
    }

    /// Where the kernel has it as a file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command inside; panics when it fails.
    pub(crate) fn run(&self, command: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.name], command].concat())
    }

    /// Runs a function on this thread inside the namespace.
    pub(crate) fn inside<T>(&self, function: impl FnOnce() -> T) -> T {
        let file = std::fs::File::open(&self.path).unwrap();
        culvert_ring::net::in_netns(std::os::fd::AsFd::as_fd(&file), function).unwrap()
    }

    /// Removes the name now, as the end of a pod does.
    pub(crate) fn delete(&self) {
        run(&["ip", "netns", "delete", &self.name]);
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// A directory of this test's own, removed when dropped.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("culvert-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(command: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}
