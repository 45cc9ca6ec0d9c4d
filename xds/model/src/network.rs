//! Network filters (`extensions.filters.network`).

use std::time::Duration;

/// A network filter before the terminal one.
#[derive(Clone, Debug)]
pub enum NetworkFilter {}

/// `xds.type.matcher.v3.Matcher` over what is known of a connection: yields the name of a filter chain.
#[derive(Clone, Debug)]
pub enum ConnectionMatcher {
    /// `on_no_match` alone, or the action of a match.
    Chain(String),
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
    /// `max_connect_attempts`: 1.
    pub max_connect_attempts: u32,
    /// `access_log`
    pub access_log: Vec<crate::AccessLog>,
    /// `access_log_options.flush_access_log_on_connected`: an entry when the upstream is connected.
    pub log_on_connected: bool,
    /// `access_log_options.access_log_flush_interval`, or the deprecated field: entries while the connection lasts.
    pub log_interval: Option<Duration>,
}
