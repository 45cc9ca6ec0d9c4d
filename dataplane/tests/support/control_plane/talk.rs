//! What the control plane says on one stream, polite or not.

use super::*;

/// One stream, of either kind. Each of these says whether it goes on.
pub(super) trait Talk: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn new(channel: Channel<Self::Response>) -> Self;
    fn channel(&self) -> &Channel<Self::Response>;
    /// A request came.
    fn received(&mut self, request: &Self::Request) -> bool;
    /// The world has changed.
    fn changed(&mut self) -> bool;
    /// A test has something said, which may be meant for streams of the other kind.
    fn said(&mut self, say: Say) -> bool;
}

/// Where a stream leads.
pub(super) struct Channel<R> {
    shared: Shared,
    stream: usize,
    path: String,
    sender: mpsc::UnboundedSender<Result<R, Status>>,
}

/// Holds a stream's conversation to its end.
pub(super) fn converse<T: Talk>(
    shared: &Shared,
    path: &str,
    request: Request<Streaming<T::Request>>,
) -> Ready<Result<Response<Outgoing<T::Response>>, Status>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (stream, mut events) = open(shared);
    let mut requests = request.into_inner();
    let mut talk = T::new(Channel { shared: shared.clone(), stream, path: path.to_owned(), sender });
    tokio::spawn(async move {
        loop {
            let going = tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(request)) => talk.received(&request),
                    Ok(None) | Err(_) => return,
                },
                event = events.recv() => match event {
                    Some(Event::Changed) => talk.changed(),
                    Some(Event::End(status)) => { let _ = talk.channel().sender.send(Err(status)); false }
                    Some(Event::Say(say)) => talk.said(say),
                    None => false,
                },
            };
            if !going {
                return;
            }
        }
    });
    ready(Ok(Response::new(UnboundedReceiverStream::new(receiver))))
}

/// State of the world on one stream.
pub(super) struct WorldTalk {
    channel: Channel<DiscoveryResponse>,
    subjects: BTreeMap<Kind, WorldSubject>,
}

/// One type on one stream.
#[derive(Default)]
struct WorldSubject {
    names: BTreeSet<String>,
    wildcard: bool,
    nonces: usize,
    nonce: String,
    sent: Option<BTreeMap<String, u64>>,
}

impl Talk for WorldTalk {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(channel: Channel<DiscoveryResponse>) -> Self {
        Self { channel, subjects: BTreeMap::new() }
    }

    fn channel(&self) -> &Channel<DiscoveryResponse> {
        &self.channel
    }

    fn changed(&mut self) -> bool {
        KINDS.into_iter().all(|kind| self.answer(kind, false))
    }

    fn said(&mut self, say: Say) -> bool {
        match say {
            Say::World(response) => self.say(response),
            Say::Delta(_) => true,
        }
    }

    /// Whether the stream goes on.
    fn received(&mut self, request: &DiscoveryRequest) -> bool {
        let kind = Kind::of(&request.type_url);
        let subject = kind.map(|kind| (kind, self.subjects.contains_key(&kind)));
        let current = request.response_nonce.is_empty()
            || kind
                .and_then(|kind| self.subjects.get(&kind))
                .is_some_and(|it| it.nonce == request.response_nonce);
        let manners = {
            let mut state = lock(&self.channel.shared);
            state.seen.push(Seen {
                stream: self.channel.stream,
                path: self.channel.path.clone(),
                delta: false,
                kind,
                node: request.node.clone(),
                version: request.version_info.clone(),
                nonce: request.response_nonce.clone(),
                current,
                names: request.resource_names.clone(),
                unsubscribed: Vec::new(),
                known: BTreeMap::new(),
                error: request.error_detail.as_ref().map(|error| error.message.clone()),
            });
            state.manners
        };
        if manners == Manners::ResetOnRequest {
            let _ = self.channel.sender.send(Err(Status::unavailable("go away")));
            return false;
        }
        let Some((kind, known)) = subject else { return true };
        if !current {
            return true;
        }
        let subject = self.subjects.entry(kind).or_default();
        let names: BTreeSet<_> = request.resource_names.iter().filter(|name| *name != "*").cloned().collect();
        let wildcard = (names.is_empty() && (!known || subject.wildcard))
            || request.resource_names.iter().any(|name| name == "*");
        let changed = names != subject.names;
        subject.names = names;
        subject.wildcard = wildcard;
        // What the other side has from an earlier stream is not sent again. Names may have changed meanwhile, so that they
        // are answered, unless nothing else would ever be.
        if !known && (wildcard || manners == Manners::CloseAfterResponse) {
            let state = lock(&self.channel.shared);
            if request.version_info == state.world.version(kind).to_string() {
                let wanted =
                    state.world.of(kind).filter(|(name, _)| wildcard || subject.names.contains(*name));
                subject.sent = Some(wanted.map(|(name, (version, _))| (name.clone(), *version)).collect());
                return true;
            }
        }
        self.answer(kind, !known || changed)
    }
}

