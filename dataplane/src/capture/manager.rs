//! The pods of this process: enrolling, removing, repairing, and taking over what an earlier process left.
//!
//! Enrolling goes from the inside out, so that whoever is turned to a listener finds it: record, listeners, workers,
//! kernel. Removing goes the other way. All methods block, for microseconds (eBPF) up to tenths of a second (iptables).

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use culvert_model::TrafficDirection;

use crate::capture::{
    CaptureConfig, CaptureError, CaptureMode, Direction, InPodListener, PodCounters, PodHandle, PodReport,
    PodSpec, Policy, Request, Response, WorkerPort,
    backend::{Backend, Turn},
    inpod::{self, InPodSockets},
    manager::leaving::Leaving,
    pods::{Netns, NetnsId},
    record::{Record, RecordStore, Source},
    splice::PodSplice,
    targets::{Targets, resolve},
};

mod leaving;
mod takeover;

/// Read and changed by the kernel in the network namespace of the thread that opens it.
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// 0 is left to connections that belong to no pod.
const FIRST_ID: u32 = 1;
/// Workers accept what is queued before they close, and a killed process may be still ending: far longer than either takes.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// Owns the pods. Lives on the control thread.
pub struct CaptureManager {
    pub(super) config: CaptureConfig,
    workers: Box<dyn WorkerPort>,
    pub(super) backend: Backend,
    store: RecordStore,
    /// Name and direction of the configured listeners.
    listeners: Vec<(Arc<str>, TrafficDirection)>,
    pub(super) pods: BTreeMap<String, Pod>,
    /// Namespaces in which listeners of removed pods, or of a process that was just killed, may still be open: until when.
    closing: Vec<(NetnsId, Instant)>,
    /// Removed pods that still have open connections.
    leaving: Vec<Leaving>,
    next_id: u32,
}

pub(super) struct Pod {
    pub(super) record: Record,
    pub(super) state: State,
}

pub(super) enum State {
    Captured(Captured),
    /// Wanted, and not possible so far: the reason.
    Pending(String),
}

#[derive(Clone)]
pub(super) struct Captured {
    pub(super) handle: Arc<PodHandle>,
    netns_id: NetnsId,
    pub(super) targets: Targets,
    /// One of its inbound listeners, for the kernel to be told again.
    inbound: Option<Arc<OwnedFd>>,
}

impl CaptureManager {
    /// Prepares capture: for eBPF, programs are loaded and attached, in place of those of an earlier process. No pod is
    /// touched before [`CaptureManager::start`].
    ///
    /// # Errors
    /// The mode is not possible here: missing privilege, kernel feature or directory.
    pub fn new(config: CaptureConfig, workers: Box<dyn WorkerPort>) -> Result<Self, CaptureError> {
        let store = RecordStore::open(&config.state_dir)?;
        let backend = Backend::open(&config, &store)?;
        Ok(Self {
            config,
            workers,
            backend,
            store,
            listeners: Vec::new(),
            pods: BTreeMap::new(),
            closing: Vec::new(),
            leaving: Vec::new(),
            next_id: FIRST_ID,
        })
    }

    /// Tells which listeners are configured. Pods whose choice now means another listener are retargeted, and pending
    /// pods are tried again. To be called before [`CaptureManager::start`] and whenever listeners came or went.
    pub fn set_listeners(&mut self, listeners: impl IntoIterator<Item = (Arc<str>, TrafficDirection)>) {
        self.listeners = listeners.into_iter().collect();
        for pod in self.pods.values_mut() {
            let State::Captured(captured) = &mut pod.state else {
                continue;
            };
            match resolve(&self.listeners, &pod.record.pod) {
                Ok(targets) => captured.retarget(targets, &*self.workers),
                // Connections go on to the listener they entered, if it is still there.
                Err(error) => {
                    log::warn!("{error}; its connections are reset until that is put right");
                }
            }
        }
        self.retry_pending();
    }

