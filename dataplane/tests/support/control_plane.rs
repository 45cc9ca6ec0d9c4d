//! A control plane that does as it is told: every service of xDS, state of the world and delta, aggregated and a stream
//! per type, and REST. It records every request it gets.
//!
//! Left alone it behaves: it answers with what [`ControlPlane::publish`] put in force, all resources of a type that were
//! asked for in one response, clusters first. A test makes it misbehave with [`ControlPlane::hold`],
//! [`ControlPlane::manners`] and [`ControlPlane::say`].

#[path = "control_plane/talk.rs"]
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    future::{Ready, ready},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::Instant,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource as DeltaResource,
        },
    },
    google::protobuf::{Any, Duration},
};
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::support::culvert::PATIENCE;
use talk::{DeltaTalk, WorldTalk, converse};

/// Types of resources, in the order in which changes are sent.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    Cluster,
    Endpoints,
    Secret,
    Extension,
    Listener,
    ScopedRoute,
    Route,
    VirtualHost,
    Runtime,
}

const KINDS: [Kind; 9] = [
    Kind::Cluster,
    Kind::Endpoints,
    Kind::Secret,
    Kind::Extension,
    Kind::Listener,
    Kind::ScopedRoute,
    Kind::Route,
    Kind::VirtualHost,
    Kind::Runtime,
];

impl Kind {
    /// Full name of the message.
    pub fn message(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Extension => "envoy.config.core.v3.TypedExtensionConfig",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::ScopedRoute => "envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Route => "envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "envoy.config.route.v3.VirtualHost",
            Self::Runtime => "envoy.service.runtime.v3.Runtime",
        }
    }

    /// `type.googleapis.com/...`
    pub fn url(self) -> String {
        format!("type.googleapis.com/{}", self.message())
    }

    fn of(url: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.url() == url)
    }
}

/// A resource with its name.
#[derive(Clone, Debug)]
pub struct Resource {
    pub kind: Kind,
    pub name: String,
    pub any: Any,
    /// `ttl`, which only delta and wrapped resources carry.
    pub ttl: Option<Duration>,
}

impl Resource {
    /// From YAML.
    pub fn new(kind: Kind, name: &str, yaml: &str) -> Self {
        let value = culvert_xds::encode_message(kind.message(), yaml)
            .unwrap_or_else(|e| panic!("{name} is not a {kind:?}: {e}\n{yaml}"));
        Self { kind, name: name.to_owned(), any: Any { type_url: kind.url(), value }, ttl: None }
    }

    /// Bytes that are said to be a resource.
    pub fn raw(kind: Kind, name: &str, type_url: &str, value: Vec<u8>) -> Self {
        let any = Any { type_url: type_url.to_owned(), value };
        Self { kind, name: name.to_owned(), any, ttl: None }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Counted from 0 in the order in which streams were opened.
    pub stream: usize,
    /// `/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources`
    pub path: String,
    pub delta: bool,
    pub kind: Option<Kind>,
    pub node: Option<Node>,
    /// `version_info`
    pub version: String,
    pub nonce: String,
    /// Whether the nonce is none or that of the response of its type that was sent last.
    pub current: bool,
    /// `resource_names`, or `resource_names_subscribe`.
    pub names: Vec<String>,
    /// `resource_names_unsubscribe`
    pub unsubscribed: Vec<String>,
    /// `initial_resource_versions`
    pub known: BTreeMap<String, String>,
    /// `error_detail.message`
    pub error: Option<String>,
}

/// How it behaves on its streams.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Manners {
    /// As it should.
    #[default]
    Good,
    /// Every stream ends after one response, with status `OK`.
    CloseAfterResponse,
    /// Every stream ends with an error as soon as anything is received on it.
    ResetOnRequest,
    /// Every response names each of its resources twice.
    Duplicates,
}

/// A response as it goes out, whatever it says.
#[derive(Clone, Debug)]
pub enum Say {
    Delta(DeltaDiscoveryResponse),
    World(DiscoveryResponse),
}

/// What is in force.
#[derive(Default)]
pub struct World {
    resources: HashMap<Kind, BTreeMap<String, (u64, Resource)>>,
    /// Of each type: the last change.
    versions: HashMap<Kind, u64>,
    generation: u64,
}

impl World {
    /// Adds or replaces a resource.
    pub fn put(&mut self, resource: Resource) {
        self.changed(resource.kind);
        let entries = self.resources.entry(resource.kind).or_default();
        entries.insert(resource.name.clone(), (self.generation, resource));
    }

