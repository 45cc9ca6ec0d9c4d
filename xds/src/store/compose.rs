//! One configuration from all resources that serve.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use culvert_model::{Config, Discovered, ResourceKey};

use super::{Dynamic, Source, Store};
use crate::Changes;

/// The configuration, and what is different from the one composed before. What is the same shares its memory.
pub(super) fn compose(store: &Store) -> (Config, Changes) {
    let active = |entry: &Dynamic<super::Cluster>| entry.active.as_ref().map(|held| held.value.model.clone());
    let config = Config {
        listeners: store
            .fixed
            .listeners
            .iter()
            .cloned()
            .chain(serving(&store.listeners))
            .collect::<Vec<_>>()
            .into(),
        clusters: store
            .fixed
            .clusters
            .iter()
            .cloned()
            .chain(store.clusters.iter().filter_map(active))
            .collect::<Vec<_>>()
            .into(),
        routes: discovered(store, &store.routes, |name| Source::Rds(name.to_owned()), Arc::clone),
        assignments: discovered(
            store,
            &store.assignments,
            |name| Source::Eds(name.to_owned()),
            |assignment| assignment.model.clone(),
        ),
        ..store.fixed.clone()
    };
    let before = &store.config;
    let changes = Changes {
        listeners: changed(
            before.listeners.iter().map(|listener| (listener.name.as_str(), listener)),
            config.listeners.iter().map(|listener| (listener.name.as_str(), listener)),
        ),
        clusters: changed(
            before.clusters.iter().map(|cluster| (&*cluster.name, cluster)),
            config.clusters.iter().map(|cluster| (&*cluster.name, cluster)),
        ),
        routes: changed(
            before.routes.iter().map(|(key, routes)| (key.name.as_str(), routes)),
            config.routes.iter().map(|(key, routes)| (key.name.as_str(), routes)),
        ),
        assignments: changed(
            before.assignments.iter().map(|(key, assignment)| (key.name.as_str(), assignment)),
            config.assignments.iter().map(|(key, assignment)| (key.name.as_str(), assignment)),
        ),
    };
    (config, changes)
}

fn serving<T>(entries: &[Dynamic<Arc<T>>]) -> impl Iterator<Item = Arc<T>> {
    entries.iter().filter_map(|entry| entry.active.as_ref().map(|held| held.value.clone()))
}

fn discovered<T, M>(
    store: &Store,
    entries: &BTreeMap<String, Dynamic<T>>,
    source: impl Fn(&str) -> Source,
    model: impl Fn(&T) -> Arc<M>,
) -> Discovered<M> {
    let active = |name: &str, entry: &Dynamic<T>| {
        let config = &store.subscriptions.get(&source(name))?.config;
        let held = entry.active.as_ref()?;
        Some((Arc::new(ResourceKey::new(config, name)), model(&held.value)))
    };
    Arc::new(entries.iter().filter_map(|(name, entry)| active(name, entry)).collect())
}

/// Names that are on one side only, or lead to another place in memory. New and changed ones first.
fn changed<'a, T: 'a>(
    before: impl Iterator<Item = (&'a str, &'a Arc<T>)>,
    after: impl Iterator<Item = (&'a str, &'a Arc<T>)>,
) -> Vec<String> {
    let mut old: HashMap<&str, &Arc<T>> = before.collect();
    let mut names = Vec::new();
    for (name, value) in after {
        if old.remove(name).is_none_or(|old| !Arc::ptr_eq(old, value)) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    let mut removed: Vec<_> = old.into_keys().map(str::to_owned).collect();
    removed.sort_unstable();
    names.extend(removed);
    names
}
