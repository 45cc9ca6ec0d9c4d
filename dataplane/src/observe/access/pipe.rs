//! The way of encoded entries from a worker to the control thread.

use std::sync::Arc;

use crossbeam_queue::{ArrayQueue, SegQueue};
use culvert_model::GrpcLog;

use crate::{observe::stats::Registry, stat_set};

stat_set! {
    /// Scope `access_logs.grpc_access_log`: entries for collectors. Each worker's loggers have one, and control another.
    pub struct GrpcLogStats {
        /// Lost because the collector did not keep up, or was not there.
        counter logs_dropped,
        /// Taken over to be sent.
        counter logs_written,
    }
}

/// Entries of one logger on one worker that the control thread may have left to take.
const ENTRIES_MAX: usize = 4_096;

/// Which entries a collector is sent.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `HTTPAccessLogEntry`
    Http,
    /// `TCPAccessLogEntry`
    Tcp,
}

/// Where loggers are announced to the control thread. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pipes {
    opened: Arc<SegQueue<Opened>>,
    registry: Registry,
}

/// A logger that was made on a worker.
pub struct Opened {
    /// As configured.
    pub config: Arc<GrpcLog>,
    /// What its entries are.
    pub kind: Kind,
    /// Where they come out.
    pub pipe: Arc<Pipe>,
}

/// A bounded queue of encoded entries, from one worker to the control thread.
pub struct Pipe {
    entries: ArrayQueue<Vec<u8>>,
    stats: Arc<GrpcLogStats>,
}

impl Pipes {
    /// Pipes whose statistics are registered there.
    pub fn new(registry: &Registry) -> Self {
        Self { opened: Arc::default(), registry: registry.clone() }
    }

    /// A way to the collector, for one worker.
    pub fn open(&self, config: &Arc<GrpcLog>, kind: Kind) -> Arc<Pipe> {
        let stats = Arc::new(GrpcLogStats::default());
        self.registry.register(SCOPE, stats.clone());
        let pipe = Arc::new(Pipe { entries: ArrayQueue::new(ENTRIES_MAX), stats });
        self.opened.push(Opened { config: config.clone(), kind, pipe: pipe.clone() });
        pipe
    }

    /// The next logger that control has not seen.
    pub fn next(&self) -> Option<Opened> {
        self.opened.pop()
    }
}

/// Scope of [`GrpcLogStats`].
pub const SCOPE: &str = "access_logs.grpc_access_log";

impl Pipe {
    /// Hands an entry over, or drops it and counts that. To be called by the worker that opened the pipe.
    pub(super) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.entries.is_full() {
            self.stats.logs_dropped.inc();
            return;
        }
        let mut entry = Vec::with_capacity(ENTRY_BYTES);
        encode(&mut entry);
        if self.entries.push(entry).is_err() {
            self.stats.logs_dropped.inc();
        }
    }

    /// The oldest entry.
    pub fn pop(&self) -> Option<Vec<u8>> {
        self.entries.pop()
    }

    /// Whether the worker has let go of it and nothing is left in it.
    pub fn is_finished(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.entries.is_empty()
    }
}

/// Most entries fit.
const ENTRY_BYTES: usize = 768;
