//! Who needs what, what is asked for when, and what may serve.

use std::time::Instant;

use super::{BOOTSTRAP, Entry, EntryId, Store, Value, entry::Needed, value::Need};
use crate::resource::Kind;

impl Store {
    /// Subscribes to what `value` of `user` needs.
    pub(super) fn attach(&mut self, user: EntryId, value: &Value) -> Box<[Needed]> {
        let mut needs = Vec::new();
        value.needs(|need| needs.push(self.attach_one(user, need)));
        needs.into()
    }

    fn attach_one(&mut self, user: EntryId, need: Need<'_>) -> Needed {
        let id = match need.name {
            Some(name) => self.subscribe(need.kind, need.source, name, need.prefix),
            None => self.collection(need.kind, need.source, need.prefix),
        };
        let entry = self.entry_mut(id);
        entry.add_user(user);
        if let Some(subscription) = &mut entry.subscription {
            subscription.waiters += u32::from(!need.eager);
        }
        Needed { id, eager: need.eager }
    }

    /// Gives up what a version of `user` needed.
    pub(super) fn detach(&mut self, user: EntryId, value: &Value, needs: &[Needed]) {
        let mut needed = needs.iter();
        let mut given_up = Vec::new();
        value.needs(|need| given_up.extend(needed.next().map(|needed| (*needed, need.prefix))));
        for (Needed { id, eager }, prefix) in given_up {
            let entry = self.entry_mut(id);
            entry.remove_user(user);
            if let Some(subscription) = &mut entry.subscription {
                subscription.waiters -= u32::from(!eager);
                subscription.remove_prefix(&prefix);
                self.subscriptions_changed += u64::from(!subscription.prefixes.contains_key(&prefix));
            }
            if self.entry(id).users.is_empty() {
                self.touched.push(id);
            }
        }
    }

    /// Asks for the endpoints of a new or changed cluster again, although there are some: they may be those of the old
    /// version. A file is what it was read to be.
    pub(super) fn renew(&mut self, needs: &[Needed], now: Instant) {
        for Needed { id, .. } in needs {
            let feed = self.entry(*id).feed;
            let kind = self.feeds[feed.0 as usize].kind;
            let Some(subscription) = &mut self.entry_mut(*id).subscription else { continue };
            if kind != Kind::LoadAssignment || subscription.is_file() || !subscription.is_started() {
                continue;
            }
            if subscription.renew(now) {
                let deadline = subscription.deadline();
                self.pending.insert(*id);
                self.wait(*id, deadline);
            }
            let name = self.entry(*id).key.name.clone();
            self.renewed.entry(feed).or_default().insert(name);
        }
    }

    fn wait(&mut self, id: EntryId, deadline: Option<Instant>) {
        self.entry_mut(id).deadline = deadline;
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
    }

