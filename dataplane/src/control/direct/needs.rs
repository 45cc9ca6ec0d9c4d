//! What keeps a connection from going past the proxy.

use std::fmt;

/// What connections to a destination need the proxy for, and where that is configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Reason {
    /// Such as `listener outbound` or `cluster reviews`.
    pub(super) of: String,
    pub(super) needs: Needs,
}

/// What only the proxy does. What is not here is done in the kernel, or has no effect on opaque bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Needs {
    AccessLog,
    Addresses,
    Balancing,
    Bind,
    Breakers,
    ChainMatcher,
    Closing,
    ConnectionLimit,
    Discovery,
    Drops,
    Duration,
    Elsewhere,
    FirstBytes,
    Hashing,
    Health,
    Inspection,
    Keepalive,
    Localities,
    NetworkFilters,
    NoChain,
    NoCluster,
    Outliers,
    Pipe,
    Priorities,
    ProxyHeader,
    Remote,
    Retries,
    SlowStart,
    SourceMatch,
    Subsets,
    Terminal,
    Tls,
    Version,
}

impl Needs {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Self; 33] = [
        Self::AccessLog,
        Self::Addresses,
        Self::Balancing,
        Self::Bind,
        Self::Breakers,
        Self::ChainMatcher,
        Self::Closing,
        Self::ConnectionLimit,
        Self::Discovery,
        Self::Drops,
        Self::Duration,
        Self::Elsewhere,
        Self::FirstBytes,
        Self::Hashing,
        Self::Health,
        Self::Inspection,
        Self::Keepalive,
        Self::Localities,
        Self::NetworkFilters,
        Self::NoChain,
        Self::NoCluster,
        Self::Outliers,
        Self::Pipe,
        Self::Priorities,
        Self::ProxyHeader,
        Self::Remote,
        Self::Retries,
        Self::SlowStart,
        Self::SourceMatch,
        Self::Subsets,
        Self::Terminal,
        Self::Tls,
        Self::Version,
    ];

    /// `of` is what is configured so.
    pub(super) fn of(self, of: impl fmt::Display) -> Reason {
        Reason { of: of.to_string(), needs: self }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccessLog => "access_log",
            Self::Addresses => "endpoints with additional_addresses",
            Self::Balancing => "its load balancing policy goes by more than weights",
            Self::Bind => "upstream_bind_config",
            Self::Breakers => "its circuit breakers may be reached",
            Self::ChainMatcher => "filter_chain_matcher",
            Self::Closing => "close_connections_on_host_set_change",
            Self::ConnectionLimit => "the number of downstream connections is limited",
            Self::Discovery => "its type finds endpoints connection by connection",
            Self::Drops => "drop_overloads",
            Self::Duration => "max_downstream_connection_duration",
            Self::Elsewhere => "it does not lead to the address that was dialled",
            Self::FirstBytes => "the choice of the filter chain depends on the first bytes",
            Self::Hashing => "hash_policy",
            Self::Health => "too few of its endpoints are healthy",
            Self::Inspection => "a listener filter that closes connections for their first bytes",
            Self::Keepalive => "tcp_keepalive",
            Self::Localities => "its localities have shares of their own",
            Self::NetworkFilters => "network filters before the terminal one",
            Self::NoChain => "no filter chain matches",
            Self::NoCluster => "it does not exist",
            Self::Outliers => "outlier_detection",
            Self::Pipe => "an endpoint is a Unix socket",
            Self::Priorities => "endpoints of several priorities",
            Self::ProxyHeader => "the PROXY protocol",
            Self::Remote => "an endpoint is of no pod of this node that allows direct connections",
            Self::Retries => "max_connect_attempts",
            Self::SlowStart => "slow_start_config",
            Self::SourceMatch => "filter chains that match by source",
            Self::Subsets => "subsets of endpoints",
            Self::Terminal => "the terminal filter is no TCP proxy",
            Self::Tls => "transport_socket",
            Self::Version => "an endpoint is of the other IP version",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.of, self.needs)
    }
}
