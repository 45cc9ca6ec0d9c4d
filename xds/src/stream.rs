//! The configuration in force and what changes it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future as _,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

use culvert_model::{Config, Listener, ResourceKey, SourceSpecifier};

use crate::{
    Loaded, Note, NoteKind, SourceCounters,
    decode::UnknownFields,
    dump,
    remote::{ControlPlane, Dialer, Event, Remote, ResourceType},
    resource::Kind,
    source::{self, Watcher},
    store::{BindCheck, Store},
};

/// Files that belong together are often written one after the other; this long one change waits for more.
const SETTLE: Duration = Duration::from_millis(10);
/// Rounds of reading files that files just read have named: clusters name endpoints, listeners name routes.
const ROUNDS_MAX: usize = 16;
/// Errors of one response that are logged one by one; the control plane is told all of them.
const LOGGED_MAX: usize = 100;
/// What is taken from control planes before a configuration is made of it.
const EVENTS_MAX: usize = 64;

/// A configuration that takes over from the one before.
#[derive(Clone, Debug)]
pub struct Update {
    /// All resources in force. What did not change is the same `Arc` as in the update before.
    pub config: Arc<Config>,
    /// What is different from the update before; for the first one everything.
    pub changed: Changes,
    /// When the first of what is in it arrived; `None` when it was not delivered, but given up waiting for.
    pub arrived: Option<Instant>,
}

/// What [`ConfigStream::begin`] returns.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and nobody keeps it")]
pub enum Begun {
    /// What is in force before the first update: not to be served.
    Early(Arc<Config>),
    /// The first update, or a later one.
    First(Update),
}

/// Resources that were added, changed or removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Listeners by name.
    pub listeners: Vec<String>,
    /// Clusters by name.
    pub clusters: Vec<String>,
    /// Route configurations.
    pub routes: Vec<Arc<ResourceKey>>,
    /// Load assignments by service name.
    pub assignments: Vec<Arc<ResourceKey>>,
    /// Scoped route configurations.
    pub scopes: Vec<Arc<ResourceKey>>,
    /// Secrets.
    pub secrets: Vec<Arc<ResourceKey>>,
    /// Extension configurations.
    pub extensions: Vec<Arc<ResourceKey>>,
    /// Virtual hosts of VHDS.
    pub virtual_hosts: Vec<Arc<ResourceKey>>,
    /// Whether runtime values are others.
    pub runtime: bool,
}

impl Changes {
    /// Everything in `config` is new.
    fn all(config: &Config) -> Self {
        fn keys<T>(map: &HashMap<Arc<ResourceKey>, Arc<T>>) -> Vec<Arc<ResourceKey>> {
            let mut keys: Vec<_> = map.keys().cloned().collect();
            keys.sort_unstable();
            keys
        }
        Self {
            listeners: config.listeners.iter().map(|listener| listener.name.clone()).collect(),
            clusters: config.clusters.iter().map(|cluster| cluster.name.to_string()).collect(),
            routes: keys(&config.routes),
            assignments: keys(&config.assignments),
            scopes: keys(&config.scopes),
            secrets: keys(&config.secrets),
            extensions: keys(&config.extensions),
            virtual_hosts: keys(&config.virtual_hosts),
            runtime: *config.runtime != <_>::default(),
        }
    }
}

/// Follows the files and control planes a bootstrap names. Lives on the control thread (tokio, current thread).
///
/// What is wrong is refused, logged and counted, and its last good version serves on; of several resources in a file
/// or a response each one stands for itself. What changes nothing in meaning is no update.
#[derive(Debug)]
pub struct ConfigStream {
    view: ConfigView,
    watcher: Watcher,
    unknown: UnknownFields,
    /// Whether the first update was returned.
    started: bool,
    /// Files that were seen to change and have not been read again.
    changed: BTreeSet<PathBuf>,
    /// Whether changes of files can still be seen.
    watching: bool,
    /// Control planes, once there is a way to reach them.
    remote: Option<Remote>,
    /// When the first of what was not composed yet arrived.
    arrived: Option<Instant>,
}

