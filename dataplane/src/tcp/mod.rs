//! Opaque bytes: the TCP proxy, and connections that switched away from HTTP.

mod relay;
mod session;
mod simple;

use std::{sync::Arc, time::Duration};

use culvert_model::TcpProxy;
use culvert_ring::Chunk;

use relay::{Ended, Terms, relay};
pub use session::{CLUSTER_KEY, Session, proxy};
pub use simple::{direct_response, echo};

use crate::{
    observe::{access::Loggers, stats::TcpStats},
    tls::Transport,
    upstream::TunnelConn,
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

/// Connects a client and an upstream that have switched protocols, until both are done.
pub async fn tunnel(downstream: (Transport, Option<Chunk>), upstream: TunnelConn, idle: Option<Duration>) {
    let (client, from_client) = downstream;
    let (conn, _guard) = upstream.into_parts();
    let Some((server, from_server)) = conn.into_tunnel() else { return client.abort() };
    let terms = Terms { idle, until: None, limit: TUNNEL_LIMIT, count: &|_, _| {}, every: None };
    let ended = relay(&client, &server, from_client, from_server, terms).await;
    if matches!(ended, Ended::Failed(_)) {
        client.abort();
        server.abort();
    }
}

/// How much of a tunnel's direction may wait to be sent, in bytes.
const TUNNEL_LIMIT: usize = 256 * 1024;
