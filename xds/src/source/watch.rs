//! inotify: which files may have changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use super::interest::{Interest, interests};

/// Rounds of looking at paths that change while they are looked at.
const ROUNDS_MAX: usize = 8;

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
    Async(AsyncFd<Inotify>),
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
            let Watching::Async(inotify) = &mut self.inotify else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let mut ready = inotify.readable_mut().await?;
            let mut buffer = [0; 4_096];
            let read = ready.try_io(|inotify| Ok(collect(inotify.get_mut().read_events(&mut buffer)?)));
            match read {
                Ok(events) => {
                    let affected = self.affected(&events?);
                    if !affected.is_empty() {
                        return Ok(affected);
                    }
                }
                Err(_would_block) => {}
            }
        }
    }

    fn register(&mut self) -> io::Result<()> {
        if let Watching::New(_) = self.inotify
            && let Watching::New(inotify) = std::mem::replace(&mut self.inotify, Watching::Lost)
        {
            self.inotify = Watching::Async(AsyncFd::new(inotify)?);
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
            Watching::Async(inotify) => inotify.get_ref().watches(),
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

    fn affected(&self, events: &[Event]) -> BTreeSet<PathBuf> {
        let mut affected = BTreeSet::new();
        for event in events {
            let Event::In { descriptor, name, mask } = event else {
                return self.files.keys().cloned().collect();
            };
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
                    && (gone
                        || interest.name.as_ref().is_none_or(|wanted| wanted.as_os_str() == name.as_os_str()))
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

/// What inotify said, without its buffer.
enum Event {
    In {
        descriptor: WatchDescriptor,
        name: std::ffi::OsString,
        mask: EventMask,
    },
    /// Events were lost.
    Overflow,
}

fn collect(events: inotify::Events<'_>) -> Vec<Event> {
    events
        .map(|event| match event.mask.contains(EventMask::Q_OVERFLOW) {
            true => Event::Overflow,
            false => Event::In {
                descriptor: event.wd,
                name: event.name.unwrap_or_else(|| OsStr::new("")).to_owned(),
                mask: event.mask,
            },
        })
        .collect()
}

/// A new regular file is written before it is closed, which is an event of its own; only one that was linked is not.
fn is_being_written(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests;
