//! A bare TCP byte forwarder: what the drivers cost without a protocol.
//!
//! `forward LISTEN BACKEND [--io uring|epoll|auto]`, for example `forward 127.0.0.1:8080 127.0.0.1:9090 --io uring`.

use std::{env, error::Error, net::SocketAddr, rc::Rc};

use culvert_ring::{IoChoice, Listener, Runtime, RuntimeConfig, Stream, net, probe, task};

/// Bytes that may wait on the way to a slow reader.
const HIGH_WATER: usize = 128 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let usage = "usage: forward LISTEN BACKEND [--io uring|epoll|auto]";
    let listen: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let backend: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let choice = match (args.next().as_deref(), args.next().as_deref()) {
        (None, _) | (Some("--io"), Some("auto")) => IoChoice::Auto,
        (Some("--io"), Some("uring")) => IoChoice::Uring,
        (Some("--io"), Some("epoll")) => IoChoice::Epoll,
        _ => return Err(usage.into()),
    };
    let probe = probe(choice)?;
    eprintln!("{probe}");
    let mut runtime = Runtime::new(&RuntimeConfig { driver: probe.driver, ..RuntimeConfig::default() })?;
    runtime.block_on(async {
        let listener = Listener::new(net::listener(&listen, &net::ListenOptions::default())?)?;
        loop {
            let client = listener.accept().await?;
            task::spawn(async move {
                if let Err(error) = forward(client, backend).await {
                    eprintln!("{error}");
                }
            });
        }
    })
}

async fn forward(client: Stream, backend: SocketAddr) -> std::io::Result<()> {
    let server = Stream::connect(net::tcp_socket(&backend)?, &backend.into()).await?;
    let (client, server) = (Rc::new(client), Rc::new(server));
    let back = (Rc::clone(&server), Rc::clone(&client));
    task::spawn(async move {
        // An error closes both once the other direction ends too.
        let _ = copy(&back.0, &back.1).await;
    });
    copy(&client, &server).await
}

async fn copy(from: &Stream, to: &Stream) -> std::io::Result<()> {
    loop {
        let lease = from.read().await?;
        if lease.is_empty() {
            to.shutdown_write();
            return Ok(());
        }
        to.send(lease);
        to.drained(HIGH_WATER).await?;
    }
}
