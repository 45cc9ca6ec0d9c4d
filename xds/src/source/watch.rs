//! inotify: which files may have changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::interest::{Interest, interests};

/// Rounds of looking at paths that change while they are looked at.
const ROUNDS_MAX: usize = 8;
/// Room for some dozens of events; an event has at most 272 bytes.
const BUFFER_BYTES: usize = 4_096;

/// Watches files by the directories that decide what they are. A file counts as changed when a writer has closed it,
/// when something was renamed or linked to its name, and when a symbolic link on the way to it was replaced.
#[derive(Debug)]
pub(crate) struct Watcher {
    inotify: Watching,
    /// Interests of each file.
    files: BTreeMap<PathBuf, Vec<Interest>>,
    /// The directory that each file is watched through besides, if its source names one.
    directories: BTreeMap<PathBuf, PathBuf>,
    watches: HashMap<PathBuf, Watch>,
    paths: HashMap<WatchDescriptor, PathBuf>,
}

#[derive(Debug)]
enum Watching {
    /// Registered with the runtime that `changed` is called on.
    Async(EventStream<Vec<u8>>),
    /// Nobody has waited yet, so that there may be no runtime.
    New(Inotify),
    /// Between the two; seen only when registering failed.
    Lost,
}

#[derive(Debug)]
struct Watch {
    descriptor: WatchDescriptor,
    /// Device and inode, to see that another directory has taken its place.
    identity: (u64, u64),
    /// Whether files written in it are of interest.
    written: bool,
}

impl Watcher {
    /// # Errors
    /// No inotify instance can be had (`fs.inotify.max_user_instances`).
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: Watching::New(Inotify::init()?),
            files: BTreeMap::new(),
            directories: BTreeMap::new(),
            watches: HashMap::new(),
            paths: HashMap::new(),
        })
    }

    /// Watches exactly these files, given with their `watched_directory`. Call it before reading them: a change that
    /// comes later is seen.
    pub(crate) fn watch(&mut self, files: BTreeMap<PathBuf, Option<PathBuf>>) {
        self.files = files.keys().map(|path| (path.clone(), Vec::new())).collect();
        self.directories =
            files.into_iter().filter_map(|(path, directory)| Some((path, directory?))).collect();
        self.refresh();
    }

    /// As if inotify had failed.
    #[cfg(test)]
    pub(crate) fn lose(&mut self) {
        self.inotify = Watching::Lost;
    }

    /// Follows paths anew: links may lead elsewhere, and directories may have come or gone.
    pub(crate) fn refresh(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let before = self.files.clone();
            for (path, interests_of) in &mut self.files {
                *interests_of = interests(path);
                let any = |directory: &PathBuf| Interest {
                    directory: directory.clone(),
                    name: None,
                    passed: false,
                };
                interests_of.extend(self.directories.get(path).map(any));
            }
            let changed = self.watch_directories();
            if self.files == before && !changed {
                return;
            }
        }
    }

    /// Waits for changes and returns the files that may be affected, at least one.
    ///
    /// # Errors
    /// inotify cannot be read, which no state of the files brings about.
    pub(crate) async fn changed(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        loop {
            self.register()?;
            let Watching::Async(stream) = &mut self.inotify else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let events = std::future::poll_fn(|context| poll_events(stream, context)).await?;
            let affected = self.affected(&events);
            if !affected.is_empty() {
                return Ok(affected);
            }
        }
    }

    fn register(&mut self) -> io::Result<()> {
        if let Watching::New(_) = self.inotify
            && let Watching::New(inotify) = std::mem::replace(&mut self.inotify, Watching::Lost)
        {
            self.inotify = Watching::Async(inotify.into_event_stream(vec![0; BUFFER_BYTES])?);
        }
        Ok(())
    }

    /// Adds and removes watches; whether any was added.
    fn watch_directories(&mut self) -> bool {
        // Whether a directory is of interest for more than what replaces its subdirectories.
        let mut wanted: BTreeMap<PathBuf, bool> = BTreeMap::new();
        for interest in self.files.values().flatten() {
            *wanted.entry(interest.directory.clone()).or_default() |= !interest.passed;
        }
        let mut watches = match &self.inotify {
            Watching::Async(stream) => stream.watches(),
            Watching::New(inotify) => inotify.watches(),
            Watching::Lost => return false,
        };
        let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let stale: Vec<_> = self
            .watches
            .iter()
            .filter(|(path, watch)| {
                wanted.get(*path) != Some(&watch.written) || identity(path) != Some(watch.identity)
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            let Some(watch) = self.watches.remove(&path) else { continue };
            // Two paths can lead to one directory, which has one watch.
            if !self.watches.values().any(|other| other.descriptor == watch.descriptor) {
                self.paths.remove(&watch.descriptor);
                // It is gone already when the directory is.
                let _ = watches.remove(watch.descriptor);
            }
        }
        let mut added = false;
        for (path, written) in wanted {
            let Some(identity) = identity(&path).filter(|_| !self.watches.contains_key(&path)) else {
                continue;
            };
            match watches.add(&path, mask(written)) {
                Ok(descriptor) => {
                    self.paths.insert(descriptor.clone(), path.clone());
                    self.watches.insert(path, Watch { descriptor, identity, written });
                    added = true;
                }
                Err(e) => log::warn!("{}: changes will not be seen: {e}", path.display()),
            }
        }
        added
    }

    fn affected(&self, events: &[EventOwned]) -> BTreeSet<PathBuf> {
        let mut affected = BTreeSet::new();
        let no_name = OsString::new();
        for EventOwned { wd: descriptor, mask, name, .. } in events {
            if mask.contains(EventMask::Q_OVERFLOW) {
                return self.files.keys().cloned().collect();
            }
            let name = name.as_ref().unwrap_or(&no_name);
            let Some(directory) = self.paths.get(descriptor) else { continue };
            if mask.contains(EventMask::CREATE) && is_being_written(&directory.join(name)) {
                continue;
            }
            let gone = mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED);
            // By identity, since two paths can lead to one directory.
            let watched =
                |path: &Path| self.watches.get(path).is_some_and(|watch| watch.descriptor == *descriptor);
            let hit = |interest: &Interest| {
                watched(&interest.directory)
                    && (gone || interest.name.as_ref().is_none_or(|wanted| wanted == name))
            };
            let hits = self.files.iter().filter(|(_, interests)| interests.iter().any(hit));
            affected.extend(hits.map(|(path, _)| path.clone()));
        }
        affected
    }
}

/// Two paths can lead to one directory, whose masks add up.
fn mask(written: bool) -> WatchMask {
    let replaced = WatchMask::MOVED_TO
        | WatchMask::CREATE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let more = if written { WatchMask::CLOSE_WRITE } else { WatchMask::empty() };
    replaced | more | WatchMask::MASK_ADD
}

/// All events there are; ready when there is one.
fn poll_events(
    stream: &mut EventStream<Vec<u8>>,
    context: &mut Context<'_>,
) -> Poll<io::Result<Vec<EventOwned>>> {
    let mut events = Vec::new();
    loop {
        match Pin::new(&mut *stream).poll_next(context) {
            Poll::Ready(Some(Ok(event))) => events.push(event),
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(e)),
            Poll::Ready(None) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Pending if events.is_empty() => return Poll::Pending,
            Poll::Pending => return Poll::Ready(Ok(events)),
        }
    }
}

/// A new regular file is written before it is closed, which is an event of its own; only one that was linked is not.
fn is_being_written(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests;
