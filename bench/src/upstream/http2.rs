//! HTTP/2 with prior knowledge: every request gets the default answer, gRPC calls as a message with a status behind it.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

use super::reply;
use super::session::Settings;
use crate::wire::grpc_message;

/// What clients may send before it is read.
const WINDOW_BYTES: u32 = 1 << 20;

const STREAMS_MAX: u32 = 10_000;

/// What a connection answers with.
struct Answers {
    plain: Bytes,
    message: Bytes,
    name: Option<HeaderValue>,
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, settings: Arc<Settings>) {
    // A connection that breaks is the client's affair.
    let _ = exchange(stream, &settings).await;
}

async fn exchange(stream: TcpStream, settings: &Settings) -> Result<(), h2::Error> {
    let Ok(peer) = stream.peer_addr() else { return Ok(()) };
    let _ = stream.set_nodelay(true);
    let body = reply::default_body(settings.name(), peer, settings.body_bytes());
    let answers = Arc::new(Answers {
        message: Bytes::from(grpc_message(&body)),
        plain: Bytes::from(body),
        name: settings.name().and_then(|name| HeaderValue::from_str(name).ok()),
    });
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 16)
        .max_concurrent_streams(STREAMS_MAX);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if request.body().is_end_stream() {
            // The usual case needs no task of its own.
            let _ = answer(&answers, &request, respond);
        } else {
            let answers = Arc::clone(&answers);
            tokio::task::spawn_local(async move {
                let (head, body) = request.into_parts();
                if drain(body).await.is_ok() {
                    let _ = answer(&answers, &Request::from_parts(head, ()), respond);
                }
            });
        }
    }
    Ok(())
}

async fn drain(mut body: RecvStream) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    Ok(())
}

/// Hands h2 the whole answer; it holds what the client's window does not admit yet.
fn answer<B>(
    answers: &Answers,
    request: &Request<B>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let mut response = Response::new(());
    let headers = response.headers_mut();
    if let Some(name) = &answers.name {
        headers.insert("x-served-by", name.clone());
    }
    if is_grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let mut stream = respond.send_response(response, false)?;
        stream.send_data(answers.message.clone(), false)?;
        return trailers(&mut stream);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(answers.plain.len()));
    respond.send_response(response, false)?.send_data(answers.plain.clone(), true)
}

fn trailers(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
