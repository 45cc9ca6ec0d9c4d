//! Where Culvert is among those like it, for zone-aware routing.

use std::sync::Arc;

use culvert_model::{Endpoint, Locality, LocalityPolicy};
use culvert_proto::balance::LocalZones;

use super::Builder;
use crate::snapshot::ClusterSpec;

/// The local cluster, and its zones as they are now.
#[derive(Default)]
pub(super) struct Zones {
    cluster: Option<Arc<str>>,
    locality: Locality,
    now: Option<Arc<LocalZones>>,
}

impl Zones {
    pub(super) fn new(cluster: Option<Arc<str>>, locality: Locality) -> Self {
        Self { cluster, locality, now: None }
    }

    /// The zones, once the local cluster has endpoints.
    pub(super) fn local(&self) -> Option<Arc<LocalZones>> {
        self.now.clone()
    }
}

impl Builder {
    /// Lets clusters know where the endpoints of the local cluster are, when that has changed.
    pub(super) fn update_zones(&mut self, changed: &mut Vec<Arc<str>>) {
        let Some(local) = self.zones.cluster.clone().filter(|local| changed.contains(local)) else { return };
        let zones = self.clusters.get(&local).map(|known| {
            let now: Vec<_> = known.spec.hosts.iter().map(|host| host.now()).collect();
            let endpoints: Vec<&Endpoint> = now.iter().map(AsRef::as_ref).collect();
            LocalZones::new(&self.zones.locality, &endpoints)
        });
        if zones.as_ref() == self.zones.now.as_deref() {
            return;
        }
        self.zones.now = zones.map(Arc::new);
        for (name, known) in &mut self.clusters {
            let spec = &known.spec;
            if !matches!(spec.config.localities, LocalityPolicy::ZoneAware(_)) || spec.hosts.is_empty() {
                continue;
            }
            known.spec = Arc::new(ClusterSpec { local: self.zones.now.clone(), ..spec.version() });
            if !changed.contains(name) {
                changed.push(name.clone());
            }
        }
    }
}
