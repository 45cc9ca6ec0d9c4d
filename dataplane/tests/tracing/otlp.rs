//! A collector of OpenTelemetry, and the few of its messages that spans need.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    thread,
};

use prost::Message;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    metadata::MetadataMap,
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Export {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Exported {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyValue {
    #[prost(string, optional, tag = "1")]
    pub(crate) text: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub(crate) list: Option<List>,
    #[prost(message, optional, tag = "6")]
    pub(crate) map: Option<Map>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Map {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Scope {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(crate) trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<Event>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<SpanStatus>,
    #[prost(fixed32, tag = "16")]
    pub(crate) flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Event {
    #[prost(fixed64, tag = "1")]
    pub(crate) time: u64,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SpanStatus {
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

impl Span {
    pub(crate) fn attribute(&self, key: &str) -> Option<&str> {
        find(&self.attributes, key)
    }
}

pub(crate) fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    attributes.iter().find(|known| known.key == key)?.value.as_ref()?.text.as_deref()
}

/// What is sent to a collector.
pub(crate) trait Exportable: Message + Default + Clone + 'static {
    /// The service that takes it.
    const SERVICE: &'static str;
}

impl Exportable for Export {
    const SERVICE: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

/// A collector, and what it got.
pub(crate) struct Receiver<M>(pub Arc<Mutex<Vec<(MetadataMap, M)>>>);

/// A collector of spans.
pub(crate) type Collector = Receiver<Export>;

impl<M> Clone for Receiver<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Default for Receiver<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl Collector {
    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let got = self.0.lock().unwrap();
        let resources = got.iter().flat_map(|(_, export)| &export.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

impl<M: Exportable> Receiver<M> {
    /// Serves for as long as the test runs; where it listens.
    pub(crate) fn serve(&self) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let collector = self.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                Server::builder().add_service(collector).serve_with_incoming(incoming).await.unwrap();
            });
        });
        address
    }
}

impl<M: Exportable> NamedService for Receiver<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M: Exportable> Service<http::Request<Body>> for Receiver<M> {
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;
    type Response = http::Response<Body>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("/Export"));
        let take = Take(self.clone());
        Box::pin(
            async move { Ok(Grpc::new(ProstCodec::<Exported, M>::default()).unary(take, request).await) },
        )
    }
}

struct Take<M>(Receiver<M>);

impl<M: Exportable> UnaryService<M> for Take<M> {
    type Future = BoxFuture<Response<Exported>, Status>;
    type Response = Exported;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        let (metadata, _, export) = request.into_parts();
        self.0.0.lock().unwrap().push((metadata, export));
        Box::pin(async { Ok(Response::new(Exported {})) })
    }
}
