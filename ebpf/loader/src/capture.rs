//! The capture of a node: opened once, then told which pods there are.

use std::{
    fmt,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya_obj::generated::bpf_attach_type;
use culvert_bpf_common::{Address, Direction, MAX_PODS, Pod, PortKey};
use ipnet::IpNet;

use crate::{
    DirectTable, Error, OrigDstTable, PodCounters, PodSpec, PodStatus, Splice, SpliceConfig,
    cgroup::Cgroup,
    links::Link,
    maps::{self, Maps},
    object::{self, PodLookup, Programs},
    pins::{self, Pins},
    probe::probe,
    said::ProgramLog,
    sys::{self, LinkTarget},
};

/// Where capture keeps its state, and what it is attached to.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// Directory on a bpf file system for everything that outlives the process; made if missing. Instances with
    /// different directories do not know of each other.
    pub pin_dir: PathBuf,
    /// The cgroup that contains all pods; `None` for the root of the cgroup2 hierarchy.
    pub cgroup: Option<PathBuf>,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self { pin_dir: PathBuf::from("/sys/fs/bpf/culvert"), cgroup: None }
    }
}

/// The programs, attached, and the maps that tell them what to do.
///
/// Everything is pinned from the start. Dropping a `Capture`, or killing its process, detaches nothing: while no
/// listener is there, permissive pods are connected directly and strict ones refused. The next [`Capture::open`]
/// with the same directory takes over without a gap. All methods block, for microseconds up to milliseconds.
pub struct Capture {
    pins: Pins,
    maps: Maps,
    pod_lookup: PodLookup,
    orig_dst: OrigDstTable,
    cgroup: Cgroup,
    direct: DirectTable,
    log: ProgramLog,
}

impl Capture {
    /// Loads the programs and attaches them, in place of those of an earlier process if there was one.
    ///
    /// # Errors
    /// Names the missing privilege ([`Error::Privilege`]), file system or kernel feature, or the version mismatch.
    pub fn open(config: CaptureConfig) -> Result<Self, Error> {
        probe()?;
        let cgroup = Cgroup::open(config.cgroup.as_deref())?;
        let pins = Pins::create(&config.pin_dir)?;
        let _lock = pins.lock()?;
        let programs = Programs::parse()?;
        let mut ebpf = programs.load(&pins)?;
        object::attach(&mut ebpf, &pins, &cgroup)?;
        let orig_dst = sys::obj_get(&pins.map(maps::ORIG_DST)).map_err(|e| Error::pin(config.pin_dir, e))?;
        let mut capture = Self {
            maps: Maps::take(&mut ebpf)?,
            direct: DirectTable::take(&mut ebpf)?,
            log: ProgramLog::take(&mut ebpf)?,
            pod_lookup: programs.pod_lookup(&pins, &ebpf)?,
            orig_dst: OrigDstTable::new(orig_dst),
            pins,
            cgroup,
        };
        capture.adopt()?;
        Ok(capture)
    }

    /// The table from which accepting workers learn original destinations.
    pub fn orig_dst(&self) -> OrigDstTable {
        self.orig_dst.clone()
    }

    /// Logs what the programs have said since the last call, as component `bpf`: what went wrong with single connections.
    /// To be called every second or so.
    pub fn drain_log(&mut self) {
        self.log.drain();
    }

    /// Loads the programs that splice connections of pods which are then named by [`Splice::add_pod`].
    ///
    /// # Errors
    /// What the kernel lacks or refuses. The capture goes on without.
    pub fn splice(&self, config: SpliceConfig) -> Result<Splice, Error> {
        Splice::open(&self.pins, &self.cgroup, config)
    }

    /// What may be dialled without the proxy, and what has been.
    pub const fn direct(&mut self) -> &mut DirectTable {
        &mut self.direct
    }

    /// Replaces what is not captured, for all pods: outbound connects to `cidrs` or `out_ports`, and inbound
    /// connections to `in_ports`.
    pub fn set_exclusions(
        &mut self,
        cidrs: &[IpNet],
        out_ports: &[u16],
        in_ports: &[u16],
    ) -> Result<(), Error> {
        let outbound = out_ports.iter().map(|&port| PortKey::new(port, Direction::Outbound));
        let inbound = in_ports.iter().map(|&port| PortKey::new(port, Direction::Inbound));
        self.maps.set_excluded_ports(outbound.chain(inbound))?;
        self.maps.set_excluded_prefixes(cidrs)
    }

