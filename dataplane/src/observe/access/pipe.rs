//! The way of encoded entries from a worker to the control thread.

use std::sync::Arc;

use crossbeam_queue::SegQueue;
use culvert_model::{GrpcLog, OtlpLog};

use crate::{
    observe::{
        pipe::{self, Drops},
        stats::{Counter, Registry},
    },
    stat_set,
};

stat_set! {
    /// Scopes `access_logs.grpc_access_log` and `access_logs.open_telemetry_access_log`: entries for collectors. Each worker's loggers have one, and control another.
    pub struct GrpcLogStats {
        /// Lost because the collector did not keep up, or was not there.
        counter logs_dropped,
        /// Taken over to be sent.
        counter logs_written,
    }
}

impl Drops for GrpcLogStats {
    fn dropped(&self) -> &Counter {
        &self.logs_dropped
    }
}

/// The way of the encoded entries of one logger on one worker.
pub type Pipe = pipe::Pipe<GrpcLogStats>;

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
    otlp: Arc<SegQueue<OpenedOtlp>>,
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

/// A logger of OpenTelemetry that was made on a worker.
pub struct OpenedOtlp {
    /// As configured.
    pub config: Arc<OtlpLog>,
    /// Where its entries come out.
    pub pipe: Arc<Pipe>,
}

impl Pipes {
    /// Pipes whose statistics are registered there.
    pub fn new(registry: &Registry) -> Self {
        Self { opened: Arc::default(), otlp: Arc::default(), registry: registry.clone() }
    }

    /// A way to the collector, for one worker.
    pub fn open(&self, config: &Arc<GrpcLog>, kind: Kind) -> Arc<Pipe> {
        let pipe = self.pipe(SCOPE.to_owned());
        self.opened.push(Opened { config: config.clone(), kind, pipe: pipe.clone() });
        pipe
    }

    /// A way to the collector of OpenTelemetry, for one worker.
    pub fn open_otlp(&self, config: &Arc<OtlpLog>) -> Arc<Pipe> {
        let pipe = self.pipe(otlp_scope(config));
        self.otlp.push(OpenedOtlp { config: config.clone(), pipe: pipe.clone() });
        pipe
    }

    fn pipe(&self, scope: String) -> Arc<Pipe> {
        let stats = Arc::new(GrpcLogStats::default());
        self.registry.register(scope, stats.clone());
        Arc::new(Pipe::new(stats, ENTRY_BYTES))
    }

    /// The next logger that control has not seen.
    pub fn next(&self) -> Option<Opened> {
        self.opened.pop()
    }

    /// The next logger of OpenTelemetry that control has not seen.
    pub fn next_otlp(&self) -> Option<OpenedOtlp> {
        self.otlp.pop()
    }
}

/// Scope of [`GrpcLogStats`].
pub const SCOPE: &str = "access_logs.grpc_access_log";

/// Scope of the [`GrpcLogStats`] of a logger of OpenTelemetry.
pub fn otlp_scope(config: &OtlpLog) -> String {
    match config.stat_prefix.trim_end_matches('.') {
        "" => "access_logs.open_telemetry_access_log".to_owned(),
        prefix => format!("access_logs.open_telemetry_access_log.{prefix}"),
    }
}

/// Most entries fit.
const ENTRY_BYTES: usize = 768;