impl WorldTalk {
    fn answer(&mut self, kind: Kind, asked: bool) -> bool {
        let Some(subject) = self.subjects.get_mut(&kind) else { return true };
        let (resources, version, manners) = {
            let state = lock(&self.channel.shared);
            if state.held.contains(&kind) {
                return true;
            }
            let wanted =
                state.world.of(kind).filter(|(name, _)| subject.wildcard || subject.names.contains(*name));
            let resources: Vec<_> = wanted.map(|(name, held)| (name.clone(), held.clone())).collect();
            (resources, state.world.version(kind), state.manners)
        };
        let sending: BTreeMap<_, _> =
            resources.iter().map(|(name, (version, _))| (name.clone(), *version)).collect();
        let news = subject.sent.as_ref() != Some(&sending);
        if !(asked || news) || (sending.is_empty() && !subject.wildcard) {
            return true;
        }
        subject.sent = Some(sending);
        let mut resources: Vec<_> =
            resources.into_iter().map(|(_, (_, resource))| wrapped(resource)).collect();
        if manners == Manners::Duplicates {
            resources.extend(resources.clone());
        }
        let response = DiscoveryResponse {
            version_info: version.to_string(),
            resources,
            type_url: kind.url(),
            ..DiscoveryResponse::default()
        };
        self.send(kind, response, manners)
    }

    fn say(&mut self, response: DiscoveryResponse) -> bool {
        match Kind::of(&response.type_url).filter(|kind| self.subjects.contains_key(kind)) {
            Some(kind) => self.send(kind, response, Manners::Good),
            None => {
                let _ = self.channel.sender.send(Ok(response));
                true
            }
        }
    }

    fn send(&mut self, kind: Kind, mut response: DiscoveryResponse, manners: Manners) -> bool {
        let subject = self.subjects.entry(kind).or_default();
        subject.nonces += 1;
        if response.nonce.is_empty() {
            response.nonce = format!("{}.{}", self.channel.stream, subject.nonces);
        }
        subject.nonce.clone_from(&response.nonce);
        let sent = self.channel.sender.send(Ok(response)).is_ok();
        sent && manners != Manners::CloseAfterResponse
    }
}

/// A resource with a TTL travels in a `Resource`.
fn wrapped(resource: Resource) -> Any {
    if resource.ttl.is_none() {
        return resource.any;
    }
    envoy_types::util::pack_any(DeltaResource {
        name: resource.name,
        resource: Some(resource.any),
        ttl: resource.ttl,
        ..DeltaResource::default()
    })
}

/// Deltas on one stream.
pub(super) struct DeltaTalk {
    channel: Channel<DeltaDiscoveryResponse>,
    subjects: BTreeMap<Kind, DeltaSubject>,
}

/// One type on one stream.
#[derive(Default)]
struct DeltaSubject {
    names: BTreeSet<String>,
    wildcard: bool,
    nonces: usize,
    nonce: String,
    /// What the other side has, by version.
    sent: BTreeMap<String, String>,
    /// Names that were asked for since the last response.
    asked: BTreeSet<String>,
    answered: bool,
}

impl Talk for DeltaTalk {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(channel: Channel<DeltaDiscoveryResponse>) -> Self {
        Self { channel, subjects: BTreeMap::new() }
    }

    fn channel(&self) -> &Channel<DeltaDiscoveryResponse> {
        &self.channel
    }

    fn changed(&mut self) -> bool {
        KINDS.into_iter().all(|kind| self.answer(kind))
    }

    fn said(&mut self, say: Say) -> bool {
        match say {
            Say::Delta(response) => self.say(response),
            Say::World(_) => true,
        }
    }

