//! Listeners (`config.listener.v3`).

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{DownstreamTls, HttpConnectionManager, NetworkFilter, SocketOption, TcpKeepalive, TcpProxy};

/// `config.listener.v3.Listener`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `name`; made from the address when the configuration has none.
    pub name: String,
    /// `address`
    pub address: Address,
    /// `additional_addresses`
    pub additional_addresses: Vec<Address>,
    /// How its addresses are bound, in the order of [`Listener::addresses`].
    pub sockets: Vec<ListenSocket>,
    /// `freebind`: also addresses that are not the host's.
    pub freebind: bool,
    /// `transparent`: the local address of a connection is where it was going, whoever has that address.
    pub transparent: bool,
    /// `bind_to_port`: true. A listener that is not bound only receives captured connections.
    pub bind_to_port: bool,
    /// `traffic_direction`
    pub direction: TrafficDirection,
    /// `filter_chains`, in configuration order.
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// `default_filter_chain`: for connections that no other chain matches.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// `filter_chain_matcher`: chooses a chain by name, instead of the chains' own matches.
    pub filter_chain_matcher: Option<Arc<crate::ConnectionMatcher>>,
    /// `listener_filters`, in order.
    pub listener_filters: Vec<ListenerFilter>,
    /// `listener_filters_timeout`: 15 s; `None` when 0 (wait for ever).
    pub listener_filters_timeout: Option<Duration>,
    /// `continue_on_listener_filters_timeout`: false, the connection is closed.
    pub continue_on_timeout: bool,
    /// `use_original_dst`: false.
    pub use_original_dst: bool,
    /// `access_log`: of connections.
    pub access_log: Vec<crate::AccessLog>,
    /// `stat_prefix`, empty when not given.
    pub stat_prefix: String,
    /// `per_connection_buffer_limit_bytes`: 1 MiB. Bounds what is held per direction of a stream.
    pub buffer_limit_bytes: usize,
    /// `tcp_backlog_size`: `net.core.somaxconn`, at least 128.
    pub backlog: Option<u32>,
    /// `enable_reuse_port`: true.
    pub reuse_port: bool,
    /// Whether `drain_type` is `MODIFY_ONLY`: only its own update or removal drains it, not the failing of health checks.
    pub drain_modify_only: bool,
    /// `udp_listener_config.quic_options`: QUIC is spoken over UDP, instead of bytes over TCP.
    pub quic: Option<crate::QuicListener>,
    /// `ignore_global_conn_limit`: false.
    pub ignore_global_limit: bool,
    /// `metadata.filter_metadata["culvert"].splice`: true. Whether bytes of captured connections may skip TCP inside the
    /// node.
    pub splice: bool,
    /// Stands for everything above but the chains, and what chooses among them: equal in two versions of a listener
    /// that differ in those alone.
    pub fingerprint: u64,
}

impl Listener {
    /// All chains, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }

    /// All addresses, [`Listener::address`] first.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.additional_addresses)
    }
}

/// How one address of a listener is bound.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListenSocket {
    /// `socket_address.ipv4_compat`: `::` takes IPv4 connections too.
    pub ipv4_compat: bool,
    /// `tcp_keepalive`, of the address or else of the listener; what is accepted inherits it.
    pub keepalive: Option<TcpKeepalive>,
    /// `socket_options`, of the address or else of the listener.
    pub options: Vec<(SocketState, SocketOption)>,
}

/// `config.core.v3.SocketOption.SocketState`: when an option is set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketState {
    /// `STATE_BOUND`: after binding.
    Bound,
    /// `STATE_LISTENING`: after listening has begun.
    Listening,
    /// `STATE_PREBIND`: before binding.
    Prebind,
}

/// `config.listener.v3.ListenerFilter`.
#[derive(Clone, Debug)]
pub struct ListenerFilter {
    /// What it does.
    pub kind: ListenerFilterKind,
    /// `filter_disabled`: it is passed over where this holds.
    pub disabled: Option<ListenerPredicate>,
}

