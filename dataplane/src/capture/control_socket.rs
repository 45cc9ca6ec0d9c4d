//! The root-only Unix socket through which the pod set of a running culvert is changed. It is not the admin port: whoever
//! may call here decides whose traffic is taken over, so file mode, peer credentials and directory all say root.

use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt},
            net::UnixStream as StdStream,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::capture::protocol::{Request, Response};

/// Where the socket is, unless told otherwise.
pub const DEFAULT_PATH: &str = "/run/culvert/control.sock";

/// Longest request or response line, in bytes; 4,096 pods of a few hundred bytes fit into a response.
const REQUEST_LEN_MAX: u64 = 64 << 10;
const RESPONSE_LEN_MAX: u64 = 8 << 20;
/// How long a peer may take to send a request or to read the response.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for the answer: enrolling enters namespaces and may run iptables.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a lock that is held is waited for: a process that was just killed may have a child that has not come to its
/// exec(2) yet, which closes the child's copy.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Peers served at once; others wait in the backlog.
const PEERS_MAX: usize = 16;
const BACKLOG: i32 = 64;

/// A request together with the way its answer goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Takes the answer. Dropped unanswered, the peer is told that culvert is going away.
    pub reply: oneshot::Sender<Response>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Another culvert serves this path.
    #[error("control socket {}: another culvert is running and listens there", .0.display())]
    Live(PathBuf),
    /// There is a file at the path that is no socket; it is not ours to remove.
    #[error("control socket {}: exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The directory could be changed by someone other than root.
    #[error("control socket: directory {} is writable by others than root", .0.display())]
    OpenDirectory(PathBuf),
    /// A system call failed.
    #[error("control socket {}: {doing}: {source}", path.display())]
    Io {
        /// Of the socket.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What it gave.
        source: io::Error,
    },
}

/// Why a call was not answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No culvert listens there.
    #[error("no culvert is running (nothing listens on {})", .0.display())]
    NotRunning(PathBuf),
    /// The socket is root's.
    #[error("control socket {}: permission denied; this needs root", .0.display())]
    Denied(PathBuf),
    /// Connecting, sending or receiving failed.
    #[error("control socket {}: {source}", path.display())]
    Io {
        /// Of the socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("control socket: answer not understood: {0}")]
    Answer(String),
}

/// The right to be the one culvert of a control socket's path, held as a lock on `PATH.lock` for as long as this lives.
/// It is what tells a dead instance's leavings from a living one's, so clean-up without a running culvert takes it too.
#[derive(Debug)]
pub struct InstanceLock {
    _file: OwnedFd,
}

/// The listening socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    _lock: InstanceLock,
}

impl InstanceLock {
    /// Takes the lock, making the directory (0700) if it is missing.
    ///
    /// # Errors
    /// [`ControlSocketError::Live`] when another process holds it.
    pub fn take(path: &Path) -> Result<Self, ControlSocketError> {
        let io =
            |doing| move |source: io::Error| ControlSocketError::Io { path: path.to_owned(), doing, source };
        make_directory(path)?;
        let lock_path = lock_path(path);
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let flags = flags | rustix::fs::OFlags::NOFOLLOW;
        let file = rustix::fs::open(&lock_path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| io("open lock file")(error.into()))?;
        for _ in 0..LOCK_TRIES {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
                Err(error) => return Err(io("lock")(error.into())),
            }
        }
        Err(ControlSocketError::Live(path.to_owned()))
    }
}

