//! `culvert-bench upstream`: a server whose every answer is predictable.
//!
//! With `--http2` every path gets the default answer, and a gRPC call a message of `--body` bytes and `grpc-status: 0`.
//! Else:
//!
//! | path | answer |
//! |---|---|
//! | `/bytes/N` | N bytes of [`crate::wire::pattern`], streamed |
//! | `/echo` | the request body, streamed, in the framing it came in |
//! | `/addr` | the client's address as this server sees it |
//! | `/name` | the server's name |
//! | `/slow/MS` | after MS milliseconds, a short text |
//! | anything else | `--body` bytes; with `--name` the name and the client's address first |
//!
//! The query `?chunked` makes an answer chunked. There is no Date header, so that equal requests get equal bytes.

mod http2;
mod reply;
mod request;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod tokio_driver;
mod uring_driver;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

pub use session::{Session, Settings, Step};
pub use tls::server_config as tls_config;

/// Serves HTTP with predictable answers: /bytes/N /echo /addr /name /slow/MS, and --body bytes elsewhere.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 picks one, which is printed
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Length of the default answer's body [default: 1024, or just the naming lines with --name]
    #[arg(long, value_name = "BYTES")]
    body: Option<usize>,
    /// Put this name into an x-served-by header, and name and client address into the default answer
    #[arg(long)]
    name: Option<String>,
    /// Which kernel interface to use; HTTP/2 and TLS are served on epoll only
    #[arg(long, value_enum, default_value_t = Io::Auto)]
    io: Io,
    /// Speak HTTP/2 with prior knowledge; every path gets the default answer
    #[arg(long)]
    http2: bool,
    /// Speak TLS 1.3 with this certificate and key, PEM in one file
    #[arg(long, value_name = "FILE", conflicts_with = "http2")]
    tls: Option<PathBuf>,
}

/// Kernel interface of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Io {
    /// io_uring where it is available, else epoll.
    Auto,
    /// epoll, by tokio.
    Epoll,
    /// io_uring, by tokio-uring.
    Uring,
}

/// A server on a thread of its own; dropping it stops the server and its connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

const BACKLOG: i32 = 4096;

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(5);

const BODY_BYTES: usize = 1024;

/// Runs `culvert-bench upstream` until it is killed.
///
/// # Errors
/// When the address cannot be listened on, or io_uring was asked for and is not available.
pub fn command(args: &Args) -> anyhow::Result<()> {
    let named = args.name.is_some();
    let body_bytes = args.body.unwrap_or(if named { 0 } else { BODY_BYTES });
    let mut settings = Settings::new(args.name.clone(), body_bytes)?;
    if args.http2 {
        settings = settings.with_http2();
    }
    if let Some(path) = &args.tls {
        settings = settings.with_tls(tls::server_config(path)?);
    }
    let listener = listen(args.listen)?;
    let address = listener.local_addr()?;
    // Never sent to: the process ends by a signal.
    let (_keep, stop) = oneshot::channel();
    run(listener, settings, args.io, stop, |io| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "listening on {address} ({io})").and_then(|()| stdout.flush())
    })?;
    Ok(())
}

impl Server {
    /// Starts a server; it accepts connections as soon as this returns.
    ///
    /// # Errors
    /// When the address cannot be listened on or `io` is not available.
    pub fn start(address: SocketAddr, settings: Settings, io: Io) -> io::Result<Self> {
        let listener = listen(address)?;
        let address = listener.local_addr()?;
        let (stop_sender, stop) = oneshot::channel();
        let (started_sender, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            run(listener, settings, io, stop, |_| started_sender.send(()).map_err(io::Error::other))
        })?;
        let server = Self { address, stop: Some(stop_sender), thread: Some(thread) };
        match started.recv() {
            Ok(()) => Ok(server),
            Err(_) => Err(server.join().err().unwrap_or_else(|| io::Error::other("server ended at once"))),
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn join(mut self) -> io::Result<()> {
        let thread = self.thread.take();
        thread.map_or(Ok(()), |thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("server panicked")))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until `stop`; `started` is told the interface once connections are accepted.
fn run(
    listener: TcpListener,
    settings: Settings,
    io: Io,
    stop: oneshot::Receiver<()>,
    started: impl FnOnce(&str) -> io::Result<()>,
) -> io::Result<()> {
    let settings = Arc::new(settings);
    let is_plain = settings.tls().is_none() && !settings.is_http2();
    if io == Io::Uring && !is_plain {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "io_uring serves plain HTTP/1.1 only; HTTP/2 and TLS need epoll",
        ));
    }
    let uring =
        match io {
            Io::Epoll => None,
            Io::Auto if !is_plain => None,
            Io::Auto => uring_driver::runtime().ok(),
            Io::Uring => Some(uring_driver::runtime().map_err(|error| {
                io::Error::new(error.kind(), format!("io_uring is not available: {error}"))
            })?),
        };
    match uring {
        Some(runtime) => {
            started("io_uring")?;
            uring_driver::run(&runtime, listener, settings, stop)
        }
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            started("epoll")?;
            tokio_driver::run(&runtime, listener, settings, stop)
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)?;
    Ok(socket.into())
}
