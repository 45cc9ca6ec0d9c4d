//! Queueing and sending.

use std::{
    io,
    task::{Context, Poll},
};

use rustix::net::Shutdown as How;

use super::{Io, Key, Phase, Shutdown, check, errno, gone, set_waker};
use crate::{
    buf::Chunk,
    driver::{Attempt, Driver},
};

impl Io {
    pub(crate) fn send(&mut self, key: Key, chunk: Chunk) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.write_error != 0 || slot.shutdown != Shutdown::None {
            return;
        }
        let outbox = slot.outbox.get_or_insert_with(|| self.spares.outbox());
        outbox.push(chunk, &mut self.spares);
        self.mark_dirty(key);
    }

    /// Takes out the write buffer at the tail of the queue; [`Io::put_tail`] must follow.
    pub(crate) fn take_tail(&mut self, key: Key) -> Vec<u8> {
        let Some(slot) = self.slots.get_mut(key) else { return Vec::new() };
        let outbox = slot.outbox.get_or_insert_with(|| self.spares.outbox());
        outbox.take_tail(&mut self.spares)
    }

    pub(crate) fn put_tail(&mut self, key: Key, tail: Vec<u8>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.write_error != 0 || slot.shutdown != Shutdown::None {
            return;
        }
        let outbox = slot.outbox.get_or_insert_with(|| self.spares.outbox());
        outbox.put_tail(tail, &mut self.spares);
        self.mark_dirty(key);
    }

    pub(crate) fn poll_drained(
        &mut self,
        key: Key,
        at_most: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(slot) = self.slots.get(key) else { return Poll::Ready(Err(gone())) };
        // What can leave now need not be waited for.
        if slot.queued() > at_most && slot.dirty && self.driver.sends_eagerly(slot.queued()) {
            self.flush_one(key);
        }
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        check(slot.write_error)?;
        if slot.queued() <= at_most {
            return Poll::Ready(Ok(()));
        }
        slot.drain_below = at_most;
        set_waker(&mut slot.writer, cx);
        Poll::Pending
    }

    pub(crate) fn shutdown_write(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.shutdown == Shutdown::None {
            slot.shutdown = Shutdown::Wanted;
            self.mark_dirty(key);
        }
    }

    pub(super) fn mark_dirty(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        self.eager |= self.driver.sends_eagerly(slot.queued());
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Sends what the socket has queued, as far as the kernel takes it.
    pub(super) fn flush_one(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.dirty = false;
        if !matches!(slot.phase, Phase::Open | Phase::Lingering) || slot.drive.sending {
            return;
        }
        while slot.queued() > 0 && slot.write_error == 0 {
            match self.driver.send(key, slot) {
                Attempt::Done(Ok(count)) => {
                    self.stats.sends += 1;
                    self.stats.sent_bytes += count as u64;
                    slot.sent += count as u64;
                    if let Some(outbox) = &mut slot.outbox {
                        outbox.consume(count, &mut self.spares);
                    }
                    slot.tell_sent();
                }
                Attempt::Done(Err(error)) => slot.write_error = errno(&error),
                Attempt::NoBuffer | Attempt::Pending => break,
            }
        }
        self.after_send(key);
    }

    /// A send that was in flight has ended.
    pub(super) fn sent(&mut self, key: Key, outcome: io::Result<usize>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        match outcome {
            Ok(count) => {
                self.stats.sends += 1;
                self.stats.sent_bytes += count as u64;
                slot.sent += count as u64;
                if let Some(outbox) = &mut slot.outbox {
                    outbox.consume(count, &mut self.spares);
                }
                slot.tell_sent();
            }
            Err(error) => {
                slot.write_error = errno(&error);
                if let Some(outbox) = &mut slot.outbox {
                    outbox.land();
                }
            }
        }
        if slot.queued() > 0 && slot.write_error == 0 && slot.phase != Phase::Closing {
            self.mark_dirty(key);
        }
        self.after_send(key);
    }

    /// What follows once bytes have left or cannot leave: an idle socket gives its queue back, the sending side is shut,
    /// the writer is woken, a dropped stream is closed.
    fn after_send(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let drained = slot.queued() == 0;
        if (drained || slot.write_error != 0)
            && !slot.drive.sending
            && let Some(outbox) = slot.outbox.take()
        {
            self.spares.keep_outbox(outbox);
        }
        if drained && slot.shutdown == Shutdown::Wanted && slot.write_error == 0 {
            slot.shutdown = Shutdown::Done;
            if let Some(fd) = &slot.fd {
                // Fails only when the connection is gone, which the next receive reports.
                let _ = rustix::net::shutdown(fd, How::Write);
            }
        }
        if (slot.write_error != 0 || slot.queued() <= slot.drain_below)
            && let Some(waker) = slot.writer.take()
        {
            waker.wake();
        }
        if slot.phase == Phase::Lingering && (drained || slot.write_error != 0) {
            slot.phase = Phase::Closing;
        }
        if slot.phase == Phase::Closing {
            self.free_if_idle(key);
        }
    }
}
