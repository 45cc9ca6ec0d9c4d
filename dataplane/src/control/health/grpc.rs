//! gRPC checks: `grpc.health.v1.Health/Check`.

use bytes::Bytes;
use culvert_model::{GrpcHealthCheck, HealthCheck};
use culvert_proto::health::{Failure, grpc_serving};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full};

use super::{
    http::{Connection, Error, USER_AGENT, add, authority, scheme},
    session::{Kept, Report, Session},
};

/// More than this is no answer to a check.
const ANSWER_MAX: usize = 64 << 10;

/// One check.
pub(super) async fn check(
    session: &Session,
    check: &HealthCheck,
    grpc: &GrpcHealthCheck,
    kept: &mut Kept,
) -> Report {
    let request = match request(grpc, scheme(session), authority(session, &grpc.authority)) {
        Ok(request) => request,
        Err(error) => return Report::failure(Failure::Network, error),
    };
    let reused = match std::mem::take(kept) {
        Kept::Http(connection) => Some(connection),
        Kept::None | Kept::Tcp(_) => None,
    };
    if let Some(mut connection) = reused
        && let Ok(report) = exchange(&mut connection, request.clone()).await
    {
        *kept = Kept::Http(connection);
        return report;
    }
    // What was kept may have been closed long since: only a new connection tells.
    let result = async {
        let mut connection = Connection::open(session, check, true).await?;
        let report = exchange(&mut connection, request).await?;
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

async fn exchange(connection: &mut Connection, request: Request<Full<Bytes>>) -> Result<Report, Error> {
    let mut response = connection.send(request).await?;
    let mut body = Vec::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = response.body_mut().frame().await {
        match frame?.into_data() {
            Ok(data) if body.len() + data.len() <= ANSWER_MAX => body.extend_from_slice(&data),
            Ok(_) => return Ok(Report::failure(Failure::Answer, "the answer is too long")),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    if response.status() != http::StatusCode::OK {
        let reason = format!("the answer has HTTP status {}", response.status());
        return Ok(Report::failure(Failure::Answer, reason));
    }
    let status = trailers.get("grpc-status").or_else(|| response.headers().get("grpc-status"));
    Ok(match (status.map(HeaderValue::as_bytes), grpc_serving(&body)) {
        (Some(b"0"), Some(true)) => Report::success(),
        (Some(b"0"), _) => Report::failure(Failure::Answer, "the service is not serving"),
        (status, _) => {
            let status = status.map_or_else(|| "none".into(), String::from_utf8_lossy);
            Report::failure(Failure::Answer, format!("gRPC status: {status}"))
        }
    })
}

fn request(
    grpc: &GrpcHealthCheck,
    scheme: &str,
    authority: &str,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let mut request = Request::builder()
        .method(Method::POST)
        .version(http::Version::HTTP_2)
        .uri(format!("{scheme}://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT);
    if let Some(headers) = request.headers_mut() {
        add(&grpc.metadata, headers);
    }
    request.body(Full::new(message(&grpc.service)))
}

/// A `HealthCheckRequest` with the five bytes before it.
fn message(service: &str) -> Bytes {
    let mut encoded = Vec::new();
    if !service.is_empty() {
        encoded.push(1 << 3 | 2);
        prost::encoding::encode_varint(service.len() as u64, &mut encoded);
        encoded.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend((encoded.len() as u32).to_be_bytes());
    message.extend(encoded);
    message.into()
}