    /// Brings subscriptions and resources in line with each other until nothing changes.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            while let Some(id) = self.touched.pop() {
                self.look_at(id, now);
            }
            if !self.open_listeners() {
                return;
            }
        }
    }

    fn look_at(&mut self, id: EntryId, now: Instant) {
        let Some(entry) = self.get(id) else { return };
        if entry.subscription.is_some() && entry.users.is_empty() {
            self.drop_entry(id);
            return;
        }
        self.start(id, now);
        self.promote(id);
    }

    /// Whether a subscription may be started: listeners refer to clusters, which have to be there first.
    fn may_start(&self, entry: &Entry) -> bool {
        match self.kind_of(entry) {
            Kind::Cluster | Kind::LoadAssignment | Kind::Runtime | Kind::Secret => true,
            Kind::ExtensionConfig
            | Kind::Listener
            | Kind::RouteConfiguration
            | Kind::ScopedRoute
            | Kind::VirtualHost => self.listeners_open,
        }
    }

    fn start(&mut self, id: EntryId, now: Instant) {
        if !self.may_start(self.entry(id)) {
            return;
        }
        let entry = self.entry_mut(id);
        let feed = entry.feed;
        let Some(subscription) = &mut entry.subscription else { return };
        if subscription.start(now) {
            let deadline = subscription.deadline();
            self.wait(id, deadline);
            self.ask(feed);
        }
    }

    /// What is wanted of a feed has changed.
    pub(super) fn ask(&mut self, feed: super::FeedId) {
        self.feeds[feed.0 as usize].stale = true;
        self.wanted_changed = true;
        self.files_changed = true;
    }

    /// Starts with listeners once all clusters are there with their endpoints, or were given up waiting for.
    fn open_listeners(&mut self) -> bool {
        if self.listeners_open {
            return false;
        }
        let is_first = |id: &EntryId| {
            let kind = self.kind_of(self.entry(*id));
            matches!(kind, Kind::Cluster | Kind::LoadAssignment | Kind::Runtime | Kind::Secret)
        };
        if self.pending.iter().any(is_first) {
            return false;
        }
        self.listeners_open = true;
        self.touched.extend(&self.pending);
        true
    }

    /// Lets a version serve that has what it needs.
    pub(super) fn promote(&mut self, id: EntryId) {
        let entry = self.entry(id);
        let kind = self.kind_of(entry);
        let Some(warm) = &entry.warming else { return };
        if !warm.needs.iter().all(|need| need.eager || self.entry(need.id).is_ready()) {
            return;
        }
        let entry = self.entry_mut(id);
        let warm = entry.warming.take();
        let old = std::mem::replace(&mut entry.active, warm);
        self.next.warm(kind, id, false);
        self.next.changed(kind, id, old.is_none());
        if let Some(old) = old {
            self.detach(id, &old.value, &old.needs);
        }
    }

    /// Nobody has to wait for `id` any more.
    pub(super) fn done(&mut self, id: EntryId) {
        if self.pending.remove(&id) {
            self.pending_files.remove(&id);
            if let Some(deadline) = self.entry_mut(id).deadline.take() {
                self.deadlines.remove(&(deadline, id));
            }
            let users: Vec<_> = self.entry(id).users.iter().map(|(user, _)| *user).collect();
            self.touched.extend(users.into_iter().filter(|user| *user != BOOTSTRAP));
        }
    }

    /// Removes an entry with everything it needed.
    pub(super) fn drop_entry(&mut self, id: EntryId) {
        let Some(entry) = self.entries[id.0 as usize].take() else { return };
        let feed = &mut self.feeds[entry.feed.0 as usize];
        let kind = feed.kind;
        let members = match feed.collection {
            // Without a subscription nobody has them.
            Some(collection) if collection == id => {
                feed.collection = None;
                std::mem::take(&mut feed.order)
            }
            _ => {
                feed.names.remove(entry.name());
                Vec::new()
            }
        };
        self.pending.remove(&id);
        self.pending_files.remove(&id);
        if entry.subscription.is_some() {
            self.subscriptions_changed += 1;
            self.ask(entry.feed);
        }
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(expiry) = entry.expiry {
            self.expiries.remove(&(expiry, id));
        }
        self.refused_listeners.remove(&id);
        self.unbound_listeners.remove(&id);
        self.next.removed(kind, id, &entry);
        for held in entry.active.iter().chain(&entry.warming) {
            self.detach(id, &held.value, &held.needs);
        }
        self.free.push(id);
        members.into_iter().for_each(|member| self.drop_entry(member));
    }

    /// Gives up waiting for what did not come in time, and removes what was not heard of again in its time to live.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((deadline, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(deadline, id));
            let entry = self.entry_mut(id);
            let key = entry.key.clone();
            entry.deadline = None;
            if let Some(subscription) = &mut entry.subscription {
                subscription.time_out();
            }
            log::warn!("{} {:?}: nothing came in time", self.kind_of(self.entry(id)).service(), key.name);
            self.done(id);
        }
        let mut over = Vec::new();
        while let Some((expiry, id)) = self.expiries.first().copied().filter(|(at, _)| *at <= now) {
            self.expiries.remove(&(expiry, id));
            self.entry_mut(id).expiry = None;
            let name = self.entry(id).key.name.clone();
            log::warn!("{}: its time to live is over", self.kind_of(self.entry(id)).title(&name));
            over.push(id);
        }
        self.remove_expired(&over);
        self.settle(now);
    }

    /// Counts a failed connection for everything that comes over it.
    pub(crate) fn disconnected(&self, source: &culvert_model::SourceSpecifier, kind: Kind) {
        let Some(feed) = self.by_source.get(&(Some(source.clone()), kind)) else { return };
        let feed = &self.feeds[feed.0 as usize];
        let ids = feed.collection.iter().chain(feed.names.values());
        for subscription in ids.filter_map(|id| self.entry(*id).subscription.as_deref()) {
            subscription.disconnected();
        }
    }
}
