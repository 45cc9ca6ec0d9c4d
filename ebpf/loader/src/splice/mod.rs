//! Splicing: bytes between the proxy and applications of the same node skip TCP and IP.
//!
//! Nothing of it is pinned. Programs and maps belong to the process that loaded them: when it ends, however it ends, its
//! sockets close, no more sockets enter, and those that are still in the map have nobody to be redirected to. The next
//! process starts with maps of its own and can meet no entry of this one.

mod diag;
mod kernel;
mod slots;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::Map,
    programs::{CgroupSockopt, SkMsg, SkSkb, SockOps},
};
use aya_obj::generated::bpf_attach_type;
use culvert_bpf_common::{Leg as LegEntry, SocketKey, SplicedPod};

use crate::{
    Error,
    cgroup::Cgroup,
    interrupted::uninterrupted,
    object,
    pins::Pins,
    sys::{self, MapUpdate},
};

pub use diag::Diag;
use slots::SlotTable;
pub use slots::{Leg, LegProgress, SlotPool};

/// What the build script made of `ebpf/programs/src/splice`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert-bpf-splice"));

/// The capture's maps that the programs read.
const SHARED_MAPS: [&str; 2] = ["OWN_ADDRESSES", "SOCKETS"];

/// How connections are spliced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpliceConfig {
    /// Most bytes in flight in one direction of a connection; beyond it bytes go by TCP. 0 redirects nothing.
    pub limit: u64,
    /// Whether a verdict that does nothing is attached. Kernels with the change 929e30f93125 and without 04af4efde58a (6.6.128,
    /// 6.12.75, 6.18.14 and later) answer FIONREAD with 0 for bytes that came by TCP unless there is one.
    pub verdict: bool,
    /// Whether sockets of applications in blocking mode enter too. Their `recv` returns EAGAIN, and not what it waits for,
    /// when the kernel wakes it for nothing: because the socket's FIN was acknowledged or room for sending became free.
    /// Without, only sockets enter that are in non-blocking mode when they connect, or whose listener was when it began to
    /// listen, with the programs attached; who changes the mode later is no more redirected from its next message on.
    pub blocking: bool,
}

impl Default for SpliceConfig {
    fn default() -> Self {
        Self { limit: 256 * 1024, verdict: true, blocking: false }
    }
}

/// The programs, attached for as long as this or a clone of it lives. Cheap to clone; usable by any thread.
#[derive(Clone)]
pub struct Splice {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    sockets: OwnedFd,
    legs: OwnedFd,
    pods: OwnedFd,
    slots: SlotTable,
    limit: u64,
    /// Attachments: what they are attached to forgets them when they close.
    _links: [OwnedFd; 2],
}

/// A socket of the proxy that is to enter, described from its own side. IPv4 addresses may be v4-mapped.
#[derive(Clone, Copy, Debug)]
pub struct LegSpec {
    /// Cookie of the namespace it lives in.
    pub netns: u64,
    /// Its own end.
    pub local: SocketAddr,
    /// Its peer.
    pub peer: SocketAddr,
    /// Cookie of the namespace that the peer lives in.
    pub peer_netns: u64,
    /// Whether it has made the connection, or accepted it.
    pub active: bool,
}

/// Why a socket did not enter.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Another program of the machine has it in a map of its own.
    #[error("another eBPF program has the socket")]
    Busy,
    /// All places are taken.
    #[error("all places for spliced connections are taken")]
    Full,
    /// It has received bytes that were not read. Now it cannot enter; later it may.
    #[error("the socket has bytes that were not read")]
    Unread,
    /// The kernel refused: the connection has ended, or the socket is not of a kind that can enter.
    #[error("the kernel refused the socket: {0}")]
    Refused(#[source] io::Error),
}

impl Splice {
    /// Loads the programs and attaches them.
    pub(crate) fn open(pins: &Pins, cgroup: &Cgroup, config: SpliceConfig) -> Result<Self, Error> {
        let mut settings = kernel::settings()?;
        settings.limit = config.limit;
        settings.blocking = u32::from(config.blocking);
        let mut loader = object::loader();
        for name in SHARED_MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf =
            loader.override_global("SETTINGS", &settings, true).load(OBJECT).map_err(Error::object)?;
        let sockets = map_fd(&ebpf, "SPLICE")?;
        let message = program::<SkMsg>(&mut ebpf, "splice_message", SkMsg::load)?;
        attach(&sockets, &message, bpf_attach_type::BPF_SK_MSG_VERDICT, "splice_message")?;
        if config.verdict {
            let pass = program::<SkSkb>(&mut ebpf, "splice_pass", SkSkb::load)?;
            attach(&sockets, &pass, bpf_attach_type::BPF_SK_SKB_VERDICT, "splice_pass")?;
        }
        let (legs, pods) = (map_fd(&ebpf, "LEGS")?, map_fd(&ebpf, "SPLICED_PODS")?);
        let slots = SlotTable::map(map_fd(&ebpf, "SLOTS")?).map_err(|e| map_error("SLOTS", e))?;
        let option = program::<CgroupSockopt>(&mut ebpf, "splice_option", CgroupSockopt::load)?;
        let option = link(cgroup, &option, bpf_attach_type::BPF_CGROUP_SETSOCKOPT, "splice_option")?;
        let ops = program::<SockOps>(&mut ebpf, "splice_ops", SockOps::load)?;
        let ops = link(cgroup, &ops, bpf_attach_type::BPF_CGROUP_SOCK_OPS, "splice_ops")?;
        let shared = Shared { sockets, legs, pods, slots, limit: config.limit, _links: [option, ops] };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Lets connections of a pod be spliced, from the next one on. Its counters start anew unless it was there already.
    pub fn add_pod(&self, netns_cookie: u64) -> Result<(), Error> {
        let pods = self.shared.pods.as_fd();
        match sys::update(pods, &netns_cookie, &SplicedPod::default(), MapUpdate::New) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result.map_err(|e| map_error("SPLICED_PODS", e)),
        }
    }

