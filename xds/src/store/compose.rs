//! One configuration from all resources that serve.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use culvert_model::Config;

use super::{Dynamic, Store};
use crate::Changes;

/// The configuration, and what is different from the one composed before. What is the same shares its memory.
pub(super) fn compose(store: &Store) -> (Config, Changes) {
    let active = |entry: &Dynamic<super::Cluster>| entry.active.as_ref().map(|held| held.value.model.clone());
    let config = Config {
        runtime: store.fixed.runtime.clone(),
        secrets: store.fixed.secrets.clone(),
        listeners: store.fixed.listeners.iter().cloned().chain(serving(&store.listeners)).collect(),
        clusters: store
            .fixed
            .clusters
            .iter()
            .cloned()
            .chain(store.clusters.iter().filter_map(active))
            .collect(),
        routes: by_name(&store.routes, Arc::clone),
        assignments: by_name(&store.assignments, |assignment| assignment.model.clone()),
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
            before.routes.iter().map(|(name, routes)| (name.as_str(), routes)),
            config.routes.iter().map(|(name, routes)| (name.as_str(), routes)),
        ),
        assignments: changed(
            before.assignments.iter().map(|(name, assignment)| (name.as_str(), assignment)),
            config.assignments.iter().map(|(name, assignment)| (name.as_str(), assignment)),
        ),
    };
    (config, changes)
}

fn serving<T>(entries: &[Dynamic<Arc<T>>]) -> impl Iterator<Item = Arc<T>> {
    entries.iter().filter_map(|entry| entry.active.as_ref().map(|held| held.value.clone()))
}

fn by_name<T, M>(
    entries: &BTreeMap<String, Dynamic<T>>,
    model: impl Fn(&T) -> Arc<M>,
) -> BTreeMap<String, Arc<M>> {
    let active = |entry: &Dynamic<T>| entry.active.as_ref().map(|held| model(&held.value));
    entries.iter().filter_map(|(name, entry)| Some((name.clone(), active(entry)?))).collect()
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
    let mut removed: Vec<_> = old.into_keys().map(str::to_owned).collect();
    removed.sort_unstable();
    names.extend(removed);
    names
}
