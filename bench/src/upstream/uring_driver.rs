//! Runs sessions on tokio-uring.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_uring::Runtime;
use tokio_uring::net::TcpStream;

use super::session::{Session, Settings, Step};

/// A waiting read owns its buffer: small, so that idle connections are cheap ...
const READ_BYTES: usize = 4 * 1024;
/// ... and large once a read filled it.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A runtime, where the kernel and its policies allow io_uring.
pub(super) fn runtime() -> io::Result<Runtime> {
    Runtime::new(tokio_uring::builder().entries(1024))
}

/// Accepts and serves until `stop`.
pub(super) fn run(
    runtime: &Runtime,
    listener: TcpListener,
    settings: Arc<Settings>,
    stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    // The kernel polls a blocking socket for us; a non-blocking one would return EAGAIN instead of waiting.
    listener.set_nonblocking(false)?;
    let accept = async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let session = Session::new(Arc::clone(&settings), peer);
                    tokio_uring::spawn(serve(stream, session));
                }
                // Out of descriptors, or a client that left early: both pass.
                Err(_) => tokio::time::sleep(super::ACCEPT_RETRY).await,
            }
        }
    };
    runtime.block_on(async {
        tokio::select! {
            result = accept => result,
            _ = stop => Ok(()),
        }
    })
}

async fn serve(stream: TcpStream, mut session: Session) {
    // A connection that breaks is the client's affair.
    let _ = exchange(&stream, &mut session).await;
}

async fn exchange(stream: &TcpStream, session: &mut Session) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut out) = (Vec::with_capacity(READ_BYTES), Vec::new());
    loop {
        let step = session.step(&mut out);
        if !out.is_empty() {
            let (result, written) = stream.write_all(out).await;
            result?;
            out = written;
            out.clear();
        }
        match step {
            Step::Write => {}
            Step::Sleep(delay) => tokio::time::sleep(delay).await,
            Step::Close => return stream.shutdown(std::net::Shutdown::Write),
            Step::Read => {
                let (result, filled) = stream.read(input).await;
                input = filled;
                let count = result?;
                if count == 0 {
                    return Ok(());
                }
                session.received(&input[..count]);
                if count == input.capacity() && count < READ_BYTES_MAX {
                    input = Vec::with_capacity(READ_BYTES_MAX);
                }
                input.clear();
            }
        }
    }
}
