//! `extensions.filters.network.tcp_proxy.v3`.

use std::time::Duration;

use culvert_model::{ClusterSpecifier, HeaderMutations, TcpProxy, WeightedCluster, WeightedClusters};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    self as pb, tcp_proxy::ClusterSpecifier as Specifier,
};

use super::core;
use crate::at::At;

/// The TCP proxy.
pub(super) fn tcp_proxy(at: &At<'_>, proxy: &pb::TcpProxy) -> Option<TcpProxy> {
    let idle_timeout = core::timeout(
        &at.field("idle_timeout"),
        proxy.idle_timeout.as_ref(),
        Some(Duration::from_secs(3_600)),
    );
    let cluster = match proxy.cluster_specifier.as_ref()? {
        Specifier::Cluster(name) => ClusterSpecifier::Name(name.as_str().into()),
        Specifier::WeightedClusters(weighted) => {
            let clusters: Vec<_> = weighted
                .clusters
                .iter()
                .map(|cluster| WeightedCluster {
                    name: cluster.name.as_str().into(),
                    weight: cluster.weight,
                    host_rewrite: None,
                    headers: HeaderMutations::default(),
                })
                .collect();
            let total = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            ClusterSpecifier::Weighted(WeightedClusters { clusters, total })
        }
    };
    Some(TcpProxy {
        stat_prefix: proxy.stat_prefix.clone(),
        cluster,
        idle_timeout: idle_timeout?,
        max_connect_attempts: 1,
        access_log: Vec::new(),
        log_on_connected: false,
        log_interval: None,
    })
}
