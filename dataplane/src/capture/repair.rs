//! `culvert pod repair` where no culvert runs: undoes what a dead one left.

use std::{os::fd::AsFd, path::Path, sync::Arc};

use crate::capture::{
    CallError, CaptureConfig, CaptureError, CaptureManager, CaptureMode, ControlSocketError, Direction,
    InPodListener, InstanceLock, Request, Response, WorkerPort,
    backend::{Backend, clear_pins},
    control_socket::call,
    manager::netns_of,
    record::{Pins, Record, RecordStore},
    state_dir,
};

/// Why nothing, or not all, was repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A part of the clean-up failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A culvert is running after all, or the state directory cannot be used.
    #[error(transparent)]
    Lock(#[from] ControlSocketError),
}

/// Asks the culvert that listens on `socket`. A repair is done here when there is none.
///
/// # Errors
/// Those of [`call`].
pub fn call_or_repair(socket: &Path, request: &Request) -> Result<Response, CallError> {
    match (call(socket, request), request) {
        (Err(CallError::NotRunning(_)), Request::Repair { name }) => {
            Ok(repair_offline(socket, name.as_deref()).map_or_else(Response::error, Response::messages))
        }
        (answer, _) => answer,
    }
}

/// Gives pods that no culvert captures any more their traffic back, strict ones too, and forgets them: one pod, or all
/// with everything that is pinned. `socket` is the control socket of the culvert that captured them. Returns what was
/// done, a line each. Pods of a pods file come back with the next start.
///
/// # Errors
/// The first thing that could not be undone; the rest was.
pub fn repair_offline(socket: &Path, name: Option<&str>) -> Result<Vec<String>, RepairError> {
    let _lock = InstanceLock::take(socket)?;
    let store = RecordStore::open(&state_dir(socket)).map_err(CaptureError::from)?;
    let mut records = store.load().map_err(CaptureError::from)?;
    if let Some(name) = name {
        records.retain(|record| record.pod.name == name);
        if records.is_empty() {
            return Err(CaptureError::Unknown(name.to_owned()).into());
        }
    }
    let mut backend = backend_for(&store, &records, name)?;
    let mut done = Vec::new();
    let mut first_error = None;
    for record in records {
        match undo(&mut backend, &store, &record) {
            Ok(line) => done.push(line),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    if name.is_none() {
        match clear_pins(&store) {
            Ok(Some(pin_dir)) => done.push(format!("{}: eBPF programs and maps removed", pin_dir.display())),
            Ok(None) => {}
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(done), |error| Err(error.into()))
}

/// At a start with `--capture none`: gives the pods of an earlier culvert with this control socket their traffic back, and
/// keeps those of `culvert pod add` in mind. Leaves everything alone while another culvert holds the socket. What fails is
/// logged: this start does not depend on it.
pub fn clear_leftovers(socket: &Path) {
    let state_dir = state_dir(socket);
    if !state_dir.exists() {
        return;
    }
    let clear = || {
        let _lock = InstanceLock::take(socket)?;
        let config = CaptureConfig { mode: CaptureMode::None, state_dir, ..CaptureConfig::default() };
        Ok::<_, RepairError>(CaptureManager::new(config, Box::new(NoWorkers))?.start(Vec::new())?)
    };
    if let Err(error) = clear() {
        log::warn!("pods of an earlier culvert: {error}");
    }
}

/// Nothing is captured, so nothing is handed over.
struct NoWorkers;

impl WorkerPort for NoWorkers {
    fn workers(&self) -> usize {
        1
    }

    fn add_listener(&self, _: usize, _: InPodListener) {}

    fn retarget(&self, _: u32, _: Direction, _: Arc<str>) {}

    fn remove_listeners(&self, _: u32) {}
}

/// One eBPF pod can only be let go with the programs at hand; all of them go with the pins.
fn backend_for(store: &RecordStore, records: &[Record], name: Option<&str>) -> Result<Backend, CaptureError> {
    let is_bpf = |record: &Record| record.applied && record.mode == CaptureMode::Ebpf;
    match store.pins() {
        Some(Pins { pin_dir, cgroup_root }) if name.is_some() && records.iter().any(is_bpf) => {
            let config =
                CaptureConfig { mode: CaptureMode::Ebpf, pin_dir, cgroup_root, ..CaptureConfig::default() };
            Backend::open(&config, store)
        }
        _ => Ok(Backend::None),
    }
}

fn undo(backend: &mut Backend, store: &RecordStore, record: &Record) -> Result<String, CaptureError> {
    let netns = netns_of(record);
    if record.applied {
        backend.release(record, netns.as_ref().map(|netns| netns.fd.as_fd()))?;
    }
    store.remove(&record.pod.name)?;
    let found =
        if netns.is_some() { "its traffic is its own again" } else { "its network namespace was gone" };
    Ok(format!("pod {}: {found}; forgotten", record.pod.name))
}
