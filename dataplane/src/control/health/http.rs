//! HTTP checks, over HTTP/1.1 and HTTP/2.

use bytes::Bytes;
use culvert_model::{AppendAction, CheckHeader, HealthCheck, HttpHealthCheck};
use culvert_proto::health::{Failure, HttpAnswer, judge_http};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{
    connect,
    session::{Kept, Report, Session},
};

/// What checks call themselves; servers tell them from other requests by it.
pub(super) const USER_AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");

/// A connection that requests of checks can be sent on.
pub(super) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Why there is no response.
pub(super) type Error = Box<dyn std::error::Error>;

impl Connection {
    /// A new one.
    ///
    /// # Errors
    /// Those of connecting, and of the first bytes of HTTP/2.
    pub(super) async fn open(session: &Session, check: &HealthCheck, http2: bool) -> Result<Self, Error> {
        let io = TokioIo::new(connect::connect(session, check, http2).await?);
        // The tasks end when the sender is dropped, or the peer closes.
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::task::spawn_local(connection);
            Ok(Self::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::task::spawn_local(connection);
            Ok(Self::Http1(sender))
        }
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }
}

/// How much of a body is looked at where all of it is asked for: what a server says must not fill memory.
const BODY_MAX: usize = 1 << 20;

/// One check.
pub(super) async fn check(
    session: &Session,
    check: &HealthCheck,
    http: &HttpHealthCheck,
    kept: &mut Kept,
) -> Report {
    let authority = authority(session, &http.host);
    let request = match request(http, scheme(session), authority) {
        Ok(request) => request,
        Err(error) => return Report::failure(Failure::Network, error),
    };
    let reused = match std::mem::take(kept) {
        Kept::Http(connection) => Some(connection),
        Kept::None | Kept::Tcp(_) => None,
    };
    if let Some(mut connection) = reused
        && let Ok(report) = exchange(session, http, &mut connection, request.clone()).await
    {
        *kept = Kept::Http(connection);
        return report;
    }
    // What was kept may have been closed long since: only a new connection tells.
    let result = async {
        let mut connection = Connection::open(session, check, http.http2).await?;
        let report = exchange(session, http, &mut connection, request).await?;
        Ok::<_, Error>((connection, report))
    };
    match result.await {
        Ok((connection, report)) => {
            *kept = Kept::Http(connection);
            report
        }
        Err(error) => Report::failure(Failure::Network, error),
    }
}

async fn exchange(
    session: &Session,
    http: &HttpHealthCheck,
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Report, Error> {
    let mut response = connection.send(request).await?;
    let limit = match http.receive.is_empty() {
        true => 0,
        false => http.buffer.unwrap_or(BODY_MAX),
    };
    let mut body = Vec::new();
    // To its end, so that the connection can be used again.
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = limit.saturating_sub(body.len()).min(data.len());
            body.extend_from_slice(&data[..room]);
        }
    }
    let headers = response.headers();
    let cluster = headers.get("x-envoy-upstream-healthchecked-cluster");
    let answer = HttpAnswer {
        status: response.status().as_u16(),
        body: &body,
        degraded: headers.contains_key("x-envoy-degraded"),
        excludes_itself: headers.contains_key("x-envoy-immediate-health-check-fail"),
        cluster: cluster.map_or(b"", HeaderValue::as_bytes),
    };
    let judgement = judge_http(http, &answer);
    if judgement.verified {
        session.stats.verify_cluster.inc();
    }
    let reason = format!("the answer to {} has status {}", http.path, answer.status);
    Ok(Report { outcome: judgement.outcome, excluded: judgement.excluded, status: answer.status, reason })
}

/// Who the request is for: what the endpoint says, else what the check says, else the cluster's name.
pub(super) fn authority<'s>(session: &'s Session, configured: &'s str) -> &'s str {
    let own = session.host.endpoint.check.as_deref().map_or("", |own| own.hostname.as_str());
    [own, configured, &session.config.name].into_iter().find(|name| !name.is_empty()).unwrap_or_default()
}

pub(super) fn scheme(session: &Session) -> &'static str {
    if session.host.tls.is_some() { "https" } else { "http" }
}

fn request(
    http: &HttpHealthCheck,
    scheme: &str,
    authority: &str,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let request = Request::builder().method(http.method.as_str());
    let mut request = if http.http2 {
        request.version(http::Version::HTTP_2).uri(format!("{scheme}://{authority}{}", http.path))
    } else {
        request.uri(http.path.as_str()).header(header::HOST, authority)
    };
    if let Some(headers) = request.headers_mut() {
        headers.insert(header::USER_AGENT, USER_AGENT);
        for name in &http.remove {
            headers.remove(name.as_str());
        }
        add(&http.add, headers);
    }
    request.body(Full::new(Bytes::copy_from_slice(&http.send)))
}

/// Adds headers as their actions say. Names and values were validated with the configuration.
pub(super) fn add(added: &[CheckHeader], headers: &mut HeaderMap) {
    for header in added {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&header.value)) else { continue };
        let present = headers.contains_key(&name);
        match header.action {
            AppendAction::AddIfAbsent if present => {}
            AppendAction::OverwriteIfExists if !present => {}
            AppendAction::AddIfAbsent | AppendAction::Append => {
                headers.append(name, value);
            }
            AppendAction::OverwriteIfExists | AppendAction::OverwriteOrAdd => {
                headers.insert(name, value);
            }
        }
    }
}
