//! Requests to collectors: calls of gRPC, and posts over HTTP.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use culvert_model::{GrpcService, OtlpExporter};
use culvert_xds::remote::{self, Dialer};
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tonic::{Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};

use super::collectors::Raw;

/// How long a collector may take that has no limit of its own.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer of a collector that is read, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// How a collector of OpenTelemetry is told. Cheap to clone.
#[derive(Clone)]
pub(super) enum OtlpCall {
    Grpc { channel: Channel, service: Rc<GrpcService> },
    Http(Rc<Post>),
}

impl OtlpCall {
    pub(super) fn new(exporter: &OtlpExporter, dialer: &Arc<dyn Dialer>) -> Self {
        match exporter {
            OtlpExporter::Grpc(service) => {
                let channel = remote::channel(dialer, &service.cluster, &service.authority);
                Self::Grpc { channel, service: Rc::new(service.clone()) }
            }
            OtlpExporter::Http { uri, headers } => Self::Http(Rc::new(Post {
                dialer: dialer.clone(),
                cluster: uri.cluster.clone(),
                authority: uri.authority.clone(),
                path: uri.path.clone(),
                kind: "application/x-protobuf",
                headers: headers.clone(),
                timeout: uri.timeout,
            })),
        }
    }

    /// Calls `method` of gRPC, or posts to the collector's URI.
    ///
    /// # Errors
    /// Why it was not taken, for the log.
    pub(super) async fn export(self, method: &'static str, message: Bytes) -> Result<(), String> {
        match self {
            Self::Grpc { channel, service } => {
                let mut request = Request::new(message);
                for (name, value) in &service.metadata {
                    let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes());
                    if let (Ok(name), Ok(value)) = (name, value.parse()) {
                        request.metadata_mut().append(name, value);
                    }
                }
                let timeout = service.timeout.unwrap_or(REQUEST_TIMEOUT);
                request.set_timeout(timeout);
                let call = async {
                    let mut grpc = Grpc::new(channel);
                    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
                    grpc.unary(request, PathAndQuery::from_static(method), Raw).await
                };
                match tokio::time::timeout(timeout, call).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(status)) => Err(status.to_string()),
                    Err(_) => Err(format!("no answer within {timeout:?}")),
                }
            }
            Self::Http(post) => {
                let timeout = post.timeout;
                match post.send(message, timeout).await? {
                    StatusCode::OK => Ok(()),
                    status => Err(format!("answered with {status}")),
                }
            }
        }
    }
}

/// Marks an exporter whose request is on its way.
pub(super) struct Sending(Rc<Cell<bool>>);

impl Sending {
    pub(super) fn new(mark: &Rc<Cell<bool>>) -> Self {
        mark.set(true);
        Self(mark.clone())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Requests to a collector, over HTTP/1.1, each on a connection of its own: there is one every few seconds.
pub(super) struct Post {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) cluster: String,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) kind: &'static str,
    pub(super) headers: Vec<(String, String)>,
    pub(super) timeout: Duration,
}

impl Post {
    /// The status of the answer.
    ///
    /// # Errors
    /// Why there is none, for the log.
    pub(super) async fn send(&self, body: Bytes, timeout: Duration) -> Result<StatusCode, String> {
        match tokio::time::timeout(timeout, self.exchange(body)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }

    async fn exchange(&self, body: Bytes) -> Result<StatusCode, String> {
        let failed = |error: hyper::Error| error.to_string();
        let stream = self.dialer.connect(&self.cluster).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let connection = AbortOnDrop(tokio::task::spawn_local(async move {
            // What went wrong the answer tells.
            let _ = connection.await;
        }));
        let mut request = http::Request::post(&self.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, self.kind)
            .header(header::CONNECTION, "close");
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(|error| error.to_string())?;
        drop(connection);
        Ok(status)
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