    /// Takes a resource away.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        self.changed(kind);
        if let Some(entries) = self.resources.get_mut(&kind) {
            entries.remove(name);
        }
    }

    fn changed(&mut self, kind: Kind) {
        self.generation += 1;
        self.versions.insert(kind, self.generation);
    }

    fn version(&self, kind: Kind) -> u64 {
        self.versions.get(&kind).copied().unwrap_or_default()
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = (&String, &(u64, Resource))> {
        self.resources.get(&kind).into_iter().flatten()
    }
}

#[derive(Default)]
struct State {
    world: World,
    held: BTreeSet<Kind>,
    manners: Manners,
    seen: Vec<Seen>,
    streams: usize,
    open: Vec<mpsc::UnboundedSender<Event>>,
    rest: HashMap<String, (u16, String)>,
}

#[derive(Clone)]
enum Event {
    Changed,
    End(Status),
    Say(Say),
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().expect("the control plane's state")
}

/// A running control plane. Stopped when dropped.
pub struct ControlPlane {
    /// Where it listens; meaningless for one on a Unix socket.
    pub address: SocketAddr,
    shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts one on a free port of the loopback address.
    pub fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("bound"), Shared::default())
    }

    /// Starts one on a Unix socket.
    pub fn start_on_path(path: &Path) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let shared = Shared::default();
        let (stop, stopped) = oneshot::channel();
        let state = shared.clone();
        let thread = thread::spawn(move || {
            run(stopped, async move {
                let listener = tokio::net::UnixListener::from_std(listener).expect("listens");
                let (accepted, incoming) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _ = accepted.send(Ok::<_, std::io::Error>(stream));
                    }
                });
                serve(UnboundedReceiverStream::new(incoming), state).await;
            });
        });
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    fn on(listener: TcpListener, shared: Shared) -> Self {
        let address = listener.local_addr().expect("address");
        listener.set_nonblocking(true).expect("non-blocking");
        let (stop, stopped) = oneshot::channel();
        let state = shared.clone();
        let thread = thread::spawn(move || {
            run(stopped, async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
                let (accepted, incoming) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _ = stream.set_nodelay(true);
                        let _ = accepted.send(Ok::<_, std::io::Error>(stream));
                    }
                });
                serve(UnboundedReceiverStream::new(incoming), state).await;
            });
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Closes every connection and its port.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the control plane");
        }
        lock(&self.shared).open.clear();
    }

    /// Starts again on the same port, with the same resources.
    pub fn restart(&mut self) {
        self.stop();
        let until = Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < until, "{}: {e}", self.address),
            }
            thread::sleep(std::time::Duration::from_millis(20));
        };
        *self = Self::on(listener, self.shared.clone());
    }

    /// Changes what is in force, in one step.
    pub fn publish(&self, change: impl FnOnce(&mut World)) {
        let mut state = lock(&self.shared);
        change(&mut state.world);
        state.tell(&Event::Changed);
    }

    /// Adds or replaces resources, in one step.
    pub fn put(&self, resources: impl IntoIterator<Item = Resource>) {
        self.publish(|world| resources.into_iter().for_each(|resource| world.put(resource)));
    }

    /// Says nothing about resources of this type from now on.
    pub fn hold(&self, kind: Kind) {
        lock(&self.shared).held.insert(kind);
    }

    /// Makes up for what was held back.
    pub fn release(&self, kind: Kind) {
        let mut state = lock(&self.shared);
        state.held.remove(&kind);
        state.tell(&Event::Changed);
    }

    /// How it behaves from now on.
    pub fn manners(&self, manners: Manners) {
        lock(&self.shared).manners = manners;
    }

    /// Sends this on every stream that has asked for its type.
    pub fn say(&self, response: Say) {
        lock(&self.shared).tell(&Event::Say(response));
    }

    /// Ends every stream with this status.
    pub fn end_streams(&self, status: &Status) {
        lock(&self.shared).tell(&Event::End(status.clone()));
    }

    /// What a REST path (`/v3/discovery:clusters`) answers.
    pub fn rest(&self, path: &str, status: u16, body: &str) {
        lock(&self.shared).rest.insert(path.to_owned(), (status, body.to_owned()));
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared).seen.clone()
    }

    /// The version of a resource in force; empty when there is none.
    pub fn version(&self, kind: Kind, name: &str) -> String {
        let state = lock(&self.shared);
        state
            .world
            .of(kind)
            .find(|(known, _)| *known == name)
            .map(|(_, (version, _))| version.to_string())
            .unwrap_or_default()
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        lock(&self.shared).seen.len()
    }

    /// How many streams were opened.
    pub fn streams(&self) -> usize {
        lock(&self.shared).streams
    }

    /// Waits for a request after the first `from`.
    pub fn wait_for(&self, what: &str, from: usize, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen();
            if let Some(found) = seen.iter().skip(from).find(|seen| wanted(seen)) {
                return found.clone();
            }
            assert!(Instant::now() < until, "no request with {what}: {:#?}", &seen[seen.len().min(from)..]);
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Waits for an error that names resources of this type.
    pub fn wait_for_nack(&self, kind: Kind, from: usize) -> Seen {
        self.wait_for("an error", from, |seen| seen.kind == Some(kind) && seen.error.is_some())
    }

    /// Waits until the response of this type that was sent last was accepted.
    pub fn wait_for_ack(&self, kind: Kind, from: usize) -> Seen {
        self.wait_for("an acknowledgement", from, |seen| {
            seen.kind == Some(kind) && seen.error.is_none() && !seen.nonce.is_empty()
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn tell(&mut self, event: &Event) {
        self.open.retain(|stream| stream.send(event.clone()).is_ok());
    }
}

/// Runs the future until it is stopped; what it has spawned ends with it.
fn run(stopped: oneshot::Receiver<()>, serving: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = serving => {}
        }
    });
}

