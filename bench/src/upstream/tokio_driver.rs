//! Runs sessions on tokio (epoll).

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::http2;
use super::session::{Session, Settings, Step};

/// One buffer for all connections: an idle one then costs no memory for reading.
type SharedBuffer = Rc<RefCell<Vec<u8>>>;

const READ_BYTES: usize = 64 * 1024;

/// One record.
const TLS_READ_BYTES: usize = 16 * 1024;

/// Accepts and serves until `stop`.
pub(super) fn run(
    runtime: &Runtime,
    listener: TcpListener,
    settings: Arc<Settings>,
    stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let accept = async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let buffer: SharedBuffer = Rc::new(RefCell::new(vec![0; READ_BYTES]));
        loop {
            match listener.accept().await {
                Ok((stream, _)) if settings.is_http2() => {
                    tokio::task::spawn_local(http2::serve(stream, Arc::clone(&settings)));
                }
                Ok((stream, peer)) => {
                    let session = Session::new(Arc::clone(&settings), peer);
                    match settings.tls() {
                        Some(config) => {
                            let config = Arc::clone(config);
                            tokio::task::spawn_local(serve_tls(stream, session, config));
                        }
                        None => {
                            tokio::task::spawn_local(serve(stream, session, Rc::clone(&buffer)));
                        }
                    }
                }
                // Out of descriptors, or a client that left early: both pass.
                Err(_) => tokio::time::sleep(super::ACCEPT_RETRY).await,
            }
        }
    };
    LocalSet::new().block_on(runtime, async {
        tokio::select! {
            result = accept => result,
            _ = stop => Ok(()),
        }
    })
}

async fn serve(mut stream: TcpStream, mut session: Session, buffer: SharedBuffer) {
    // A connection that breaks is the client's affair.
    let _ = exchange(&mut stream, &mut session, &buffer).await;
}

async fn serve_tls(stream: TcpStream, mut session: Session, config: Arc<ServerConfig>) {
    let _ = exchange_tls(stream, &mut session, config).await;
}

async fn exchange_tls(stream: TcpStream, session: &mut Session, config: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = TlsAcceptor::from(config).accept(stream).await?;
    let mut out = Vec::new();
    let mut buffer = vec![0; TLS_READ_BYTES];
    loop {
        let step = session.step(&mut out);
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        match step {
            Step::Write => {}
            Step::Sleep(delay) => tokio::time::sleep(delay).await,
            Step::Close => return stream.shutdown().await,
            Step::Read => match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => session.received(&buffer[..count]),
            },
        }
    }
}

async fn exchange(stream: &mut TcpStream, session: &mut Session, buffer: &SharedBuffer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = Vec::new();
    loop {
        let step = session.step(&mut out);
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
        match step {
            Step::Write => {}
            Step::Sleep(delay) => tokio::time::sleep(delay).await,
            Step::Close => return stream.shutdown().await,
            Step::Read => loop {
                stream.readable().await?;
                let mut buffer = buffer.borrow_mut();
                match stream.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => {
                        session.received(&buffer[..count]);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            },
        }
    }
}
