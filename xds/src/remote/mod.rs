//! The transport of xDS: streams to control planes, and polling them.
//!
//! [`Remote`] is told what is wanted from where ([`Remote::want`]) and says what came ([`Remote::next`]); what came is
//! accepted or refused with [`Remote::answer`]. It opens the streams that are needed (the aggregated one, or one for each
//! source and type), keeps them open, and remembers for each type what was accepted, so that a new stream goes on
//! where the one before ended. It does not look into resources.

mod channel;
mod link;
mod node;
mod pace;
mod protocol;
mod refusals;
mod rest;
mod stream;
mod types;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use culvert_model::{ApiKind, ApiSource, SourceSpecifier};
use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::{sync::mpsc, task::JoinHandle};

pub use channel::{Connecting, DialSettings, Dialer, Io, channel};
pub(crate) use node::of_bootstrap;
pub use types::{
    Body, Broken, ControlPlane, Delivery, DeliveryId, Event, Interest, RemoteResource, ResourceType, Wanted,
};

use channel::Channels;
use link::{Command, Link, Sent};
use protocol::{Delta, Sotw};
use rest::RestTask;
use stream::StreamTask;

/// Methods of the aggregated service.
const ADS_SOTW: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const ADS_DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// All that comes from control planes. Lives inside a tokio runtime; dropping it closes every stream.
pub struct Remote {
    node: Arc<Node>,
    channels: Arc<Channels>,
    ads: Option<Arc<ApiSource>>,
    wanted: Wanted,
    tasks: BTreeMap<Key, Task>,
    /// Who waits for which answer.
    deliveries: BTreeMap<DeliveryId, Key>,
    ids: Arc<AtomicU64>,
    started: u64,
    events: mpsc::UnboundedReceiver<Sent>,
    sender: mpsc::UnboundedSender<Sent>,
}

/// Which stream something belongs to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Key {
    Aggregated,
    Own(Arc<ApiSource>, ResourceType),
}

struct Task {
    number: u64,
    commands: mpsc::UnboundedSender<Command>,
    handle: JoinHandle<()>,
    control_plane: Arc<ControlPlane>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Remote {
    /// `ads` is `dynamic_resources.ads_config`. Nothing is sent before something is wanted.
    #[must_use]
    pub fn new(node: Node, dialer: Arc<dyn Dialer>, ads: Option<Arc<ApiSource>>) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self {
            node: Arc::new(node),
            channels: Arc::new(Channels::new(dialer)),
            ads,
            wanted: Wanted::new(),
            tasks: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            ids: Arc::default(),
            started: 0,
            events,
            sender,
        }
    }

    /// Sets what is wanted: subscriptions that are new are opened, those that are not in it are given up. Cheap for
    /// what is the same `Arc` as before. Deliveries of a type that is still wanted remain to be answered. Has to be
    /// called inside a tokio runtime.
    pub fn want(&mut self, wanted: &Wanted) {
        let mut kept = BTreeSet::new();
        for (at, interest) in wanted {
            let (source, resource_type) = at;
            let Some(key) = key(source, *resource_type) else { continue };
            kept.insert(key.clone());
            if self.wanted.get(at).is_some_and(|before| before == interest) {
                continue;
            }
            let Some(task) = self.task(source, *resource_type, key) else { continue };
            task.tell(Command::Want(*resource_type, Some(interest.clone())));
        }
        for (source, resource_type) in self.wanted.keys().filter(|at| !wanted.contains_key(*at)) {
            let Some(key) = key(source, *resource_type) else { continue };
            match self.tasks.get(&key) {
                Some(task) if kept.contains(&key) => task.tell(Command::Want(*resource_type, None)),
                _ => {}
            }
        }
        self.tasks.retain(|key, _| kept.contains(key));
        self.deliveries.retain(|_, key| kept.contains(key));
        self.wanted.clone_from(wanted);
    }

    /// Asks a control plane to send resources again that it has sent before: state of the world sends the request
    /// once more, delta subscribes to these names anew. A control plane may see no reason to answer.
    pub fn renew(&self, source: &SourceSpecifier, resource_type: ResourceType, names: BTreeSet<String>) {
        if let Some(task) = key(source, resource_type).and_then(|key| self.tasks.get(&key)) {
            let interest = Arc::new(Interest { wildcard: false, names });
            task.tell(Command::Renew(resource_type, interest));
        }
    }

