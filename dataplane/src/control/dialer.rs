//! Connections of the control thread to clusters: control planes, and other services that it speaks gRPC with.
//!
//! They are made from the network namespace that Culvert runs in, to whatever endpoints a cluster has now. Each
//! connection goes to the endpoint after the one that the connection before went to, and passes over those that cannot
//! be reached.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use culvert_bpf::PROXY_MARK;
use culvert_model::{
    Address, Cluster, Config, Discovery, DnsAssignment, DnsOptions, DnsResolver, Endpoint, Health,
    LoadAssignment, ProxyVersion, ResourceKey,
};
use culvert_proto::detect::write_proxy;
use culvert_xds::remote::{Connecting, DialSettings, Dialer, Io};
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use super::{
    dns,
    snapshot::{Resolved, proxy_for, tls_for},
};
use crate::{
    tls::{self, Contexts},
    upstream::{Ends, version_of},
};

/// Endpoints that one connection tries.
const TRIES_MAX: usize = 16;

/// Dials the clusters in force.
pub(super) struct ClusterDialer {
    known: Mutex<Known>,
    contexts: Arc<Contexts>,
    resolver: Arc<DnsResolver>,
    /// Whether sockets carry the mark that keeps them from being captured.
    marked: bool,
}

struct Known {
    config: Arc<Config>,
    resolved: Resolved,
    /// How often each cluster was dialled.
    dialled: HashMap<Arc<str>, usize>,
}

/// Where the endpoints of a cluster are.
enum Targets {
    Known(Arc<LoadAssignment>),
    /// Names that have not been resolved yet.
    Names(Arc<DnsAssignment>, Arc<DnsOptions>),
}

impl ClusterDialer {
    /// A dialler of the clusters in `config`; `marked` when connections are captured.
    /// Names are resolved with `resolver` where clusters have none of their own.
    pub(super) fn new(
        config: Arc<Config>,
        contexts: Arc<Contexts>,
        resolver: Arc<DnsResolver>,
        marked: bool,
    ) -> Self {
        let known = Known { config, resolved: Resolved::new(), dialled: HashMap::new() };
        Self { known: Mutex::new(known), contexts, resolver, marked }
    }

    /// Goes on with another configuration, and with what the names in it resolve to. `clusters`: these or their addresses
    /// have changed.
    pub(super) fn update(&self, config: &Arc<Config>, resolved: &Resolved, clusters: bool) {
        let mut known = self.lock();
        known.config = config.clone();
        if !clusters {
            return;
        }
        known.resolved.clone_from(resolved);
        let config = config.clone();
        known.dialled.retain(|name, _| config.clusters.iter().any(|cluster| cluster.name == *name));
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing is half done in there at any time.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.config.clusters.iter().find(|cluster| *cluster.name == *name).cloned()
    }

    fn targets(&self, cluster: &Cluster) -> Targets {
        let known = |assignment: Option<&Arc<LoadAssignment>>| {
            Targets::Known(assignment.cloned().unwrap_or_default())
        };
        match &cluster.discovery {
            Discovery::Static(assignment) => known(Some(assignment)),
            Discovery::Eds { service_name, source } => {
                known(self.config.assignments.get(&ResourceKey::new(source, service_name)))
            }
            Discovery::Aggregate(_) | Discovery::OriginalDst(_) => Targets::Known(Arc::default()),
            Discovery::Dns { assignment, options } => match self.resolved.get(&cluster.name) {
                Some(resolved) if !resolved.endpoints.is_empty() => Targets::Known(resolved.clone()),
                _ => Targets::Names(assignment.clone(), options.clone()),
            },
        }
    }
}

impl Dialer for ClusterDialer {
    fn settings(&self, cluster: &str) -> Option<DialSettings> {
        let cluster = self.lock().cluster(cluster)?;
        let matched = cluster.transport_socket_matches.iter().map(|socket| &socket.tls);
        let tls = matched.chain([&cluster.tls]).any(Option::is_some);
        Some(DialSettings { tls, http2: cluster.http2.unwrap_or_default() })
    }

