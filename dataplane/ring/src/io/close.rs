//! The end of a socket: what was queued is still sent, and the kernel is done with its memory before that is freed.

use std::time::Duration;

use socket2::SockRef;

use super::{Io, Key, LINGER, Phase};
use crate::driver::Driver;

impl Io {
    /// The owner has dropped the stream or listener.
    pub(crate) fn close(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.phase == Phase::Closing {
            // It was reset.
            return;
        }
        let unsent = slot.phase == Phase::Open && slot.queued() > 0 && slot.write_error == 0;
        slot.phase = if unsent { Phase::Lingering } else { Phase::Closing };
        (slot.reader, slot.writer, slot.inbox) = (None, None, None);
        self.driver.cancel(key, slot, !unsent);
        if unsent {
            self.lingering.push_back((key, self.now + LINGER));
            self.mark_dirty(key);
        } else {
            self.free_if_idle(key);
        }
    }

    /// Closes with a reset; what is queued is lost.
    pub(crate) fn abort(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if let Some(fd) = &slot.fd {
            // Only TCP can be reset; other sockets are just closed.
            let _ = SockRef::from(fd).set_linger(Some(Duration::ZERO));
        }
        slot.phase = Phase::Closing;
        (slot.reader, slot.writer, slot.inbox) = (None, None, None);
        self.driver.cancel(key, slot, true);
        self.free_if_idle(key);
    }

    /// Frees a slot that is closing, once nothing is in flight on it.
    pub(super) fn free_if_idle(&mut self, key: Key) {
        let idle = |it: &&super::Slot| it.phase == Phase::Closing && !it.drive.busy();
        if self.slots.get(key).filter(idle).is_none() {
            return;
        }
        if let Some(mut slot) = self.slots.remove(key) {
            slot.watch = None;
            if let Some(outbox) = slot.outbox.take() {
                self.spares.keep_outbox(outbox);
            }
        }
    }

    /// Closes what has had its time to send.
    pub(super) fn end_lingering(&mut self) {
        while let Some(&(key, until)) = self.lingering.front() {
            let Some(slot) = self.slots.get_mut(key).filter(|it| it.phase == Phase::Lingering) else {
                self.lingering.pop_front();
                continue;
            };
            if until > self.now {
                return;
            }
            self.lingering.pop_front();
            slot.phase = Phase::Closing;
            self.driver.cancel(key, slot, true);
            self.free_if_idle(key);
        }
    }

    /// Whether dropped streams are still sending, or anything is in flight on them.
    pub(crate) fn is_closing(&self) -> bool {
        self.slots.keys().into_iter().any(|key| {
            self.slots.get(key).is_some_and(|it| matches!(it.phase, Phase::Closing | Phase::Lingering))
        })
    }
}
