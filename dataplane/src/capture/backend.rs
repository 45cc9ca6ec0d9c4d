//! The two ways to turn a pod's traffic, behind one set of calls.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use culvert_bpf::{Capture, DirectTable, InboundListener, NetnsState, Splice};
use culvert_model::CaptureSettings;

use crate::capture::{
    CaptureConfig, CaptureError, CaptureMode, Origin, PodCounters, Policy,
    iptables::{self, Rules},
    record::{Pins, Record, RecordStore},
    splice::Decision,
};

/// What turns traffic in this process.
pub(super) enum Backend {
    Ebpf(Box<Capture>, Option<Splice>),
    Iptables(CaptureSettings),
    None,
}

/// A pod whose listeners exist, about to have its traffic turned to them.
pub(super) struct Turn<'a> {
    /// Its record; the mode's own part of it is filled in before anything is changed.
    pub(super) record: &'a mut Record,
    pub(super) netns: BorrowedFd<'a>,
    pub(super) addresses: &'a [IpAddr],
    pub(super) outbound: bool,
    /// One of the inbound listeners, if inbound connections are turned.
    pub(super) inbound: Option<BorrowedFd<'a>>,
}

impl Backend {
    pub(super) fn open(config: &CaptureConfig, store: &RecordStore) -> Result<Self, CaptureError> {
        match config.mode {
            CaptureMode::Ebpf => {
                let pins = Pins { pin_dir: config.pin_dir.clone(), cgroup_root: config.cgroup_root.clone() };
                // The programs stay attached where they are, so pins that cannot be taken over have to go.
                if store.pins().is_some_and(|old| old != pins) {
                    clear_pins(store)?;
                }
                store.set_pins(Some(&pins))?;
                let (pin_dir, cgroup) = (config.pin_dir.clone(), config.cgroup_root.clone());
                let mut capture = Capture::open(culvert_bpf::CaptureConfig { pin_dir, cgroup })
                    .map_err(CaptureError::Bpf)?;
                let settings = &config.settings;
                let (cidrs, outbound) = (&settings.exclude_outbound_cidrs, &settings.exclude_outbound_ports);
                capture
                    .set_exclusions(cidrs, outbound, &settings.exclude_inbound_ports)
                    .map_err(CaptureError::Bpf)?;
                let splice = open_splice(&capture, &config.splice)?;
                Ok(Self::Ebpf(Box::new(capture), splice))
            }
            CaptureMode::Iptables => Ok(Self::Iptables(config.settings.clone())),
            CaptureMode::None => Ok(Self::None),
        }
    }

    /// See [`Capture::drain_log`].
    pub(super) fn drain_log(&mut self) {
        if let Self::Ebpf(capture, _) = self {
            capture.drain_log();
        }
    }

    /// See [`Capture::direct`].
    pub(super) fn direct_table(&mut self) -> Option<&mut DirectTable> {
        match self {
            Self::Ebpf(capture, _) => Some(capture.direct()),
            Self::Iptables(_) | Self::None => None,
        }
    }

    /// Attaches anew what somebody may have detached, in place of what is still attached. Pods have to be turned again
    /// afterwards: what the kernel knew of them may be lost.
    pub(super) fn reattach(
        &mut self,
        config: &CaptureConfig,
        store: &RecordStore,
    ) -> Result<(), CaptureError> {
        if matches!(self, Self::Ebpf(..)) {
            *self = Self::open(config, store)?;
        }
        Ok(())
    }

