//! The way of encoded records, spans and log entries, from a worker to the control thread.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::observe::stats::Counter;

/// Records of one source on one worker that the control thread may have left to take.
const RECORDS_MAX: usize = 4_096;

/// Buffers of records that were taken which are kept for later ones.
const BUFFERS_MAX: usize = 512;

/// Statistics of a [`Pipe`].
pub trait Drops {
    /// Records that were lost because the collector did not keep up, or was not there.
    fn dropped(&self) -> &Counter;
}

/// A bounded queue of encoded records, from one worker to the control thread, and the way back of their buffers.
pub struct Pipe<S> {
    records: ArrayQueue<Vec<u8>>,
    buffers: ArrayQueue<Vec<u8>>,
    /// Most records fit.
    bytes: usize,
    stats: Arc<S>,
}

impl<S: Drops> Pipe<S> {
    /// An empty one, for records of about so many bytes.
    pub fn new(stats: Arc<S>, bytes: usize) -> Self {
        let (records, buffers) = (ArrayQueue::new(RECORDS_MAX), ArrayQueue::new(BUFFERS_MAX));
        Self { records, buffers, bytes, stats }
    }

    /// Hands a record over, or drops it and counts that. To be called by the worker that opened the pipe.
    pub(super) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.records.is_full() {
            self.stats.dropped().inc();
            return;
        }
        let mut record = self.buffers.pop().unwrap_or_else(|| Vec::with_capacity(self.bytes));
        encode(&mut record);
        if self.records.push(record).is_err() {
            self.stats.dropped().inc();
        }
    }

    /// Calls `f` with each record, the oldest first. To be called by the control thread.
    pub fn take_all(&self, mut f: impl FnMut(&[u8])) {
        while let Some(mut record) = self.records.pop() {
            f(&record);
            // One that was far larger than most is not kept.
            if record.capacity() <= 2 * self.bytes {
                record.clear();
                // There may be enough of them.
                let _ = self.buffers.push(record);
            }
        }
    }

    /// Whether the worker has let go of it and nothing is left in it.
    pub fn is_finished(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Lost(Counter);

    impl Drops for Lost {
        fn dropped(&self) -> &Counter {
            &self.0
        }
    }

    #[test]
    fn a_full_pipe_drops_and_counts() {
        let pipe = Arc::new(Pipe::new(Arc::new(Lost::default()), 8));
        (0..RECORDS_MAX + 3).for_each(|_| pipe.push(|out| out.push(1)));
        assert_eq!(pipe.stats.0.value(), 3);
        let control = pipe.clone();
        drop(pipe);
        assert!(!control.is_finished());
        let mut count = 0;
        control.take_all(|record| {
            assert_eq!(record, [1]);
            count += 1;
        });
        assert_eq!(count, RECORDS_MAX);
        assert!(control.is_finished());
    }

    #[test]
    fn buffers_come_back_empty() {
        let pipe = Pipe::new(Arc::new(Lost::default()), 8);
        let mut first = std::ptr::null();
        pipe.push(|out| {
            out.extend_from_slice(b"one");
            first = out.as_ptr();
        });
        pipe.push(|out| out.extend_from_slice(&[0; 100]));
        pipe.take_all(|_| ());
        assert_eq!(pipe.buffers.len(), 1, "the large one is not kept");
        pipe.push(|out| assert!(out.is_empty() && out.as_ptr() == first, "the same buffer"));
    }
}
