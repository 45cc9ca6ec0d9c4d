//! What the control plane says on one stream, polite or not.

use super::*;

/// State of the world on one stream.
pub(super) struct WorldTalk {
    pub(super) shared: Shared,
    pub(super) stream: usize,
    pub(super) path: String,
    pub(super) subjects: BTreeMap<Kind, WorldSubject>,
    pub(super) sender: mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>,
}

/// One type on one stream.
#[derive(Default)]
pub(super) struct WorldSubject {
    pub(super) names: BTreeSet<String>,
    pub(super) wildcard: bool,
    pub(super) nonces: usize,
    pub(super) nonce: String,
    pub(super) sent: Option<BTreeMap<String, u64>>,
}

impl WorldTalk {
    /// Whether the stream goes on.
    pub(super) fn received(&mut self, request: &DiscoveryRequest) -> bool {
        let kind = Kind::of(&request.type_url);
        let subject = kind.map(|kind| (kind, self.subjects.contains_key(&kind)));
        let current = request.response_nonce.is_empty()
            || kind
                .and_then(|kind| self.subjects.get(&kind))
                .is_some_and(|it| it.nonce == request.response_nonce);
        let manners = {
            let mut state = lock(&self.shared);
            state.seen.push(Seen {
                stream: self.stream,
                path: self.path.clone(),
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
            let _ = self.sender.send(Err(Status::unavailable("go away")));
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
            let state = lock(&self.shared);
            if request.version_info == state.world.version(kind).to_string() {
                let wanted =
                    state.world.of(kind).filter(|(name, _)| wildcard || subject.names.contains(*name));
                subject.sent = Some(wanted.map(|(name, (version, _))| (name.clone(), *version)).collect());
                return true;
            }
        }
        self.answer(kind, !known || changed)
    }

    pub(super) fn answer(&mut self, kind: Kind, asked: bool) -> bool {
        let Some(subject) = self.subjects.get_mut(&kind) else { return true };
        let (resources, version, manners) = {
            let state = lock(&self.shared);
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

    pub(super) fn say(&mut self, response: DiscoveryResponse) -> bool {
        match Kind::of(&response.type_url).filter(|kind| self.subjects.contains_key(kind)) {
            Some(kind) => self.send(kind, response, Manners::Good),
            None => {
                let _ = self.sender.send(Ok(response));
                true
            }
        }
    }

    pub(super) fn send(&mut self, kind: Kind, mut response: DiscoveryResponse, manners: Manners) -> bool {
        let subject = self.subjects.entry(kind).or_default();
        subject.nonces += 1;
        if response.nonce.is_empty() {
            response.nonce = format!("{}.{}", self.stream, subject.nonces);
        }
        subject.nonce.clone_from(&response.nonce);
        let sent = self.sender.send(Ok(response)).is_ok();
        sent && manners != Manners::CloseAfterResponse
    }
}

/// A resource with a TTL travels in a `Resource`.
pub(super) fn wrapped(resource: Resource) -> Any {
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

pub(super) fn delta_stream(
    shared: &Shared,
    path: &str,
    request: Request<Streaming<DeltaDiscoveryRequest>>,
) -> Ready<Result<Response<Outgoing<DeltaDiscoveryResponse>>, Status>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (stream, mut events) = open(shared);
    let mut requests = request.into_inner();
    let mut talk = DeltaTalk {
        shared: shared.clone(),
        stream,
        path: path.to_owned(),
        subjects: BTreeMap::new(),
        sender,
    };
    tokio::spawn(async move {
        loop {
            let going = tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(request)) => talk.received(&request),
                    Ok(None) | Err(_) => return,
                },
                event = events.recv() => match event {
                    Some(Event::Changed) => KINDS.into_iter().all(|kind| talk.answer(kind)),
                    Some(Event::End(status)) => { let _ = talk.sender.send(Err(status)); false }
                    Some(Event::Say(Say::Delta(response))) => talk.say(response),
                    Some(Event::Say(Say::World(_))) => true,
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

/// Deltas on one stream.
pub(super) struct DeltaTalk {
    pub(super) shared: Shared,
    pub(super) stream: usize,
    pub(super) path: String,
    pub(super) subjects: BTreeMap<Kind, DeltaSubject>,
    pub(super) sender: mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>,
}

/// One type on one stream.
#[derive(Default)]
pub(super) struct DeltaSubject {
    pub(super) names: BTreeSet<String>,
    pub(super) wildcard: bool,
    pub(super) nonces: usize,
    pub(super) nonce: String,
    /// What the other side has, by version.
    pub(super) sent: BTreeMap<String, String>,
    /// Names that were asked for since the last response.
    pub(super) asked: BTreeSet<String>,
    pub(super) answered: bool,
}

impl DeltaTalk {
    pub(super) fn received(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let kind = Kind::of(&request.type_url);
        let manners = {
            let current = request.response_nonce.is_empty()
                || kind
                    .and_then(|kind| self.subjects.get(&kind))
                    .is_some_and(|it| it.nonce == request.response_nonce);
            let mut state = lock(&self.shared);
            state.seen.push(Seen {
                stream: self.stream,
                path: self.path.clone(),
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
            let _ = self.sender.send(Err(Status::unavailable("go away")));
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

    pub(super) fn answer(&mut self, kind: Kind) -> bool {
        let Some(subject) = self.subjects.get_mut(&kind) else { return true };
        let (resources, removed, version, manners) = {
            let state = lock(&self.shared);
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

    pub(super) fn say(&mut self, response: DeltaDiscoveryResponse) -> bool {
        match Kind::of(&response.type_url).filter(|kind| self.subjects.contains_key(kind)) {
            Some(kind) => self.send(kind, response, Manners::Good),
            None => {
                let _ = self.sender.send(Ok(response));
                true
            }
        }
    }

    pub(super) fn send(
        &mut self,
        kind: Kind,
        mut response: DeltaDiscoveryResponse,
        manners: Manners,
    ) -> bool {
        let subject = self.subjects.entry(kind).or_default();
        subject.nonces += 1;
        if response.nonce.is_empty() {
            response.nonce = format!("{}.{}", self.stream, subject.nonces);
        }
        subject.nonce.clone_from(&response.nonce);
        let sent = self.sender.send(Ok(response)).is_ok();
        sent && manners != Manners::CloseAfterResponse
    }
}