    /// How connections that this backend turned tell where they meant to go.
    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Ebpf(capture, _) => Origin::Bpf(capture.orig_dst()),
            Self::Iptables(_) | Self::None => Origin::Iptables,
        }
    }

    /// What a pod's connections are spliced with; `None` where they are not.
    pub(super) fn splice(&self, record: &Record) -> Option<&Splice> {
        match self {
            Self::Ebpf(_, splice) if record.pod.splice => splice.as_ref(),
            _ => None,
        }
    }

    /// Finds out what undoing will need, before anything is changed, and puts it into the record.
    pub(super) fn plan(&self, turn: &mut Turn<'_>) -> Result<(), CaptureError> {
        let Self::Iptables(settings) = self else {
            return Ok(());
        };
        // What is on record from before is older, and knows the namespace as it was without any rules of ours.
        if turn.record.plan.is_none() {
            let rules = rules(turn, settings);
            let plan = iptables::plan(turn.netns, &rules).map_err(|source| turn.iptables_error(source))?;
            turn.record.plan = Some(plan);
        }
        Ok(())
    }

    /// Turns the pod's traffic, or changes how it is turned. When it fails, nothing is turned.
    pub(super) fn turn(&mut self, turn: &Turn<'_>) -> Result<(), CaptureError> {
        match self {
            Self::Ebpf(capture, splice) => {
                let enrolled = capture.enrol(&bpf_pod(turn)).map_err(|source| turn.kernel_error(source));
                if enrolled.is_ok()
                    && let Some(splice) = splice
                {
                    let (cookie, wanted) = (turn.record.netns_cookie, turn.record.pod.splice);
                    let told = if wanted { splice.add_pod(cookie) } else { splice.remove_pod(cookie) };
                    told.unwrap_or_else(|error| log::warn!("pod {}: not spliced: {error}", turn.name()));
                }
                enrolled
            }
            Self::Iptables(settings) => {
                let Some(plan) = turn.record.plan else {
                    return Err(CaptureError::Off(turn.name()));
                };
                iptables::install(turn.netns, &plan, &rules(turn, settings))
                    .map_err(|source| turn.iptables_error(source))
            }
            Self::None => Err(CaptureError::Off(turn.name())),
        }
    }

    /// Takes back what a record says was done, whichever mode did it. What is gone already is no error. With `netns`
    /// `None` the namespace is gone, and with it most of what there was.
    pub(super) fn release(
        &mut self,
        record: &Record,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), CaptureError> {
        self.turn_back(record, netns)?;
        netns.map_or(Ok(()), |netns| self.clear(record, netns))
    }

    /// The first half of [`Backend::release`]: new connections are no longer turned; those that were go on.
    pub(super) fn turn_back(
        &mut self,
        record: &Record,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), CaptureError> {
        let name = || record.pod.name.clone();
        match (record.mode, &mut *self) {
            (CaptureMode::Ebpf, Self::Ebpf(capture, splice)) => {
                if let Some(splice) = splice {
                    let removed = splice.remove_pod(record.netns_cookie);
                    removed.unwrap_or_else(|error| log::warn!("pod {}: {error}", name()));
                }
                match capture.remove(record.netns_cookie) {
                    Err(culvert_bpf::Error::NotEnrolled { .. }) | Ok(()) => {}
                    Err(source) => {
                        return Err(CaptureError::Kernel { pod: name(), source });
                    }
                }
            }
            // Without the programs of this process, all pins go at once: see `clear_pins`.
            (CaptureMode::Ebpf | CaptureMode::None, _) => {}
            (CaptureMode::Iptables, _) => {
                if let Some(netns) = netns {
                    let removed = match &record.plan {
                        Some(plan) => iptables::unhook(netns, plan),
                        None => iptables::purge(netns).map(drop),
                    };
                    removed.map_err(|source| CaptureError::Iptables { pod: name(), source })?;
                }
            }
        }
        Ok(())
    }

    /// The second half: takes away what carries connections that were turned.
    pub(super) fn clear(&self, record: &Record, netns: BorrowedFd<'_>) -> Result<(), CaptureError> {
        let name = || record.pod.name.clone();
        if let Some(plan) = &record.plan {
            iptables::remove(netns, plan).map_err(|source| CaptureError::Iptables { pod: name(), source })?;
        }
        if let Some(fwmark_accept) = record.fwmark_accept {
            culvert_bpf::restore_netns(netns, NetnsState { fwmark_accept })
                .map_err(|source| CaptureError::Kernel { pod: name(), source })?;
        }
        Ok(())
    }

    /// Lets go of pods that the kernel still holds but nobody knows any more.
    pub(super) fn forget_others(&mut self, known: &[u64]) -> Result<Vec<String>, CaptureError> {
        let Self::Ebpf(capture, _) = self else {
            return Ok(Vec::new());
        };
        let mut forgotten = Vec::new();
        for pod in capture.pods().map_err(CaptureError::Bpf)? {
            if !known.contains(&pod.cookie) {
                capture.remove(pod.cookie).map_err(CaptureError::Bpf)?;
                forgotten.push(pod.name);
            }
        }
        Ok(forgotten)
    }

    pub(super) fn counters(&self, record: &Record, netns: BorrowedFd<'_>) -> PodCounters {
        let counted = match (self, &record.plan) {
            (Self::Ebpf(capture, _), _) => capture.counters(record.netns_cookie).map(bpf_counters).ok(),
            (Self::Iptables(_), Some(plan)) => {
                let counters = iptables::counters(netns, plan).ok();
                counters.map(|it| PodCounters {
                    captured: it.captured,
                    bypassed: it.bypassed,
                    ..PodCounters::default()
                })
            }
            _ => None,
        };
        counted.unwrap_or_default()
    }
}

