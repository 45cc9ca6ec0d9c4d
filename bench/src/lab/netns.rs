//! Network namespaces with names, and the links between them.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{LabError, tool};

/// What the names of this process's namespaces begin with; the process id follows.
pub const PREFIX: &str = "cvb-";

const DIRECTORY: &str = "/run/netns";

/// A named network namespace with its loopback up, removed when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
}

impl NetNs {
    /// Makes a namespace that `ip netns` knows, named after this process.
    ///
    /// # Errors
    /// When `ip` is missing or refuses.
    pub fn create(label: &str) -> Result<Self, LabError> {
        let name = format!("{PREFIX}{}-{label}", std::process::id());
        tool::run("ip", &["netns", "add", &name])?;
        let path = Path::new(DIRECTORY).join(&name);
        let namespace = Self { name, path };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name `ip netns` has for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file that stands for it, as setns(2) takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn ip(&self, arguments: &[&str]) -> Result<String, LabError> {
        tool::run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Links it to `other` by a veth pair of its own. This end is `eth0`, the other is `to-<host>`, both ends get an
    /// address of a /30 and this end a default route.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link(&self, address: Ipv4Addr, other: &Self, other_address: Ipv4Addr) -> Result<(), LabError> {
        // Interface names end at 15 characters; the last two bytes of the address tell the pairs apart.
        let [_, _, high, low] = other_address.octets();
        let peer = format!("to-{high}-{low}");
        let (own, others) = (format!("{address}/30"), format!("{other_address}/30"));
        let gateway = other_address.to_string();
        self.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", &peer, "netns", &other.name])?;
        self.ip(&["addr", "add", &own, "dev", "eth0"])?;
        self.ip(&["link", "set", "eth0", "up"])?;
        other.ip(&["addr", "add", &others, "dev", &peer])?;
        other.ip(&["link", "set", &peer, "up"])?;
        self.ip(&["route", "add", "default", "via", &gateway])?;
        Ok(())
    }

    /// Runs `work` on a thread inside the namespace. Sockets it makes, commands it starts and files of
    /// `/proc/sys/net` it opens are the namespace's.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        // A scope, so that the work may borrow; a thread of its own, because leaving a namespace can fail.
        let result = thread::scope(|scope| scope.spawn(|| enter(&self.path).map(|()| work())).join());
        match result {
            Ok(result) => result.map_err(LabError::file(&self.path)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Sets a value below `/proc/sys/net` in it.
    ///
    /// # Errors
    /// When the kernel has no such value or refuses it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let path = Path::new("/proc/sys/net").join(key);
        self.within(|| fs::write(&path, value))?.map_err(LabError::file(&path))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = delete(&self.name);
    }
}

/// Moves the calling thread into the network namespace that `path` stands for.
///
/// # Errors
/// When `path` is no network namespace, or the process may not enter it.
pub fn enter(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

pub(super) fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

pub(super) fn delete(name: &str) -> Result<(), LabError> {
    tool::run("ip", &["netns", "del", name]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn linked_namespaces_reach_each_other_and_vanish_when_dropped() {
        if super::super::require_root().is_err() {
            return;
        }
        let (here, there) = (NetNs::create("nt-a").expect("netns"), NetNs::create("nt-b").expect("netns"));
        let (near, far) = (Ipv4Addr::new(198, 18, 9, 2), Ipv4Addr::new(198, 18, 9, 1));
        here.link(near, &there, far).expect("link");
        let listener = there.within(|| TcpListener::bind((far, 0))).expect("enter").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let server = thread::spawn(move || {
            let (mut stream, peer) = listener.accept().expect("accept");
            stream.write_all(peer.ip().to_string().as_bytes()).expect("write");
        });
        let mut stream = here.within(|| TcpStream::connect((far, port))).expect("enter").expect("connect");
        let mut seen = String::new();
        stream.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, near.to_string());
        server.join().expect("server");

        here.sysctl("ipv4/tcp_tw_reuse", "1").expect("sysctl");
        let value = here.within(|| fs::read_to_string("/proc/sys/net/ipv4/tcp_tw_reuse")).expect("enter");
        assert_eq!(value.expect("read").trim(), "1");
        assert!(here.sysctl("ipv4/none_such", "1").is_err());

        let path = here.path().to_owned();
        drop(here);
        assert!(!path.exists());
    }
}