    /// What happens next. Cancel safe.
    pub async fn next(&mut self) -> Event {
        loop {
            // This end keeps a sender, so that there is no end of events.
            let Some(Sent { task, event }) = self.events.recv().await else {
                return std::future::pending().await;
            };
            let Some(key) = self.tasks.iter().find(|(_, known)| known.number == task).map(|(key, _)| key)
            else {
                continue;
            };
            if let Event::Response(delivery) = &event {
                self.deliveries.insert(delivery.id, key.clone());
            }
            return event;
        }
    }

    /// Accepts a delivery, or refuses it with the reason that the control plane is told. An answer to a delivery that
    /// is not waited for any more does nothing.
    pub fn answer(&mut self, id: DeliveryId, result: Result<(), String>) {
        if let Some(task) = self.deliveries.remove(&id).and_then(|key| self.tasks.get(&key)) {
            task.tell(Command::Answer(id, result));
        }
    }

    /// The counters of the control plane behind a subscription; `None` when nothing of that type is wanted from there.
    #[must_use]
    pub fn control_plane(
        &self,
        source: &SourceSpecifier,
        resource_type: ResourceType,
    ) -> Option<Arc<ControlPlane>> {
        let key = key(source, resource_type)?;
        self.tasks.get(&key).map(|task| task.control_plane.clone())
    }

    /// The task behind a subscription, started when there is none yet; `None` when it cannot be.
    fn task(&mut self, source: &SourceSpecifier, resource_type: ResourceType, key: Key) -> Option<&Task> {
        if !self.tasks.contains_key(&key) {
            let api = match &key {
                Key::Aggregated => self.ads.clone(),
                Key::Own(api, _) => Some(api.clone()),
            };
            let task = match api {
                Some(api) => self.start(source, resource_type, &key, api),
                None => Err("ADS is not configured (dynamic_resources.ads_config)".to_owned()),
            };
            match task {
                Ok(task) => {
                    self.tasks.insert(key.clone(), task);
                }
                Err(error) => {
                    log::error!("{resource_type}: {error}");
                    return None;
                }
            }
        }
        self.tasks.get(&key)
    }

    fn start(
        &mut self,
        source: &SourceSpecifier,
        resource_type: ResourceType,
        key: &Key,
        api: Arc<ApiSource>,
    ) -> Result<Task, String> {
        self.started += 1;
        let (commands, inbox) = mpsc::unbounded_channel();
        let control_plane = Arc::new(ControlPlane::default());
        let kind = api.kind;
        let link = Link {
            source: source.clone(),
            api,
            node: self.node.clone(),
            channels: self.channels.clone(),
            commands: inbox,
            events: self.sender.clone(),
            task: self.started,
            ids: self.ids.clone(),
            control_plane: control_plane.clone(),
        };
        let (sotw, delta) = match key {
            Key::Aggregated => (Some(ADS_SOTW), ADS_DELTA),
            Key::Own(..) => resource_type.methods(),
        };
        let handle = match kind {
            ApiKind::DeltaGrpc => tokio::spawn(StreamTask::new(link, Delta::default(), delta).run()),
            ApiKind::Grpc => {
                let path = sotw.ok_or_else(|| format!("{resource_type} needs DELTA_GRPC"))?;
                tokio::spawn(StreamTask::new(link, Sotw::default(), path).run())
            }
            ApiKind::Rest => {
                let path = resource_type.rest_path();
                let path = path.ok_or_else(|| format!("{resource_type} cannot be polled"))?;
                if matches!(key, Key::Aggregated) {
                    return Err("ADS cannot be polled".to_owned());
                }
                tokio::spawn(RestTask::new(link, resource_type, path).run())
            }
        };
        Ok(Task { number: self.started, commands, handle, control_plane })
    }
}

impl Task {
    fn tell(&self, command: Command) {
        // It ends with this sender only.
        let _ = self.commands.send(command);
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("streams", &self.tasks.keys()).finish_non_exhaustive()
    }
}

fn key(source: &SourceSpecifier, resource_type: ResourceType) -> Option<Key> {
    match source {
        SourceSpecifier::Ads => Some(Key::Aggregated),
        SourceSpecifier::Api(api) => Some(Key::Own(api.clone(), resource_type)),
        SourceSpecifier::File { .. } => None,
    }
}