    /// From now on no more sockets of the pod enter. Connections that are spliced go on.
    pub fn remove_pod(&self, netns_cookie: u64) -> Result<(), Error> {
        let removed = sys::delete(self.shared.pods.as_fd(), &netns_cookie);
        removed.map(drop).map_err(|e| map_error("SPLICED_PODS", e))
    }

    /// What became of the sockets of a pod's applications; `None` when there is no such pod.
    pub fn pod(&self, netns_cookie: u64) -> Result<Option<SplicedPod>, Error> {
        sys::lookup(self.shared.pods.as_fd(), &netns_cookie).map_err(|e| map_error("SPLICED_PODS", e))
    }

    /// Places for legs, for one thread.
    pub fn slots(&self) -> SlotPool {
        SlotPool::new(self.shared.clone())
    }

    /// Most bytes in flight in one direction.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// Whether both are the same programs and maps.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// How many sockets are in the map, by walking it: for tests and reports.
    pub fn sockets(&self) -> usize {
        sys::keys::<SocketKey>(self.shared.sockets.as_fd()).len()
    }
}

impl Shared {
    fn enter(&self, socket: BorrowedFd<'_>, key: &SocketKey, leg: &LegEntry) -> Result<(), EnterError> {
        let fd = socket.as_raw_fd() as u32;
        sys::update(self.sockets.as_fd(), key, &fd, MapUpdate::Any).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => EnterError::Busy,
            Some(libc::E2BIG | libc::ENOSPC) => EnterError::Full,
            _ => EnterError::Refused(e),
        })?;
        // Behind the socket: who finds the leg finds the socket too.
        sys::update(self.legs.as_fd(), key, leg, MapUpdate::Any).map_err(|_| EnterError::Full)
    }

    /// Removes what was noted of a leg, unless it is of another one by now.
    fn leave(&self, key: &SocketKey, slot: u32, generation: u32) {
        let noted = sys::lookup::<_, LegEntry>(self.legs.as_fd(), key);
        if noted.is_ok_and(|leg| leg.is_some_and(|leg| (leg.slot, leg.generation) == (slot, generation)))
            && let Err(error) = sys::delete(self.legs.as_fd(), key)
        {
            log::warn!("a leg cannot be removed: {error}");
        }
    }

    /// Takes a socket out of the map. What was redirected to it and not yet read would be lost.
    fn take_out(&self, key: &SocketKey) {
        if let Err(error) = sys::delete(self.sockets.as_fd(), key)
            && error.raw_os_error() != Some(libc::EINVAL)
        {
            log::debug!("a socket cannot be taken out: {error}");
        }
    }
}

fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    mut load: impl FnMut(&mut P) -> Result<(), aya::programs::ProgramError>,
) -> Result<OwnedFd, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
    P: Loaded + 'a,
{
    let error = |e| Error::program(name, &e);
    let missing = || Error::Program { program: name, reason: "not in the embedded object".into() };
    let program: &mut P = ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(error)?;
    uninterrupted(|| load(program)).map_err(error)?;
    program.duplicate().map_err(|e| Error::program(name, &e))
}

/// A program in the kernel.
trait Loaded {
    fn duplicate(&self) -> io::Result<OwnedFd>;
}

macro_rules! loaded {
    ($($program:ty),*) => {
        $(impl Loaded for $program {
            fn duplicate(&self) -> io::Result<OwnedFd> {
                self.fd().map_err(io::Error::other)?.as_fd().try_clone_to_owned()
            }
        })*
    };
}
loaded!(CgroupSockopt, SkMsg, SkSkb, SockOps);

fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    let map = ebpf.map(name).ok_or_else(|| map_error(name, io::ErrorKind::NotFound.into()))?;
    let (Map::Array(data) | Map::HashMap(data) | Map::SockHash(data)) = map else {
        return Err(map_error(name, io::ErrorKind::InvalidData.into()));
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|e| map_error(name, e))
}

fn attach(
    map: &OwnedFd,
    program: &OwnedFd,
    attach_type: bpf_attach_type,
    name: &'static str,
) -> Result<(), Error> {
    sys::prog_attach(map.as_fd(), program.as_fd(), attach_type).map_err(|e| Error::program(name, &e))
}

fn link(
    cgroup: &Cgroup,
    program: &OwnedFd,
    attach_type: bpf_attach_type,
    name: &'static str,
) -> Result<OwnedFd, Error> {
    sys::link_create(program.as_fd(), cgroup.dir.as_fd(), attach_type).map_err(|e| Error::program(name, &e))
}

fn map_error(map: &'static str, source: io::Error) -> Error {
    Error::map(map, aya::maps::MapError::IoError(source))
}

const _: () = {
    const fn shareable<T: Send + Sync + Clone>() {}
    shareable::<Splice>();
};

impl std::fmt::Debug for Splice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Splice").finish_non_exhaustive()
    }
}
