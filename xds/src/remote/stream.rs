//! One gRPC stream and what keeps it going.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming,
    client::Grpc,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataKey, BinaryMetadataValue, MetadataMap},
};
use tonic_prost::ProstCodec;

use super::{
    link::{Command, Link},
    pace::{Backoff, Limiter},
    protocol::{Protocol, Received},
    refusals::Refusals,
    types::{ControlPlane, DeliveryId, Event, ResourceType},
};

/// Largest response that is read.
const RESPONSE_MAX: usize = 256 << 20;

/// How long a stream that takes no more requests may take to say why.
const ENDING: Duration = Duration::from_secs(1);

/// A stream of requests and responses, opened again and again.
pub(super) struct StreamTask<P> {
    link: Link,
    protocol: P,
    path: PathAndQuery,
    types: Vec<ResourceType>,
    backoff: Backoff,
    limiter: Limiter,
    refusals: Refusals,
}

/// Why a stream ended.
enum Ended {
    /// Nobody wants it any more.
    Dropped,
    Failed(Status),
}

type Opening<R> = Pin<Box<dyn Future<Output = Result<Response<Streaming<R>>, Status>> + Send>>;

impl<P: Protocol> StreamTask<P> {
    pub(super) fn new(link: Link, protocol: P, path: &'static str) -> Self {
        let limiter = Limiter::new(link.api.rate_limit, Instant::now());
        Self {
            link,
            protocol,
            path: PathAndQuery::from_static(path),
            types: Vec::new(),
            backoff: Backoff::new(),
            limiter,
            refusals: Refusals::default(),
        }
    }

    /// Runs until it is dropped, or nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        loop {
            while self.protocol.due() == 0 {
                let Some(command) = self.link.commands.recv().await else { return };
                self.take(command);
            }
            let ended = self.stream().await;
            self.link.control_plane.set_connected(false);
            self.link.control_plane.pending_requests.store(0, Ordering::Relaxed);
            self.protocol.reset();
            self.refusals = Refusals::default();
            let Ended::Failed(status) = ended else { return };
            let error = format!("gRPC stream closed: {:?}, {}", status.code(), describe(&status));
            self.link.tell(Event::Failed {
                source: self.link.source.clone(),
                types: self.types.clone(),
                error,
            });
            let again = tokio::time::Instant::now() + self.backoff.next(fastrand::f64());
            loop {
                tokio::select! {
                    biased;
                    command = self.link.commands.recv() => match command {
                        Some(command) => self.take(command),
                        None => return,
                    },
                    () = tokio::time::sleep_until(again) => break,
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Answer(id, result) => self.answer(id, result),
            Command::Renew(resource_type, interest) => self.protocol.renew(resource_type, &interest),
            Command::Want(resource_type, interest) => {
                self.types.retain(|known| *known != resource_type);
                if interest.is_some() {
                    self.types.push(resource_type);
                    self.types.sort_unstable();
                }
                self.protocol.want(resource_type, interest);
            }
        }
    }

    fn answer(&mut self, id: DeliveryId, result: Result<(), String>) {
        let is_refused = result.is_err();
        let Some(resource_type) = self.protocol.answer(id, result) else { return };
        let mut waits = false;
        if is_refused {
            waits = self.refusals.refused(resource_type, Instant::now());
        } else {
            self.refusals.accepted(resource_type);
        }
        self.protocol.pause(resource_type, waits);
    }

