//! What a socket has to send, in order.

use std::{collections::VecDeque, io::IoSlice, mem};

use crate::buf::Chunk;

/// Chunks up to this size are copied behind what is queued, so that a head and a small body leave in one send.
pub(crate) const COPY_LIMIT: usize = 2048;

/// A pooled write buffer starts with this capacity.
const BUFFER_CAPACITY: usize = 4096;

/// A write buffer that has grown beyond this is freed instead of pooled.
const BUFFER_KEEP: usize = 32 * 1024;

/// Chunks handed to the kernel in one call.
pub(crate) const MAX_SLICES: usize = 16;

/// The queue of one socket. It is boxed and never moves while the kernel reads from it; the bytes of its chunks are on
/// the heap, in the receive pool or static, and a chunk in flight is neither changed nor dropped.
#[derive(Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that were sent.
    offset: usize,
    queued: usize,
    /// Leading chunks that the kernel is reading.
    in_flight: usize,
    vector: Option<Box<Vector>>,
}

/// The arguments of a gathering send, which must stay where they are while it is in flight.
struct Vector {
    header: libc::msghdr,
    slices: [libc::iovec; MAX_SLICES],
}

/// What the kernel is to send, by address. Valid until [`Outbox::consume`] or the end of the outbox.
pub(crate) enum Flight {
    Single { bytes: *const u8, len: u32 },
    Gather(*const libc::msghdr),
}

/// The most that is sent by one operation on one chunk.
const MAX_SEND: usize = 1 << 30;

impl Outbox {
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Takes out the write buffer at the tail, or one from `spare`, for [`Outbox::put_tail`] to put back.
    pub(crate) fn take_tail(&mut self, spare: &mut Spares) -> Vec<u8> {
        // Neither a chunk in flight nor one that was sent in part may change.
        let settled = self.in_flight.max(usize::from(self.offset > 0));
        if self.chunks.len() > settled
            && let Some(Chunk::Vec(_)) = self.chunks.back()
            && let Some(Chunk::Vec(tail)) = self.chunks.pop_back()
        {
            self.queued -= tail.len();
            return tail;
        }
        spare.buffer()
    }

    pub(crate) fn put_tail(&mut self, tail: Vec<u8>, spare: &mut Spares) {
        if tail.is_empty() {
            return spare.keep_buffer(tail);
        }
        self.queued += tail.len();
        self.chunks.push_back(Chunk::Vec(tail));
    }

