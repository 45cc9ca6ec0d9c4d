//! A resource with its history.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use culvert_model::ResourceKey;

use super::{Subscription, Value};
use crate::resource::Resource;

/// An entry of the store's table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct EntryId(pub(super) u32);

/// What needs the bootstrap's own subscriptions; it is no entry.
pub(super) const BOOTSTRAP: EntryId = EntryId(u32::MAX);

/// A feed of the store.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct FeedId(pub(super) u32);

/// A resource by its name, or the subscription to all resources of a type.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) feed: FeedId,
    /// Its name, and where it comes from.
    pub(crate) key: Arc<ResourceKey>,
    /// What serves.
    pub(crate) active: Option<Held>,
    /// What will serve when what it needs is there.
    pub(crate) warming: Option<Held>,
    /// The last version, when it was refused.
    pub(crate) failure: Option<Box<Failure>>,
    /// Who needs it, and how many times. Sorted.
    pub(super) users: Vec<(EntryId, u32)>,
    /// For what is asked for by name, and for collections.
    pub(crate) subscription: Option<Box<Subscription>>,
    /// When waiting for it ends.
    pub(super) deadline: Option<Instant>,
    /// When it is removed unless it is heard of again.
    pub(super) expiry: Option<Instant>,
    /// Where it is in the configuration's list.
    pub(super) position: Option<u32>,
}

/// A version of a resource that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) resource: Resource,
    /// The hash of the bytes it came in.
    pub(super) wire: Option<u64>,
    pub(crate) value: Value,
    /// Version of the response, or of delta its own.
    pub(crate) version: Arc<str>,
    pub(crate) updated: SystemTime,
    /// What it needs.
    pub(super) needs: Box<[Needed]>,
}

/// An entry that a version of another one needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub(super) id: EntryId,
    /// It is subscribed to, but not waited for.
    pub(super) eager: bool,
}

/// A version of a resource that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) resource: Resource,
    pub(crate) version: Arc<str>,
    pub(crate) attempted: SystemTime,
    /// Why, one reason a line.
    pub(crate) details: String,
}

impl Entry {
    pub(super) fn new(feed: FeedId, key: ResourceKey) -> Self {
        Self {
            feed,
            key: Arc::new(key),
            active: None,
            warming: None,
            failure: None,
            users: Vec::new(),
            subscription: None,
            deadline: None,
            expiry: None,
            position: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.key.name
    }

    /// The version accepted last.
    pub(crate) fn latest(&self) -> Option<&Held> {
        self.warming.as_ref().or(self.active.as_ref())
    }

    /// Whether there is a version that serves or will.
    pub(crate) fn is_there(&self) -> bool {
        self.latest().is_some()
    }

    /// Whether nobody has to wait for it any more.
    pub(super) fn is_ready(&self) -> bool {
        self.subscription.as_deref().is_none_or(Subscription::is_done)
    }

    pub(super) fn add_user(&mut self, user: EntryId) {
        match self.users.binary_search_by_key(&user, |(id, _)| *id) {
            Ok(at) => self.users[at].1 += 1,
            Err(at) => self.users.insert(at, (user, 1)),
        }
    }

    pub(super) fn remove_user(&mut self, user: EntryId) {
        if let Ok(at) = self.users.binary_search_by_key(&user, |(id, _)| *id) {
            self.users[at].1 -= 1;
            if self.users[at].1 == 0 {
                self.users.remove(at);
            }
        }
    }
}
