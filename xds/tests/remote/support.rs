//! A control plane that does what a test tells it, and a client of it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use culvert_model::{ApiKind, ApiSource, GrpcService, SourceSpecifier};
use culvert_xds::remote::{
    Connecting, Delivery, DialSettings, Dialer, Event, Interest, Io, Remote, ResourceType, Wanted,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        },
    },
    google::protobuf::Any,
};
use http::{Request, request::Parts};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Response, Status, Streaming, server::Grpc};
use tonic_prost::ProstCodec;

/// A hang in a test is a failure of it.
const GUARD: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, what).await.expect("nothing came")
}

/// Dials whatever port is set, under any name.
#[derive(Default)]
pub(crate) struct Local {
    pub(crate) port: AtomicU16,
    pub(crate) dialled: AtomicU16,
    pub(crate) settings: DialSettings,
}

impl Dialer for Local {
    fn settings(&self, _: &str) -> Option<DialSettings> {
        Some(self.settings)
    }

    fn connect(&self, _: &str) -> Connecting {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let port = self.port.load(Ordering::Relaxed);
        Box::pin(async move {
            let stream: Result<Box<dyn Io>, io::Error> =
                TcpStream::connect(("127.0.0.1", port)).await.map(|stream| Box::new(stream) as _);
            stream
        })
    }
}

/// A control plane of one variant of the protocol.
pub(crate) struct Server<Q, R> {
    pub(crate) port: u16,
    calls: mpsc::UnboundedReceiver<Call<Q, R>>,
    accepting: JoinHandle<()>,
}

pub(crate) type Sotw = Server<DiscoveryRequest, DiscoveryResponse>;
pub(crate) type Delta = Server<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

/// One stream.
pub(crate) struct Call<Q, R> {
    pub(crate) head: Parts,
    requests: Streaming<Q>,
    responses: mpsc::UnboundedSender<Result<R, Status>>,
}

impl<Q, R> Drop for Server<Q, R> {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl<Q, R> Server<Q, R>
where
    Q: Message + Default + Send + 'static,
    R: Message + Default + Send + 'static,
{
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, calls) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let sender = sender.clone();
                let service = service_fn(move |request| answer::<Q, R>(request, sender.clone()));
                tokio::spawn(
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { port, calls, accepting }
    }

    pub(crate) async fn call(&mut self) -> Call<Q, R> {
        soon(self.calls.recv()).await.unwrap()
    }
}

async fn answer<Q, R>(
    request: Request<Incoming>,
    calls: mpsc::UnboundedSender<Call<Q, R>>,
) -> Result<http::Response<tonic::body::Body>, Infallible>
where
    Q: Message + Default + Send + 'static,
    R: Message + Default + Send + 'static,
{
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head.clone(), tonic::body::Body::new(body));
    let service = tower::service_fn(move |request: tonic::Request<Streaming<Q>>| {
        let (responses, stream) = mpsc::unbounded_channel();
        let call = Call { head: head.clone(), requests: request.into_inner(), responses };
        // The test may be over.
        let _ = calls.send(call);
        let stream = UnboundedReceiverStream::new(stream);
        std::future::ready(Ok::<_, Status>(Response::new(stream)))
    });
    Ok(Grpc::new(ProstCodec::<R, Q>::default()).streaming(service, request).await)
}

impl<Q, R> Call<Q, R>
where
    Q: Message + Default + 'static,
{
    pub(crate) async fn next(&mut self) -> Q {
        self.try_next().await.expect("the client ended the stream")
    }

    /// The next request; `None` when the client has ended the stream.
    pub(crate) async fn try_next(&mut self) -> Option<Q> {
        soon(self.requests.next()).await.and_then(Result::ok)
    }

    /// Whether nothing comes for a moment.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(150), self.requests.next()).await.is_err()
    }

    pub(crate) fn send(&self, response: R) {
        self.responses.send(Ok(response)).unwrap();
    }

    pub(crate) fn fail(self, status: Status) {
        self.responses.send(Err(status)).unwrap();
    }
}

pub(crate) fn any(resource_type: ResourceType, value: &[u8]) -> Any {
    Any { type_url: resource_type.type_url(), value: value.to_vec() }
}

pub(crate) fn sotw(
    resource_type: ResourceType,
    version: &str,
    nonce: &str,
    values: &[&[u8]],
) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        type_url: resource_type.type_url(),
        resources: values.iter().map(|value| any(resource_type, value)).collect(),
        ..DiscoveryResponse::default()
    }
}

pub(crate) fn delta(
    resource_type: ResourceType,
    nonce: &str,
    resources: &[(&str, &str)],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| Resource {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        resource: Some(any(resource_type, b"")),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: resource_type.type_url(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A source of that kind, of a cluster called `xds`.
pub(crate) fn api(kind: ApiKind) -> ApiSource {
    ApiSource {
        kind,
        services: vec![GrpcService {
            cluster: "xds".to_owned(),
            authority: String::new(),
            timeout: None,
            metadata: vec![("token".to_owned(), "secret".to_owned())],
        }],
        refresh_delay: Duration::from_millis(10),
        request_timeout: GUARD,
        rate_limit: None,
        node_on_first_message_only: true,
    }
}

pub(crate) fn source(api: &ApiSource) -> SourceSpecifier {
    SourceSpecifier::Api(Arc::new(api.clone()))
}

/// A client of the control plane on a port.
pub(crate) struct Client {
    pub(crate) remote: Remote,
    pub(crate) dialer: Arc<Local>,
    pub(crate) wanted: Wanted,
}

impl Client {
    pub(crate) fn new(port: u16, ads: Option<ApiSource>) -> Self {
        let dialer = Arc::new(Local { port: AtomicU16::new(port), ..Local::default() });
        let node = Node { id: "node-1".to_owned(), ..Node::default() };
        let remote = Remote::new(node, dialer.clone(), ads.map(Arc::new));
        Self { remote, dialer, wanted: BTreeMap::new() }
    }

    pub(crate) fn want(&mut self, source: &SourceSpecifier, resource_type: ResourceType, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.set(source, resource_type, Interest { wildcard: false, names });
    }

    pub(crate) fn want_all(&mut self, source: &SourceSpecifier, resource_type: ResourceType) {
        self.set(source, resource_type, Interest { wildcard: true, ..Interest::default() });
    }

    pub(crate) fn set(&mut self, source: &SourceSpecifier, resource_type: ResourceType, interest: Interest) {
        self.wanted.insert((source.clone(), resource_type), Arc::new(interest));
        self.remote.want(&self.wanted);
    }

    pub(crate) fn give_up(&mut self, source: &SourceSpecifier, resource_type: ResourceType) {
        self.wanted.remove(&(source.clone(), resource_type));
        self.remote.want(&self.wanted);
    }

    pub(crate) async fn delivery(&mut self) -> Delivery {
        loop {
            if let Event::Response(delivery) = soon(self.remote.next()).await {
                return delivery;
            }
        }
    }

    pub(crate) async fn failure(&mut self) -> String {
        loop {
            if let Event::Failed { error, .. } = soon(self.remote.next()).await {
                return error;
            }
        }
    }

    /// Takes the next delivery and accepts it.
    pub(crate) async fn accept(&mut self) -> Delivery {
        let delivery = self.delivery().await;
        self.remote.answer(delivery.id, Ok(()));
        delivery
    }
}