    /// Takes over the traffic of a pod, or, for one that is enrolled, replaces listeners, ports, policy and addresses
    /// in place. The listeners must exist already.
    ///
    /// When it fails the pod is not enrolled; if it was before, it stays as it was or loses its inbound capture
    /// together with the outbound one, never only one of them.
    pub fn enrol(&mut self, pod: &PodSpec<'_>) -> Result<(), Error> {
        validate(pod)?;
        let known = self.maps.pod(pod.cookie)?;
        let index = match known {
            Some(known) => known.index,
            None => self.free_index(&pod.name)?,
        };
        if known.is_none() {
            self.maps.reset_counters(index)?;
        }
        self.put(pod, index).inspect_err(|_| {
            let _ = self.withdraw(pod.cookie, Some(index));
        })
    }

    /// Gives a pod back its direct connections. Connections that exist are not touched.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`] when there is no such pod.
    pub fn remove(&mut self, netns_cookie: u64) -> Result<(), Error> {
        let pod = self.maps.pod(netns_cookie)?.ok_or(Error::NotEnrolled { cookie: netns_cookie })?;
        self.withdraw(netns_cookie, Some(pod.index))
    }

    /// The enrolled pods, those of an earlier process included, by cookie.
    pub fn pods(&self) -> Result<Vec<PodStatus>, Error> {
        let addresses = self.maps.own_addresses()?;
        let mut pods: Vec<PodStatus> =
            self.maps.pods()?.into_iter().map(|(cookie, pod)| status(cookie, &pod, &addresses)).collect();
        pods.sort_unstable_by_key(|pod| pod.cookie);
        Ok(pods)
    }

    /// What has become of a pod's connections since it was enrolled.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`] when there is no such pod.
    pub fn counters(&self, netns_cookie: u64) -> Result<PodCounters, Error> {
        let pod = self.maps.pod(netns_cookie)?.ok_or(Error::NotEnrolled { cookie: netns_cookie })?;
        self.maps.counters(pod.index)
    }

