//! Listeners (`config.listener.v3`).

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::HttpConnectionManager;

/// `config.listener.v3.Listener`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `name`; made from the address when the configuration has none.
    pub name: String,
    /// `address`
    pub address: Address,
    /// `additional_addresses`
    pub additional_addresses: Vec<Address>,
    /// `bind_to_port`: true. A listener that is not bound only receives captured connections.
    pub bind_to_port: bool,
    /// `traffic_direction`
    pub direction: TrafficDirection,
    /// `filter_chains` has exactly one chain without `filter_chain_match` until chain matching arrives; it stands here.
    pub filter_chain: Arc<FilterChain>,
    /// `stat_prefix`, empty when not given.
    pub stat_prefix: String,
    /// `per_connection_buffer_limit_bytes`: 1 MiB. Bounds what is held per direction of a stream.
    pub buffer_limit_bytes: usize,
    /// `tcp_backlog_size`: `net.core.somaxconn`, at least 128.
    pub backlog: Option<u32>,
    /// `enable_reuse_port`: true.
    pub reuse_port: bool,
}

/// `config.listener.v3.FilterChain`.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// `name`
    pub name: String,
    /// The terminal network filter.
    pub filter: NetworkFilter,
}

/// The terminal network filter of a chain.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    /// `extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`
    Http(Arc<HttpConnectionManager>),
    /// `extensions.filters.network.tcp_proxy.v3.TcpProxy`
    Tcp(Arc<TcpProxy>),
}

/// `extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `cluster` or `weighted_clusters`.
    pub cluster: crate::ClusterSpecifier,
    /// `idle_timeout`: 1 h; `None` when 0.
    pub idle_timeout: Option<Duration>,
}

/// `core.v3.TrafficDirection`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TrafficDirection {
    /// `INBOUND`
    Inbound,
    /// `OUTBOUND`
    Outbound,
    /// `UNSPECIFIED`
    #[default]
    Unspecified,
}

/// `config.core.v3.Address`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// `pipe`: a Unix socket.
    Pipe {
        /// A leading `@` names an abstract socket.
        path: PathBuf,
        /// `mode`; 0 leaves the umask's.
        mode: u32,
    },
    /// `socket_address` with a literal IP address.
    Ip(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pipe { path, .. } => write!(f, "{}", path.display()),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

/// `config.core.v3.ConfigSource`, as far as files go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigSource {
    /// `path_config_source.path`, or the deprecated `path`.
    pub path: PathBuf,
    /// `path_config_source.watched_directory`
    pub watched_directory: Option<PathBuf>,
    /// `initial_fetch_timeout`: 15 s; `None` when 0 (wait for ever).
    pub initial_fetch_timeout: Option<Duration>,
}
