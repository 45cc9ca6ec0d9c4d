//! Pods that were removed and still have open connections, which live on what culvert has set up in their namespace: the
//! address translation of iptables, the routes by which answers to a preserved source address come back.

use std::{os::fd::AsFd, sync::Arc};

use crate::capture::{
    CaptureError, PodHandle,
    manager::{CaptureManager, Captured},
    pods::NetnsId,
    record::Record,
};

/// A removed pod.
pub(super) struct Leaving {
    record: Record,
    /// Every connection and listener of the pod holds it too.
    handle: Arc<PodHandle>,
    netns_id: NetnsId,
}

impl Leaving {
    /// Whether the last connection has ended, or the namespace has gone.
    fn has_left(&self) -> bool {
        Arc::strong_count(&self.handle) == 1
            || !NetnsId::at(&self.record.pod.netns).is_ok_and(|id| id == self.netns_id)
    }
}

impl CaptureManager {
    /// Keeps what carries the connections of a pod that is captured no longer.
    pub(super) fn see_off(&mut self, mut record: Record, captured: Captured) -> Result<(), CaptureError> {
        // A start that finds the record has no connection of the pod to care for.
        record.leaving = true;
        let saved = self.store.save(&record);
        self.leaving.push(Leaving { record, handle: captured.handle, netns_id: captured.netns_id });
        Ok(saved?)
    }

    /// A namespace that is captured again goes on with what was kept for it, as undoing needs what was found first. A
    /// namesake elsewhere is cleared now: a name has one record.
    pub(super) fn welcome_back(&mut self, record: &mut Record) {
        let (name, cookie) = (record.pod.name.clone(), record.netns_cookie);
        if let Some(at) = self.leaving.iter().position(|pod| pod.record.netns_cookie == cookie) {
            let kept = self.leaving.swap_remove(at).record;
            record.plan = record.plan.or(kept.plan);
            record.fwmark_accept = record.fwmark_accept.or(kept.fwmark_accept);
            if kept.pod.name != name {
                let _ = self.store.remove(&kept.pod.name).inspect_err(|error| log::warn!("{error}"));
            }
        }
        self.clear_leaving(|pod| pod.record.pod.name == name);
    }

    /// Clears removed pods whose connections have ended.
    pub(super) fn clear_left(&mut self) {
        self.clear_leaving(Leaving::has_left);
    }

    pub(super) fn clear_leaving(&mut self, which: impl Fn(&Leaving) -> bool) {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(which);
        self.leaving = kept;
        for Leaving { record, handle, .. } in gone {
            let name = &record.pod.name;
            match self.backend.clear(&record, handle.netns.as_fd()) {
                Ok(()) => log::debug!("pod {name}: nothing of culvert is left in it"),
                Err(error) => log::warn!("{error}"),
            }
            let _ = self.store.remove(name).inspect_err(|error| log::warn!("{error}"));
        }
    }
}