impl ConfigStream {
    /// Starts watching what `loaded` names, and the clock of its fetch timeouts. Nothing is read before the first
    /// [`ConfigStream::next`].
    ///
    /// # Errors
    /// No inotify instance could be made.
    pub fn new(loaded: &Loaded) -> io::Result<Self> {
        let store = Store::new(loaded, Instant::now(), SystemTime::now());
        let unknown = match loaded.reject_unknown_dynamic_fields {
            true => UnknownFields::Refuse,
            false => UnknownFields::Note,
        };
        Ok(Self {
            view: ConfigView { store: Arc::new(Mutex::new(store)), control_planes: Arc::default() },
            watcher: Watcher::new()?,
            unknown,
            started: false,
            changed: BTreeSet::new(),
            watching: true,
            remote: None,
            arrived: None,
        })
    }

    /// Reaches control planes through `dialer`. Without one, resources that come from there are waited for in vain.
    #[must_use]
    pub fn with_dialer(mut self, loaded: &Loaded, dialer: Arc<dyn Dialer>) -> Self {
        self.remote = Some(Remote::new(loaded.node(), dialer, loaded.bootstrap.ads.clone()));
        self
    }

    /// Asks `check` whether the addresses of a listener from a file or a control plane can be bound, and refuses it with
    /// the reason where they cannot. The second argument says whether it was asked before, see
    /// [`ConfigView::retry_unbound`].
    #[must_use]
    pub fn with_bind_check(
        self,
        check: impl Fn(&Listener, bool) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.view.lock().bind_check = BindCheck(Some(Arc::new(check)));
        self
    }

    /// The next configuration. The first one comes when every source was read or its `initial_fetch_timeout` passed;
    /// later ones when something changed in meaning. Cancel safe: what was seen before is returned the next time.
    pub async fn next(&mut self) -> Update {
        loop {
            if let Begun::First(update) = self.begin().await {
                return update;
            }
        }
    }

    /// As [`ConfigStream::next`], and what there is before the first update: how control planes are reached may be
    /// part of it. Cancel safe.
    pub async fn begin(&mut self) -> Begun {
        loop {
            self.read();
            self.ask();
            if let Some(begun) = self.compose() {
                return begun;
            }
            self.wait().await;
        }
    }

    /// A handle for the admin server; stays valid when the stream is gone.
    #[must_use]
    pub fn view(&self) -> ConfigView {
        self.view.clone()
    }

    /// Reads changed files, and files that what was read names.
    fn read(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if !changed.is_empty() {
            self.watcher.refresh();
        }
        let changed = self.view.lock().in_order(changed);
        for path in changed {
            self.apply(&path, false);
        }
        for _ in 0..ROUNDS_MAX {
            // Watched first and read then, so that no change falls between the two.
            let (files, unread) = {
                let mut store = self.view.lock();
                (store.take_files_changed().then(|| store.files()), store.unread())
            };
            if let Some(files) = files {
                self.watcher.watch(files);
            }
            if unread.is_empty() {
                return;
            }
            for path in unread {
                self.apply(&path, true);
            }
        }
    }

    /// Tells control planes what is wanted now.
    fn ask(&mut self) {
        let Some(remote) = &mut self.remote else { return };
        let mut store = self.view.lock();
        if let Some(wanted) = store.take_wanted() {
            remote.want(&wanted);
            let named = wanted.keys().filter_map(|(source, resource_type)| {
                let prefix = match (source, resource_type) {
                    (SourceSpecifier::Ads, _) => "control_plane",
                    (_, ResourceType::Cluster) => "cluster_manager.cds.control_plane",
                    (_, ResourceType::Listener) => "listener_manager.lds.control_plane",
                    _ => return None,
                };
                Some((prefix, remote.control_plane(source, *resource_type)?))
            });
            let mut planes = self.view.control_planes.lock().unwrap_or_else(PoisonError::into_inner);
            *planes = named.collect();
        }
        for (source, resource_type, names) in store.take_renewed() {
            remote.renew(&source, resource_type, names);
        }
    }

