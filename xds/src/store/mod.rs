//! The resources in force, those on their way in, and the rules by which one becomes the other.
//!
//! No files, no network and no clock here: what was delivered, and when, is told; what is wanted is asked for.
//!
//! Every resource is an entry, known by its source, type and name. What an entry needs (a cluster its load assignment,
//! a listener its routes and secrets) is an entry as well, with a subscription, and knows who needs it: a delivery
//! touches what it changes and what waits for it, however many resources there are.
//!
//! A source that stands for all resources of its type (LDS, CDS) replaces them: what is not in a state of the world is
//! removed. One that stands for single resources (RDS, EDS, SDS) changes those it brings. A resource that is wrong is
//! refused, its neighbours are applied, and its last good version serves on. A new or changed cluster waits for its
//! endpoints and secrets and a new or changed listener for its routes and secrets, up to the fetch timeout; until then
//! the old one serves.

mod compose;
mod deliver;
mod entry;
mod file;
mod settle;
mod subscription;
mod value;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use culvert_model::{
    Config, ConfigSource, Listener, ResourceKey, RuntimeLayer, RuntimeLayerKind, SourceSpecifier,
};

pub(crate) use deliver::{Body, Delivery, Incoming};
use entry::{BOOTSTRAP, EntryId, FeedId};
pub(crate) use entry::{Entry, Failure, Held};
pub(crate) use subscription::Subscription;
pub(crate) use value::Value;

use crate::{
    Loaded, Note,
    load::Raw,
    remote::Interest,
    resource::{Kind, Resource},
};

/// All resources of one type from one source.
#[derive(Debug)]
struct Feed {
    /// `None` for what is part of the bootstrap.
    source: Option<SourceSpecifier>,
    kind: Kind,
    names: HashMap<String, EntryId>,
    /// Of a collection: its resources in configuration order.
    order: Vec<EntryId>,
    /// The subscription to all resources.
    collection: Option<EntryId>,
    /// What the control plane was told to be wanted.
    interest: Arc<Interest>,
    /// Whether that is out of date.
    stale: bool,
}

/// Says why the addresses of a listener cannot be bound. The second argument: whether it was refused before.
pub(crate) type Bindable = dyn Fn(&Listener, bool) -> Result<(), String> + Send + Sync;

/// Who is asked, if anybody.
#[derive(Clone, Default)]
pub(crate) struct BindCheck(pub(crate) Option<Arc<Bindable>>);

impl fmt::Debug for BindCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BindCheck").field(&self.0.is_some()).finish()
    }
}

/// All resources of a process.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) raw: Raw,
    pub(crate) started: SystemTime,
    entries: Vec<Option<Entry>>,
    free: Vec<EntryId>,
    feeds: Vec<Feed>,
    by_source: HashMap<(Option<SourceSpecifier>, Kind), FeedId>,
    /// Feeds of clusters.
    cluster_feeds: Vec<FeedId>,
    /// Layers of the runtime.
    layers: Vec<RuntimeLayer>,
    /// Subscriptions that are not done.
    pending: BTreeSet<EntryId>,
    /// Those of them that come from files.
    pending_files: BTreeSet<EntryId>,
    /// Fetch timeouts.
    deadlines: BTreeSet<(Instant, EntryId)>,
    /// Times to live.
    expiries: BTreeSet<(Instant, EntryId)>,
    /// Entries that may serve now, or are not needed any more.
    touched: Vec<EntryId>,
    /// Whether listeners and what they need may be asked for.
    listeners_open: bool,
    /// Listeners that were refused: they may be right after the clusters have changed.
    refused_listeners: BTreeSet<EntryId>,
    /// Listeners that were refused for their addresses: these may be free later.
    unbound_listeners: BTreeMap<EntryId, Arc<Listener>>,
    pub(crate) bind_check: BindCheck,
    /// Names to ask for once more.
    renewed: BTreeMap<FeedId, BTreeSet<String>>,
    /// Whether what is wanted from control planes has changed.
    wanted_changed: bool,
    /// Whether the files to be watched have changed.
    files_changed: bool,
    /// Increases whenever a subscription comes, goes, or is shown under other names.
    subscriptions_changed: u64,
    /// What will be composed next.
    next: compose::Next,
    /// What was composed last.
    config: Arc<Config>,
    /// Remarks about accepted resources, to be logged.
    notes: Vec<Note>,
    /// Whether a field that does not exist is an error.
    refuse_unknown: bool,
    /// `server.dynamic_unknown_fields`
    pub(crate) unknown_fields: u64,
}

