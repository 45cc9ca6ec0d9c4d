//! One configuration from all resources that serve.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use culvert_model::{Config, Discovered, ResourceKey, RuntimeLayer, RuntimeLayerKind};

use super::{Entry, EntryId, Store, Value};
use crate::{Changes, resource::Kind};

/// What is different from the configuration composed last.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// Entries that serve another version, or none.
    changed: BTreeMap<Kind, BTreeSet<EntryId>>,
    /// What is gone.
    removed: Vec<(Kind, Arc<ResourceKey>)>,
    /// Collections that have other members, or another order.
    reordered: BTreeSet<Kind>,
    /// Entries with a version that waits.
    pub(super) warming: BTreeMap<Kind, BTreeSet<EntryId>>,
}

impl Next {
    /// `id` serves another version; `is_new` when it served none before.
    pub(super) fn changed(&mut self, kind: Kind, id: EntryId, is_new: bool) {
        self.changed.entry(kind).or_default().insert(id);
        if is_new {
            self.reordered.insert(kind);
        }
    }

    /// Entries of a type stand in another order.
    pub(super) fn reorder(&mut self, kind: Kind) {
        self.reordered.insert(kind);
    }

    /// Whether a version of `id` waits.
    pub(super) fn warm(&mut self, kind: Kind, id: EntryId, warms: bool) {
        let warming = self.warming.entry(kind).or_default();
        if warms {
            warming.insert(id);
        } else {
            warming.remove(&id);
        }
    }

    /// `entry` was called `id`, and is gone.
    pub(super) fn removed(&mut self, kind: Kind, id: EntryId, entry: &Entry) {
        self.warm(kind, id, false);
        if let Some(changed) = self.changed.get_mut(&kind) {
            changed.remove(&id);
        }
        if entry.active.is_some() {
            self.removed.push((kind, entry.key.clone()));
            self.reordered.insert(kind);
        }
    }

    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.values().all(BTreeSet::is_empty)
    }
}

impl Store {
    /// The configuration, and what is different from the one before; `None` when nothing is. What is the same shares
    /// its memory.
    pub(crate) fn compose(&mut self) -> Option<(Arc<Config>, Changes)> {
        if self.next.is_empty() {
            return None;
        }
        let changed = std::mem::take(&mut self.next.changed);
        let removed = std::mem::take(&mut self.next.removed);
        let reordered = std::mem::take(&mut self.next.reordered);
        let mut config = Config::clone(&self.config);
        let mut changes = Changes::default();
        for kind in Kind::ALL {
            let none = BTreeSet::new();
            let ids = changed.get(&kind).unwrap_or(&none);
            let gone: Vec<_> = removed.iter().filter(|(of, _)| *of == kind).map(|(_, key)| key).collect();
            if ids.is_empty() && gone.is_empty() {
                continue;
            }
            match kind {
                Kind::Cluster => {
                    let model = |value: &Value| match value {
                        Value::Cluster(cluster) => Some(cluster.clone()),
                        _ => None,
                    };
                    let list = &mut config.clusters;
                    changes.clusters = self.list(kind, list, ids, &gone, reordered.contains(&kind), model);
                }
                Kind::Listener => {
                    let model = |value: &Value| match value {
                        Value::Listener(listener) => Some(listener.clone()),
                        _ => None,
                    };
                    let list = &mut config.listeners;
                    changes.listeners = self.list(kind, list, ids, &gone, reordered.contains(&kind), model);
                }
                Kind::LoadAssignment => {
                    let model = |value: &Value| match value {
                        Value::Assignment(assignment) => Some(assignment.clone()),
                        _ => None,
                    };
                    changes.assignments = self.map(&mut config.assignments, ids, &gone, model);
                }
                Kind::RouteConfiguration => {
                    let model = |value: &Value| match value {
                        Value::Routes(routes) => Some(routes.clone()),
                        _ => None,
                    };
                    changes.routes = self.map(&mut config.routes, ids, &gone, model);
                }
                Kind::Secret => {
                    let model = |value: &Value| match value {
                        Value::Secret(secret) => Some(secret.clone()),
                        _ => None,
                    };
                    changes.secrets = self.map(&mut config.secrets, ids, &gone, model);
                }
                Kind::Runtime => {
                    let runtime = Arc::new(self.runtime());
                    changes.runtime = runtime != config.runtime;
                    config.runtime = runtime;
                }
                Kind::ScopedRoute => {
                    let model = |value: &Value| match value {
                        Value::Scope(scope, _) => Some(scope.clone()),
                        _ => None,
                    };
                    changes.scopes = self.map(&mut config.scopes, ids, &gone, model);
                }
                Kind::VirtualHost => {
                    let model = |value: &Value| match value {
                        Value::VirtualHost(host) => Some(host.clone()),
                        _ => None,
                    };
                    changes.virtual_hosts = self.map(&mut config.virtual_hosts, ids, &gone, model);
                }
                Kind::ExtensionConfig => {
                    let model = |value: &Value| match value {
                        Value::Extension(extension) => Some(extension.clone()),
                        _ => None,
                    };
                    changes.extensions = self.map(&mut config.extensions, ids, &gone, model);
                }
            }
        }
        if changes == Changes::default() {
            return None;
        }
        self.config = Arc::new(config);
        Some((self.config.clone(), changes))
    }