    /// Queues a chunk: copied when it is small and there is something to copy it behind.
    pub(crate) fn push(&mut self, chunk: Chunk, spare: &mut Spares) {
        if chunk.is_empty() {
            return;
        }
        if chunk.len() <= COPY_LIMIT && !self.chunks.is_empty() {
            let mut tail = self.take_tail(spare);
            tail.extend_from_slice(&chunk);
            self.put_tail(tail, spare);
        } else {
            self.queued += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Borrows what is to be sent next and marks nothing. Returns how many slices were set.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let bytes: &[u8] = if count == 0 { &chunk[self.offset..] } else { chunk };
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// The only chunk's bytes, when there is just one.
    pub(crate) fn single(&self) -> Option<&[u8]> {
        match self.chunks.len() {
            1 => Some(&self.chunks[0][self.offset..]),
            _ => None,
        }
    }

    /// Hands what is to be sent next to the kernel. Those chunks are not touched until [`Outbox::consume`].
    pub(crate) fn take_off(&mut self) -> Flight {
        if let Some(bytes) = self.single() {
            let flight = Flight::Single { bytes: bytes.as_ptr(), len: bytes.len().min(MAX_SEND) as u32 };
            self.in_flight = 1;
            return flight;
        }
        let vector = self.vector.get_or_insert_with(Vector::boxed);
        let mut count = 0;
        for (slice, chunk) in vector.slices.iter_mut().zip(&self.chunks) {
            let bytes: &[u8] = if count == 0 { &chunk[self.offset..] } else { chunk };
            *slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            count += 1;
        }
        vector.header.msg_iov = vector.slices.as_mut_ptr();
        vector.header.msg_iovlen = count;
        self.in_flight = count;
        Flight::Gather(&raw const vector.header)
    }

    /// Nothing is in flight any more and nothing was sent.
    pub(crate) fn land(&mut self) {
        self.in_flight = 0;
    }

    /// Removes `count` sent bytes.
    pub(crate) fn consume(&mut self, count: usize, spare: &mut Spares) {
        self.in_flight = 0;
        self.queued -= count;
        let mut left = count;
        while let Some(front) = self.chunks.front() {
            let rest = front.len() - self.offset;
            if left < rest {
                self.offset += left;
                return;
            }
            left -= rest;
            self.offset = 0;
            if let Some(Chunk::Vec(buffer)) = self.chunks.pop_front() {
                spare.keep_buffer(buffer);
            }
        }
    }
}

impl Vector {
    fn boxed() -> Box<Self> {
        // SAFETY: both are plain data for which all-zero bytes are valid (null pointers and lengths of zero).
        Box::new(Self { header: unsafe { mem::zeroed() }, slices: unsafe { mem::zeroed() } })
    }
}

/// Queues and write buffers that are not in use. Idle sockets own neither.
#[derive(Default)]
pub(crate) struct Spares {
    #[expect(clippy::vec_box, reason = "an outbox keeps its box when it goes into use")]
    outboxes: Vec<Box<Outbox>>,
    buffers: Vec<Vec<u8>>,
}

impl Spares {
    const LIMIT: usize = 256;

    pub(crate) fn outbox(&mut self) -> Box<Outbox> {
        self.outboxes.pop().unwrap_or_default()
    }

    pub(crate) fn keep_outbox(&mut self, mut outbox: Box<Outbox>) {
        if self.outboxes.len() >= Self::LIMIT {
            return;
        }
        outbox.chunks.clear();
        outbox.offset = 0;
        outbox.queued = 0;
        outbox.in_flight = 0;
        self.outboxes.push(outbox);
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_CAPACITY))
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < Self::LIMIT && (BUFFER_CAPACITY..=BUFFER_KEEP).contains(&buffer.capacity()) {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(outbox: &Outbox) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = outbox.slices(&mut slices);
        slices[..count].iter().flat_map(|it| it.to_vec()).collect()
    }

    #[test]
    fn a_small_body_leaves_with_its_head() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let mut head = outbox.take_tail(&mut spares);
        head.extend_from_slice(b"head ");
        outbox.put_tail(head, &mut spares);
        outbox.push(Chunk::Static(b"body"), &mut spares);
        assert_eq!(outbox.single(), Some(&b"head body"[..]));
        assert_eq!(outbox.queued(), 9);
    }

    #[test]
    fn a_chunk_in_flight_is_never_changed() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        outbox.push(Chunk::Vec(b"first".to_vec()), &mut spares);
        assert!(matches!(outbox.take_off(), Flight::Single { len: 5, .. }));
        outbox.push(Chunk::Static(b"second"), &mut spares);
        assert_eq!(outbox.chunks.len(), 2);
        outbox.consume(5, &mut spares);
        outbox.push(Chunk::Static(b" third"), &mut spares);
        assert_eq!(outbox.single(), Some(&b"second third"[..]));
    }

    #[test]
    fn partial_sends_resume_where_they_stopped() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let big: Vec<u8> = (0..5000u32).map(|it| it as u8).collect();
        outbox.push(Chunk::Vec(big.clone()), &mut spares);
        outbox.push(Chunk::Vec(big.clone()), &mut spares);
        let all = [&big[..], &big[..]].concat();
        let mut done = 0;
        for step in [1, 4998, 3, 4997] {
            outbox.consume(step, &mut spares);
            done += step;
            assert_eq!(sent(&outbox), all[done..]);
            assert_eq!(outbox.queued(), all.len() - done);
        }
        outbox.push(Chunk::Static(b"x"), &mut spares);
        assert_eq!(outbox.queued(), 2);
        assert_eq!(sent(&outbox), [all[9999], b'x']);
    }

    #[test]
    fn appending_behind_a_partly_sent_buffer_counts_right() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        outbox.push(Chunk::Vec(b"abcdef".to_vec()), &mut spares);
        outbox.consume(2, &mut spares);
        let mut tail = outbox.take_tail(&mut spares);
        assert_eq!(outbox.queued(), 4);
        tail.extend_from_slice(b"gh");
        outbox.put_tail(tail, &mut spares);
        assert_eq!(outbox.queued(), 6);
        assert_eq!(sent(&outbox), b"cdefgh");
    }

    #[test]
    fn an_empty_write_queues_nothing() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let tail = outbox.take_tail(&mut spares);
        outbox.put_tail(tail, &mut spares);
        outbox.push(Chunk::Static(b""), &mut spares);
        assert_eq!(outbox.queued(), 0);
        assert!(outbox.chunks.is_empty());
    }
}
