//! What resources need from others, and when they have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use culvert_model::{ConfigSource, Discovery, Listener, RouteSource, TerminalFilter};

use super::{Source, Store, Subscription, assignment};
use crate::convert::Localities;

/// A source that some resource names.
struct Need {
    config: ConfigSource,
    prefixes: BTreeSet<String>,
    localities: Localities,
}

impl Store {
    /// Brings subscriptions and resources in line with each other until nothing changes.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            self.subscribe(now);
            if !self.promote() {
                return;
            }
        }
    }

    /// Subscribes to what is needed and drops what is not.
    fn subscribe(&mut self, now: Instant) {
        let mut needs = self.needs();
        self.subscriptions.retain(|source, subscription| match source {
            Source::Cds | Source::Lds => true,
            Source::Eds(_) | Source::Rds(_) => {
                needs.get(source).is_some_and(|need| need.config == subscription.config)
            }
        });
        for (source, subscription) in &mut self.subscriptions {
            if let Some(need) = needs.remove(source) {
                subscription.prefixes = need.prefixes;
                subscription.localities = need.localities;
            }
        }
        for (source, need) in needs {
            let mut subscription = Subscription::new(need.config);
            subscription.prefixes = need.prefixes;
            subscription.localities = need.localities;
            self.subscriptions.insert(source, subscription);
        }
        self.routes.retain(|name, _| self.subscriptions.contains_key(&Source::Rds(name.clone())));
        self.assignments.retain(|name, _| self.subscriptions.contains_key(&Source::Eds(name.clone())));
        self.weigh();

        // Listeners may refer to clusters, which have to be there first.
        let clusters_done = self.subscriptions.get(&Source::Cds).is_none_or(Subscription::is_done);
        for (source, subscription) in &mut self.subscriptions {
            if *source != Source::Lds || clusters_done {
                subscription.start(now);
            }
        }
        for (source, prefix) in [(Source::Cds, "cluster_manager.cds"), (Source::Lds, "listener_manager.lds")]
        {
            if let Some(subscription) = self.subscriptions.get_mut(&source) {
                subscription.prefixes = BTreeSet::from([prefix.to_owned()]);
            }
        }
    }

    /// Reads assignments again whose clusters have changed their mind about localities.
    fn weigh(&mut self) {
        for (name, entry) in &mut self.assignments {
            let Some(subscription) = self.subscriptions.get(&Source::Eds(name.clone())) else { continue };
            let Some(held) = entry.active.as_mut() else { continue };
            if held.value.localities != subscription.localities
                && let Ok((again, _)) = assignment(&held.resource, subscription.localities)
            {
                held.value = again;
            }
        }
    }

    fn needs(&self) -> BTreeMap<Source, Need> {
        let mut needs = BTreeMap::new();
        for cluster in self.fixed.clusters.iter() {
            let localities = match &cluster.discovery {
                Discovery::Eds { service_name, .. } => {
                    let known = self.fixed_localities.iter().find(|(name, _)| name == service_name);
                    known.map(|(_, localities)| *localities).unwrap_or_default()
                }
                Discovery::Static(_) | Discovery::StrictDns { .. } => continue,
            };
            need_endpoints(&mut needs, cluster, localities);
        }
        for entry in &self.clusters {
            for held in entry.active.iter().chain(&entry.warming) {
                need_endpoints(&mut needs, &held.value.model, held.value.localities);
            }
        }
        self.fixed.listeners.iter().for_each(|listener| need_routes(&mut needs, listener));
        for entry in &self.listeners {
            for held in entry.active.iter().chain(&entry.warming) {
                need_routes(&mut needs, &held.value);
            }
        }
        needs
    }

    /// Lets resources serve that have what they need. Whether any does now.
    fn promote(&mut self) -> bool {
        let done = |source: Source| self.subscriptions.get(&source).is_none_or(Subscription::is_done);
        let mut promoted = false;
        for entry in &mut self.clusters {
            let warm = entry.warming.as_ref().is_some_and(|held| match &held.value.model.discovery {
                Discovery::Eds { service_name, .. } => {
                    self.assignments.get(service_name).is_some_and(super::Dynamic::is_there)
                        || done(Source::Eds(service_name.clone()))
                }
                Discovery::Static(_) | Discovery::StrictDns { .. } => true,
            });
            if warm {
                entry.promote();
                promoted = true;
            }
        }
        for entry in &mut self.listeners {
            let warm = entry.warming.as_ref().is_some_and(|held| match routes_of(&held.value) {
                Some((name, _, _)) => {
                    self.routes.get(name).is_some_and(super::Dynamic::is_there)
                        || done(Source::Rds(name.to_owned()))
                }
                None => true,
            });
            if warm {
                entry.promote();
                promoted = true;
            }
        }
        promoted
    }
}

fn need_endpoints(
    needs: &mut BTreeMap<Source, Need>,
    cluster: &culvert_model::Cluster,
    localities: Localities,
) {
    let Discovery::Eds { service_name, source } = &cluster.discovery else { return };
    let prefix = format!("cluster.{}", cluster.stat_name);
    need(needs, Source::Eds(service_name.clone()), source, prefix, localities);
}

fn need_routes(needs: &mut BTreeMap<Source, Need>, listener: &Listener) {
    let Some((name, source, stat_prefix)) = routes_of(listener) else { return };
    let prefix = format!("http.{stat_prefix}.rds.{name}");
    need(needs, Source::Rds(name.to_owned()), source, prefix, Localities::default());
}

/// The first one to name a resource says where it comes from.
fn need(
    needs: &mut BTreeMap<Source, Need>,
    source: Source,
    config: &ConfigSource,
    prefix: String,
    localities: Localities,
) {
    let need = needs.entry(source).or_insert_with(|| Need {
        config: config.clone(),
        prefixes: BTreeSet::new(),
        localities: Localities::default(),
    });
    need.prefixes.insert(prefix);
    if localities != Localities::default() {
        need.localities = localities;
    }
}

/// Name, source and stat prefix of routes that come from elsewhere.
fn routes_of(listener: &Listener) -> Option<(&str, &ConfigSource, &str)> {
    let Some(TerminalFilter::Http(manager)) = &listener.filter_chains.first()?.terminal else { return None };
    match &manager.routes {
        RouteSource::Rds { source, name } => Some((name, source, &manager.stat_prefix)),
        RouteSource::Inline(_) | RouteSource::Scoped(_) => None,
    }
}
