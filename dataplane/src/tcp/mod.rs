//! Opaque bytes: the TCP proxy, and connections that switched away from HTTP.

mod relay;

use std::{rc::Rc, sync::Arc, time::Duration};

use culvert_model::{ClusterSpecifier, TcpProxy};
use culvert_proto::route::pick_cluster;
use culvert_ring::Chunk;

use relay::{Ended, relay};

use crate::{
    listener::Downstream,
    observe::stats::TcpStats,
    tls::Transport,
    upstream::{Choice, Cluster, TunnelConn, Via},
    worker::Worker,
};

/// A TCP proxy with this worker's counters.
pub struct TcpManager {
    config: Arc<TcpProxy>,
    stats: Arc<TcpStats>,
}

impl TcpManager {
    /// Makes the worker's state of `config`.
    pub fn new(config: Arc<TcpProxy>, worker: &Worker) -> Self {
        let stats = Arc::new(TcpStats::default());
        worker.process.registry.register(format!("tcp.{}", config.stat_prefix), stats.clone());
        Self { config, stats }
    }

    fn cluster(&self, worker: &Worker) -> Option<Rc<Cluster>> {
        match &self.config.cluster {
            // Configuration refuses this for a TCP proxy: there are no headers.
            ClusterSpecifier::Header(_) => None,
            ClusterSpecifier::Name(name) => worker.cluster(name),
            ClusterSpecifier::Weighted(weighted) => {
                let random = worker.rng.borrow_mut().u64(..);
                worker.cluster(&pick_cluster(weighted, random)?.name)
            }
        }
    }
}

/// Proxies one connection to its end.
pub async fn proxy(worker: Rc<Worker>, stream: Transport, downstream: Downstream, manager: Rc<TcpManager>) {
    let stats = &manager.stats;
    stats.downstream_cx_total.inc();
    let listener = downstream.listener.clone();
    let _open = listener.open();
    let Some(cluster) = manager.cluster(&worker) else {
        stats.downstream_cx_no_route.inc();
        return stream.abort();
    };
    let choice = Choice { hash: None, destination: downstream.original_destination() };
    let Some(host) = cluster.pick(&mut worker.rng.borrow_mut(), choice) else {
        cluster.stats.upstream_cx_none_healthy.inc();
        return stream.abort();
    };
    let via = Via { pod: downstream.pod.clone(), source: downstream.preserved_source, ..Via::default() };
    let upstream = match cluster.open_tcp(&host, &via).await {
        Ok(upstream) => upstream,
        Err(error) => {
            log::debug!(target: "tcp", "{}: {error:?}", cluster.config().name);
            return stream.abort();
        }
    };
    let limit = listener.spec.config.buffer_limit_bytes;
    let moved = relay(&stream, &upstream.stream, None, None, manager.config.idle_timeout, limit).await;
    stats.downstream_cx_rx_bytes_total.add(moved.from_a);
    stats.downstream_cx_tx_bytes_total.add(moved.from_b);
    cluster.stats.upstream_cx_tx_bytes_total.add(moved.from_a);
    cluster.stats.upstream_cx_rx_bytes_total.add(moved.from_b);
    match moved.ended {
        Ended::Finished => {}
        Ended::Idle => stats.idle_timeout.inc(),
        // Whoever is left must not take a failure for an orderly end.
        Ended::Failed => {
            stream.abort();
            upstream.stream.abort();
        }
    }
}

/// Connects a client and an upstream that have switched protocols, until both are done.
pub async fn tunnel(downstream: (Transport, Option<Chunk>), upstream: TunnelConn, idle: Option<Duration>) {
    let (client, from_client) = downstream;
    let (conn, _guard) = upstream.into_parts();
    let (server, from_server) = conn.into_tunnel();
    let moved = relay(&client, &server, from_client, from_server, idle, TUNNEL_LIMIT).await;
    if moved.ended == Ended::Failed {
        client.abort();
        server.abort();
    }
}

/// How much of a tunnel's direction may wait to be sent, in bytes.
const TUNNEL_LIMIT: usize = 256 * 1024;
