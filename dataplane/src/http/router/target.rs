//! Where a request goes: its cluster, and the address that it names itself.

use std::{net::SocketAddr, rc::Rc};

use culvert_model::{ClusterSpecifier, Discovery, RouteAction, WeightedCluster};
use culvert_proto::route::pick_cluster;

use crate::{
    http::{exchange::Exchange, log::Flags, reply::Reply},
    upstream::Cluster,
};

impl Exchange<'_> {
    /// The cluster that `action` names, if there is one; of several, which one it is.
    pub(in crate::http) fn cluster<'a>(
        &self,
        action: &'a RouteAction,
        random: u64,
    ) -> Option<(Rc<Cluster>, Option<&'a WeightedCluster>)> {
        let worker = &self.conn.worker;
        match &action.cluster {
            ClusterSpecifier::Header(header) => {
                let value = self.head.headers.get(header)?;
                Some((worker.cluster(std::str::from_utf8(value).ok()?)?, None))
            }
            ClusterSpecifier::Name(name) => Some((worker.cluster(name)?, None)),
            ClusterSpecifier::Weighted(weighted) => {
                let chosen = pick_cluster(weighted, random)?;
                Some((worker.cluster(&chosen.name)?, Some(chosen)))
            }
        }
    }

    /// The aggregate cluster, if it is one, that `action` names; `weighted` of several.
    pub(super) fn aggregate(
        &self,
        action: &RouteAction,
        weighted: Option<&WeightedCluster>,
    ) -> Option<Rc<Cluster>> {
        let name = match &action.cluster {
            ClusterSpecifier::Header(header) => std::str::from_utf8(self.head.headers.get(header)?).ok()?,
            ClusterSpecifier::Name(name) => name,
            ClusterSpecifier::Weighted(_) => &weighted?.name,
        };
        self.conn.worker.aggregate(name)
    }

    /// Where a cluster of type ORIGINAL_DST sends the request: to the address that a header names if the cluster looks at
    /// one, else to where the connection was going before it was captured.
    pub(super) fn destination(&self, cluster: &Cluster) -> Option<SocketAddr> {
        let config = cluster.config();
        let Discovery::OriginalDst(settings) = &config.discovery else { return None };
        if let Some(value) = settings.header.as_ref().and_then(|name| self.head.headers.get(name)) {
            let address = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            if address.is_none() {
                cluster.stats.original_dst_host_invalid.inc();
            }
            return address;
        }
        self.conn.downstream.original_destination()
    }

    pub(super) fn no_cluster(&self, action: &RouteAction) -> Reply {
        self.conn.manager.stats.no_cluster.inc();
        let reply = Reply::new(action.cluster_not_found_status, "");
        reply.flag(Flags::NO_CLUSTER).details("cluster_not_found")
    }
}