    /// Takes what comes from a control plane.
    fn take(&mut self, event: Event) {
        let mut store = self.view.lock();
        let now = Instant::now();
        match event {
            Event::Connected { .. } | Event::Requested { .. } => {}
            Event::Failed { source, types, error } => {
                log::warn!("{}: {error}", source_name(&source));
                types.iter().for_each(|resource_type| store.disconnected(&source, (*resource_type).into()));
            }
            Event::Response(delivery) => {
                let id = delivery.id;
                let (name, arrived) = (source_name(&delivery.source), delivery.arrived);
                let outcome = store.deliver(&delivery.into(), now, SystemTime::now());
                self.arrived = Some(self.arrived.map_or(arrived, |first| first.min(arrived)));
                let errors = outcome.err().unwrap_or_default();
                errors
                    .iter()
                    .take(LOGGED_MAX)
                    .for_each(|error| log::warn!("{name}: update refused: {error}"));
                if errors.len() > LOGGED_MAX {
                    log::warn!("{name}: update refused: {} more errors", errors.len() - LOGGED_MAX);
                }
                let reason = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                log_notes(&name, store.take_notes());
                if let Some(remote) = &mut self.remote {
                    remote.answer(id, if errors.is_empty() { Ok(()) } else { Err(reason) });
                }
            }
        }
    }

    fn apply(&self, path: &Path, only_unread: bool) {
        let read = source::read(path, self.unknown);
        let mut store = self.view.lock();
        let errors = store.apply_file(path, &read, only_unread, Instant::now(), SystemTime::now());
        for error in &errors {
            log::warn!("{}: update refused: {error}", path.display());
        }
        log_notes(&path.display().to_string(), store.take_notes());
    }

    fn compose(&mut self) -> Option<Begun> {
        let mut store = self.view.lock();
        let composed = store.compose();
        if !self.started && !store.is_initialised() {
            return composed.map(|(config, _)| Begun::Early(config));
        }
        let arrived = self.arrived.take();
        let (config, changed) = match composed {
            // To whom nothing was given yet, everything is new. The first update comes also when there is nothing in it.
            _ if !self.started => {
                let config = store.config();
                let all = Changes::all(&config);
                (config, all)
            }
            Some(composed) => composed,
            None => return None,
        };
        self.started = true;
        Some(Begun::First(Update { config, changed, arrived }))
    }

    /// Waits until a file changes or a fetch timeout passes.
    async fn wait(&mut self) {
        let deadline = self.view.lock().deadline();
        let expired = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let remote = async {
            match &mut self.remote {
                Some(remote) => remote.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = remote => {
                self.take(event);
                self.take_more();
            }
            seen = self.watcher.changed(), if self.watching => match seen {
                Ok(paths) => {
                    self.arrived.get_or_insert_with(Instant::now);
                    self.changed.extend(paths);
                    self.settle().await;
                }
                Err(e) => {
                    // It cannot be repaired from here; what serves goes on serving, and control planes are followed.
                    log::error!("configuration files are not watched any more: {e}");
                    self.watching = false;
                }
            },
            () = expired => self.view.lock().expire(Instant::now()),
        }
    }

    /// Takes what has come along with what was just taken, so that one configuration has it all.
    fn take_more(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some(remote) = &mut self.remote else { return };
            let event = {
                let next = std::pin::pin!(remote.next());
                next.poll(&mut Context::from_waker(Waker::noop()))
            };
            let Poll::Ready(event) = event else { return };
            self.take(event);
        }
    }

    /// Collects what changes along with what was just seen.
    async fn settle(&mut self) {
        let until = tokio::time::Instant::now() + SETTLE;
        while let Ok(Ok(paths)) = tokio::time::timeout_at(until, self.watcher.changed()).await {
            self.changed.extend(paths);
        }
    }
}

fn log_notes(source: &str, notes: Vec<Note>) {
    for note in notes {
        match note.kind {
            NoteKind::NoEffect => log::debug!("{source}: {note}"),
            NoteKind::UnknownField | NoteKind::Warning => log::warn!("{source}: {note}"),
        }
    }
}

