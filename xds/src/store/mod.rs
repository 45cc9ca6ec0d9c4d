//! The resources in force, those on their way in, and the rules by which one becomes the other.
//!
//! No files and no clock here: what was read, and when, is told.
//!
//! A source that stands for all resources of its type (LDS, CDS) replaces them: what is not in it is removed. One that
//! stands for a single resource (RDS, EDS) changes it when it brings it. A resource that is wrong is refused, its
//! neighbours are applied, and its last good version serves on. A new or changed cluster waits for its endpoints and a
//! new or changed listener for its routes, up to the fetch timeout; until then the old one serves.

mod compose;
mod dynamic;
mod needs;
mod subscription;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use culvert_model::{Config, Listener, LoadAssignment, RouteConfiguration};
use envoy_types::pb::envoy::config::{
    cluster::v3 as cluster_pb, endpoint::v3 as endpoint_pb, listener::v3 as listener_pb,
    route::v3 as route_pb,
};

pub(crate) use dynamic::{Dynamic, Failure, Held};
use dynamic::{Index, Refusal};
pub(crate) use subscription::{Source, Subscription};

use crate::{
    Changes, Error, Loaded, Note,
    convert::{self, Clusters, Localities},
    load::{Raw, same_address},
    resource::{Kind, Resource},
    source::{Batch, FileError},
};

/// A dynamic cluster, with what is needed to read its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) model: Arc<culvert_model::Cluster>,
    pub(crate) localities: Localities,
}

/// A load assignment as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) model: Arc<LoadAssignment>,
    /// What the weights of localities were taken to mean.
    localities: Localities,
}

/// All resources of a process.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) raw: Raw,
    pub(crate) started: SystemTime,
    fixed: Config,
    fixed_localities: Vec<(String, Localities)>,
    pub(crate) clusters: Vec<Dynamic<Cluster>>,
    pub(crate) listeners: Vec<Dynamic<Arc<Listener>>>,
    pub(crate) routes: BTreeMap<String, Dynamic<Arc<RouteConfiguration>>>,
    pub(crate) assignments: BTreeMap<String, Dynamic<Assignment>>,
    subscriptions: BTreeMap<Source, Subscription>,
    /// What LDS brought last when some of it was refused: it may be right after the clusters have changed.
    refused_listeners: Option<Batch>,
    /// What was composed last.
    config: Arc<Config>,
    /// Remarks about accepted resources, to be logged.
    notes: Vec<Note>,
    /// `server.dynamic_unknown_fields`
    pub(crate) unknown_fields: u64,
}

impl Store {
    /// The resources of a bootstrap, and subscriptions to those that it names.
    pub(crate) fn new(loaded: &Loaded, now: Instant, time: SystemTime) -> Self {
        let mut store = Self {
            raw: loaded.raw.clone(),
            started: time,
            fixed: loaded.bootstrap.config.clone(),
            fixed_localities: loaded.localities.clone(),
            clusters: Vec::new(),
            listeners: Vec::new(),
            routes: BTreeMap::new(),
            assignments: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            refused_listeners: None,
            config: Arc::default(),
            notes: Vec::new(),
            unknown_fields: 0,
        };
        let own = [(Source::Cds, &loaded.bootstrap.cds), (Source::Lds, &loaded.bootstrap.lds)];
        for (source, config) in own {
            if let Some(config) = config {
                store.subscriptions.insert(source, Subscription::new(config.clone()));
            }
        }
        store.settle(now);
        store
    }