impl Store {
    /// The resources of a bootstrap, and subscriptions to those that it names.
    pub(crate) fn new(loaded: &Loaded, now: Instant, time: SystemTime) -> Self {
        let bootstrap = &loaded.bootstrap;
        let fixed = &bootstrap.config;
        let config = Config {
            listeners: Arc::default(),
            clusters: Arc::default(),
            routes: Arc::default(),
            assignments: Arc::default(),
            ..fixed.clone()
        };
        let mut store = Self {
            raw: loaded.raw.clone(),
            started: time,
            entries: Vec::new(),
            free: Vec::new(),
            feeds: Vec::new(),
            by_source: HashMap::new(),
            cluster_feeds: Vec::new(),
            layers: bootstrap.runtime.clone(),
            pending: BTreeSet::new(),
            pending_files: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            expiries: BTreeSet::new(),
            touched: Vec::new(),
            listeners_open: false,
            refused_listeners: BTreeSet::new(),
            unbound_listeners: BTreeMap::new(),
            bind_check: BindCheck::default(),
            renewed: BTreeMap::new(),
            wanted_changed: true,
            files_changed: true,
            subscriptions_changed: 1,
            next: compose::Next::default(),
            config: Arc::new(config),
            notes: Vec::new(),
            refuse_unknown: loaded.reject_unknown_dynamic_fields,
            unknown_fields: 0,
        };
        let runtime = store.runtime();
        Arc::make_mut(&mut store.config).runtime = Arc::new(runtime);
        store.entries.reserve_exact(fixed.clusters.len() + fixed.listeners.len());
        for (model, resource) in fixed.clusters.iter().zip(&loaded.raw.clusters) {
            let value = Value::Cluster(model.clone());
            store.insert_static(resource, value, time);
        }
        for (model, resource) in fixed.listeners.iter().zip(&loaded.raw.listeners) {
            store.insert_static(resource, Value::Listener(model.clone()), time);
        }
        let own = [
            (Kind::Cluster, &bootstrap.cds, "cluster_manager.cds"),
            (Kind::Listener, &bootstrap.lds, "listener_manager.lds"),
        ];
        for (kind, source, prefix) in own {
            if let Some(source) = source {
                store.subscribe_all(kind, source, prefix.to_owned());
            }
        }
        store.subscribe_layers();
        store.settle(now);
        store
    }

    fn insert_static(&mut self, resource: &Resource, value: Value, time: SystemTime) {
        let feed = self.feed(None, resource.kind);
        let id = self.insert(feed, &resource.name);
        self.feeds[feed.0 as usize].order.push(id);
        let needs = self.attach(id, &value);
        let held = Held {
            resource: resource.clone(),
            wire: None,
            value,
            version: Arc::default(),
            updated: time,
            needs,
        };
        self.entry_mut(id).active = Some(held);
        self.next.changed(resource.kind, id, true);
    }

    fn subscribe_layers(&mut self) {
        for layer in std::mem::take(&mut self.layers) {
            if let RuntimeLayerKind::Rtds { name, source } = &layer.kind {
                let prefix = format!("runtime.{name}");
                let id = self.subscribe(Kind::Runtime, source, name, prefix);
                self.wait_for(id);
            }
            self.layers.push(layer);
        }
    }

