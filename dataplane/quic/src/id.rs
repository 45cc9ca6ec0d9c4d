//! Connection ids that name the worker.
//!
//! Bytes 0 and 1 are the worker's number, masked by bytes 2 and 3, big-endian; bytes 2 to 9 are random. The mask keeps ids
//! of one worker from looking alike; it hides nothing from who knows it, as RFC 9000, section 5.1 would have it for ids
//! that could be linked: all that they have in common is the worker. Whatever id a client has made up for its first
//! datagrams names some worker too, always the same: who steers takes the number modulo the number of workers.

use std::time::Duration;

use aws_lc_rs::rand;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// Bytes in an id that this crate gives out.
pub const ID_LENGTH: usize = 10;

/// The worker that an id names; `None` when it is too short to name one.
pub fn worker_of(id: &[u8]) -> Option<u16> {
    match *id {
        [a, b, c, d, ..] => Some(u16::from_be_bytes([a ^ c, b ^ d])),
        _ => None,
    }
}

/// Makes ids for one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerIds(pub(crate) u16);

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LENGTH];
        if rand::fill(&mut id[2..]).is_err() {
            // Cannot be without a broken system; an id that is in use already is made anew.
            log::error!(target: "quic", "no random bytes for a connection id");
        }
        let [worker_high, worker_low] = self.0.to_be_bytes();
        (id[0], id[1]) = (worker_high ^ id[2], worker_low ^ id[3]);
        ConnectionId::new(&id)
    }

    /// Only what names this worker is worth the answer that its connection is gone (stateless reset).
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.len() == ID_LENGTH && worker_of(id) == Some(self.0) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_worker_and_no_two_are_alike() {
        for worker in [0, 1, 63, 300, u16::MAX] {
            let mut ids = WorkerIds(worker);
            let (one, other) = (ids.generate_cid(), ids.generate_cid());
            assert_ne!(one, other);
            assert_eq!(worker_of(&one), Some(worker));
            assert!(ids.validate(&one).is_ok());
            assert!(WorkerIds(worker ^ 1).validate(&one).is_err());
        }
        assert_eq!(worker_of(&[1, 2, 3]), None);
    }
}