    /// Takes over a pod's traffic, for `culvert pod add`. Adding a pod again just as it is does nothing.
    ///
    /// # Errors
    /// By pod, field and reason; then nothing has changed.
    pub fn enrol(&mut self, mut spec: PodSpec) -> Result<PodReport, CaptureError> {
        let netns = spec.check()?;
        let name = spec.name.clone();
        match self.pods.get(&name) {
            Some(known) if known.record.pod == spec && known.is_captured() => {
                return self.report_of(&name);
            }
            Some(known) if known.is_captured() => return Err(CaptureError::AlreadyEnrolled(name)),
            _ => {}
        }
        let record = Record::new(spec, Source::Socket, self.config.mode, 0);
        let pod = self.capture(record, netns, None)?;
        self.pods.insert(name.clone(), pod);
        self.report_of(&name)
    }

    /// Gives a pod its traffic back and forgets it. Its connections go on, and what carries them stays until the last
    /// one has ended, which [`CaptureManager::reap`] notices.
    ///
    /// # Errors
    /// [`CaptureError::Unknown`], or the kernel would not; then the pod stays enrolled.
    pub fn remove(&mut self, name: &str) -> Result<(), CaptureError> {
        let Some(pod) = self.pods.get(name) else {
            return Err(CaptureError::Unknown(name.to_owned()));
        };
        match &pod.state {
            State::Captured(captured) => {
                self.backend.turn_back(&pod.record, Some(captured.handle.netns.as_fd()))?;
                self.workers.remove_listeners(captured.handle.id);
                let netns_id = captured.netns_id;
                self.expect_closing(netns_id);
            }
            State::Pending(_) => {
                release_at_path(&mut self.backend, &pod.record)?;
                self.store.remove(name)?;
            }
        }
        if let Some(Pod { record, state: State::Captured(captured) }) = self.pods.remove(name) {
            self.see_off(record, captured)?;
            self.clear_left();
        }
        log::info!("pod {name}: removed");
        Ok(())
    }

    /// All pods, by name.
    pub fn list(&self) -> Vec<PodReport> {
        self.pods.values().map(|pod| self.report(pod)).collect()
    }