    /// Detaches everything and removes all pins, see [`uninstall`](crate::uninstall).
    pub fn uninstall(self) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        pins::uninstall(self.pins.dir())
    }

    /// Forgets the pods whose network namespace no longer exists, and says which they were, by cookie.
    ///
    /// Only pods with inbound capture are noticed; [`Capture::open`] does the same.
    pub fn prune(&mut self) -> Result<Vec<u64>, Error> {
        let mut gone = Vec::new();
        for cookie in self.pins.pod_links()? {
            let known = self.maps.pod(cookie)?;
            if known.is_none() || self.pod_link(cookie)?.1 == LinkTarget::Gone {
                self.withdraw(cookie, known.map(|pod| pod.index))?;
                gone.push(cookie);
            }
        }
        Ok(gone)
    }

    /// Gives the pods of an earlier process this version's program.
    fn adopt(&mut self) -> Result<(), Error> {
        for cookie in self.prune()? {
            log::info!("forgot the pod with network namespace cookie {cookie}: the namespace is gone");
        }
        for cookie in self.pins.pod_links()? {
            let (link, _) = self.pod_link(cookie)?;
            let program = self.pod_lookup.load(cookie)?;
            match sys::link_update(link.as_fd(), program.as_fd()) {
                // The namespace went in this moment; the next time it is noticed.
                Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
                result => {
                    result.map_err(|source| Error::Link { path: self.pins.pod_link(cookie), source })?;
                }
            }
        }
        Ok(())
    }

    fn pod_link(&self, cookie: u64) -> Result<(OwnedFd, LinkTarget), Error> {
        let path = self.pins.pod_link(cookie);
        let link = sys::obj_get(&path).map_err(|e| Error::pin(&path, e))?;
        let target = sys::link_target(link.as_fd(), bpf_attach_type::BPF_SK_LOOKUP);
        let target = target.map_err(|source| Error::Link { path, source })?;
        Ok((link, target))
    }

    /// Listeners, then outbound, then inbound: whoever is turned to a listener finds it.
    fn put(&mut self, pod: &PodSpec<'_>, index: u32) -> Result<(), Error> {
        let addresses: Vec<Address> = pod.addresses.iter().map(|&ip| ip.into()).collect();
        self.maps.set_listener(index, false, pod.inbound_listener.v4)?;
        self.maps.set_listener(index, true, pod.inbound_listener.v6)?;
        self.maps.set_own_addresses(pod.cookie, &addresses)?;
        let inbound_port = pod.inbound_port.unwrap_or(0);
        let entry = Pod::new(index, pod.strict, pod.outbound_port, inbound_port, &pod.name);
        self.maps.set_pod(pod.cookie, entry)?;
        let path = self.pins.pod_link(pod.cookie);
        if pod.inbound_port.is_none() {
            return Link::remove(&path);
        }
        let program = self.pod_lookup.load(pod.cookie)?;
        let link = Link {
            path: &path,
            attach_type: bpf_attach_type::BPF_SK_LOOKUP,
            target: pod.netns,
            identity: LinkTarget::Netns(netns_inode(pod.netns)?),
        };
        link.put(program.as_fd())
    }

    /// The reverse of [`Self::put`]; goes on after an error and reports the first.
    fn withdraw(&mut self, cookie: u64, index: Option<u32>) -> Result<(), Error> {
        let mut results = vec![
            Link::remove(&self.pins.pod_link(cookie)),
            self.maps.remove_pod(cookie),
            self.maps.set_own_addresses(cookie, &[]),
        ];
        if let Some(index) = index {
            results.extend([false, true].map(|v6| self.maps.set_listener(index, v6, None)));
        }
        results.into_iter().collect()
    }

    fn free_index(&self, pod: &str) -> Result<u32, Error> {
        let mut taken: Vec<u32> = self.maps.pods()?.iter().map(|(_, pod)| pod.index).collect();
        taken.sort_unstable();
        let free = (0..MAX_PODS).zip(taken.iter().map(Some).chain(std::iter::repeat(None)));
        let mut free = free.filter(|(index, taken)| *taken != Some(index)).map(|(index, _)| index);
        free.next().ok_or_else(|| Error::TooManyPods { pod: pod.to_owned(), max: MAX_PODS })
    }
}

// The control thread may be started after the capture is opened, and workers share the table.
const _: () = {
    const fn sendable<T: Send>() {}
    const fn shareable<T: Send + Sync + Clone>() {}
    sendable::<Capture>();
    shareable::<OrigDstTable>();
};

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("pins", &self.pins).finish_non_exhaustive()
    }
}

fn validate(pod: &PodSpec<'_>) -> Result<(), Error> {
    let listener = pod.inbound_listener;
    let invalid = |reason| Err(Error::InvalidPod { pod: pod.name.clone(), reason });
    if pod.cookie == 0 {
        return invalid("0 is no network namespace cookie");
    }
    if pod.inbound_port == Some(0) {
        return invalid("port 0 is no port of a listener");
    }
    if pod.outbound_port == 0 && pod.inbound_port.is_none() {
        return invalid("neither outbound nor inbound connections are to be captured");
    }
    match pod.inbound_port {
        Some(_) if listener.v4.is_none() && listener.v6.is_none() => {
            invalid("an inbound port is given, but no inbound listener")
        }
        Some(port) if port == pod.outbound_port => {
            invalid("inbound and outbound listener have the same port")
        }
        _ => Ok(()),
    }
}

fn status(cookie: u64, pod: &Pod, own_addresses: &[culvert_bpf_common::OwnAddressKey]) -> PodStatus {
    let own = own_addresses.iter().filter(|key| key.netns == cookie);
    let mut addresses: Vec<IpAddr> = own.map(|key| key.address.to_ip()).collect();
    addresses.sort_unstable();
    PodStatus {
        name: pod.name().to_owned(),
        cookie,
        outbound_port: pod.outbound_port,
        inbound_port: Some(pod.inbound_port).filter(|port| *port != 0),
        strict: pod.is_strict(),
        addresses,
    }
}

/// How the kernel names the namespace in the information about a link.
fn netns_inode(netns: BorrowedFd<'_>) -> Result<u32, Error> {
    let stat = rustix::fs::fstat(netns);
    let stat = stat.map_err(|e| Error::Netns { operation: "reading its inode", source: e.into() })?;
    Ok(stat.st_ino as u32)
}
