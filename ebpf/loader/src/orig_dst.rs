//! Where a captured connection was meant to go.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use culvert_bpf_common::{Address, OrigDst, OrigDstKey};

use crate::sys;

/// The kernel's answer, in old versions, for an operation that a map type has not got; glibc has no name for it.
const ENOTSUPP: i32 = 524;

/// The records of captured connections between their SYN and their accept. Cheap to clone; usable by any thread.
#[derive(Clone, Debug)]
pub struct OrigDstTable {
    map: Arc<OwnedFd>,
}

impl OrigDstTable {
    pub(crate) fn new(map: OwnedFd) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Takes the original destination of the connection accepted from `peer` by an outbound listener in the network
    /// namespace `netns_cookie`. One system call; a record is handed out once and never again.
    ///
    /// An IPv4 destination comes back as such, whether the application dialled it from an IPv4 or an IPv6 socket.
    ///
    /// `None` when nothing was captured under this tuple: somebody has dialled the listener by itself (or, with tens
    /// of thousands of connections waiting to be accepted, the record was evicted). Such a connection must be reset.
    pub fn take(&self, netns_cookie: u64, peer: SocketAddr) -> Option<SocketAddr> {
        let key = OrigDstKey::new(netns_cookie, Address::from(peer.ip()), peer.port());
        match self.take_entry(&key) {
            Ok(entry) => entry.map(|dst| SocketAddr::new(dst.address.to_ip(), dst.port)),
            Err(e) => {
                log::error!("original destination of {peer}: {e}");
                None
            }
        }
    }

    /// Whether both are the same table of the kernel's.
    pub fn is_same(&self, other: &Self) -> bool {
        let id = |table: &Self| sys::map_id(table.map.as_fd()).ok();
        id(self).is_some_and(|own| id(other) == Some(own))
    }

    fn take_entry(&self, key: &OrigDstKey) -> io::Result<Option<OrigDst>> {
        let map = self.map.as_fd();
        match sys::lookup_and_delete(map, key) {
            // Before Linux 5.14 this map type cannot do both at once. Nobody else asks for the key of a connection
            // that we have accepted.
            Err(e) if matches!(e.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)) => {
                let entry = sys::lookup(map, key)?;
                Ok(if sys::delete(map, key)? { entry } else { None })
            }
            result => result,
        }
    }
}
