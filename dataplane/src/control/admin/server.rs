//! The listening socket and the connections of the admin server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, SERVER, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::control::admin::backend::Backend;
use crate::control::admin::endpoints;
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;
use crate::control::admin::stall::WriteStall;

/// Connections at once; one more displaces the oldest.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head.
const HEAD_MAX: usize = 32 << 10;
/// Bytes of a request's body, which can only be a small form.
const BODY_MAX: usize = 64 << 10;
/// For the head of a request, and between requests: longer than the usual scrape interval of a minute.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// For a reader to take anything at all of an answer.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// Before accepting again, when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// `admin.address` of the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `socket_address`; port 0 takes any.
    Ip(SocketAddr),
    /// `pipe`: a Unix socket; a leading `@` names an abstract one.
    Pipe {
        /// Where.
        path: PathBuf,
        /// Permissions; 0 leaves them to the umask.
        mode: u32,
    },
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("admin address {address}: {source}")]
    Bind {
        /// As configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// `--admin-address-path` cannot be written.
    #[error("admin address path {}: {source}", path.display())]
    AddressPath {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The admin server, bound and ready to run.
#[derive(Debug)]
pub struct Admin {
    socket: Socket,
    address: String,
}

#[derive(Debug)]
enum Socket {
    Ip(TcpListener),
    Pipe {
        listener: UnixListener,
        /// To be removed with the server; none for an abstract one.
        path: Option<PathBuf>,
    },
}

impl Admin {
    /// Binds the address; warns when more than this machine can reach it. Needs a tokio runtime.
    pub async fn bind(listen: &Listen) -> Result<Self, AdminError> {
        let (socket, address) = match listen {
            Listen::Ip(address) => bind_ip(*address).await,
            Listen::Pipe { path, mode } => bind_pipe(path, *mode),
        }
        .map_err(|source| AdminError::Bind { address: listen.to_string(), source })?;
        if let Listen::Ip(ip) = listen
            && !ip.ip().is_loopback()
        {
            log::warn!(
                "admin address {address} is neither loopback nor a Unix socket: whoever reaches it can read the \
                 configuration, drain listeners and stop this process"
            );
        }
        Ok(Self { socket, address })
    }

    /// Where it listens, with the real port: `127.0.0.1:9901` or the path of a Unix socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Writes [`Self::address`] to a file (`--admin-address-path`).
    pub fn write_address(&self, path: &Path) -> Result<(), AdminError> {
        fs::write(path, &self.address)
            .map_err(|source| AdminError::AddressPath { path: path.to_owned(), source })
    }

    /// Answers requests for as long as it is polled. All calls of `backend` are made from within.
    pub async fn run(self, backend: Rc<dyn Backend>) {
        LocalSet::new().run_until(self.accept(backend)).await;
    }

    async fn accept(&self, backend: Rc<dyn Backend>) {
        let mut connections = Connections::default();
        loop {
            let accepted = match &self.socket {
                Socket::Ip(listener) => listener.accept().await.map(|(stream, _)| {
                    // An answer is one write or a few large ones; without this the last would wait for an ACK.
                    let _ = stream.set_nodelay(true);
                    spawn_local(serve(stream, backend.clone())).abort_handle()
                }),
                Socket::Pipe { listener, .. } => {
                    let accepted = listener.accept().await;
                    accepted.map(|(stream, _)| spawn_local(serve(stream, backend.clone())).abort_handle())
                }
            };
            match accepted {
                Ok(connection) => connections.add(connection),
                Err(error) => {
                    log::warn!("admin accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Socket::Pipe { path: Some(path), .. } = &self.socket {
            // Gone already if somebody cleaned up before.
            let _ = fs::remove_file(path);
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Pipe { path, .. } => path.display().fmt(f),
        }
    }
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn add(&mut self, connection: AbortHandle) {
        self.0.retain(|connection| !connection.is_finished());
        while self.0.len() >= CONNECTIONS_MAX {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
            }
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn bind_ip(address: SocketAddr) -> io::Result<(Socket, String)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?.to_string();
    Ok((Socket::Ip(listener), address))
}

fn bind_pipe(path: &Path, mode: u32) -> io::Result<(Socket, String)> {
    let address = path.display().to_string();
    let (listener, path) = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => {
            let name = unix::SocketAddr::from_abstract_name(name)?;
            (unix::UnixListener::bind_addr(&name)?, None)
        }
        None => {
            remove_stale(path)?;
            let listener = unix::UnixListener::bind(path)?;
            if mode != 0 {
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            (listener, Some(path.to_owned()))
        }
    };
    listener.set_nonblocking(true)?;
    Ok((Socket::Pipe { listener: UnixListener::from_std(listener)?, path }, address))
}

/// Removes the socket of a process that is gone. Never removes one that still answers, or a file that is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && unix::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    Ok(())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, backend: Rc<dyn Backend>) {
    let stream = TokioIo::new(WriteStall::new(stream, WRITE_STALL));
    let service = service_fn(move |request| {
        let backend = backend.clone();
        async move { Ok::<_, Infallible>(respond(request, &*backend).await) }
    });
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX);
    if let Err(error) = connection.serve_connection(stream, service).await {
        log::debug!("admin connection: {error}");
    }
}

async fn respond(request: Request<Incoming>, backend: &dyn Backend) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut query = Query::parse(head.uri.query().unwrap_or_default());
    match timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => {
            let form = head.headers.get(CONTENT_TYPE).is_some_and(|value| {
                value.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
            });
            if form {
                query.add_form(&body.to_bytes());
            }
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("request body is larger than {BODY_MAX} bytes\n");
            return last_response(Reply::status(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Ok(Err(_)) => return last_response(Reply::bad_request("request body cannot be read\n")),
        Err(_) => {
            let text = "request body did not arrive in time\n";
            return last_response(Reply::status(StatusCode::REQUEST_TIMEOUT, text));
        }
    }
    log::debug!("admin request: {} {}", head.method, head.uri);
    response(endpoints::answer(&head.method, head.uri.path(), &query, backend))
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SERVER, HeaderValue::from_static("culvert"));
    response
}

/// An answer after which the connection is closed, because the rest of the request was not read.
fn last_response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = response(reply);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;