impl ControlSocket {
    /// Binds the socket with mode 0600. A socket file that a dead culvert left is replaced. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// Another culvert listens there, or the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ControlSocketError> {
        let lock = InstanceLock::take(path)?;
        Self::bind_locked(path, lock)
    }

    /// As [`ControlSocket::bind`], with the lock taken before.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn bind_locked(path: &Path, lock: InstanceLock) -> Result<Self, ControlSocketError> {
        let io =
            |doing| move |source: io::Error| ControlSocketError::Io { path: path.to_owned(), doing, source };
        match fs::symlink_metadata(path) {
            // Whoever listened there is dead: a living culvert would hold the lock.
            Ok(metadata) if metadata.file_type().is_socket() => {
                fs::remove_file(path).map_err(io("remove"))?;
            }
            Ok(_) => return Err(ControlSocketError::NotASocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("stat")(error)),
        }
        let listener = listen(path).map_err(io("bind"))?;
        let file = SocketFile { path: path.to_owned(), _lock: lock };
        Ok(Self { listener: UnixListener::from_std(listener.into()).map_err(io("register"))?, file })
    }

    /// The path it is bound to.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Serves peers until the receiver of `calls` is gone. Peers that are not root, send garbage, too much, or nothing
    /// for too long are answered where that is possible and hung up on; others are not disturbed by them.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let peers = Arc::new(Semaphore::new(PEERS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&peers).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = calls.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: later is better than never.
                    log::warn!("control socket: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let calls = calls.clone();
            tokio::spawn(async move {
                if let Err(error) = serve_peer(stream, &calls).await {
                    log::debug!("control socket: {error}");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("control socket {}: remove: {error}", self.path.display());
        }
    }
}

/// Asks the culvert that listens on `path`, and waits for its answer. For the command line; blocks.
///
/// # Errors
/// [`CallError::NotRunning`] when nobody listens there.
pub fn call(path: &Path, request: &Request) -> Result<Response, CallError> {
    let io = |source: io::Error| CallError::Io { path: path.to_owned(), source };
    let mut stream = StdStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CallError::NotRunning(path.to_owned()),
        io::ErrorKind::PermissionDenied => CallError::Denied(path.to_owned()),
        _ => io(error),
    })?;
    stream.set_read_timeout(Some(CALL_TIMEOUT)).map_err(io)?;
    stream.set_write_timeout(Some(PEER_TIMEOUT)).map_err(io)?;
    let mut line = serde_json::to_vec(request).map_err(|error| CallError::Answer(error.to_string()))?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // Refused before it was asked: the answer says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent.map_err(io)?,
    }
    let mut answer = String::new();
    BufReader::new(stream.take(RESPONSE_LEN_MAX)).read_line(&mut answer).map_err(io)?;
    serde_json::from_str(&answer).map_err(|error| match answer.is_empty() {
        true => CallError::Answer("the connection was closed".to_owned()),
        false => CallError::Answer(error.to_string()),
    })
}

async fn serve_peer(mut stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    // The mode of the file already says so; this holds when someone changed it.
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 {
        log::warn!("control socket: refused uid {} (pid {:?})", peer.uid(), peer.pid());
        return respond(&mut stream, &Response::error("only root may change pods")).await;
    }
    let (read, mut write) = stream.split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_LEN_MAX);
        let Ok(length) = timeout(PEER_TIMEOUT, bounded.read_until(b'\n', &mut line)).await else {
            return respond(&mut write, &Response::error("no request came in time")).await;
        };
        if length? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let whole = (line.len() as u64) < REQUEST_LEN_MAX;
            let reason = if whole { "request without end of line" } else { "request too long" };
            return respond(&mut write, &Response::error(reason)).await;
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => ask(request, calls).await,
            Err(error) => Response::error(format!("request not understood: {error}")),
        };
        respond(&mut write, &response).await?;
    }
}

async fn ask(request: Request, calls: &mpsc::Sender<Call>) -> Response {
    let (reply, answer) = oneshot::channel();
    let going_away = || Response::error("culvert is shutting down");
    if calls.send(Call { request, reply }).await.is_err() {
        return going_away();
    }
    answer.await.unwrap_or_else(|_| going_away())
}

async fn respond(stream: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(PEER_TIMEOUT, stream.write_all(&line)).await?
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // bind(2) gives the file the mode of the socket's inode: set before, there is no moment at which it is wider.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn make_directory(path: &Path) -> Result<(), ControlSocketError> {
    use std::os::unix::fs::MetadataExt;
    let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    let io = |doing| move |source: io::Error| ControlSocketError::Io { path: path.to_owned(), doing, source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("create directory"))?;
    let metadata = fs::metadata(directory).map_err(io("stat directory"))?;
    // With the sticky bit, as in /tmp, others may add files but not touch ours.
    let shared = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
    if shared || metadata.uid() != 0 {
        return Err(ControlSocketError::OpenDirectory(directory.to_owned()));
    }
    Ok(())
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

#[cfg(test)]
mod tests;