/// What a source is called in the log.
fn source_name(source: &SourceSpecifier) -> String {
    match source {
        SourceSpecifier::Ads => "ads".to_owned(),
        SourceSpecifier::Api(api) => {
            api.services.first().map_or_else(String::new, |service| service.cluster.clone())
        }
        SourceSpecifier::File { path, .. } => path.display().to_string(),
    }
}

/// What the admin server reads about the configuration; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct ConfigView {
    store: Arc<Mutex<Store>>,
    control_planes: ControlPlanes,
}

type ControlPlanes = Arc<Mutex<BTreeMap<&'static str, Arc<ControlPlane>>>>;

impl ConfigView {
    /// Counters of the streams to control planes, by stat prefix: `control_plane` for ADS.
    #[must_use]
    pub fn control_planes(&self) -> BTreeMap<&'static str, Arc<ControlPlane>> {
        self.control_planes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counters of every subscription there is now, by stat prefix: `cluster_manager.cds`, `listener_manager.lds`,
    /// `http.<stat_prefix>.rds.<name>`, `sds.<name>` and, for EDS, `cluster.<name>`.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, Arc<SourceCounters>)> {
        let store = self.lock();
        let named = store.subscriptions().flat_map(|subscription| {
            subscription.prefixes.keys().map(|prefix| (prefix.clone(), subscription.counters.clone()))
        });
        named.collect()
    }

    /// Increases whenever [`ConfigView::sources`] yields others than before.
    #[must_use]
    pub fn sources_changed(&self) -> u64 {
        self.lock().subscriptions_changed()
    }

    /// `version_text` of every subscription there is now: the `version_info` accepted last, by stat prefix.
    #[must_use]
    pub fn versions(&self) -> Vec<(String, String)> {
        let store = self.lock();
        let named = store.subscriptions().flat_map(|subscription| {
            subscription.prefixes.keys().map(|prefix| (prefix.clone(), subscription.version.to_string()))
        });
        named.collect()
    }

    /// Tries the listeners again that were refused because they could not be bound. Those that can be now are part of
    /// the next update.
    pub fn retry_unbound(&self) {
        self.lock().retry_unbound(Instant::now(), SystemTime::now());
    }

    /// Clusters of which a version waits for its endpoints or secrets: `cluster_manager.warming_clusters`.
    #[must_use]
    pub fn warming_clusters(&self) -> u64 {
        self.lock().warming(Kind::Cluster)
    }

    /// Listeners of which a version waits: `listener_manager.total_listeners_warming`.
    #[must_use]
    pub fn warming_listeners(&self) -> u64 {
        self.lock().warming(Kind::Listener)
    }

    /// What is waited for, and by which resources, for `/init_dump`: discovery services, with the name of the resource
    /// where it is one.
    #[must_use]
    pub fn unready_targets(&self) -> Vec<(String, Vec<String>)> {
        self.lock().unready()
    }

    /// `server.dynamic_unknown_fields`: fields in resources from files that do not exist.
    #[must_use]
    pub fn dynamic_unknown_fields(&self) -> u64 {
        self.lock().unknown_fields
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic while it was held would have been in this crate's own code; what it holds is still the best there is.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `/config_dump` was asked for.
#[derive(Clone, Debug, Default)]
pub struct DumpQuery {
    /// `include_eds`
    pub include_eds: bool,
    /// `resource`: only this repeated field, such as `dynamic_listeners`, without the messages around it.
    pub resource: Option<String>,
    /// `name_regex`: only resources whose name it matches somewhere.
    pub name_regex: Option<String>,
}

/// `/config_dump`: Envoy's `admin.v3.ConfigDump` as JSON, with secrets redacted. An invalid `name_regex` matches
/// nothing.
#[must_use]
pub fn config_dump(view: &ConfigView, query: &DumpQuery) -> serde_json::Value {
    dump::config_dump(&view.lock(), query)
}

#[cfg(test)]
mod tests;
