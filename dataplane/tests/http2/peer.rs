//! Clients and servers of HTTP/2, on the `h2` crate and on bare frames.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::{
    future::Future,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response, request::Parts};
use tokio::task::JoinHandle;

/// Long enough for anything that happens at all.
const GUARD: Duration = Duration::from_secs(120);

/// Runs a test's client.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(GUARD, future).await.expect("in time") })
}

/// A server that answers every request with `serve`.
pub struct Server {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    pub fn start<F>(serve: fn(Parts, RecvStream, SendResponse<Bytes>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(h2::server::Builder::new(), serve)
    }

    pub fn with<F>(
        settings: h2::server::Builder,
        serve: fn(Parts, RecvStream, SendResponse<Bytes>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(settings, None, serve)
    }

    /// `tls`: what its connections are encrypted with.
    pub fn start_with<F>(
        settings: h2::server::Builder,
        tls: Option<Arc<rustls::ServerConfig>>,
        serve: fn(Parts, RecvStream, SendResponse<Bytes>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    let (settings, tls) = (settings.clone(), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            Some(tls) => {
                                let accepting = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
                                if let Ok(stream) = accepting.await {
                                    converse(stream, &settings, serve).await;
                                }
                            }
                            None => converse(stream, &settings, serve).await,
                        }
                    });
                }
            });
        });
        Self { address, accepted }
    }

    /// A server that answers with what it received: the head as text, then the body, then the trailers as trailers.
    pub fn mirror() -> Self {
        Self::start(mirror)
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn converse<F>(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    settings: &h2::server::Builder,
    serve: fn(Parts, RecvStream, SendResponse<Bytes>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut conn) = settings.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = conn.accept().await {
        let (parts, body) = request.into_parts();
        if parts.uri.path() == "/goaway" {
            conn.graceful_shutdown();
        }
        tokio::spawn(serve(parts, body, respond));
    }
}

pub async fn mirror(parts: Parts, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let mut head = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        head += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
    }
    head += "\n";
    let end = parts.method == http::Method::HEAD;
    let Ok(mut stream) = respond.send_response(Response::new(()), end) else { return };
    if end || send(&mut stream, head.into()).await.is_none() {
        return;
    }
    while let Some(Ok(bytes)) = body.data().await {
        let length = bytes.len();
        if send(&mut stream, bytes).await.is_none() {
            return;
        }
        let _ = body.flow_control().release_capacity(length);
    }
    match body.trailers().await {
        Ok(Some(trailers)) => drop(stream.send_trailers(trailers)),
        Ok(None) => drop(stream.send_data(Bytes::new(), true)),
        Err(_) => {}
    }
}

/// Sends as fast as the windows allow. `None` when the stream is gone.
pub async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        let piece = bytes.split_to(room.min(bytes.len()));
        stream.send_data(piece, false).ok()?;
    }
    Some(())
}

/// A client's connection.
pub struct Conn {
    pub send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub driver: JoinHandle<Result<(), h2::Error>>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Conn {
    pub async fn open(port: u16) -> Self {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        Self::over(stream).await
    }

    pub async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (send, conn) = h2::client::handshake(stream).await.expect("handshake");
        Self { send, driver: tokio::spawn(conn) }
    }

    /// Sends a request's head. The response's head, and where the request's body goes.
    pub async fn start(
        &self,
        request: Request<()>,
        end: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.expect("ready");
        send.send_request(request, end).expect("sent")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.expect("a response")
    }

    pub async fn try_get(&self, path: &str) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, _) = send.send_request(get(path), true)?;
        answer(response).await
    }

    pub async fn post(&self, path: &str, body: &[u8], trailers: HeaderMap) -> Answer {
        let request = Request::post(format!("http://test{path}")).body(()).expect("a request");
        let (response, mut stream) = self.start(request, false).await;
        let body = Bytes::copy_from_slice(body);
        let sending = tokio::spawn(async move {
            if send(&mut stream, body).await.is_some() {
                match trailers.is_empty() {
                    true => stream.send_data(Bytes::new(), true).expect("sent"),
                    false => stream.send_trailers(trailers).expect("sent"),
                }
            }
        });
        let answer = answer(response).await.expect("a response");
        sending.await.expect("sent");
        answer
    }
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://test{path}")).body(()).expect("a request")
}

/// Receives a whole response.
pub async fn answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        body.extend_from_slice(&bytes);
        stream.flow_control().release_capacity(bytes.len())?;
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

/// A connection on which a test writes its frames itself.
pub struct Raw(pub TcpStream);

/// A frame that was received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET /` of `test`, compressed.
pub const GET_ROOT: &[u8] = b"\x82\x86\x84\x41\x04test";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

impl Raw {
    /// Connects and sends the preface.
    pub fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream.set_read_timeout(Some(GUARD)).expect("timeout");
        let mut raw = Self(stream);
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.send(&frame(SETTINGS, 0, 0, &[]));
        raw
    }

    /// What cannot be sent, because the other side has closed, is none of the test's business.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of that kind.
    pub fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().expect("a frame");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next().ok()).collect()
    }

    /// The error code of the GOAWAY that ends the connection.
    pub fn goaway_code(&mut self) -> Option<u32> {
        let last = self.rest().into_iter().rfind(|frame| frame.kind == GOAWAY)?;
        Some(u32::from_be_bytes(last.payload[4..8].try_into().expect("a code")))
    }
}