    fn connect(&self, cluster: &str) -> Connecting {
        let mut known = self.lock();
        let Some(cluster) = known.cluster(cluster) else {
            let reason = format!("there is no cluster {cluster:?}");
            return Box::pin(async { Err(io::Error::new(io::ErrorKind::NotFound, reason)) });
        };
        let targets = known.targets(&cluster);
        let turn = known.dialled.entry(cluster.name.clone()).or_default();
        let start = *turn;
        *turn = turn.wrapping_add(1);
        let (marked, contexts, resolver) = (self.marked, self.contexts.clone(), self.resolver.clone());
        Box::pin(async move {
            let endpoints = match targets {
                Targets::Known(assignment) => in_order(&assignment.endpoints, start),
                Targets::Names(names, options) => {
                    in_order(&dns::look_up(&cluster.name, &names, &options, &resolver).await, start)
                }
            };
            dial(&cluster, &endpoints, &contexts, marked).await
        })
    }
}

/// The endpoints to try, one after the other: those of the first priority before others, healthy ones before others,
/// and among equals another one first each time.
fn in_order(endpoints: &[Arc<Endpoint>], start: usize) -> Vec<Arc<Endpoint>> {
    let rank = |endpoint: &Arc<Endpoint>| {
        let health = match endpoint.health {
            Health::Healthy => 0,
            Health::Degraded => 1,
            Health::Unhealthy | Health::Excluded => 2,
        };
        (health, endpoint.priority)
    };
    let mut ordered = endpoints.to_vec();
    ordered.sort_by_key(rank);
    for group in ordered.chunk_by_mut(|a, b| rank(a) == rank(b)) {
        let by = start % group.len();
        group.rotate_left(by);
    }
    ordered
}

async fn dial(
    cluster: &Cluster,
    endpoints: &[Arc<Endpoint>],
    contexts: &Contexts,
    marked: bool,
) -> io::Result<Box<dyn Io>> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{}: no endpoints", cluster.name));
    for endpoint in endpoints.iter().take(TRIES_MAX) {
        let connecting = async {
            let (stream, ends) = connect(&endpoint.address, marked).await?;
            secure(stream, cluster, endpoint, contexts, ends, |protocols| {
                // Servers of gRPC insist on it, whether it is configured or not.
                if cluster.http2.is_some() && protocols.is_empty() {
                    protocols.push(b"h2".to_vec());
                }
            })
            .await
        };
        match within(cluster.connect_timeout, connecting).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let text = format!("{}: {}: {error}", cluster.name, endpoint.address);
                log::debug!(target: "upstream", "{text}");
                failed = io::Error::new(error.kind(), text);
            }
        }
    }
    Err(failed)
}

async fn within<T>(timeout: Duration, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(timeout, what).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"))),
    }
}

async fn connect(address: &Address, marked: bool) -> io::Result<(Box<dyn Io>, Option<Ends>)> {
    Ok(match address {
        Address::Ip(address) => {
            let stream = connect_tcp(*address, marked).await?;
            let ends = ends(&stream);
            (Box::new(stream), ends)
        }
        Address::Pipe { path, .. } => (Box::new(UnixStream::connect(socket_path(path)).await?), None),
    })
}

/// This end of a connection, and the other one.
pub(super) fn ends(stream: &TcpStream) -> Option<Ends> {
    Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
}

async fn connect_tcp(address: SocketAddr, marked: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if marked {
        SockRef::from(&socket).set_mark(PROXY_MARK)?;
    }
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// A leading `@` stands for the NUL of an abstract name.
pub(super) fn socket_path(path: &Path) -> std::path::PathBuf {
    match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => format!("\0{name}").into(),
        None => path.to_owned(),
    }
}

/// The connection as its cluster's `transport_socket` wants it. `offer` may change what ALPN offers.
pub(super) async fn secure(
    stream: Box<dyn Io>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    contexts: &Contexts,
    ends: Option<Ends>,
    offer: impl FnOnce(&mut Vec<Vec<u8>>),
) -> io::Result<Box<dyn Io>> {
    let mut stream = stream;
    if let Some(version) = proxy_for(cluster, endpoint) {
        let mut header = Vec::new();
        // One that speaks for nobody else: version 1 names this connection's own ends then, as Envoy does.
        write_proxy(version_of(version), ends.filter(|_| version == ProxyVersion::V1), &mut header);
        stream.write_all(&header).await?;
    }
    let Some(tls) = tls_for(cluster, endpoint) else { return Ok(stream) };
    let Some(context) = contexts.client(tls).get() else {
        return Err(io::Error::other("a secret of the TLS context is missing"));
    };
    let (mut config, name) = context.for_server(&tls::Server::of(endpoint)).map_err(io::Error::other)?;
    let mut offered = config.alpn_protocols.clone();
    offer(&mut offered);
    if offered != config.alpn_protocols {
        Arc::make_mut(&mut config).alpn_protocols = offered;
    }
    Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
}

#[cfg(test)]
mod tests;
