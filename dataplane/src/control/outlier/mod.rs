//! Outlier detection: ejects hosts that workers report, looks at success rates once an interval, and takes hosts back.

mod cluster;

use std::{collections::HashMap, sync::Arc, time::Instant};

use tokio::sync::mpsc;

use self::cluster::ClusterOutliers;
use crate::{
    observe::stats::Registry,
    snapshot::{HostState, Snapshot},
    upstream::Tripped,
};

/// The outlier detection of all clusters.
pub(super) struct Outliers {
    registry: Registry,
    clusters: HashMap<Arc<str>, ClusterOutliers>,
    sweeps: mpsc::UnboundedSender<Arc<str>>,
    started: Instant,
}

impl Outliers {
    /// None yet. Clusters whose interval has passed are received from the other half.
    pub(super) fn new(registry: Registry) -> (Self, mpsc::UnboundedReceiver<Arc<str>>) {
        let (sweeps, receiver) = mpsc::unbounded_channel();
        let outliers = Self { registry, clusters: HashMap::new(), sweeps, started: Instant::now() };
        (outliers, receiver)
    }

    /// Watches the hosts that there are now. Has to run inside a `LocalSet`.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        for name in &snapshot.changed_clusters {
            let spec = snapshot.clusters.get(name);
            match spec.and_then(|spec| Some((spec, spec.config.outlier_detection.as_ref()?))) {
                None => {
                    self.clusters.remove(name);
                }
                Some((spec, config)) => {
                    let known = self.clusters.remove(name).filter(|known| known.is_of(config));
                    let mut cluster = known.unwrap_or_else(|| {
                        ClusterOutliers::new(&spec.config, config, &self.registry, &self.sweeps)
                    });
                    cluster.follow(&spec.hosts);
                    self.clusters.insert(name.clone(), cluster);
                }
            }
        }
    }

    /// A host of a cluster has failed too often in a row. Whether it was ejected.
    pub(super) fn take(&mut self, tripped: &Tripped) -> bool {
        let now = self.started.elapsed();
        let cluster = self.clusters.get_mut(&tripped.cluster);
        cluster.is_some_and(|cluster| cluster.take(&tripped.monitor, now))
    }

    /// An interval of a cluster has passed. Whether hosts were ejected or taken back.
    pub(super) fn sweep(&mut self, name: &Arc<str>) -> bool {
        let now = self.started.elapsed();
        self.clusters.get_mut(name).is_some_and(|cluster| cluster.sweep(now))
    }

    /// A host has passed its active health check. Whether it was taken back for that.
    pub(super) fn passed(&mut self, name: &Arc<str>, host: &Arc<HostState>) -> bool {
        self.clusters.get_mut(name).is_some_and(|cluster| cluster.passed(host))
    }
}
