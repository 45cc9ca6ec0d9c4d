//! Opaque bytes: the TCP proxy.

mod relay;
mod session;
mod simple;

use std::sync::Arc;

use culvert_model::TcpProxy;

pub use session::{CLUSTER_KEY, Session, proxy};
pub use simple::{direct_response, echo};

use crate::{
    observe::{access::Loggers, stats::TcpStats},
    worker::Worker,
};

/// A TCP proxy with this worker's counters.
pub struct TcpManager {
    config: Arc<TcpProxy>,
    stats: Arc<TcpStats>,
    logs: Loggers,
}

impl TcpManager {
    /// Makes the worker's state of `config`.
    pub fn new(config: Arc<TcpProxy>, worker: &Worker) -> Self {
        let stats = Arc::new(TcpStats::default());
        worker.process.registry.register(format!("tcp.{}", config.stat_prefix), stats.clone());
        let logs = worker.loggers(&config.access_log);
        Self { config, stats, logs }
    }
}
