//! Connecting to a host: sockets with the cluster's options, and one address after the other.

use std::{
    ffi::OsStr,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use culvert_model::{Address, BindConfig, Cluster, Endpoint};
use culvert_ring::{Stream, net, time};
use socket2::SockAddr;

use crate::{
    capture,
    upstream::{AcquireError, Via},
};

/// How long an address may take before the next one is tried beside it (RFC 8305, as in Envoy).
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

type Attempt = Pin<Box<dyn Future<Output = io::Result<Stream>>>>;

/// Connects to an endpoint: to its address, and as long as that does not answer to its additional ones.
///
/// # Errors
/// The kernel's reason for the last address that failed, or `connect_timeout` passed.
pub(super) async fn connect(
    endpoint: &Endpoint,
    config: &Cluster,
    via: &Via,
) -> Result<Stream, AcquireError> {
    let mut deadline = time::Timer::new();
    deadline.set(time::now() + config.connect_timeout);
    if endpoint.additional.is_empty() {
        let mut connecting = std::pin::pin!(attempt(&endpoint.address, config, via));
        return poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(failed));
            }
            deadline.poll_expired(cx).map(|()| Err(AcquireError::Timeout))
        })
        .await;
    }
    let mut waiting = alternating(endpoint).into_iter();
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut next = time::Timer::new();
    let mut start = true;
    let mut last = None;
    poll_fn(|cx| {
        loop {
            if start && let Some(address) = waiting.next() {
                let (config, via) = (config.clone(), via.clone());
                attempts.push(Box::pin(async move { attempt(&address, &config, &via).await }));
                next.set(time::now() + NEXT_ADDRESS);
            }
            start = false;
            let mut at = 0;
            while at < attempts.len() {
                match attempts[at].as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                    Poll::Ready(Err(error)) => {
                        last = Some(error);
                        drop(attempts.swap_remove(at));
                        start = true;
                    }
                }
            }
            if deadline.poll_expired(cx).is_ready() {
                return Poll::Ready(Err(AcquireError::Timeout));
            }
            let more = waiting.len() > 0;
            if more && !start {
                start = next.poll_expired(cx).is_ready();
            }
            if attempts.is_empty() && !more {
                let error = last.take().unwrap_or_else(|| io::ErrorKind::NotConnected.into());
                return Poll::Ready(Err(failed(error)));
            }
            if !(start && more) {
                return Poll::Pending;
            }
        }
    })
    .await
}

fn failed(error: io::Error) -> AcquireError {
    AcquireError::Connect(error.to_string())
}

async fn attempt(address: &Address, config: &Cluster, via: &Via) -> io::Result<Stream> {
    let (socket, address) = socket_for(address, config, via)?;
    Stream::connect(socket, &address).await
}

/// The addresses of an endpoint, IP versions alternating, that of its first address first.
fn alternating(endpoint: &Endpoint) -> Vec<Address> {
    let all: Vec<_> = std::iter::once(&endpoint.address).chain(&endpoint.additional).collect();
    let is_v4 = |address: &Address| matches!(address, Address::Ip(SocketAddr::V4(_)));
    let first = is_v4(&endpoint.address);
    let (like, unlike): (Vec<_>, Vec<_>) = all.into_iter().partition(|address| is_v4(address) == first);
    let (mut like, mut unlike) = (like.into_iter(), unlike.into_iter());
    let mut sorted = Vec::new();
    loop {
        match (like.next(), unlike.next()) {
            (None, None) => return sorted,
            (a, b) => sorted.extend(a.into_iter().chain(b).cloned()),
        }
    }
}

/// A socket as the cluster wants it, and where it has to connect to.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn socket_for(address: &Address, config: &Cluster, via: &Via) -> io::Result<(OwnedFd, SockAddr)> {
    match address {
        Address::Ip(ip) => {
            let bind = config.bind.as_deref();
            let source = bind.and_then(|bind| source_for(bind, ip));
            let socket = match &via.pod {
                // What the cluster says goes before the client's address.
                Some(pod) => capture::upstream_socket(pod, ip, via.source.filter(|_| source.is_none()))?,
                None => net::tcp_socket(ip)?,
            };
            if let Some(bind) = bind {
                set_options(&socket, bind, ip)?;
            }
            if let Some(source) = source {
                net::bind_source(socket.as_fd(), &source)?;
            }
            if let Some(times) = &config.keepalive {
                net::set_keepalive(socket.as_fd(), keepalive(times))?;
            }
            Ok((socket, (*ip).into()))
        }
        Address::Pipe { path, .. } => Ok((net::unix_socket()?, unix_address(path)?)),
    }
}

/// The address to connect from: the first one of the destination's IP version, else the first one.
fn source_for(bind: &BindConfig, destination: &SocketAddr) -> Option<SocketAddr> {
    let fitting = bind.sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4());
    fitting.or_else(|| bind.sources.first()).copied()
}

fn set_options(socket: &OwnedFd, bind: &BindConfig, destination: &SocketAddr) -> io::Result<()> {
    if bind.freebind {
        net::set_freebind(socket.as_fd(), destination)?;
    }
    for option in &bind.options {
        net::set_option(socket.as_fd(), option.level, option.name, &option.value)?;
    }
    Ok(())
}

/// Times of TCP's keepalive as the sockets take them.
pub(crate) fn keepalive(model: &culvert_model::TcpKeepalive) -> net::Keepalive {
    net::Keepalive { time: model.time, interval: model.interval, probes: model.probes }
}

/// A leading `@` names an abstract socket, as in Envoy's `Pipe.path`.
fn unix_address(path: &Path) -> io::Result<SockAddr> {
    match path.as_os_str().as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => {
            let mut text = vec![0];
            text.extend_from_slice(name);
            SockAddr::unix(OsStr::from_bytes(&text))
        }
        None => SockAddr::unix(path),
    }
}
