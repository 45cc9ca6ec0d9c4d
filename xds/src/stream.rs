//! The configuration in force and what changes it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use culvert_model::Config;

use crate::{
    Loaded, NoteKind, SourceCounters,
    decode::UnknownFields,
    dump,
    source::{self, Watcher},
    store::Store,
};

/// Files that belong together are often written one after the other; this long one change waits for more.
const SETTLE: Duration = Duration::from_millis(10);
/// Rounds of reading files that files just read have named: clusters name endpoints, listeners name routes.
const ROUNDS_MAX: usize = 16;

/// A configuration that takes over from the one before.
#[derive(Clone, Debug)]
pub struct Update {
    /// All resources in force. What did not change is the same `Arc` as in the update before.
    pub config: Arc<Config>,
    /// What is different from the update before; for the first one everything.
    pub changed: Changes,
}

/// Names of resources that were added, changed or removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Listeners by name.
    pub listeners: Vec<String>,
    /// Clusters by name.
    pub clusters: Vec<String>,
    /// Route configurations by name.
    pub routes: Vec<String>,
    /// Load assignments by service name.
    pub assignments: Vec<String>,
}

/// Follows the files a bootstrap names. Lives on the control thread (tokio, current thread).
///
/// A file that is wrong is refused, logged and counted, and its last good version serves on; of several resources in
/// a file each one stands for itself. An edit that changes nothing in meaning is no update.
#[derive(Debug)]
pub struct ConfigStream {
    view: ConfigView,
    watcher: Watcher,
    unknown: UnknownFields,
    /// Whether the first update was returned.
    started: bool,
    /// Files that were seen to change and have not been read again.
    changed: BTreeSet<PathBuf>,
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
            view: ConfigView { store: Arc::new(Mutex::new(store)) },
            watcher: Watcher::new()?,
            unknown,
            started: false,
            changed: BTreeSet::new(),
        })
    }

    /// The next configuration. The first one comes when every source was read or its `initial_fetch_timeout` passed;
    /// later ones when a file changed in meaning. Cancel safe: what was seen before is returned the next time.
    pub async fn next(&mut self) -> Update {
        loop {
            self.read();
            if let Some(update) = self.compose() {
                return update;
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
        let changed = in_order(&self.view.lock(), changed);
        for path in changed {
            self.apply(&path, false);
        }
        for _ in 0..ROUNDS_MAX {
            // Watched first and read then, so that no change falls between the two.
            let (files, unread) = {
                let store = self.view.lock();
                (store.files(), store.unread())
            };
            self.watcher.watch(files);
            if unread.is_empty() {
                return;
            }
            for path in unread {
                self.apply(&path, true);
            }
        }
    }

    fn apply(&self, path: &Path, only_unread: bool) {
        let read = source::read(path, self.unknown);
        let mut store = self.view.lock();
        let errors = store.apply(path, &read, only_unread, Instant::now(), SystemTime::now());
        for error in &errors {
            log::warn!("{}: update refused: {error}", path.display());
        }
        for note in store.take_notes() {
            match note.kind {
                NoteKind::NoEffect => log::debug!("{}: {note}", path.display()),
                NoteKind::UnknownField | NoteKind::Warning => log::warn!("{}: {note}", path.display()),
            }
        }
    }

    fn compose(&mut self) -> Option<Update> {
        let mut store = self.view.lock();
        if !self.started && !store.is_initialised() {
            return None;
        }
        let composed = store.compose();
        let update = match composed {
            Some((config, changed)) => Update { config, changed },
            // The first update comes even when there is nothing in it.
            None if !self.started => Update { config: store.config(), changed: Changes::default() },
            None => return None,
        };
        self.started = true;
        Some(update)
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
        tokio::select! {
            seen = self.watcher.changed() => match seen {
                Ok(paths) => {
                    self.changed.extend(paths);
                    self.settle().await;
                }
                Err(e) => {
                    // It cannot be repaired from here; what serves goes on serving.
                    log::error!("configuration files are not watched any more: {e}");
                    std::future::pending::<()>().await;
                }
            },
            () = expired => self.view.lock().expire(Instant::now()),
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

/// Clusters before endpoints, listeners and routes, as they refer to each other.
fn in_order(store: &Store, paths: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut ordered = Vec::with_capacity(paths.len());
    for (_, subscription) in store.subscriptions() {
        let Some(path) = subscription.config.file() else { continue };
        if paths.contains(path) && !ordered.iter().any(|known| known == path) {
            ordered.push(path.to_owned());
        }
    }
    ordered
}

/// What the admin server reads about the configuration; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct ConfigView {
    store: Arc<Mutex<Store>>,
}

impl ConfigView {
    /// Counters of every source there is now, by stat prefix: `cluster_manager.cds`, `listener_manager.lds`,
    /// `http.<stat_prefix>.rds.<name>` and, for EDS, `cluster.<name>`.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, Arc<SourceCounters>)> {
        let store = self.lock();
        let named = store.subscriptions().flat_map(|(_, subscription)| {
            subscription.prefixes.iter().map(|prefix| (prefix.clone(), subscription.counters.clone()))
        });
        named.collect()
    }

    /// `version_text` of every source there is now: the `version_info` accepted last, by stat prefix.
    #[must_use]
    pub fn versions(&self) -> Vec<(String, String)> {
        let store = self.lock();
        let named = store.subscriptions().flat_map(|(_, subscription)| {
            subscription.prefixes.iter().map(|prefix| (prefix.clone(), subscription.version.clone()))
        });
        named.collect()
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