async fn serve<IO>(incoming: UnboundedReceiverStream<std::io::Result<IO>>, shared: Shared)
where
    IO: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
{
    let server = tonic::transport::Server::builder().accept_http1(true).max_frame_size(1 << 20);
    server.serve_with_incoming(Services { shared }, incoming).await.expect("serves");
}

/// Every service at its path.
#[derive(Clone)]
struct Services {
    shared: Shared,
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let shared = self.shared.clone();
        let path = request.uri().path().to_owned();
        Box::pin(async move {
            let method = path.rsplit('/').next().unwrap_or_default();
            Ok(if path.starts_with("/v3/") {
                rest(shared, &path, request).await
            } else if method.starts_with("Delta") {
                let mut grpc =
                    Grpc::new(ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default())
                        .max_decoding_message_size(usize::MAX);
                grpc.streaming(service_fn(|r| converse::<DeltaTalk>(&shared, &path, r)), request).await
            } else if method.starts_with("Stream") {
                let mut grpc = Grpc::new(ProstCodec::<DiscoveryResponse, DiscoveryRequest>::default())
                    .max_decoding_message_size(usize::MAX);
                grpc.streaming(service_fn(|r| converse::<WorldTalk>(&shared, &path, r)), request).await
            } else {
                http::Response::builder().status(404).body(Body::empty()).expect("a response")
            })
        })
    }
}

async fn rest(shared: Shared, path: &str, request: http::Request<Body>) -> http::Response<Body> {
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    let field =
        |camel, snake| Some(text(camel)).filter(|text| !text.is_empty()).unwrap_or_else(|| text(snake));
    let names = json.get("resourceNames").or_else(|| json.get("resource_names"));
    let mut state = lock(&shared);
    state.seen.push(Seen {
        stream: usize::MAX,
        path: path.to_owned(),
        delta: false,
        kind: Kind::of(&field("typeUrl", "type_url")),
        node: json["node"]["id"].as_str().map(|id| Node { id: id.to_owned(), ..Node::default() }),
        version: field("versionInfo", "version_info"),
        nonce: field("responseNonce", "response_nonce"),
        current: true,
        names: names
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        unsubscribed: Vec::new(),
        known: BTreeMap::new(),
        error: None,
    });
    let (status, body) = state.rest.get(path).cloned().unwrap_or((404, String::new()));
    let response = http::Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::new(http_body_util::Full::from(body))).expect("a response")
}

type Outgoing<T> = UnboundedReceiverStream<Result<T, Status>>;

fn open(shared: &Shared) -> (usize, mpsc::UnboundedReceiver<Event>) {
    let mut state = lock(shared);
    let (events, receive) = mpsc::unbounded_channel();
    state.open.push(events);
    state.streams += 1;
    (state.streams - 1, receive)
}