    /// The subscription to all resources of a type.
    fn subscribe_all(&mut self, kind: Kind, source: &ConfigSource, prefix: String) -> EntryId {
        let id = self.collection(kind, source, prefix);
        self.wait_for(id);
        id
    }

    /// The bootstrap needs `id`.
    fn wait_for(&mut self, id: EntryId) {
        let entry = self.entry_mut(id);
        entry.add_user(BOOTSTRAP);
        entry.subscription.iter_mut().for_each(|subscription| subscription.waiters += 1);
    }

    /// As [`Store::subscribe_all`], for a user that is told later.
    fn collection(&mut self, kind: Kind, source: &ConfigSource, prefix: String) -> EntryId {
        let feed = self.feed(Some(source.specifier.clone()), kind);
        let id = match self.feeds[feed.0 as usize].collection {
            Some(id) => id,
            None => self.allocate(Entry::new(feed, ResourceKey::new(source, "*"))),
        };
        self.feeds[feed.0 as usize].collection = Some(id);
        self.begin(id, source, prefix);
        id
    }

    /// The subscription to the resource called `name`.
    fn subscribe(&mut self, kind: Kind, source: &ConfigSource, name: &str, prefix: String) -> EntryId {
        let feed = self.feed(Some(source.specifier.clone()), kind);
        let known = self.feeds[feed.0 as usize].names.get(name).copied();
        let id = known.unwrap_or_else(|| self.insert(feed, name));
        self.begin(id, source, prefix);
        id
    }

    fn begin(&mut self, id: EntryId, source: &ConfigSource, prefix: String) {
        let entry = self.entry_mut(id);
        let is_new = entry.subscription.is_none();
        let subscription =
            entry.subscription.get_or_insert_with(|| Box::new(Subscription::new(source.clone())));
        // Who asked last says how long to wait.
        subscription.config.initial_fetch_timeout = source.initial_fetch_timeout;
        let is_shown = subscription.prefixes.contains_key(&prefix);
        subscription.add_prefix(prefix);
        if is_new {
            self.pending.insert(id);
            self.pending_files.extend(matches!(source.specifier, SourceSpecifier::File { .. }).then_some(id));
            self.touched.push(id);
        }
        if !is_shown {
            self.subscriptions_changed += 1;
        }
    }

    fn feed(&mut self, source: Option<SourceSpecifier>, kind: Kind) -> FeedId {
        let next = FeedId(u32::try_from(self.feeds.len()).unwrap_or(u32::MAX));
        let id = *self.by_source.entry((source.clone(), kind)).or_insert(next);
        if id == next {
            self.cluster_feeds.extend((kind == Kind::Cluster).then_some(id));
            self.feeds.push(Feed {
                source,
                kind,
                names: HashMap::new(),
                order: Vec::new(),
                collection: None,
                interest: Arc::default(),
                stale: true,
            });
        }
        id
    }

    fn insert(&mut self, feed: FeedId, name: &str) -> EntryId {
        let source = self.feeds[feed.0 as usize].source.clone();
        let id = self.allocate(Entry::new(feed, ResourceKey { source, name: name.to_owned() }));
        self.feeds[feed.0 as usize].names.insert(name.to_owned(), id);
        id
    }

