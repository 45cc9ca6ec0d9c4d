//! Received bytes that have not been consumed yet.

use culvert_ring::{Chunk, Lease};

/// Received bytes of one connection, in order and contiguous.
///
/// Nearly always one lease straight from the driver; only a message head that arrives in pieces is copied together.
#[derive(Default)]
pub(super) struct Input {
    /// The newest buffer when nothing had to be joined.
    lease: Lease,
    /// Joined bytes; in use when not empty.
    joined: Vec<u8>,
    /// Consumed prefix of `joined`.
    at: usize,
}

impl Input {
    /// Everything not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() { &self.lease } else { &self.joined[self.at..] }
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Adds what was received.
    pub(super) fn push(&mut self, lease: Lease) {
        if self.is_empty() {
            self.joined = Vec::new();
            self.at = 0;
            self.lease = lease;
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(self.lease.len() + lease.len());
            self.joined.extend_from_slice(&self.lease);
            self.lease = Lease::default();
            self.at = 0;
        }
        // The consumed part goes first, or a client that always sends one byte too many would make this grow for ever.
        self.joined.drain(..std::mem::take(&mut self.at));
        self.joined.extend_from_slice(&lease);
    }

    /// Drops the next `n` bytes.
    pub(super) fn advance(&mut self, n: usize) {
        if self.joined.is_empty() {
            self.lease.advance(n);
            if self.lease.is_empty() {
                // An idle connection owns no buffer.
                self.lease = Lease::default();
            }
            return;
        }
        self.at += n;
        if self.at >= self.joined.len() {
            self.joined = Vec::new();
            self.at = 0;
        }
    }

    /// Takes the next `n` bytes, without a copy where the driver's buffer still holds them.
    pub(super) fn take(&mut self, n: usize) -> Chunk {
        if self.joined.is_empty() {
            if n == self.lease.len() {
                return Chunk::Lease(std::mem::take(&mut self.lease));
            }
            return Chunk::Lease(self.lease.split_to(n));
        }
        let bytes = self.joined[self.at..self.at + n].to_vec();
        self.advance(n);
        Chunk::Vec(bytes)
    }
}
