//! Receiving, parking, and what happens when buffers run out.

use std::{
    io,
    task::{Context, Poll},
};

use super::{Io, Key, Park, Phase, STARVATION, Slot, check, errno, gone, set_waker};
use crate::{
    buf::{Class, Lease},
    driver::{Attempt, Driver},
};

impl Io {
    pub(crate) fn poll_read(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Lease>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        if let Some(lease) = slot.inbox.take() {
            return Poll::Ready(Ok(lease));
        }
        if slot.eof {
            return Poll::Ready(Ok(Lease::default()));
        }
        check(slot.read_error)?;
        set_waker(&mut slot.reader, cx);
        if slot.starved || slot.drive.receiving {
            return Poll::Pending;
        }
        // One buffer a turn, so that a bulk stream cannot keep the worker to itself.
        if slot.read_turn == self.turn && self.driver.recv_is_immediate(slot) {
            self.again.push(key);
            return Poll::Pending;
        }
        match self.driver.recv(key, slot, &self.pool) {
            Attempt::Done(outcome) => Poll::Ready(self.note_received(key, outcome)),
            Attempt::NoBuffer => {
                self.starve(key);
                Poll::Pending
            }
            Attempt::Pending => Poll::Pending,
        }
    }

    pub(crate) fn want_large(&mut self, key: Key, bulk: bool) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.bulk = bulk;
            slot.large |= bulk;
        }
    }

    pub(crate) fn park(&mut self, key: Key, tag: u64) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.reader = None;
        if slot.inbox.is_some() || slot.eof || slot.read_error != 0 {
            slot.park = Park::Disturbed;
            return self.report_parked(tag);
        }
        slot.park = Park::Quiet(tag);
        self.watch_parked(key);
    }

    /// Makes sure that a parked stream hears of what arrives.
    pub(super) fn watch_parked(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if !matches!(slot.park, Park::Quiet(_)) || slot.drive.receiving || slot.starved {
            return;
        }
        // What may be there already is looked for; otherwise an event will tell.
        let attempt = if slot.drive.readable {
            self.driver.recv(key, slot, &self.pool)
        } else {
            self.driver.watch(key, slot, &self.pool)
        };
        match attempt {
            Attempt::Done(outcome) => self.received(key, outcome),
            Attempt::NoBuffer => self.starve(key),
            Attempt::Pending => {}
        }
    }

    /// True when the stream was parked and nothing has arrived since.
    pub(crate) fn unpark(&mut self, key: Key) -> bool {
        let Some(slot) = self.slots.get_mut(key) else { return false };
        matches!(std::mem::take(&mut slot.park), Park::Quiet(_))
    }

    /// Whether something has arrived, or the stream has ended, and nobody has been told.
    pub(crate) fn has_arrived(&self, key: Key) -> bool {
        let news =
            |slot: &Slot| slot.inbox.is_some() || slot.eof || slot.read_error != 0 || slot.drive.readable;
        self.slots.get(key).is_some_and(news)
    }

    pub(super) fn report_parked(&mut self, tag: u64) {
        self.parked.push_back(tag);
        if let Some(waker) = self.janitor.take() {
            waker.wake();
        }
    }

    /// A receive that was in flight has ended.
    pub(super) fn received(&mut self, key: Key, outcome: io::Result<Lease>) {
        let Some(slot) = self.slots.get(key) else { return };
        if !matches!(slot.phase, Phase::Open | Phase::Connecting) {
            return self.free_if_idle(key);
        }
        let outcome = self.note_received(key, outcome);
        let Some(slot) = self.slots.get_mut(key) else { return };
        if let Ok(lease) = outcome
            && !lease.is_empty()
        {
            slot.inbox = Some(lease);
        }
        if let Park::Quiet(tag) = slot.park {
            slot.park = Park::Disturbed;
            self.report_parked(tag);
        } else if let Some(waker) = slot.reader.take() {
            waker.wake();
        }
    }

    /// Puts the socket into the queue for a free buffer.
    pub(super) fn starve(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if !matches!(slot.phase, Phase::Open | Phase::Connecting) {
            return self.free_if_idle(key);
        }
        if !slot.starved {
            slot.starved = true;
            self.stats.enobufs += 1;
            self.starved.push_back((key, self.now));
        }
    }

    /// Resumes receives that wait for a buffer: as many as there are buffers, and those that have waited too long.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        let mut buffers = self.driver.free_buffers(&self.pool);
        for _ in 0..self.starved.len() {
            let Some(&(key, since)) = self.starved.front() else { return };
            let expired = self.now.saturating_duration_since(since) >= STARVATION;
            if !expired && buffers == 0 {
                return;
            }
            self.starved.pop_front();
            let Some(slot) = self.slots.get_mut(key) else { continue };
            slot.starved = false;
            if slot.phase != Phase::Open {
                self.free_if_idle(key);
                continue;
            }
            let attempt = if buffers > 0 {
                buffers -= 1;
                self.driver.recv(key, slot, &self.pool)
            } else {
                self.stats.heap_recvs += 1;
                self.driver.recv_unpooled(key, slot, &self.pool)
            };
            match attempt {
                Attempt::Done(outcome) => self.received(key, outcome),
                Attempt::NoBuffer => self.starve(key),
                Attempt::Pending => {}
            }
        }
    }

    /// Books a receive: counters, the end of the stream, and the size of the next buffer.
    fn note_received(&mut self, key: Key, outcome: io::Result<Lease>) -> io::Result<Lease> {
        let Some(slot) = self.slots.get_mut(key) else { return outcome };
        slot.read_turn = self.turn;
        match &outcome {
            Ok(lease) if lease.is_empty() => slot.eof = true,
            Ok(lease) => {
                self.stats.recvs += 1;
                self.stats.recv_bytes += lease.len() as u64;
                slot.add_received(lease.len() as u64);
                // A full buffer says that there is more to come, a small receive that there is not.
                slot.large = slot.bulk
                    || lease.len() >= self.pool.size(Class::Small)
                    || (slot.large && lease.len() > self.pool.size(Class::Small) / 2);
            }
            Err(error) => slot.read_error = errno(error),
        }
        outcome
    }
}
