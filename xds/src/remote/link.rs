//! What every task that talks to a control plane has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use culvert_model::{ApiSource, SourceSpecifier};
use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;

use super::{
    channel::Channels,
    protocol::Incoming,
    types::{ControlPlane, Delivery, DeliveryId, Event, Interest, ResourceType},
};

/// What [`super::Remote`] tells a task.
#[derive(Debug)]
pub(super) enum Command {
    Answer(DeliveryId, Result<(), String>),
    Renew(ResourceType, Arc<Interest>),
    Want(ResourceType, Option<Arc<Interest>>),
}

/// An event, and of which of the tasks there ever were.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) task: u64,
    pub(super) event: Event,
}

pub(super) struct Link {
    pub(super) source: SourceSpecifier,
    pub(super) api: Arc<ApiSource>,
    pub(super) node: Arc<Node>,
    pub(super) channels: Arc<Channels>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) events: mpsc::UnboundedSender<Sent>,
    /// Tells the task from others in [`Sent`].
    pub(super) task: u64,
    /// The next [`DeliveryId`].
    pub(super) ids: Arc<AtomicU64>,
    pub(super) control_plane: Arc<ControlPlane>,
}

impl Link {
    pub(super) fn tell(&self, event: Event) {
        // Nobody is there to be told while everything is being dropped.
        let _ = self.events.send(Sent { task: self.task, event });
    }

    pub(super) fn next_id(&self) -> DeliveryId {
        DeliveryId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn deliver(&self, id: DeliveryId, incoming: Incoming) {
        self.tell(Event::Response(Delivery {
            arrived: Instant::now(),
            id,
            source: self.source.clone(),
            resource_type: incoming.resource_type,
            version: incoming.version,
            full: incoming.full,
            resources: incoming.resources,
            removed: incoming.removed,
            broken: incoming.broken,
        }));
    }
}
