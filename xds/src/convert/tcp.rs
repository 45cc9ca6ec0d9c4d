//! `extensions.filters.network.tcp_proxy.v3`.

use std::time::Duration;

use culvert_model::{
    ClusterSpecifier, HeaderMutations, TcpHash, TcpProxy, WeightedCluster, WeightedClusters,
};
use envoy_types::pb::envoy::{
    extensions::filters::network::tcp_proxy::v3::{self as pb, tcp_proxy::ClusterSpecifier as Specifier},
    r#type::v3::hash_policy::PolicySpecifier,
};

use super::{access_log, core, subset};
use crate::at::At;

/// The TCP proxy.
pub(super) fn tcp_proxy(at: &At<'_>, proxy: &pb::TcpProxy) -> Option<TcpProxy> {
    let idle_timeout = core::timeout(
        &at.field("idle_timeout"),
        proxy.idle_timeout.as_ref(),
        Some(Duration::from_secs(3_600)),
    );
    let max_duration = core::timeout(
        &at.field("max_downstream_connection_duration"),
        proxy.max_downstream_connection_duration.as_ref(),
        None,
    );
    let access_log = access_log::access_logs(&at.field("access_log"), &proxy.access_log);
    let options = proxy.access_log_options.as_ref();
    let log_interval = log_interval(at, proxy);
    let wanted = subset::wanted(None, proxy.metadata_match.as_ref());
    let cluster = match proxy.cluster_specifier.as_ref()? {
        Specifier::Cluster(name) => ClusterSpecifier::Name(name.as_str().into()),
        Specifier::WeightedClusters(weighted) => {
            let clusters: Vec<_> = weighted
                .clusters
                .iter()
                .map(|cluster| WeightedCluster {
                    name: cluster.name.as_str().into(),
                    weight: cluster.weight,
                    subset: subset::wanted(wanted.as_ref(), cluster.metadata_match.as_ref()),
                    host_rewrite: None,
                    headers: HeaderMutations::default(),
                    filters: Vec::new(),
                })
                .collect();
            let total = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            ClusterSpecifier::Weighted(WeightedClusters {
                clusters,
                total,
                use_hash_policy: false,
                random_header: None,
            })
        }
    };
    Some(TcpProxy {
        subset: wanted,
        stat_prefix: proxy.stat_prefix.clone(),
        cluster,
        idle_timeout: idle_timeout?,
        max_connect_attempts: proxy.max_connect_attempts.as_ref().map_or(1, |attempts| attempts.value),
        max_duration: max_duration?,
        max_duration_jitter: proxy
            .max_downstream_connection_duration_jitter_percentage
            .as_ref()
            .map_or(0.0, |percent| percent.value / 100.0),
        hash: proxy.hash_policy.first().and_then(|policy| match policy.policy_specifier.as_ref()? {
            PolicySpecifier::SourceIp(_) => Some(TcpHash::SourceIp),
            PolicySpecifier::FilterState(state) => Some(TcpHash::FilterState(state.key.clone())),
        }),
        access_log: access_log?,
        log_on_start: options.is_some_and(|options| options.flush_access_log_on_start),
        log_on_connected: options.is_some_and(|options| options.flush_access_log_on_connected)
            || proxy.flush_access_log_on_connected,
        log_interval: log_interval?,
    })
}

/// The interval of `access_log_options`, or of the deprecated field; Envoy refuses both at once.
fn log_interval(at: &At<'_>, proxy: &pb::TcpProxy) -> Option<Option<Duration>> {
    let deprecated = proxy.access_log_flush_interval.as_ref();
    let Some(options) = proxy.access_log_options.as_ref() else {
        return core::timeout(&at.field("access_log_flush_interval"), deprecated, None);
    };
    let at = at.field("access_log_options");
    if deprecated.is_some() || proxy.flush_access_log_on_connected {
        return at.error(
            "only one of flush_access_log_on_connected and access_log_flush_interval, or access_log_options can be given",
        );
    }
    core::timeout(&at.field("access_log_flush_interval"), options.access_log_flush_interval.as_ref(), None)
}