    /// Files that are watched, with their `watched_directory`.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Option<PathBuf>> {
        let started = self.subscriptions.values().filter(|subscription| subscription.is_started());
        let watched = |s: &Subscription| {
            let directory = s.config.watched_directory().map(Path::to_owned);
            s.config.file().map(|path| (path.to_owned(), directory))
        };
        started.filter_map(watched).collect()
    }

    /// Files of subscriptions that were started and have not been given what is in them.
    pub(crate) fn unread(&self) -> BTreeSet<PathBuf> {
        let unread = self.subscriptions.values().filter(|s| s.is_unread());
        unread.filter_map(|s| s.config.file().map(Path::to_owned)).collect()
    }

    /// Subscriptions, by what they bring.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (&Source, &Subscription)> {
        self.subscriptions.iter()
    }

    /// When the next fetch timeout passes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.subscriptions.values().filter_map(Subscription::deadline).min()
    }

    /// Whether every source was read, or given up waiting for.
    pub(crate) fn is_initialised(&self) -> bool {
        self.subscriptions.values().all(Subscription::is_done)
    }

    /// Takes what `path` holds now. `only_unread` leaves out subscriptions that have seen it. Returns errors, for the
    /// log.
    pub(crate) fn apply(
        &mut self,
        path: &Path,
        read: &Result<Batch, FileError>,
        only_unread: bool,
        now: Instant,
        time: SystemTime,
    ) -> Vec<Error> {
        let mut errors = Vec::new();
        if let Ok(batch) = read {
            self.unknown_fields += batch.unknown.len() as u64;
            self.notes.extend(batch.unknown.iter().cloned());
        }
        let concerned: Vec<Source> = self
            .subscriptions
            .iter()
            .filter(|(_, s)| {
                s.config.file() == Some(path) && s.is_started() && (!only_unread || s.is_unread())
            })
            .map(|(source, _)| source.clone())
            .collect();
        let index = |kind, wanted: fn(&Source) -> bool| {
            let batch = read.as_ref().ok().filter(|_| concerned.iter().any(wanted))?;
            Some(Index::new(kind, batch))
        };
        let routes = index(Kind::RouteConfiguration, |source| matches!(source, Source::Rds(_)));
        let assignments = index(Kind::LoadAssignment, |source| matches!(source, Source::Eds(_)));
        // What is wrong with a file is wrong for every source that it stands for.
        let mut seen = HashSet::new();
        for source in &concerned {
            let index = if matches!(source, Source::Rds(_)) { &routes } else { &assignments };
            let found = self.deliver(source, read, index.as_ref(), time);
            errors.extend(found.into_iter().filter(|error| seen.insert(error.to_string())));
        }
        self.settle(now);
        errors
    }

    /// Gives up waiting for sources whose fetch timeout has passed.
    pub(crate) fn expire(&mut self, now: Instant) {
        for (source, subscription) in &mut self.subscriptions {
            if subscription.deadline().is_some_and(|deadline| deadline <= now) {
                subscription.time_out();
                log::warn!("{source}: nothing came in time");
            }
        }
        self.settle(now);
    }

    /// Remarks about resources that were accepted since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// The configuration, and what is different from the one before; `None` when nothing is.
    pub(crate) fn compose(&mut self) -> Option<(Arc<Config>, Changes)> {
        let (config, changes) = compose::compose(self);
        if changes == Changes::default() {
            return None;
        }
        self.config = Arc::new(config);
        Some((self.config.clone(), changes))
    }

    /// The configuration composed last.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.clone()
    }

    fn deliver(
        &mut self,
        source: &Source,
        read: &Result<Batch, FileError>,
        index: Option<&Index<'_>>,
        time: SystemTime,
    ) -> Vec<Error> {
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => {
                // A file that is not there yet may come in time; one that is malformed is an answer.
                let answered = !matches!(error, FileError::Io(_));
                if let Some(subscription) = self.subscriptions.get_mut(source) {
                    subscription.failed(answered);
                }
                return match error {
                    FileError::Malformed(errors) => errors.clone(),
                    FileError::Io(e) => vec![self.file_error(source, e.to_string())],
                };
            }
        };
        let outcome = match (source, index) {
            (Source::Cds, _) => self.deliver_clusters(batch, time),
            (Source::Lds, _) => self.deliver_listeners(batch, time),
            (Source::Rds(name), Some(index)) => self.deliver_routes(name, index, batch, time),
            (Source::Eds(name), Some(index)) => self.deliver_assignment(name, index, batch, time),
            (Source::Rds(_) | Source::Eds(_), None) => return Vec::new(),
        };
        let Some(subscription) = self.subscriptions.get_mut(source) else { return Vec::new() };
        match outcome {
            Ok(changed) => {
                subscription.accepted(&batch.version, changed, time);
                Vec::new()
            }
            Err(Refusal::Invalid(errors)) => {
                subscription.rejected(true);
                errors
            }
            Err(Refusal::Missing(error)) => {
                subscription.rejected(false);
                vec![error]
            }
        }
    }

    fn file_error(&self, source: &Source, reason: String) -> Error {
        let path = self
            .subscriptions
            .get(source)
            .and_then(|s| s.config.file())
            .map(|path| path.display().to_string());
        let path = path.unwrap_or_default();
        Error::invalid(source.to_string(), "", format!("{path}: {reason}"))
    }

    fn deliver_clusters(&mut self, batch: &Batch, time: SystemTime) -> Result<bool, Refusal> {
        let fixed: Vec<_> = self.fixed.clusters.iter().map(|cluster| cluster.name.clone()).collect();
        let (changed, errors) =
            dynamic::replace(&mut self.clusters, Kind::Cluster, batch, time, |resource, _| {
                not_static(resource, fixed.iter().any(|name| **name == *resource.name))?;
                let (cluster, notes) = resource.convert::<cluster_pb::Cluster, _>(convert::cluster)?;
                self.notes.extend(notes);
                Ok(Cluster { model: Arc::new(cluster.model), localities: cluster.localities })
            })?;
        // Listeners that were refused for a cluster they did not find may be right now.
        if changed && let Some(refused) = self.refused_listeners.take() {
            let outcome = self.deliver_listeners(&refused, time);
            if let (Ok(changed), Some(subscription)) = (outcome, self.subscriptions.get_mut(&Source::Lds)) {
                subscription.accepted(&refused.version, changed, time);
            }
        }
        if errors.is_empty() { Ok(changed) } else { Err(Refusal::Invalid(errors)) }
    }

    fn deliver_listeners(&mut self, batch: &Batch, time: SystemTime) -> Result<bool, Refusal> {
        let dynamic: Vec<_> = self.clusters.iter().filter(|c| c.is_there()).map(|c| c.name.clone()).collect();
        let names: HashSet<&str> =
            self.fixed.clusters.iter().map(|c| &*c.name).chain(dynamic.iter().map(String::as_str)).collect();
        let clusters = Clusters { exists: &|name| names.contains(name), validate: true };
        let fixed = self.fixed.listeners.clone();
        let notes = &mut self.notes;
        let convert = |resource: &Resource, others: &[Dynamic<Arc<Listener>>]| {
            not_static(resource, fixed.iter().any(|listener| listener.name == resource.name))?;
            let (listener, more) = resource.convert::<listener_pb::Listener, _>(|at, message| {
                convert::listener(at, message, &clusters)
            })?;
            let others = others.iter().filter_map(|other| other.latest().map(|held| &*held.value));
            let known = fixed.iter().map(AsRef::as_ref).chain(others);
            if let Some(error) = same_address(&listener, known.filter(|other| other.name != listener.name)) {
                return Err(vec![error]);
            }
            notes.extend(more);
            Ok(Arc::new(listener))
        };
        let (changed, errors) = dynamic::replace(&mut self.listeners, Kind::Listener, batch, time, convert)?;
        self.refused_listeners = (!errors.is_empty()).then(|| batch.clone());
        if errors.is_empty() { Ok(changed) } else { Err(Refusal::Invalid(errors)) }
    }

    fn deliver_routes(
        &mut self,
        name: &str,
        index: &Index<'_>,
        batch: &Batch,
        time: SystemTime,
    ) -> Result<bool, Refusal> {
        let Some(resource) = index.pick(name)? else { return Ok(false) };
        let dynamic: Vec<_> =
            self.clusters.iter().filter(|c| c.is_there()).map(|c| c.name.as_str()).collect();
        let fixed = &self.fixed.clusters;
        let exists =
            |name: &str| dynamic.contains(&name) || fixed.iter().any(|cluster| &*cluster.name == name);
        let clusters = Clusters { exists: &exists, validate: false };
        let notes = &mut self.notes;
        let entry = self.routes.entry(name.to_owned()).or_insert_with(|| Dynamic::new(name));
        let updated = entry.update_now(resource, &batch.version, time, |resource| {
            let converted = resource.convert::<route_pb::RouteConfiguration, _>(|at, message| {
                convert::route_configuration(at, message, &clusters)
            });
            converted.map(|(routes, more)| {
                notes.extend(more);
                Arc::new(routes)
            })
        });
        Ok(updated?)
    }

    fn deliver_assignment(
        &mut self,
        name: &str,
        index: &Index<'_>,
        batch: &Batch,
        time: SystemTime,
    ) -> Result<bool, Refusal> {
        let Some(resource) = index.pick(name)? else { return Ok(false) };
        let localities = self.subscriptions.get(&Source::Eds(name.to_owned())).map(|s| s.localities);
        let localities = localities.unwrap_or_default();
        let notes = &mut self.notes;
        let entry = self.assignments.entry(name.to_owned()).or_insert_with(|| Dynamic::new(name));
        let updated = entry.update_now(resource, &batch.version, time, |resource| {
            let (assignment, more) = assignment(resource, localities)?;
            notes.extend(more);
            Ok(assignment)
        });
        Ok(updated?)
    }
}

fn assignment(resource: &Resource, localities: Localities) -> Result<(Assignment, Vec<Note>), Vec<Error>> {
    let (model, notes) = resource.convert::<endpoint_pb::ClusterLoadAssignment, _>(|at, message| {
        convert::load_assignment(at, message, localities)
    })?;
    Ok((Assignment { model: Arc::new(model), localities }, notes))
}

/// A resource from a file does not take the place of one from the bootstrap.
fn not_static(resource: &Resource, is_static: bool) -> Result<(), Vec<Error>> {
    if !is_static {
        return Ok(());
    }
    let reason = format!("the bootstrap has a static {} of that name", resource.kind);
    Err(vec![Error::invalid(resource.kind.title(&resource.name), "name", reason)])
}

#[cfg(test)]
mod tests;
