//! What a start finds and what a pods file asks for: taking over, letting go, catching up.

use std::{collections::BTreeMap, os::fd::AsFd};

use crate::capture::{
    CaptureError, CaptureMode, PodSpec,
    backend::clear_pins,
    manager::{CaptureManager, Pod, State, netns_of},
    record::{Record, Source},
};

impl CaptureManager {
    /// Takes over the pods of an earlier process, undoes what is no longer wanted, and enrols the pods of the pods file.
    ///
    /// Pods that were enrolled by `culvert pod add` and still exist are kept; those of an earlier pods file only when
    /// they are in this one. A pod that cannot be captured now is kept as pending, which is logged and shown by `list`;
    /// it is tried again by [`CaptureManager::set_listeners`] and by `repair`.
    ///
    /// # Errors
    /// The state on disk or in the kernel cannot be read at all.
    pub fn start(&mut self, pods: Vec<PodSpec>) -> Result<(), CaptureError> {
        let mut wanted: BTreeMap<String, Record> = BTreeMap::new();
        for mut pod in pods {
            // Checked when the file was read; a namespace that has gone since makes the pod pending.
            let cookie = pod.check().ok().and_then(|netns| culvert_bpf::netns_cookie(netns.fd.as_fd()).ok());
            let record = Record::new(pod, Source::File, self.config.mode, cookie.unwrap_or(0));
            wanted.insert(record.pod.name.clone(), record);
        }
        for record in self.store.load()? {
            self.inherit(record, &mut wanted);
        }
        if self.config.mode != CaptureMode::Ebpf {
            clear_pins(&self.store)?;
        }
        if self.config.mode == CaptureMode::None {
            return Ok(());
        }
        for (_, record) in wanted {
            self.adopt(record);
        }
        let known: Vec<u64> = self.pods.values().map(|pod| pod.record.netns_cookie).collect();
        for name in self.backend.forget_others(&known)? {
            log::info!("pod {name}: no longer wanted, its traffic is no longer captured");
        }
        Ok(())
    }

    /// Makes the pods of the pods file those of a new version of it: after `SIGHUP`. Pods enrolled by `culvert pod add`
    /// stay, except where the file has one of the same name.
    pub fn reload(&mut self, pods: Vec<PodSpec>) {
        let is_dropped = |pod: &&Pod| {
            pod.record.source == Source::File && pods.iter().all(|wanted| wanted.name != pod.record.pod.name)
        };
        let dropped: Vec<String> =
            self.pods.values().filter(is_dropped).map(|pod| pod.record.pod.name.clone()).collect();
        for name in dropped {
            if let Err(error) = self.remove(&name) {
                log::warn!("{error}");
            }
        }
        for pod in pods {
            let known = self.pods.get(&pod.name);
            let is_same = known.is_some_and(|known| known.record.pod == pod && known.is_captured());
            if !is_same {
                if known.is_some_and(|known| known.record.pod.netns != pod.netns) {
                    let _ = self.remove(&pod.name).inspect_err(|error| log::warn!("{error}"));
                }
                self.adopt(Record::new(pod, Source::File, self.config.mode, 0));
            } else if let Some(known) = self.pods.get_mut(&pod.name) {
                known.record.source = Source::File;
                let _ = self.store.save(&known.record).inspect_err(|error| log::warn!("{error}"));
            }
        }
    }

    /// Decides what becomes of a pod that an earlier process left.
    fn inherit(&mut self, old: Record, wanted: &mut BTreeMap<String, Record>) {
        let name = old.pod.name.clone();
        let netns = netns_of(&old);
        let in_file = wanted.get(&name).is_some_and(|new| new.netns_cookie == old.netns_cookie);
        let is_wanted =
            in_file || (old.source == Source::Socket && !old.leaving && !wanted.contains_key(&name));
        if let Some(netns) = netns.as_ref().filter(|_| old.applied) {
            self.expect_closing(netns.id);
        }
        let is_kept = is_wanted && netns.is_some() && old.mode == self.config.mode;
        if old.applied && !is_kept {
            let netns = netns.as_ref().map(|netns| netns.fd.as_fd());
            match self.backend.release(&old, netns) {
                Ok(()) => log::info!("pod {name}: cleared what an earlier culvert left"),
                Err(error) => log::warn!("{error}"),
            }
        }
        if !is_wanted || netns.is_none() {
            let _ = self.store.remove(&name).inspect_err(|error| log::warn!("{error}"));
            return;
        }
        // What undoing needs is what the first process found.
        let record = wanted.entry(name).or_insert_with(|| old.clone());
        if old.applied && is_kept {
            (record.plan, record.fwmark_accept) = (old.plan, old.fwmark_accept);
        } else {
            (record.plan, record.fwmark_accept, record.applied) = (None, None, false);
            record.mode = self.config.mode;
            let _ = self.store.save(record).inspect_err(|error| log::warn!("{error}"));
        }
    }

    /// Captures a pod, or keeps it as pending.
    fn adopt(&mut self, record: Record) {
        let name = record.pod.name.clone();
        let previous = self.pods.remove(&name);
        let result = record.pod.clone().check().map_err(CaptureError::from);
        let result = result.and_then(|netns| self.capture(record.clone(), netns, previous.as_ref()));
        let pod = match (result, previous) {
            (Ok(pod), _) => {
                log::info!("pod {name}: captured ({}, {})", pod.record.mode, pod.record.pod.policy);
                pod
            }
            (Err(error), Some(previous)) if previous.is_captured() => {
                log::warn!("{error}; it stays captured as it was");
                previous
            }
            (Err(error), _) => {
                log::warn!("{error}; waiting for that to be put right");
                Pod { record, state: State::Pending(error.to_string()) }
            }
        };
        self.pods.insert(name, pod);
    }
}