/// Loads the programs that splice, if connections are to be spliced.
fn open_splice(capture: &Capture, decision: &Decision) -> Result<Option<Splice>, CaptureError> {
    let Decision { programs, reason, .. } = decision;
    if !decision.on {
        let failed = decision.selftest.is_some();
        log::log!(if failed { log::Level::Warn } else { log::Level::Info }, "splicing is off: {reason}");
        return Ok(None);
    }
    match capture.splice(*programs) {
        Ok(splice) => {
            log::info!("splicing is on, {} bytes at most in flight: {reason}", programs.limit);
            Ok(Some(splice))
        }
        Err(error) if decision.insists => Err(CaptureError::Bpf(error)),
        Err(error) => {
            log::warn!("splicing is off: {error}");
            Ok(None)
        }
    }
}

/// Detaches and removes what an earlier instance has pinned. Says where that was, if there was anything.
pub(super) fn clear_pins(store: &RecordStore) -> Result<Option<PathBuf>, CaptureError> {
    let Some(Pins { pin_dir, .. }) = store.pins() else { return Ok(None) };
    culvert_bpf::uninstall(&pin_dir).map_err(CaptureError::Bpf)?;
    store.set_pins(None)?;
    Ok(Some(pin_dir))
}

impl Turn<'_> {
    fn name(&self) -> String {
        self.record.pod.name.clone()
    }

    fn kernel_error(&self, source: culvert_bpf::Error) -> CaptureError {
        CaptureError::Kernel { pod: self.name(), source }
    }

    fn iptables_error(&self, source: iptables::IptablesError) -> CaptureError {
        CaptureError::Iptables { pod: self.name(), source }
    }
}

fn bpf_pod<'a>(turn: &'a Turn<'_>) -> culvert_bpf::PodSpec<'a> {
    let spec = &turn.record.pod;
    let is_v6 = |fd: &BorrowedFd<'_>| {
        let local = rustix::net::getsockname(fd).ok().and_then(|local| SocketAddr::try_from(local).ok());
        local.is_some_and(|local| local.is_ipv6())
    };
    let listener = match turn.inbound {
        Some(fd) if is_v6(&fd) => InboundListener { v4: None, v6: Some(fd) },
        fd => InboundListener { v4: fd, v6: None },
    };
    culvert_bpf::PodSpec {
        name: spec.name.clone(),
        netns: turn.netns.as_fd(),
        cookie: turn.record.netns_cookie,
        outbound_port: if turn.outbound { spec.outbound_port } else { 0 },
        inbound_port: turn.inbound.map(|_| spec.inbound_port),
        inbound_listener: listener,
        strict: spec.policy == Policy::Strict,
        addresses: turn.addresses.to_vec(),
    }
}

fn rules(turn: &Turn<'_>, settings: &CaptureSettings) -> Rules {
    let spec = &turn.record.pod;
    Rules {
        outbound_port: turn.outbound.then_some(spec.outbound_port),
        inbound_port: turn.inbound.map(|_| spec.inbound_port),
        settings: settings.clone(),
    }
}

fn bpf_counters(counters: culvert_bpf::PodCounters) -> PodCounters {
    PodCounters {
        captured: counters.captured_out + counters.captured_in,
        bypassed: counters.bypassed_out_excluded
            + counters.bypassed_out_no_listener
            + counters.bypassed_in_excluded
            + counters.bypassed_in_no_listener,
        refused: counters.refused_out + counters.refused_in,
        direct: counters.direct_out + counters.direct_in,
        ..PodCounters::default()
    }
}