    /// Brings a list up to date. Returns the names of what changed: first what is there, then what is gone.
    fn list<T>(
        &mut self,
        kind: Kind,
        list: &mut Arc<Vec<Arc<T>>>,
        changed: &BTreeSet<EntryId>,
        gone: &[&Arc<ResourceKey>],
        reordered: bool,
        model: impl Fn(&Value) -> Option<Arc<T>>,
    ) -> Vec<String> {
        let active = |entry: &Entry| entry.active.as_ref().and_then(|held| model(&held.value));
        if reordered {
            let feeds = self.feeds.iter().filter(|feed| feed.kind == kind);
            let (fixed, dynamic): (Vec<_>, Vec<_>) = feeds.partition(|feed| feed.source.is_none());
            let order: Vec<_> =
                fixed.into_iter().chain(dynamic).flat_map(|feed| feed.order.iter().copied()).collect();
            let mut all = Vec::with_capacity(order.len());
            for id in order {
                let entry = self.entry_mut(id);
                let model = active(entry);
                entry.position = model.is_some().then_some(u32::try_from(all.len()).unwrap_or(u32::MAX));
                all.extend(model);
            }
            *list = Arc::new(all);
        } else {
            let list = Arc::make_mut(list);
            for id in changed {
                let entry = self.entry(*id);
                let place = entry.position.and_then(|position| list.get_mut(position as usize));
                if let (Some(place), Some(model)) = (place, active(entry)) {
                    *place = model;
                }
            }
        }
        let mut there: Vec<_> = changed.iter().map(|id| self.entry(*id)).collect();
        there.sort_by_key(|entry| entry.position);
        let mut names: Vec<_> = there.iter().map(|entry| entry.key.name.clone()).collect();
        names.extend(really_gone(gone, &there));
        names
    }

    /// Brings a map up to date. Returns the keys of what changed: first what is there, then what is gone.
    fn map<T>(
        &self,
        map: &mut Discovered<T>,
        changed: &BTreeSet<EntryId>,
        gone: &[&Arc<ResourceKey>],
        model: impl Fn(&Value) -> Option<Arc<T>>,
    ) -> Vec<Arc<ResourceKey>> {
        let map: &mut HashMap<_, _> = Arc::make_mut(map);
        for key in gone {
            map.remove(*key);
        }
        let mut keys = BTreeSet::new();
        for id in changed {
            let entry = self.entry(*id);
            match entry.active.as_ref().and_then(|held| model(&held.value)) {
                Some(model) => map.insert(entry.key.clone(), model),
                None => map.remove(&entry.key),
            };
            keys.insert(entry.key.clone());
        }
        let gone: BTreeSet<_> = gone.iter().copied().filter(|key| !keys.contains(*key)).cloned().collect();
        keys.into_iter().chain(gone).collect()
    }

    /// Runtime values of all layers, later ones over earlier ones.
    pub(super) fn runtime(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        for layer in &self.layers {
            match &layer.kind {
                RuntimeLayerKind::Admin => {}
                RuntimeLayerKind::Static(layer) => {
                    values.extend(layer.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                RuntimeLayerKind::Rtds { .. } => {
                    if let Some(layer) = self.discovered_layer(layer) {
                        values.extend(layer.iter().map(|(k, v)| (k.clone(), v.clone())));
                    }
                }
            }
        }
        values
    }

    fn discovered_layer(&self, layer: &RuntimeLayer) -> Option<&BTreeMap<String, String>> {
        let RuntimeLayerKind::Rtds { name, source } = &layer.kind else { return None };
        let feed = self.by_source.get(&(Some(source.specifier.clone()), Kind::Runtime))?;
        let id = self.feeds[feed.0 as usize].names.get(name)?;
        match &self.entry(*id).active.as_ref()?.value {
            Value::Runtime(values) => Some(values),
            _ => None,
        }
    }
}

/// Names of what is gone and did not come back.
fn really_gone(gone: &[&Arc<ResourceKey>], there: &[&Entry]) -> BTreeSet<String> {
    let there: HashSet<&str> = there.iter().map(|entry| entry.name()).collect();
    let gone = gone.iter().filter(|key| !there.contains(key.name.as_str()));
    gone.map(|key| key.name.clone()).collect()
}
