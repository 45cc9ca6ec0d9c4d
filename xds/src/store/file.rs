//! What files bring.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use culvert_model::SourceSpecifier;

use super::{Body, Delivery, EntryId, FeedId, Incoming, Store, Subscription};
use crate::{
    Error,
    source::{Batch, FileError},
};

impl Store {
    /// Whether the files to be watched are others than the last time.
    pub(crate) fn take_files_changed(&mut self) -> bool {
        std::mem::take(&mut self.files_changed)
    }

    /// Files of subscriptions that were started and have not been given what is in them.
    pub(crate) fn unread(&self) -> BTreeSet<PathBuf> {
        let unread = self.pending_files.iter().filter_map(|id| self.entry(*id).subscription.as_deref());
        let unread = unread.filter(|subscription| subscription.is_unread());
        unread.filter_map(|subscription| subscription.config.file().map(Path::to_owned)).collect()
    }

    /// Files in the order in which they are applied: clusters before endpoints, listeners and routes.
    pub(crate) fn in_order(&self, paths: BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let kind = |path: &PathBuf| {
            let feeds = self.feeds.iter().filter(|feed| is_file(feed.source.as_ref(), path));
            feeds.map(|feed| feed.kind).min()
        };
        let mut ordered: Vec<_> = paths.into_iter().filter_map(|path| Some((kind(&path)?, path))).collect();
        ordered.sort();
        ordered.into_iter().map(|(_, path)| path).collect()
    }

    /// Takes what `path` holds now. `only_unread` leaves out subscriptions that have seen it. Returns errors, for the
    /// log.
    pub(crate) fn apply_file(
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
        let mut feeds: Vec<_> =
            (0..self.feeds.len()).filter(|i| is_file(self.feeds[*i].source.as_ref(), path)).collect();
        feeds.sort_by_key(|index| self.feeds[*index].kind);
        for index in feeds {
            let feed = &self.feeds[index];
            let wanted = |id: &EntryId| {
                let wanted = |s: &Subscription| s.is_started() && (!only_unread || s.is_unread());
                self.entry(*id).subscription.as_deref().is_some_and(wanted)
            };
            let mut concerned: Vec<_> =
                feed.collection.iter().chain(feed.names.values()).copied().filter(wanted).collect();
            concerned.sort_unstable();
            if concerned.is_empty() {
                continue;
            }
            let id = FeedId(u32::try_from(index).unwrap_or(u32::MAX));
            errors.extend(match read {
                Ok(batch) => self.apply_batch(id, &concerned, batch, now, time),
                Err(error) => self.unreadable(path, &concerned, error),
            });
        }
        self.settle(now);
        // What is wrong with a file is wrong for everything that it stands for.
        let mut seen = BTreeSet::new();
        errors.retain(|error| seen.insert(error.to_string()));
        errors
    }

    fn unreadable(&mut self, path: &Path, concerned: &[EntryId], error: &FileError) -> Vec<Error> {
        // A file that is not there yet may come in time; one that is malformed is an answer.
        let answered = !matches!(error, FileError::Io(_));
        for id in concerned {
            if let Some(subscription) = &mut self.entry_mut(*id).subscription {
                subscription.failed(answered);
            }
            if answered {
                self.done(*id);
            }
        }
        match error {
            FileError::Malformed(errors) => errors.clone(),
            FileError::Io(error) => {
                let kind = concerned.first().map(|id| self.kind_of(self.entry(*id)).service());
                let reason = format!("{}: {error}", path.display());
                vec![Error::invalid(kind.unwrap_or_default(), "", reason)]
            }
        }
    }

    fn apply_batch(
        &mut self,
        feed: FeedId,
        concerned: &[EntryId],
        batch: &Batch,
        now: Instant,
        time: SystemTime,
    ) -> Vec<Error> {
        let Some(source) = self.feeds[feed.0 as usize].source.clone() else { return Vec::new() };
        let incoming = |resource: &crate::resource::Resource| Incoming {
            name: String::new(),
            version: String::new(),
            ttl: None,
            body: Body::Decoded(resource.clone()),
        };
        let delivery = Delivery {
            source,
            kind: self.feeds[feed.0 as usize].kind,
            version: batch.version.clone(),
            full: true,
            resources: batch.resources.iter().map(incoming).collect(),
            removed: Vec::new(),
            broken: Vec::new(),
        };
        if let Some(collection) = self.feeds[feed.0 as usize].collection {
            return self.deliver_all(feed, collection, &delivery, now, time).err().unwrap_or_default();
        }
        self.apply_named(concerned, &delivery, now, time)
    }

    /// Gives each subscription its resource. Other ones only are no answer; none at all say that nothing changes.
    fn apply_named(
        &mut self,
        concerned: &[EntryId],
        delivery: &Delivery,
        now: Instant,
        time: SystemTime,
    ) -> Vec<Error> {
        let version: Arc<str> = delivery.version.as_str().into();
        let checked = super::deliver::check(delivery);
        let by_name: HashMap<&str, &Incoming> = delivery
            .resources
            .iter()
            .filter_map(|incoming| match &incoming.body {
                Body::Decoded(resource) => Some((resource.name.as_str(), incoming)),
                _ => None,
            })
            .collect();
        let mut errors = Vec::new();
        for id in concerned {
            let key = self.entry(*id).key.clone();
            if let Err(found) = &checked {
                self.reject(*id);
                errors.extend(found.iter().cloned());
            } else if let Some(incoming) = by_name.get(key.name.as_str()) {
                errors.extend(self.take_one(*id, incoming, &version, now, time).err().unwrap_or_default());
            } else if by_name.is_empty() {
                if let Some(subscription) = &mut self.entry_mut(*id).subscription {
                    subscription.accepted(&version, false, time);
                }
                self.done(*id);
            } else {
                if let Some(subscription) = &mut self.entry_mut(*id).subscription {
                    subscription.rejected(false);
                }
                let reason = format!("not among the {} resources", by_name.len());
                errors.push(Error::invalid(delivery.kind.title(&key.name), "", reason));
            }
        }
        errors
    }
}

fn is_file(source: Option<&SourceSpecifier>, path: &Path) -> bool {
    matches!(source, Some(SourceSpecifier::File { path: other, .. }) if other == path)
}
