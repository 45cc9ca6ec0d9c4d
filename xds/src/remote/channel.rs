//! Connections to the clusters that control planes and other gRPC services are.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use culvert_model::Http2Options;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// A connection, secured already where its cluster asks for that.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The connection that [`Dialer::connect`] makes.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Connects to clusters by their names. The data plane is one; tests have their own.
pub trait Dialer: Send + Sync + 'static {
    /// How the cluster's connections are kept; `None` when there is no such cluster now.
    fn settings(&self, cluster: &str) -> Option<DialSettings>;

    /// Connects to one of the cluster's endpoints, another one than before when that failed. Gives up by itself
    /// after the cluster's `connect_timeout`.
    fn connect(&self, cluster: &str) -> Connecting;
}

/// What a client needs to know about a cluster.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DialSettings {
    /// Whether its connections are TLS, which decides `:scheme`.
    pub tls: bool,
    /// `http2_protocol_options` of the cluster.
    pub http2: Http2Options,
}

/// Answers to keep-alive pings are waited for this long where the cluster does not say.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A gRPC channel to an ordinary cluster. It connects with its first call, through `dialer`, and again after the
/// connection was lost; calls fail with `UNAVAILABLE` while there is none. `authority` is `envoy_grpc.authority`, when
/// empty the cluster's name is sent. Has to be called inside a tokio runtime.
#[must_use]
pub fn channel(dialer: &Arc<dyn Dialer>, cluster: &str, authority: &str) -> Channel {
    let settings = dialer.settings(cluster).unwrap_or_default();
    let authority = if authority.is_empty() { cluster } else { authority };
    let endpoint = Endpoint::from(origin(settings.tls, authority));
    let endpoint = match settings.http2.keepalive_interval {
        Some(interval) => endpoint
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(settings.http2.keepalive_timeout.unwrap_or(KEEPALIVE_TIMEOUT))
            .keep_alive_while_idle(true),
        None => endpoint,
    };
    endpoint
        .initial_stream_window_size(settings.http2.stream_window)
        .initial_connection_window_size(settings.http2.connection_window)
        .connect_with_connector_lazy(Connector { dialer: dialer.clone(), cluster: cluster.into() })
}

/// The URI that requests to a cluster have. Names of clusters may hold what an authority must not.
pub(super) fn origin(tls: bool, authority: &str) -> Uri {
    let scheme = if tls { "https" } else { "http" };
    let build =
        |authority: &str| Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
    build(authority).unwrap_or_else(|_| {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
        build(&authority.chars().map(plain).collect::<String>())
            .unwrap_or_else(|_| Uri::from_static("http://cluster/"))
    })
}

/// One channel for each cluster and authority, for those whose calls may share a connection.
pub(super) struct Channels {
    dialer: Arc<dyn Dialer>,
    known: Mutex<BTreeMap<(String, String), (DialSettings, Channel)>>,
}

impl Channels {
    pub(super) fn new(dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer, known: Mutex::default() }
    }

    pub(super) fn dialer(&self) -> &Arc<dyn Dialer> {
        &self.dialer
    }

    /// The channel to a cluster; a new one when the cluster's settings have changed.
    pub(super) fn get(&self, cluster: &str, authority: &str) -> Channel {
        let settings = self.dialer.settings(cluster).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (cluster.to_owned(), authority.to_owned());
        match known.get(&key) {
            Some((with, channel)) if *with == settings => channel.clone(),
            _ => {
                let channel = channel(&self.dialer, cluster, authority);
                known.insert(key, (settings, channel.clone()));
                channel
            }
        }
    }
}

/// A [`Dialer`] as tonic wants it.
#[derive(Clone)]
struct Connector {
    dialer: Arc<dyn Dialer>,
    cluster: Arc<str>,
}

impl Service<Uri> for Connector {
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Io>>>> + Send>>;
    type Response = TokioIo<Box<dyn Io>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.dialer.connect(&self.cluster);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clusters_as_authorities() {
        assert_eq!(origin(false, "xds_cluster").to_string(), "http://xds_cluster/");
        assert_eq!(origin(true, "xds.example:443").to_string(), "https://xds.example:443/");
        assert_eq!(origin(false, "outbound|80||a/b").to_string(), "http://outbound-80--a-b/");
        assert_eq!(origin(false, "a b").to_string(), "http://a-b/");
    }
}
