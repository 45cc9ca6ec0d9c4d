//! What control planes and files bring.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use culvert_model::{
    ConfigSource, HttpFilter, Listener, RouteSource, ScopeSource, SourceSpecifier, TerminalFilter,
};
use prost::bytes::Bytes;
use prost_reflect::DynamicMessage;

use super::{Entry, EntryId, Failure, FeedId, Held, Store, Value};
use crate::{
    Error, Note, NoteKind,
    addresses::{self, Addresses},
    at::Sink,
    convert::Clusters,
    decode::{self, UnknownFields},
    remote,
    resource::{Kind, Resource, first_string},
};

/// Resources of one type from one source.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) source: SourceSpecifier,
    pub(crate) kind: Kind,
    /// `version_info`, of delta `system_version_info`.
    pub(crate) version: String,
    /// Whether resources of a collection that are missing were removed.
    pub(crate) full: bool,
    pub(crate) resources: Vec<Incoming>,
    /// `removed_resources`
    pub(crate) removed: Vec<String>,
    /// Names, where known, and faults of what is no resource of the type.
    pub(crate) broken: Vec<(Option<String>, String)>,
}

/// A resource as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The name of the wrapper around it, or none.
    pub(crate) name: String,
    /// Its own version, of delta.
    pub(crate) version: String,
    /// It is removed unless it is heard of again within this time.
    pub(crate) ttl: Option<Duration>,
    pub(crate) body: Body,
}

/// What is in a resource.
#[derive(Debug)]
pub(crate) enum Body {
    /// From a file, which decoded it.
    Decoded(Resource),
    /// Nothing: it is as it was, and its time to live begins anew.
    Heartbeat,
    /// From a control plane.
    Wire { type_url: String, value: Bytes },
}

impl From<remote::Delivery> for Delivery {
    fn from(delivery: remote::Delivery) -> Self {
        let incoming = |resource: remote::RemoteResource| Incoming {
            name: resource.name,
            version: resource.version,
            ttl: resource.ttl,
            body: match resource.body {
                Some(body) => Body::Wire { type_url: body.type_url, value: body.value },
                None => Body::Heartbeat,
            },
        };
        Self {
            source: delivery.source,
            kind: delivery.resource_type.into(),
            version: delivery.version,
            full: delivery.full,
            resources: delivery.resources.into_iter().map(incoming).collect(),
            removed: delivery.removed,
            broken: delivery.broken.into_iter().map(|broken| (broken.name, broken.reason)).collect(),
        }
    }
}

/// A resource whose name is known.
struct Named<'a> {
    name: String,
    incoming: &'a Incoming,
}

impl Named<'_> {
    /// Whether it is no message at all, so that its name is not to be had.
    fn is_garbage(&self) -> bool {
        self.name.is_empty()
            && matches!(&self.incoming.body, Body::Wire { value, .. } if first_string(value).is_none())
    }

    fn garbage(&self, kind: Kind) -> Error {
        Error::invalid(kind.title(&self.name), "", "does not decode")
    }
}

impl Store {
    /// Takes what a control plane has sent.
    ///
    /// # Errors
    /// Everything that is wrong with it, for the log and the refusal. What is right with it has been applied, unless
    /// a name comes twice.
    pub(crate) fn deliver(
        &mut self,
        delivery: &Delivery,
        now: Instant,
        time: SystemTime,
    ) -> Result<(), Vec<Error>> {
        let Some(feed) = self.by_source.get(&(Some(delivery.source.clone()), delivery.kind)).copied() else {
            return Ok(());
        };
        let outcome = match self.feeds[feed.0 as usize].collection {
            Some(collection) => self.deliver_all(feed, collection, delivery, now, time),
            None => self.deliver_named(feed, delivery, now, time),
        };
        self.settle(now);
        outcome
    }