    /// One stream from its beginning to its end.
    async fn stream(&mut self) -> Ended {
        let (requests, feed) = mpsc::channel(1);
        let mut opening = match self.open(feed) {
            Ok(opening) => Some(opening),
            Err(status) => return Ended::Failed(status),
        };
        let mut responses: Option<Streaming<P::Response>> = None;
        let mut node_sent = false;
        let mut held = false;
        loop {
            // All that is to be said is taken in before something is said, so that it is said once.
            while let Ok(command) = self.link.commands.try_recv() {
                self.take(command);
            }
            let due = self.protocol.due();
            let wait = if due > 0 { self.limiter.wait(Instant::now()) } else { Duration::ZERO };
            self.count_held(if wait.is_zero() { 0 } else { due }, &mut held);
            let read = !self.protocol.is_unanswered();
            let answer = self.refusals.next();
            tokio::select! {
                biased;
                command = self.link.commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return Ended::Dropped,
                },
                permit = requests.reserve(), if due > 0 && wait.is_zero() => {
                    // The other end is dropped with the call, whose result says why.
                    if let Ok(permit) = permit
                        && let Some(request) = self.request(&mut node_sent)
                    {
                        permit.send(request);
                    } else {
                        return Ended::Failed(self.result(opening, responses).await);
                    }
                }
                () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                () = until(answer), if answer.is_some() => {
                    while let Some(resource_type) = self.refusals.pop(Instant::now()) {
                        self.protocol.pause(resource_type, false);
                    }
                }
                opened = opened(&mut opening), if opening.is_some() => {
                    opening = None;
                    match opened {
                        Ok(response) => responses = Some(response.into_inner()),
                        Err(status) => return Ended::Failed(status),
                    }
                    self.link.tell(Event::Connected {
                        source: self.link.source.clone(),
                        types: self.types.clone(),
                    });
                }
                message = message(&mut responses), if read && responses.is_some() => {
                    match message {
                        Ok(Some(response)) => self.receive(response),
                        Ok(None) => return Ended::Failed(Status::ok("")),
                        Err(status) => return Ended::Failed(status),
                    }
                }
            }
        }
    }

    fn open(&self, feed: mpsc::Receiver<P::Request>) -> Result<Opening<P::Response>, Status> {
        let Some(service) = self.link.api.services.first() else {
            return Err(Status::failed_precondition("no gRPC service is configured"));
        };
        let channel = self.link.channels.get(&service.cluster, &service.authority);
        let mut grpc = Grpc::new(channel).max_decoding_message_size(RESPONSE_MAX);
        let feed = Feed { feed, control_plane: self.link.control_plane.clone() };
        let mut request = Request::new(feed);
        *request.metadata_mut() = metadata(&service.metadata);
        let path = self.path.clone();
        Ok(Box::pin(async move {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.streaming(request, path, ProstCodec::default()).await
        }))
    }

    /// What became of a call that takes no more requests.
    async fn result(
        &self,
        opening: Option<Opening<P::Response>>,
        responses: Option<Streaming<P::Response>>,
    ) -> Status {
        // What it may still have said will be said again on the next stream.
        let ending = async {
            let mut responses = match (opening, responses) {
                (_, Some(responses)) => responses,
                (Some(opening), None) => opening.await?.into_inner(),
                (None, None) => return Ok(()),
            };
            while responses.message().await?.is_some() {}
            Ok(())
        };
        match tokio::time::timeout(ENDING, ending).await {
            Ok(Ok(())) => Status::ok(""),
            Ok(Err(status)) => status,
            Err(_) => Status::cancelled("it takes no more requests"),
        }
    }

    fn request(&mut self, node_sent: &mut bool) -> Option<P::Request> {
        let (resource_type, mut request) = self.protocol.next_request()?;
        self.limiter.take();
        if !*node_sent || !self.link.api.node_on_first_message_only {
            P::set_node(&mut request, (*self.link.node).clone());
            *node_sent = true;
        }
        self.link.tell(Event::Requested { source: self.link.source.clone(), resource_type });
        Some(request)
    }

    fn receive(&mut self, response: P::Response) {
        self.backoff.reset();
        if let Some(identifier) = P::identifier(&response) {
            self.link.control_plane.identify(identifier);
        }
        let id = self.link.next_id();
        match self.protocol.receive(response, id) {
            Received::Delivery(incoming) => self.link.deliver(id, incoming),
            Received::Ignored(reason) => log::warn!("control plane: ignored: {reason}"),
        }
    }

    fn count_held(&self, held_back: usize, held: &mut bool) {
        let control_plane = &self.link.control_plane;
        control_plane.pending_requests.store(held_back as u64, Ordering::Relaxed);
        if held_back > 0 && !*held {
            control_plane.rate_limit_enforced.fetch_add(1, Ordering::Relaxed);
        }
        *held = held_back > 0;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The result of a call that is under way.
async fn opened<R>(opening: &mut Option<Opening<R>>) -> Result<Response<Streaming<R>>, Status> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

/// The next response, if there is a call that has any.
async fn message<R>(responses: &mut Option<Streaming<R>>) -> Result<Option<R>, Status> {
    match responses {
        Some(responses) => responses.message().await,
        None => std::future::pending().await,
    }
}

/// The requests of a call. The first time it is asked for one, there is a connection.
struct Feed<R> {
    feed: mpsc::Receiver<R>,
    control_plane: Arc<ControlPlane>,
}

impl<R> Stream for Feed<R> {
    type Item = R;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<R>> {
        let next = self.feed.poll_recv(cx);
        if matches!(next, Poll::Ready(Some(_))) {
            self.control_plane.set_connected(true);
        }
        next
    }
}

/// `initial_metadata`, whose names were checked when they were read.
pub(super) fn metadata(pairs: &[(String, String)]) -> MetadataMap {
    let mut map = MetadataMap::with_capacity(pairs.len());
    for (key, value) in pairs {
        if key.ends_with("-bin") {
            if let Ok(key) = BinaryMetadataKey::from_bytes(key.as_bytes()) {
                map.append_bin(key, BinaryMetadataValue::from_bytes(value.as_bytes()));
            }
        } else if let (Ok(key), Ok(value)) =
            (AsciiMetadataKey::from_bytes(key.as_bytes()), AsciiMetadataValue::try_from(value.as_str()))
        {
            map.append(key, value);
        }
    }
    map
}

/// What a status says, with the error below it.
fn describe(status: &Status) -> String {
    use std::error::Error as _;
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