    fn received(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let kind = Kind::of(&request.type_url);
        let manners = {
            let current = request.response_nonce.is_empty()
                || kind
                    .and_then(|kind| self.subjects.get(&kind))
                    .is_some_and(|it| it.nonce == request.response_nonce);
            let mut state = lock(&self.channel.shared);
            state.seen.push(Seen {
                stream: self.channel.stream,
                path: self.channel.path.clone(),
                delta: true,
                kind,
                node: request.node.clone(),
                version: String::new(),
                nonce: request.response_nonce.clone(),
                current,
                names: request.resource_names_subscribe.clone(),
                unsubscribed: request.resource_names_unsubscribe.clone(),
                known: request.initial_resource_versions.clone().into_iter().collect(),
                error: request.error_detail.as_ref().map(|error| error.message.clone()),
            });
            state.manners
        };
        if manners == Manners::ResetOnRequest {
            let _ = self.channel.sender.send(Err(Status::unavailable("go away")));
            return false;
        }
        let Some(kind) = kind else { return true };
        let first = !self.subjects.contains_key(&kind);
        let subject = self.subjects.entry(kind).or_default();
        if first {
            subject.wildcard = request.resource_names_subscribe.is_empty();
            subject.sent = request.initial_resource_versions.clone().into_iter().collect();
            // Who knows something is not told that there is nothing new.
            subject.answered = !subject.sent.is_empty();
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                subject.wildcard = true;
            } else {
                subject.names.insert(name.clone());
                // A name asked for is answered, also when the other side has it.
                if !first {
                    subject.sent.remove(name);
                }
                subject.asked.insert(name.clone());
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                subject.wildcard = false;
            }
            subject.names.remove(name);
            subject.sent.remove(name);
        }
        self.answer(kind)
    }
}

impl DeltaTalk {
    fn answer(&mut self, kind: Kind) -> bool {
        let Some(subject) = self.subjects.get_mut(&kind) else { return true };
        let (resources, removed, version, manners) = {
            let state = lock(&self.channel.shared);
            if state.held.contains(&kind) {
                return true;
            }
            let there: BTreeMap<&String, &(u64, Resource)> = state
                .world
                .of(kind)
                .filter(|(name, _)| subject.wildcard || subject.names.contains(*name))
                .collect();
            let news = there
                .iter()
                .filter(|(name, (version, _))| subject.sent.get(**name) != Some(&version.to_string()));
            let news: Vec<_> = news.map(|(_, held)| (*held).clone()).collect();
            let gone = subject.sent.keys().chain(&subject.asked).filter(|name| !there.contains_key(name));
            let gone: BTreeSet<String> = gone.cloned().collect();
            (news, gone, state.world.version(kind), state.manners)
        };
        let nothing = resources.is_empty() && removed.is_empty();
        if nothing && (!subject.wildcard || subject.answered) {
            return true;
        }
        subject.answered = true;
        subject.asked.clear();
        for name in &removed {
            subject.sent.remove(name);
        }
        let mut resources: Vec<_> = resources
            .into_iter()
            .map(|(version, resource)| {
                subject.sent.insert(resource.name.clone(), version.to_string());
                DeltaResource {
                    name: resource.name,
                    version: version.to_string(),
                    resource: Some(resource.any),
                    ttl: resource.ttl,
                    ..DeltaResource::default()
                }
            })
            .collect();
        if manners == Manners::Duplicates {
            resources.extend(resources.clone());
        }
        let response = DeltaDiscoveryResponse {
            system_version_info: version.to_string(),
            resources,
            removed_resources: removed.into_iter().collect(),
            type_url: kind.url(),
            ..DeltaDiscoveryResponse::default()
        };
        self.send(kind, response, manners)
    }

    fn say(&mut self, response: DeltaDiscoveryResponse) -> bool {
        match Kind::of(&response.type_url).filter(|kind| self.subjects.contains_key(kind)) {
            Some(kind) => self.send(kind, response, Manners::Good),
            None => {
                let _ = self.channel.sender.send(Ok(response));
                true
            }
        }
    }

    fn send(&mut self, kind: Kind, mut response: DeltaDiscoveryResponse, manners: Manners) -> bool {
        let subject = self.subjects.entry(kind).or_default();
        subject.nonces += 1;
        if response.nonce.is_empty() {
            response.nonce = format!("{}.{}", self.channel.stream, subject.nonces);
        }
        subject.nonce.clone_from(&response.nonce);
        let sent = self.channel.sender.send(Ok(response)).is_ok();
        sent && manners != Manners::CloseAfterResponse
    }
}