/// Listener filters, which look at a connection before its filter chain is chosen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenerFilterKind {
    /// `extensions.filters.listener.http_inspector.v3.HttpInspector`
    HttpInspector,
    /// `extensions.filters.listener.original_dst.v3.OriginalDst`
    OriginalDst,
    /// `extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`
    ProxyProtocol {
        /// `allow_requests_without_proxy_protocol`: false.
        optional: bool,
        /// Whether `disallowed_versions` leaves version 1 out.
        v1: bool,
        /// Whether `disallowed_versions` leaves version 2 out.
        v2: bool,
        /// `stat_prefix`, empty when not given.
        stat_prefix: String,
    },
    /// `extensions.filters.listener.tls_inspector.v3.TlsInspector`
    TlsInspector {
        /// `max_client_hello_size`, in bytes: 16 KiB. A longer hello is not understood.
        max_hello_bytes: usize,
        /// `close_connection_on_client_hello_parsing_errors`: false.
        close_on_error: bool,
    },
}

/// `config.listener.v3.ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenerPredicate {
    /// `any_match`
    Always,
    /// `and_match`
    And(Vec<Self>),
    /// `destination_port_range`: from the first up to and without the second.
    DestinationPort(u32, u32),
    /// `not_match`
    Not(Box<Self>),
    /// `or_match`
    Or(Vec<Self>),
}

/// `config.listener.v3.FilterChain`.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// `name`; may be empty. Unique where a `filter_chain_matcher` chooses by it.
    pub name: String,
    /// `filter_chain_match`; not looked at when the listener has a `filter_chain_matcher`.
    pub matches: FilterChainMatch,
    /// `filters` before the terminal one, in order.
    pub filters: Vec<NetworkFilter>,
    /// The terminal filter. `None` closes every connection.
    pub terminal: Option<TerminalFilter>,
    /// `transport_socket`; `None` for bytes as they are.
    pub tls: Option<Arc<DownstreamTls>>,
    /// `transport_socket_connect_timeout`: the handshake's; `None` is off.
    pub handshake_timeout: Option<Duration>,
    /// Stands for everything above: equal in two chains that mean the same.
    pub fingerprint: u64,
}

/// `config.listener.v3.FilterChainMatch`. An empty part matches everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FilterChainMatch {
    /// `destination_port`
    pub destination_port: Option<u16>,
    /// `prefix_ranges`
    pub destination_prefixes: Vec<IpNet>,
    /// `server_names`, lower case: `a.b` or `*.b`.
    pub server_names: Vec<String>,
    /// `transport_protocol`: `tls`, `raw_buffer`, or empty.
    pub transport_protocol: String,
    /// `application_protocols`
    pub application_protocols: Vec<String>,
    /// `direct_source_prefix_ranges`
    pub direct_source_prefixes: Vec<IpNet>,
    /// `source_type`
    pub source_type: SourceType,
    /// `source_prefix_ranges`
    pub source_prefixes: Vec<IpNet>,
    /// `source_ports`
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.ConnectionSourceType`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SourceType {
    /// `ANY`
    #[default]
    Any,
    /// `EXTERNAL`
    External,
    /// `SAME_IP_OR_LOOPBACK`
    Local,
}

/// The terminal network filter of a chain.
#[derive(Clone, Debug)]
pub enum TerminalFilter {
    /// `extensions.filters.network.direct_response.v3.Config`: this is sent, and the connection closed.
    DirectResponse(Arc<[u8]>),
    /// `extensions.filters.network.echo.v3.Echo`: what is received is sent back.
    Echo,
    /// `extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`
    Http(Arc<HttpConnectionManager>),
    /// `extensions.filters.network.tcp_proxy.v3.TcpProxy`
    Tcp(Arc<TcpProxy>),
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
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
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