    fn allocate(&mut self, entry: Entry) -> EntryId {
        match self.free.pop() {
            Some(id) => {
                self.entries[id.0 as usize] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                EntryId(u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX))
            }
        }
    }

    fn get(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    /// An entry that is known to be there: ids are not kept beyond the life of their entry.
    fn entry(&self, id: EntryId) -> &Entry {
        self.get(id).expect("an entry of the table")
    }

    fn entry_mut(&mut self, id: EntryId) -> &mut Entry {
        self.entries[id.0 as usize].as_mut().expect("an entry of the table")
    }

    fn kind_of(&self, entry: &Entry) -> Kind {
        self.feeds[entry.feed.0 as usize].kind
    }

    /// Whether there is a cluster of that name, or will be.
    fn has_cluster(&self, name: &str) -> bool {
        let feeds = self.cluster_feeds.iter().map(|id| &self.feeds[id.0 as usize]);
        feeds.filter_map(|feed| feed.names.get(name)).any(|id| self.entry(*id).is_there())
    }

    /// Entries of a type that do not come from the bootstrap: those of a collection in configuration order, others by
    /// name.
    pub(crate) fn dynamic(&self, kind: Kind) -> Vec<&Entry> {
        let feeds = self.feeds.iter().filter(|feed| feed.kind == kind && feed.source.is_some());
        let mut entries = Vec::new();
        for feed in feeds {
            if feed.collection.is_some() {
                entries.extend(feed.order.iter().map(|id| self.entry(*id)));
            } else {
                let mut named: Vec<_> = feed.names.values().map(|id| self.entry(*id)).collect();
                named.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                entries.extend(named);
            }
        }
        entries
    }

    /// `version_info` of a collection.
    pub(crate) fn version(&self, kind: Kind) -> Option<&str> {
        let feed = self.feeds.iter().find(|feed| feed.kind == kind && feed.collection.is_some())?;
        let subscription = self.entry(feed.collection?).subscription.as_deref()?;
        Some(&*subscription.version).filter(|version| !version.is_empty())
    }

    /// All subscriptions.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.entries.iter().flatten().filter_map(|entry| entry.subscription.as_deref())
    }

    /// Increases whenever what [`Store::subscriptions`] yields has changed.
    pub(crate) fn subscriptions_changed(&self) -> u64 {
        self.subscriptions_changed
    }

    /// Clusters and listeners that wait for something.
    pub(crate) fn warming(&self, kind: Kind) -> u64 {
        self.next.warming.get(&kind).map_or(0, |entries| entries.len() as u64)
    }

    /// What is waited for, and who waits for it: for `/init_dump`.
    pub(crate) fn unready(&self) -> Vec<(String, Vec<String>)> {
        let name = |id: &EntryId| {
            let entry = self.entry(*id);
            let kind = self.kind_of(entry);
            let collection = self.feeds[entry.feed.0 as usize].collection == Some(*id);
            let service = kind.service();
            let name = if collection { service.to_owned() } else { format!("{service} {}", entry.name()) };
            let users = entry.users.iter().filter_map(|(user, _)| self.get(*user));
            (name, users.map(|user| self.kind_of(user).title(user.name())).collect())
        };
        self.pending.iter().filter(|id| self.is_waited_for(**id)).map(name).collect()
    }

    /// When something has to be done next without anything having come.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let first = |times: &BTreeSet<(Instant, EntryId)>| times.first().map(|(at, _)| *at);
        [first(&self.deadlines), first(&self.expiries)].into_iter().flatten().min()
    }

    /// Whether every source was read, or given up waiting for.
    pub(crate) fn is_initialised(&self) -> bool {
        !self.pending.iter().any(|id| self.is_waited_for(*id))
    }

    fn is_waited_for(&self, id: EntryId) -> bool {
        self.entry(id).subscription.as_deref().is_some_and(|subscription| subscription.waiters > 0)
    }

    /// Remarks about resources that were accepted since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// The configuration composed last.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.clone()
    }

    /// Paths of files that were subscribed to, with their `watched_directory`.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Option<PathBuf>> {
        let started = |feed: &&Feed| {
            let of =
                |id: &EntryId| self.entry(*id).subscription.as_deref().is_some_and(Subscription::is_started);
            feed.collection.iter().any(of) || (feed.collection.is_none() && feed.names.values().any(of))
        };
        let feeds =
            self.feeds.iter().filter(|feed| matches!(feed.source, Some(SourceSpecifier::File { .. })));
        let path = |feed: &Feed| match &feed.source {
            Some(SourceSpecifier::File { path, watched_directory }) => {
                Some((path.clone(), watched_directory.clone()))
            }
            _ => None,
        };
        feeds.filter(started).filter_map(path).collect()
    }
}

#[cfg(test)]
mod tests;
