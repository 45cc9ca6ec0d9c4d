//! What changes what is served.

use std::sync::Arc;

use culvert_xds::{ConfigStream, Update};
use tokio::sync::mpsc;

use super::{dns::Resolution, health::HealthEvent};
use crate::upstream::Tripped;

/// Where changes come from.
pub(super) struct Events {
    pub(super) stream: ConfigStream,
    pub(super) resolutions: mpsc::Receiver<Resolution>,
    pub(super) checks: mpsc::UnboundedReceiver<HealthEvent>,
    pub(super) tripped: mpsc::UnboundedReceiver<Tripped>,
    pub(super) sweeps: mpsc::UnboundedReceiver<Arc<str>>,
}

/// A change.
pub(super) enum Happening {
    /// A host was checked.
    Checked(HealthEvent),
    /// A name was resolved.
    Resolved(Resolution),
    /// It is time to look at the statistics of this cluster's hosts.
    Sweep(Arc<str>),
    /// A host failed too often in a row.
    Tripped(Tripped),
    /// There is another configuration.
    Update(Update),
}

/// `first`, and what else has arrived by now.
pub(super) fn arrived<T>(
    first: T,
    more: &mut mpsc::UnboundedReceiver<T>,
) -> impl Iterator<Item = T> + use<'_, T> {
    std::iter::once(first).chain(std::iter::from_fn(|| more.try_recv().ok()))
}

impl Events {
    /// The next change. Cancel safe.
    pub(super) async fn next(&mut self) -> Happening {
        tokio::select! {
            update = self.stream.next() => Happening::Update(update),
            Some(resolution) = self.resolutions.recv() => Happening::Resolved(resolution),
            Some(event) = self.checks.recv() => Happening::Checked(event),
            Some(tripped) = self.tripped.recv() => Happening::Tripped(tripped),
            Some(cluster) = self.sweeps.recv() => Happening::Sweep(cluster),
        }
    }
}