    /// Replaces or changes the resources of a collection.
    pub(super) fn deliver_all(
        &mut self,
        feed: FeedId,
        collection: EntryId,
        delivery: &Delivery,
        now: Instant,
        time: SystemTime,
    ) -> Result<(), Vec<Error>> {
        let version: Arc<str> = delivery.version.as_str().into();
        let outcome = match named(delivery) {
            Ok(named) => self.replace(feed, &named, delivery, &version, now, time),
            Err(errors) => Err(errors),
        };
        let subscription = self.entry_mut(collection).subscription.as_mut();
        let outcome = match (outcome, subscription) {
            (Ok((changed, errors)), Some(subscription)) if errors.is_empty() => {
                subscription.accepted(&version, changed, time);
                Ok(())
            }
            (Ok((_, errors)) | Err(errors), subscription) => {
                subscription.into_iter().for_each(|subscription| subscription.rejected(true));
                Err(errors)
            }
        };
        self.done(collection);
        outcome
    }

    fn replace(
        &mut self,
        feed: FeedId,
        named: &[Named<'_>],
        delivery: &Delivery,
        version: &Arc<str>,
        now: Instant,
        time: SystemTime,
    ) -> Result<(bool, Vec<Error>), Vec<Error>> {
        let mut errors = broken(delivery);
        let kind = delivery.kind;
        let before = std::mem::take(&mut self.feeds[feed.0 as usize].order);
        // Heartbeats say nothing about what is not among them.
        let full = delivery.full
            && (delivery.resources.is_empty()
                || delivery.resources.iter().any(|resource| !matches!(resource.body, Body::Heartbeat)));
        let names = &self.feeds[feed.0 as usize].names;
        let mut gone: HashSet<EntryId> = if full {
            let kept = named.iter().map(|named| named.name.as_str());
            let kept = kept.chain(delivery.broken.iter().filter_map(|(name, _)| name.as_deref()));
            let kept: HashSet<_> = kept.filter_map(|name| names.get(name)).copied().collect();
            before.iter().copied().filter(|id| !kept.contains(id)).collect()
        } else {
            delivery.removed.iter().filter_map(|name| names.get(name)).copied().collect()
        };
        let nameless = delivery.broken.iter().any(|(name, _)| name.is_none());
        if full && (nameless || named.iter().any(Named::is_garbage)) {
            // It may have been any of them.
            gone.clear();
        }
        let mut changed = false;
        for id in &gone {
            changed |= self.entry(*id).is_there();
            self.drop_entry(*id);
        }
        let stayed: Vec<_> = before.iter().copied().filter(|id| !gone.contains(id)).collect();
        let mut order = if full { Vec::with_capacity(named.len()) } else { stayed.clone() };
        let mut seen: HashSet<EntryId> = order.iter().copied().collect();
        let mut clusters_came = false;
        let mut addresses = self.addresses(kind, &order);
        for named in named {
            if named.is_garbage() {
                errors.push(named.garbage(kind));
                continue;
            }
            let known = self.feeds[feed.0 as usize].names.get(&named.name).copied();
            if known.is_none() && matches!(named.incoming.body, Body::Heartbeat) {
                continue;
            }
            let id = known.unwrap_or_else(|| self.insert(feed, &named.name));
            let was_there = self.entry(id).is_there();
            let listener = self.listener(id);
            match self.take(id, named.incoming, version, &addresses, now, time) {
                Ok(news) => changed |= news,
                Err(more) => errors.extend(more),
            }
            clusters_came |= kind == Kind::Cluster && !was_there && self.entry(id).is_there();
            if seen.insert(id) {
                order.push(id);
            } else if let Some(listener) = listener {
                addresses.remove(id, &listener);
            }
            if let Some(listener) = self.listener(id) {
                addresses.add(id, &listener);
            }
        }
        order.extend(stayed.iter().filter(|id| seen.insert(**id)));
        if order != before {
            self.next.reorder(kind);
        }
        self.feeds[feed.0 as usize].order = order;
        if clusters_came {
            let refused = std::mem::take(&mut self.refused_listeners);
            self.retry_listeners(refused, now, time);
        }
        Ok((changed, errors))
    }

    /// Changes single resources.
    fn deliver_named(
        &mut self,
        feed: FeedId,
        delivery: &Delivery,
        now: Instant,
        time: SystemTime,
    ) -> Result<(), Vec<Error>> {
        let version: Arc<str> = delivery.version.as_str().into();
        let named = match named(delivery) {
            Ok(named) => named,
            Err(errors) => {
                self.reject_named(feed, delivery);
                return Err(errors);
            }
        };
        let mut errors = broken(delivery);
        for (name, _) in &delivery.broken {
            let known = name.as_ref().and_then(|name| self.feeds[feed.0 as usize].names.get(name));
            if let Some(id) = known.copied() {
                self.reject(id);
            }
        }
        for named in named {
            if named.is_garbage() {
                errors.push(named.garbage(delivery.kind));
                continue;
            }
            // Others than those that were asked for are let pass.
            let Some(id) = self.feeds[feed.0 as usize].names.get(&named.name).copied() else { continue };
            if let Err(more) = self.take_one(id, named.incoming, &version, now, time) {
                errors.extend(more);
            }
        }
        for name in &delivery.removed {
            if let Some(id) = self.feeds[feed.0 as usize].names.get(name).copied() {
                self.remove_resource(id);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Takes a resource for its subscription.
    pub(super) fn take_one(
        &mut self,
        id: EntryId,
        incoming: &Incoming,
        version: &Arc<str>,
        now: Instant,
        time: SystemTime,
    ) -> Result<(), Vec<Error>> {
        match self.take(id, incoming, version, &Addresses::default(), now, time) {
            Ok(changed) => {
                if let Some(subscription) = &mut self.entry_mut(id).subscription {
                    let own = (!incoming.version.is_empty()).then(|| incoming.version.as_str().into());
                    subscription.accepted(own.as_ref().unwrap_or(version), changed, time);
                }
                self.done(id);
                Ok(())
            }
            Err(errors) => {
                self.reject(id);
                Err(errors)
            }
        }
    }

    pub(super) fn reject(&mut self, id: EntryId) {
        if let Some(subscription) = &mut self.entry_mut(id).subscription {
            subscription.rejected(true);
        }
        self.done(id);
    }

    /// A response was refused as a whole.
    fn reject_named(&mut self, feed: FeedId, delivery: &Delivery) {
        let names: BTreeSet<_> =
            delivery.resources.iter().map(|incoming| name(delivery.kind, incoming)).collect();
        for name in names {
            if let Some(id) = self.feeds[feed.0 as usize].names.get(&name).copied() {
                self.reject(id);
            }
        }
    }

    /// Takes a version of a resource, which serves as soon as it has what it needs. `addresses` are those of listeners
    /// that were there before it. Returns whether it is news.
    fn take(
        &mut self,
        id: EntryId,
        incoming: &Incoming,
        version: &Arc<str>,
        addresses: &Addresses<EntryId>,
        now: Instant,
        time: SystemTime,
    ) -> Result<bool, Vec<Error>> {
        self.live(id, incoming.ttl, now);
        let entry = self.entry(id);
        let kind = self.kind_of(entry);
        let (resource, message, wire) = match &incoming.body {
            Body::Heartbeat => return Ok(false),
            Body::Decoded(resource) => (resource.clone(), None, None),
            Body::Wire { type_url, value } => {
                let wire = Some(culvert_model::xxh64(value, 0));
                if entry.latest().is_some_and(|held| held.wire == wire) {
                    self.entry_mut(id).failure = None;
                    return Ok(false);
                }
                let name = entry.name().to_owned();
                let (resource, message) = match decode(kind, &name, type_url, value) {
                    Ok(decoded) => decoded,
                    Err(errors) => {
                        // Not a part of the response, which it would keep in memory.
                        let bytes = Bytes::copy_from_slice(value);
                        let resource = Resource { kind, name, bytes };
                        self.fail(id, resource, version.clone(), &errors, time);
                        return Err(errors);
                    }
                };
                (resource, Some(message), wire)
            }
        };
        let entry = self.entry_mut(id);
        let (active, warming) = (&mut entry.active, &mut entry.warming);
        if let Some(held) = warming.as_mut().or(active.as_mut())
            && held.resource == resource
        {
            held.wire = wire;
            entry.failure = None;
            return Ok(false);
        }
        if warming.is_some() && active.as_ref().is_some_and(|held| held.resource == resource) {
            // Back to what still serves.
            entry.failure = None;
            self.withdraw(id);
            return Ok(true);
        }
        let version =
            if incoming.version.is_empty() { version.clone() } else { incoming.version.as_str().into() };
        self.refused_listeners.remove(&id);
        self.unbound_listeners.remove(&id);
        let accepted = self.accept(id, &resource, message.as_ref(), addresses);
        if kind == Kind::Listener && accepted.is_err() {
            self.refused_listeners.insert(id);
        }
        match accepted.and_then(|value| self.bindable(id, value, false)) {
            Ok(value) => {
                self.warm(
                    id,
                    Held { resource, wire, value, version, updated: time, needs: Box::default() },
                    now,
                );
                Ok(true)
            }
            Err(errors) => {
                self.fail(id, resource, version, &errors, time);
                Err(errors)
            }
        }
    }

    /// Refuses a listener whose addresses cannot be bound, as Envoy does. `again`: it was refused before.
    fn bindable(&mut self, id: EntryId, value: Value, again: bool) -> Result<Value, Vec<Error>> {
        let (Value::Listener(listener), Some(check)) = (&value, &self.bind_check.0) else { return Ok(value) };
        let Err(reason) = check(listener, again) else { return Ok(value) };
        let error = Error::invalid(Kind::Listener.title(&listener.name), "address", reason);
        self.unbound_listeners.insert(id, listener.clone());
        Err(vec![error])
    }

    fn fail(
        &mut self,
        id: EntryId,
        resource: Resource,
        version: Arc<str>,
        errors: &[Error],
        time: SystemTime,
    ) {
        let details = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        self.entry_mut(id).failure = Some(Box::new(Failure { resource, version, attempted: time, details }));
    }

    /// Lets a version wait for what it needs.
    fn warm(&mut self, id: EntryId, mut held: Held, now: Instant) {
        let kind = held.resource.kind;
        held.needs = self.attach(id, &held.value);
        if kind == Kind::Cluster {
            self.renew(&held.needs, now);
        }
        self.refused_listeners.remove(&id);
        self.unbound_listeners.remove(&id);
        let entry = self.entry_mut(id);
        entry.failure = None;
        let replaced = entry.warming.replace(held);
        self.next.warm(kind, id, true);
        if let Some(replaced) = replaced {
            self.detach(id, &replaced.value, &replaced.needs);
        }
        self.touched.push(id);
    }

    /// Gives up the version that waits.
    fn withdraw(&mut self, id: EntryId) {
        let kind = self.kind_of(self.entry(id));
        if let Some(held) = self.entry_mut(id).warming.take() {
            self.next.warm(kind, id, false);
            self.detach(id, &held.value, &held.needs);
        }
    }

    /// Converts a resource, with all that is only known in the company of others.
    fn accept(
        &mut self,
        id: EntryId,
        resource: &Resource,
        message: Option<&DynamicMessage>,
        addresses: &Addresses<EntryId>,
    ) -> Result<Value, Vec<Error>> {
        let fixed = self.by_source.get(&(None, resource.kind));
        if fixed.is_some_and(|feed| self.feeds[feed.0 as usize].names.contains_key(&resource.name)) {
            let reason = format!("the bootstrap has a static {} of that name", resource.kind);
            return Err(vec![Error::invalid(resource.kind.title(&resource.name), "name", reason)]);
        }
        let (mut value, notes) = self.convert(resource, message)?;
        if let Value::Scope(_, source) = &mut value {
            *source = self.routes_of_scopes(self.entry(id).feed);
        }
        if let Value::Listener(listener) = &value
            && let Some((address, other)) = addresses.taken(id, listener)
        {
            return Err(vec![addresses::duplicate(listener, address, self.entry(other).name())]);
        }
        if let Value::Extension(extension) = &value
            && let Some(types) = self.types_of(id)
            && !types.contains(&extension.type_name)
        {
            let reason = format!("a {} is not what is asked for: {}", extension.type_name, types.join(", "));
            return Err(vec![Error::invalid(resource.kind.title(&resource.name), "typed_config", reason)]);
        }
        self.remark(notes)?;
        Ok(value)
    }

    /// What an extension configuration may be: all filters that use it have to agree. `None` when there are none.
    fn types_of(&self, id: EntryId) -> Option<Vec<String>> {
        let entry = self.entry(id);
        let users = entry.users.iter().filter_map(|(user, _)| self.get(*user));
        let held = users.flat_map(|user| user.warming.iter().chain(&user.active));
        let listeners = held.filter_map(|held| match &held.value {
            Value::Listener(listener) => Some(listener),
            _ => None,
        });
        let managers = listeners.flat_map(|listener| listener.chains()).filter_map(|chain| {
            let Some(TerminalFilter::Http(manager)) = &chain.terminal else { return None };
            Some(manager)
        });
        let mut common: Option<Vec<String>> = None;
        for filter in managers.flat_map(|manager| &manager.filters) {
            let HttpFilter::Discovered(filter) = &filter.filter else { continue };
            if filter.name != entry.key.name || entry.key.source.as_ref() != Some(&filter.source.specifier) {
                continue;
            }
            match &mut common {
                Some(common) => common.retain(|of| filter.types.contains(of)),
                None => common = Some(filter.types.clone()),
            }
        }
        common
    }

    /// Of the listeners of the bootstrap and those in `order`; none for resources that have no address.
    fn addresses(&self, kind: Kind, order: &[EntryId]) -> Addresses<EntryId> {
        let mut addresses = Addresses::default();
        if kind == Kind::Listener {
            let fixed = self.by_source.get(&(None, kind));
            let fixed = fixed.map(|feed| self.feeds[feed.0 as usize].order.as_slice()).unwrap_or_default();
            for id in fixed.iter().chain(order) {
                self.listener(*id).iter().for_each(|listener| addresses.add(*id, listener));
            }
        }
        addresses
    }

    /// The version of a listener that was accepted last.
    fn listener(&self, id: EntryId) -> Option<Arc<Listener>> {
        match &self.entry(id).latest()?.value {
            Value::Listener(listener) => Some(listener.clone()),
            _ => None,
        }
    }

    /// Where the routes of a feed's scopes come from: the connection managers that use the scopes say so.
    fn routes_of_scopes(&self, feed: FeedId) -> Option<(ConfigSource, String)> {
        let feed = &self.feeds[feed.0 as usize];
        let users = &self.entry(feed.collection?).users;
        let held = users
            .iter()
            .filter_map(|(id, _)| self.get(*id))
            .flat_map(|user| user.warming.iter().chain(&user.active));
        held.filter_map(|held| match &held.value {
            Value::Listener(listener) => Some(listener),
            _ => None,
        })
        .flat_map(|listener| listener.filter_chains.iter().chain(&listener.default_filter_chain))
        .find_map(|chain| {
            let Some(TerminalFilter::Http(manager)) = &chain.terminal else { return None };
            let RouteSource::Scoped(scoped) = &manager.routes else { return None };
            let ScopeSource::Srds(source) = &scoped.scopes else { return None };
            let routes = scoped.routes.clone().filter(|_| feed.source.as_ref() == Some(&source.specifier))?;
            Some((routes, manager.stat_prefix.clone()))
        })
    }

    pub(super) fn convert(
        &self,
        resource: &Resource,
        message: Option<&DynamicMessage>,
    ) -> Result<(Value, Vec<Note>), Vec<Error>> {
        let exists = |name: &str| self.has_cluster(name);
        let clusters = Clusters { exists: &exists, validate: resource.kind == Kind::Listener };
        Value::convert(resource, message, &clusters)
    }

    /// Keeps notes for the log. Fields that do not exist are counted, or refused.
    pub(super) fn remark(&mut self, notes: Vec<Note>) -> Result<(), Vec<Error>> {
        let unknown: Vec<_> = notes.iter().filter(|note| note.kind == NoteKind::UnknownField).collect();
        if self.refuse_unknown && !unknown.is_empty() {
            let error = |note: &&Note| {
                Error::invalid(note.resource.clone(), &note.field, format!("unknown field: {}", note.text))
            };
            return Err(unknown.iter().map(error).collect());
        }
        self.unknown_fields += unknown.len() as u64;
        self.notes.extend(notes);
        Ok(())
    }

    /// Tries listeners again that were refused for their addresses.
    pub(crate) fn retry_unbound(&mut self, now: Instant, time: SystemTime) {
        let Some(check) = self.bind_check.0.clone() else { return };
        // Converted only when there is hope: this is asked each second.
        let free = self.unbound_listeners.extract_if(.., |_, listener| check(listener, true).is_ok());
        let free: BTreeSet<_> = free.map(|(id, _)| id).collect();
        if !free.is_empty() {
            self.retry_listeners(free, now, time);
            self.settle(now);
        }
    }

    /// Tries listeners again that were refused for what may be different now.
    fn retry_listeners(&mut self, refused: BTreeSet<EntryId>, now: Instant, time: SystemTime) {
        if refused.is_empty() {
            return;
        }
        let feeds = self.feeds.iter().filter(|feed| feed.kind == Kind::Listener && feed.source.is_some());
        let order: Vec<_> = feeds.flat_map(|feed| feed.order.iter().copied()).collect();
        let mut addresses = self.addresses(Kind::Listener, &order);
        for id in refused {
            let Some(failure) = self.entry(id).failure.clone() else { continue };
            let accepted = self.accept(id, &failure.resource, None, &addresses);
            if accepted.is_err() {
                self.refused_listeners.insert(id);
            }
            if let Ok(value) = accepted.and_then(|value| self.bindable(id, value, true)) {
                self.listener(id).iter().for_each(|listener| addresses.remove(id, listener));
                if let Value::Listener(listener) = &value {
                    addresses.add(id, listener);
                }
                let Failure { resource, version, .. } = *failure;
                self.warm(
                    id,
                    Held { resource, wire: None, value, version, updated: time, needs: Box::default() },
                    now,
                );
            }
        }
    }

    /// Begins the time to live of a resource, or lifts it.
    fn live(&mut self, id: EntryId, ttl: Option<Duration>, now: Instant) {
        let expiry = ttl.and_then(|ttl| now.checked_add(ttl));
        let before = std::mem::replace(&mut self.entry_mut(id).expiry, expiry);
        if let Some(before) = before {
            self.expiries.remove(&(before, id));
        }
        self.expiries.extend(expiry.map(|expiry| (expiry, id)));
    }

    /// The time to live of resources is over.
    pub(super) fn remove_expired(&mut self, ids: &[EntryId]) {
        let feeds: BTreeSet<_> = ids.iter().map(|id| self.entry(*id).feed).collect();
        let gone: HashSet<_> = ids.iter().copied().collect();
        for feed in feeds {
            let feed = &mut self.feeds[feed.0 as usize];
            if feed.collection.is_some() {
                feed.order.retain(|id| !gone.contains(id));
            }
        }
        ids.iter().for_each(|id| self.remove_resource(*id));
    }

    /// A resource was removed by its control plane, or its time to live is over. Of those that were asked for by name,
    /// most stay as they were, as in Envoy: what refers to them is the authority, and goes first. One of a collection
    /// is not in its order any more.
    fn remove_resource(&mut self, id: EntryId) {
        let kind = self.kind_of(self.entry(id));
        match kind {
            Kind::Cluster | Kind::Listener | Kind::ScopedRoute | Kind::VirtualHost => self.drop_entry(id),
            Kind::LoadAssignment => self.answered(id),
            Kind::ExtensionConfig | Kind::Runtime => {
                let entry: &mut Entry = self.entry_mut(id);
                if entry.active.take().is_some() {
                    self.next.changed(kind, id, false);
                }
                self.answered(id);
            }
            Kind::RouteConfiguration | Kind::Secret => {}
        }
    }

    fn answered(&mut self, id: EntryId) {
        if let Some(subscription) = &mut self.entry_mut(id).subscription {
            subscription.answered();
        }
        self.done(id);
    }
}

/// Whether a delivery may be applied at all.
///
/// # Errors
/// As [`named`].
pub(super) fn check(delivery: &Delivery) -> Result<(), Vec<Error>> {
    named(delivery).map(|_| ())
}

/// The names of the resources of a delivery.
///
/// # Errors
/// A resource is of another type, or a name comes twice.
fn named(delivery: &Delivery) -> Result<Vec<Named<'_>>, Vec<Error>> {
    let mut errors = Vec::new();
    let mut seen: HashMap<String, bool> = HashMap::with_capacity(delivery.resources.len());
    let mut all = Vec::with_capacity(delivery.resources.len());
    for incoming in &delivery.resources {
        let kind = match &incoming.body {
            Body::Decoded(resource) => Some(resource.kind),
            Body::Heartbeat => Some(delivery.kind),
            Body::Wire { type_url, .. } => Kind::of(decode::type_name(type_url)),
        };
        let name = name(delivery.kind, incoming);
        if kind != Some(delivery.kind) {
            let title = kind.map_or_else(|| format!("resource {name:?}"), |kind| kind.title(&name));
            errors.push(Error::invalid(title, "", format!("a {} was expected", delivery.kind)));
        } else if seen.insert(name.clone(), true).is_some() {
            errors.push(Error::invalid(
                delivery.kind.title(&name),
                "",
                format!("duplicate {}", delivery.kind),
            ));
        }
        all.push(Named { name, incoming });
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

fn name(kind: Kind, incoming: &Incoming) -> String {
    match &incoming.body {
        Body::Decoded(resource) => resource.name.clone(),
        Body::Heartbeat => incoming.name.clone(),
        Body::Wire { value, .. } => match first_string(value) {
            Some(name) if !name.is_empty() => name.to_owned(),
            // A listener without name is called by its address.
            _ if kind == Kind::Listener => decode_name(kind, value).unwrap_or_default(),
            _ => incoming.name.clone(),
        },
    }
}

fn decode_name(kind: Kind, value: &Bytes) -> Option<String> {
    let message = DynamicMessage::decode(kind.descriptor()?, value.clone()).ok()?;
    Some(Resource::new(kind, &message).name)
}

fn decode(
    kind: Kind,
    name: &str,
    type_url: &str,
    value: &Bytes,
) -> Result<(Resource, DynamicMessage), Vec<Error>> {
    let sink = Sink::new(kind.title(name));
    let message = kind.descriptor().and_then(|descriptor| {
        // Fields that do not exist are found where the message is checked.
        decode::from_wire(&sink.root(), &descriptor, value, UnknownFields::Note)
    });
    let (errors, _) = sink.into_parts();
    match message {
        Some(message) if errors.is_empty() => Ok((Resource::new(kind, &message), message)),
        _ if errors.is_empty() => {
            Err(vec![Error::invalid(kind.title(name), "", format!("{type_url}: does not decode"))])
        }
        _ => Err(errors),
    }
}

fn broken(delivery: &Delivery) -> Vec<Error> {
    let error = |(name, reason): &(Option<String>, String)| match name {
        Some(name) => Error::invalid(delivery.kind.title(name), "", reason.clone()),
        None => Error::invalid(delivery.kind.to_string(), "", reason.clone()),
    };
    delivery.broken.iter().map(error).collect()
}
