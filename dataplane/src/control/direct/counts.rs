//! What direct connections have come to, where Envoy's users look for it.

use std::{collections::HashMap, sync::Arc};

use culvert_bpf::DirectTally;

use super::plan::Counted;
use crate::{
    observe::stats::{ClusterStats, DirectStats, Registry, TcpStats},
    snapshot::HostCounters,
};

/// The sets that direct connections are counted in, beside those of the workers.
pub(super) struct Counts {
    registry: Registry,
    pub(super) own: Arc<DirectStats>,
    proxies: HashMap<Arc<str>, Arc<TcpStats>>,
    clusters: HashMap<Arc<str>, Arc<ClusterStats>>,
}

impl Counts {
    pub(super) fn new(registry: Registry) -> Self {
        let own = Arc::new(DirectStats::default());
        registry.register("culvert.direct", own.clone());
        Self { registry, own, proxies: HashMap::new(), clusters: HashMap::new() }
    }

    /// Adds what has happened `since` to where it is counted.
    pub(super) fn add(&mut self, counted: &Counted, since: &DirectTally) {
        let ended = since.closed + since.failed;
        for prefix in &counted.proxies {
            let stats = self.proxies.entry(prefix.clone()).or_insert_with(|| {
                let stats = Arc::new(TcpStats::default());
                self.registry.register(format!("tcp.{prefix}"), stats.clone());
                stats
            });
            stats.downstream_cx_total.add(since.opened + since.failed);
            stats.downstream_cx_rx_bytes_total.add(since.sent);
            stats.downstream_cx_tx_bytes_total.add(since.received);
        }
        for (_, name) in &counted.clusters {
            let stats = self.cluster(name);
            stats.upstream_cx_total.add(since.opened + since.failed);
            stats.upstream_cx_destroy.add(ended);
            stats.upstream_cx_connect_fail.add(since.failed);
            stats.upstream_cx_tx_bytes_total.add(since.sent);
            stats.upstream_cx_rx_bytes_total.add(since.received);
            stats.upstream_rq_pending_total.add(since.opened + since.failed);
            stats.upstream_rq_pending_failure_eject.add(since.failed);
            stats.upstream_rq_total.add(since.opened);
        }
        let host = counted.host.counters.of_control();
        host.cx_total.add(since.opened + since.failed);
        host.cx_connect_fail.add(since.failed);
        self.own.cx_total.add(since.opened);
        self.own.cx_connect_fail.add(since.failed);
    }

    /// Counts a connection that was idle for too long.
    pub(super) fn idle(&self, counted: &Counted) {
        self.own.cx_idle_timeout.inc();
        if let Some(stats) = counted.proxies.first().and_then(|prefix| self.proxies.get(prefix)) {
            stats.idle_timeout.inc();
        }
    }

    /// Sets how many connections are open.
    pub(super) fn set_open<'a>(&self, open: impl Iterator<Item = (&'a Counted, u64)>) {
        let mut clusters: HashMap<&Arc<str>, u64> = HashMap::new();
        let mut hosts: HashMap<*const HostCounters, (&HostCounters, u64)> = HashMap::new();
        let mut all = 0;
        for (counted, open) in open {
            let counters = &counted.host.counters;
            hosts.entry(std::ptr::from_ref(counters)).or_insert((counters, 0)).1 += open;
            all += open;
            for (_, name) in &counted.clusters {
                *clusters.entry(name).or_default() += open;
            }
        }
        for (host, open) in hosts.into_values() {
            host.of_control().cx_active.set(open);
        }
        for (name, stats) in &self.clusters {
            stats.upstream_cx_active.set(clusters.get(name).copied().unwrap_or_default());
        }
        self.own.cx_active.set(all);
    }

    fn cluster(&mut self, name: &Arc<str>) -> &ClusterStats {
        self.clusters.entry(name.clone()).or_insert_with(|| {
            let stats = Arc::new(ClusterStats::default());
            self.registry.register(format!("cluster.{name}"), stats.clone());
            stats
        })
    }
}