    /// Sets up anew what the kernel holds for one pod or for all, without a gap for those that work, lets go of pods
    /// whose namespace is gone, and tries pending ones again. For all, what they share is attached anew too. Returns what was done, a line each.
    ///
    /// # Errors
    /// [`CaptureError::Unknown`], or the first pod that could not be repaired.
    pub fn repair(&mut self, name: Option<&str>) -> Result<Vec<String>, CaptureError> {
        if let Some(name) = name.filter(|name| !self.pods.contains_key(*name)) {
            return Err(CaptureError::Unknown(name.to_owned()));
        }
        if name.is_none() {
            self.backend.reattach(&self.config, &self.store)?;
        }
        let mut done = self.reap();
        let is_meant = |known: &&String| name.is_none_or(|name| name == known.as_str());
        let names: Vec<String> = self.pods.keys().filter(is_meant).cloned().collect();
        let mut first_error = None;
        for name in names {
            match self.recapture(&name) {
                Ok(()) => done.push(format!("pod {name}: set up anew")),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    /// Lets go of pods whose network namespace is gone. To be called every second or so: a namespace, with its
    /// interfaces and addresses, lives for as long as culvert has it open. Clears removed pods whose last connection has
    /// ended, and logs what eBPF programs have said. Returns what was done, a line each.
    pub fn reap(&mut self) -> Vec<String> {
        self.backend.drain_log();
        self.clear_left();
        let is_gone = |pod: &&Pod| match &pod.state {
            State::Captured(captured) => {
                !NetnsId::at(&pod.record.pod.netns).is_ok_and(|id| id == captured.netns_id)
            }
            State::Pending(_) => false,
        };
        let gone: Vec<String> =
            self.pods.values().filter(is_gone).map(|pod| pod.record.pod.name.clone()).collect();
        gone.into_iter().map(|name| self.bury(&name)).collect()
    }

    /// Answers a request of the control socket.
    pub fn handle(&mut self, request: Request) -> Response {
        let result = match request {
            Request::Add { pod } => self.enrol(pod).map(|pod| Response::pods(vec![pod])),
            Request::List {} => Ok(Response::pods(self.list())),
            Request::Remove { name, netns } => {
                self.remove_by(name, netns).map(|line| Response::messages(vec![line]))
            }
            Request::Repair { name } => self.repair(name.as_deref()).map(Response::messages),
        };
        result.unwrap_or_else(Response::error)
    }

    /// Ends capture in an orderly way. Permissive pods get their traffic back completely; strict pods stay as they are,
    /// refused as soon as the workers' listeners close. All are remembered, for the next start to take over.
    pub fn shutdown(&mut self) {
        for pod in self.pods.values_mut() {
            let State::Captured(captured) = &pod.state else {
                continue;
            };
            if pod.record.pod.policy == Policy::Strict {
                continue;
            }
            let netns = Some(captured.handle.netns.as_fd());
            let released = self.backend.release(&pod.record, netns).and_then(|()| {
                pod.record.applied = false;
                Ok(self.store.save(&pod.record)?)
            });
            if let Err(error) = released {
                log::warn!("{error}");
            }
            self.workers.remove_listeners(captured.handle.id);
        }
        self.pods.clear();
        self.clear_leaving(|_| true);
    }

    /// Sets up a pod again, in place of its present listeners if it has any.
    fn recapture(&mut self, name: &str) -> Result<(), CaptureError> {
        let Some(previous) = self.pods.remove(name) else {
            return Err(CaptureError::Unknown(name.to_owned()));
        };
        let result = previous.record.pod.clone().check().map_err(CaptureError::from);
        let result = result.and_then(|netns| self.capture(previous.record.clone(), netns, Some(&previous)));
        let (pod, result) = match result {
            Ok(pod) => (pod, Ok(())),
            Err(error) => {
                let state = match previous.state {
                    State::Pending(_) => State::Pending(error.to_string()),
                    captured => captured,
                };
                (Pod { record: previous.record, state }, Err(error))
            }
        };
        self.pods.insert(name.to_owned(), pod);
        result
    }

    fn retry_pending(&mut self) {
        let pending = self.pods.values().filter(|pod| !pod.is_captured());
        let pending: Vec<String> = pending.map(|pod| pod.record.pod.name.clone()).collect();
        for name in pending {
            match self.recapture(&name) {
                Ok(()) => log::info!("pod {name}: captured"),
                Err(error) => log::debug!("{error}"),
            }
        }
    }

    /// Enrolling proper. When it fails, what it had done is undone; the previous capture of the pod goes on.
    fn capture(
        &mut self,
        mut record: Record,
        netns: Netns,
        previous: Option<&Pod>,
    ) -> Result<Pod, CaptureError> {
        record.applied = true;
        let previous = previous.filter(|pod| pod.is_captured());
        let targets = self.admit(&record.pod, netns.id)?;
        let kernel = |pod: &str| {
            let pod = pod.to_owned();
            move |source| CaptureError::Kernel { pod, source }
        };
        let name = record.pod.name.clone();
        record.netns_cookie = culvert_bpf::netns_cookie(netns.fd.as_fd()).map_err(kernel(&name))?;
        let addresses = match record.pod.addresses.as_slice() {
            [] => culvert_bpf::netns_addresses(netns.fd.as_fd()).map_err(kernel(&name))?,
            given => given.to_vec(),
        };
        if let Some(previous) = previous {
            (record.plan, record.fwmark_accept) = (previous.record.plan, previous.record.fwmark_accept);
        }
        if let Some(Pod { record: known, state: State::Captured(previous) }) = previous
            && known.pod == record.pod
            && self.is_current(previous, &record, netns.id, &targets, &addresses)
        {
            let kept = previous.clone();
            self.turn(&mut record, &kept.handle, &targets, kept.inbound.as_deref().map(AsFd::as_fd))?;
            return Ok(Pod { record, state: State::Captured(kept) });
        }
        let sockets = self.listen(&record.pod, &targets, &netns, previous.is_some())?;
        self.welcome_back(&mut record);
        let inbound = duplicate_inbound(&record.pod.name, &sockets)?.map(Arc::new);
        let handle = Arc::new(self.handle_of(&record, netns.fd, addresses));
        let id = handle.id;
        self.hand_over(&handle, sockets, &targets);
        let turned = self.turn(&mut record, &handle, &targets, inbound.as_deref().map(AsFd::as_fd));
        if let Err(error) = turned {
            self.workers.remove_listeners(id);
            if previous.is_none() {
                let _ = self.backend.release(&record, Some(handle.netns.as_fd()));
                let _ = self.store.remove(&record.pod.name);
            }
            return Err(error);
        }
        if let Some(Pod { state: State::Captured(previous), .. }) = previous {
            self.workers.remove_listeners(previous.handle.id);
        }
        Ok(Pod { record, state: State::Captured(Captured { handle, netns_id: netns.id, targets, inbound }) })
    }

    /// Whether connections of the pod, and to it, may go past the proxy.
    pub(super) fn allows_direct(&self, spec: &PodSpec) -> bool {
        spec.direct.unwrap_or(self.config.direct)
    }

    /// Whether the listeners of a pod can stay, and with them the connections that wait in their queues.
    fn is_current(
        &self,
        pod: &Captured,
        record: &Record,
        netns: NetnsId,
        targets: &Targets,
        addresses: &[IpAddr],
    ) -> bool {
        pod.netns_id == netns
            && pod.targets == *targets
            && pod.handle.addresses == addresses
            && pod.handle.origin.is_same(&self.backend.origin())
            && match (&pod.handle.splice, self.backend.splice(record)) {
                (None, None) => true,
                (Some(own), Some(current)) => own.programs.is_same(current),
                _ => false,
            }
    }

    fn remove_by(&mut self, name: Option<String>, netns: Option<PathBuf>) -> Result<String, CaptureError> {
        let name = match (name, netns) {
            (Some(name), _) => name,
            (None, Some(netns)) => {
                let id = NetnsId::at(&netns).ok();
                let is_meant =
                    |pod: &&Pod| pod.record.pod.netns == netns || id.is_some_and(|id| pod.is_in(id));
                let found = self.pods.values().find(is_meant).map(|pod| pod.record.pod.name.clone());
                found.ok_or_else(|| CaptureError::Unknown(netns.display().to_string()))?
            }
            (None, None) => return Err(CaptureError::Unknown("(unnamed)".to_owned())),
        };
        self.remove(&name)?;
        Ok(format!("pod {name}: removed"))
    }

    /// Whether a pod may be captured, and into which listeners.
    fn admit(&self, spec: &PodSpec, netns: NetnsId) -> Result<Targets, CaptureError> {
        let name = || spec.name.clone();
        match self.config.mode {
            CaptureMode::None => return Err(CaptureError::Off(name())),
            CaptureMode::Iptables if spec.policy == Policy::Permissive => {
                return Err(CaptureError::PermissiveIptables(name()));
            }
            CaptureMode::Iptables if spec.direct == Some(true) => {
                return Err(CaptureError::DirectIptables(name()));
            }
            CaptureMode::Ebpf | CaptureMode::Iptables => {}
        }
        let has_it = |pod: &&Pod| pod.is_in(netns) && pod.record.pod.name != spec.name;
        if let Some(other) = self.pods.values().find(has_it) {
            return Err(CaptureError::NetnsTaken { pod: name(), other: other.record.pod.name.clone() });
        }
        resolve(&self.listeners, spec)
    }

    fn listen(
        &self,
        spec: &PodSpec,
        targets: &Targets,
        netns: &Netns,
        is_ours: bool,
    ) -> Result<Vec<InPodSockets>, CaptureError> {
        let patience = self.closing.iter().filter(|(id, _)| *id == netns.id).map(|(_, until)| *until).max();
        let patience =
            patience.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        let netns = netns.fd.as_fd();
        let wanted = [
            targets.outbound.as_ref().map(|_| (Direction::Outbound, spec.outbound_port)),
            targets.inbound.as_ref().map(|_| (Direction::Inbound, spec.inbound_port)),
        ];
        let listen = |(direction, port)| {
            if !is_ours {
                inpod::check_free(netns, direction, port, patience)?;
            }
            inpod::listen(netns, direction, port, self.workers.workers(), self.config.backlog)
        };
        let sockets = wanted.into_iter().flatten().map(listen).collect::<Result<_, _>>();
        sockets.map_err(|source| CaptureError::InPod { pod: spec.name.clone(), source })
    }

    /// Listeners of ours in this namespace close soon, and whoever wants their ports may wait for it.
    fn expect_closing(&mut self, netns: NetnsId) {
        let now = Instant::now();
        self.closing.retain(|(_, until)| *until > now);
        self.closing.push((netns, now + CLOSING_TIME));
    }

    fn handle_of(&mut self, record: &Record, netns: OwnedFd, addresses: Vec<IpAddr>) -> PodHandle {
        let id = self.next_id;
        self.next_id += 1;
        let spec = &record.pod;
        PodHandle {
            id,
            name: spec.name.as_str().into(),
            netns,
            netns_cookie: record.netns_cookie,
            mode: self.config.mode,
            policy: spec.policy,
            addresses,
            outbound_port: spec.outbound_port,
            inbound_port: spec.inbound_port,
            origin: self.backend.origin(),
            splice: self.backend.splice(record).cloned().map(PodSplice::new),
            dialled_directly: AtomicU64::new(0),
        }
    }

    fn hand_over(&self, handle: &Arc<PodHandle>, sockets: Vec<InPodSockets>, targets: &Targets) {
        for InPodSockets { direction, by_worker } in sockets {
            let Some(listener_name) = targets.of(direction) else {
                continue;
            };
            for (worker, fds) in by_worker.into_iter().enumerate() {
                for fd in fds {
                    let (pod, listener_name) = (Arc::clone(handle), Arc::clone(listener_name));
                    self.workers.add_listener(worker, InPodListener { fd, pod, direction, listener_name });
                }
            }
        }
    }

    /// The record first, with all that undoing needs; then the kernel.
    fn turn(
        &mut self,
        record: &mut Record,
        handle: &PodHandle,
        targets: &Targets,
        inbound: Option<BorrowedFd<'_>>,
    ) -> Result<(), CaptureError> {
        let netns = handle.netns.as_fd();
        if inbound.is_some() && record.fwmark_accept.is_none() {
            record.fwmark_accept = Some(fwmark_accept(netns));
        }
        let outbound = targets.outbound.is_some();
        let mut turn = Turn { record, netns, addresses: &handle.addresses, outbound, inbound };
        self.backend.plan(&mut turn)?;
        self.store.save(turn.record)?;
        if inbound.is_some() {
            culvert_bpf::prepare_netns(netns)
                .map_err(|source| CaptureError::Kernel { pod: turn.record.pod.name.clone(), source })?;
        }
        self.backend.turn(&turn)
    }

    /// Lets go of a pod whose namespace is gone. A pod of the pods file may come back.
    fn bury(&mut self, name: &str) -> String {
        if let Some(pod) = self.pods.get_mut(name)
            && let State::Captured(captured) = &pod.state
        {
            // Through the descriptor everything is still there, and closes with it.
            if let Err(error) = self.backend.release(&pod.record, Some(captured.handle.netns.as_fd())) {
                log::warn!("{error}");
            }
            self.workers.remove_listeners(captured.handle.id);
            let _ = self.store.remove(name).inspect_err(|error| log::warn!("{error}"));
            pod.state = State::Pending(CaptureError::Gone(name.to_owned()).to_string());
            (pod.record.plan, pod.record.fwmark_accept) = (None, None);
            if pod.record.source == Source::Socket {
                self.pods.remove(name);
            }
        }
        format!("pod {name}: its network namespace is gone, removed")
    }

    fn report_of(&self, name: &str) -> Result<PodReport, CaptureError> {
        self.pods.get(name).map(|pod| self.report(pod)).ok_or_else(|| CaptureError::Unknown(name.to_owned()))
    }

    fn report(&self, pod: &Pod) -> PodReport {
        let Record { pod: spec, mode, netns_cookie, .. } = &pod.record;
        let mut report = PodReport {
            name: spec.name.clone(),
            netns: spec.netns.clone(),
            cgroup: spec.cgroup.clone(),
            netns_cookie: *netns_cookie,
            mode: *mode,
            policy: spec.policy,
            outbound: None,
            inbound: None,
            addresses: spec.addresses.clone(),
            direct: *mode == CaptureMode::Ebpf && self.allows_direct(spec),
            pending: None,
            counters: PodCounters::default(),
        };
        match &pod.state {
            State::Pending(reason) => report.pending = Some(reason.clone()),
            State::Captured(Captured { handle, targets, .. }) => {
                report.outbound = targets.outbound.as_deref().map(str::to_owned);
                report.inbound = targets.inbound.as_deref().map(str::to_owned);
                report.addresses.clone_from(&handle.addresses);
                report.counters = self.backend.counters(&pod.record, handle.netns.as_fd());
                report.counters.no_original_dst = handle.dialled_directly();
                if let Some(splice) = &handle.splice {
                    let counts = splice.counts();
                    report.counters.spliced = counts.spliced;
                    report.counters.splice_fell_back = counts.fell_back;
                    report.counters.spliced_bytes_in = counts.bytes_in;
                    report.counters.spliced_bytes_out = counts.bytes_out;
                }
            }
        }
        report
    }
}

impl Pod {
    fn is_captured(&self) -> bool {
        matches!(self.state, State::Captured(_))
    }

    fn is_in(&self, netns: NetnsId) -> bool {
        matches!(&self.state, State::Captured(captured) if captured.netns_id == netns)
    }
}

impl Captured {
    fn retarget(&mut self, targets: Targets, workers: &dyn WorkerPort) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            match targets.of(direction) {
                Some(name) if self.targets.of(direction) != Some(name) => {
                    workers.retarget(self.handle.id, direction, Arc::clone(name));
                }
                _ => {}
            }
        }
        self.targets = targets;
    }
}

/// The namespace a record is about, if it still is the one at the recorded path.
pub(super) fn netns_of(record: &Record) -> Option<Netns> {
    let netns = Netns::open(&record.pod.netns).ok()?;
    let cookie = culvert_bpf::netns_cookie(netns.fd.as_fd()).ok()?;
    (cookie == record.netns_cookie).then_some(netns)
}

/// Undoes what a record says was done, as far as the namespace is still there.
fn release_at_path(backend: &mut Backend, record: &Record) -> Result<(), CaptureError> {
    let netns = netns_of(record);
    backend.release(record, netns.as_ref().map(|netns| netns.fd.as_fd()))
}

/// The kernel is given one inbound listener, of the first worker, which by then has been handed over.
fn duplicate_inbound(pod: &str, sockets: &[InPodSockets]) -> Result<Option<OwnedFd>, CaptureError> {
    let inbound = sockets.iter().find(|sockets| sockets.direction == Direction::Inbound);
    let fd = inbound.and_then(|sockets| sockets.by_worker.first()).and_then(|fds| fds.first());
    let copy = fd.map(OwnedFd::try_clone).transpose();
    copy.map_err(|source| CaptureError::InPod {
        pod: pod.to_owned(),
        source: inpod::InPodError::Duplicate(source),
    })
}

fn fwmark_accept(netns: BorrowedFd<'_>) -> bool {
    let read = culvert_ring::net::in_netns(netns, || fs::read_to_string(FWMARK_ACCEPT));
    matches!(read, Ok(Ok(text)) if text.trim() != "0")
}

#[cfg(test)]
mod tests;
