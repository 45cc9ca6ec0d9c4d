//! Network filters (`extensions.filters.network`).

use std::{collections::HashMap, time::Duration};

use ipnet::IpNet;

use crate::StringMatcher;

/// A network filter before the terminal one.
#[derive(Clone, Debug)]
pub enum NetworkFilter {}

/// `xds.type.matcher.v3.Matcher` over what is known of a connection: yields an action, such as the name of a filter chain.
#[derive(Clone, Debug)]
pub struct ConnectionMatcher<A = String> {
    /// `matcher_type`
    pub kind: ConnectionMatch<A>,
    /// `on_no_match`
    pub otherwise: Option<ConnectionOutcome<A>>,
}

/// `Matcher.matcher_type`.
#[derive(Clone, Debug)]
pub enum ConnectionMatch<A = String> {
    /// `matcher_tree` with `exact_match_map`.
    Exact(ConnectionInput, HashMap<String, ConnectionOutcome<A>>),
    /// `matcher_tree` with the custom matcher `xds.type.matcher.v3.IPMatcher`, in configuration order.
    Ip(ConnectionInput, Vec<IpRanges<A>>),
    /// `matcher_list`: the first one that holds.
    List(Vec<(ConnectionPredicate, ConnectionOutcome<A>)>),
    /// No matcher: only `on_no_match`.
    Nothing,
    /// `matcher_tree` with `prefix_match_map`: the longest prefix that has an outcome.
    Prefix(ConnectionInput, HashMap<String, ConnectionOutcome<A>>),
}

/// `IPMatcher.IPRangeMatcher`.
#[derive(Clone, Debug)]
pub struct IpRanges<A = String> {
    /// `ranges`
    pub ranges: Vec<IpNet>,
    /// `on_match`
    pub outcome: ConnectionOutcome<A>,
    /// `exclusive`: where it has no outcome, no wider range is asked.
    pub exclusive: bool,
}

/// `Matcher.OnMatch`.
#[derive(Clone, Debug)]
pub struct ConnectionOutcome<A = String> {
    /// `action` or `matcher`
    pub then: ConnectionThen<A>,
    /// `keep_matching`: as if it had not matched.
    pub keep_matching: bool,
}

/// `Matcher.OnMatch.on_match`.
#[derive(Clone, Debug)]
pub enum ConnectionThen<A = String> {
    /// `action`
    Action(A),
    /// `matcher`
    Matcher(Box<ConnectionMatcher<A>>),
}

/// `Matcher.MatcherList.Predicate`.
#[derive(Clone, Debug)]
pub enum ConnectionPredicate {
    /// `and_matcher`
    And(Vec<Self>),
    /// `single_predicate` with `value_match`; false where there is nothing to match.
    Input(ConnectionInput, StringMatcher),
    /// `not_matcher`
    Not(Box<Self>),
    /// `or_matcher`
    Or(Vec<Self>),
}

/// What a matcher of connections looks at (`extensions.matching.common_inputs.network.v3`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectionInput {
    /// `ApplicationProtocolInput`: `'h2','http/1.1'`.
    ApplicationProtocol,
    /// `DestinationIPInput`
    DestinationIp,
    /// `DestinationPortInput`
    DestinationPort,
    /// `DirectSourceIPInput`
    DirectSourceIp,
    /// `ServerNameInput`
    ServerName,
    /// `SourceIPInput`
    SourceIp,
    /// `SourcePortInput`
    SourcePort,
    /// `SourceTypeInput`: `local` when the source is this host.
    SourceType,
    /// `TransportProtocolInput`
    TransportProtocol,
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
    /// `max_downstream_connection_duration`; `None` is off.
    pub max_duration: Option<Duration>,
    /// `max_downstream_connection_duration_jitter_percentage`, as a part of 1: up to this much of the duration is added.
    pub max_duration_jitter: f64,
    /// `hash_policy`: what balancing by hash goes by.
    pub hash: Option<TcpHash>,
    /// `access_log`
    pub access_log: Vec<crate::AccessLog>,
    /// `access_log_options.flush_access_log_on_start`: an entry when the proxy takes a connection over.
    pub log_on_start: bool,
    /// `access_log_options.flush_access_log_on_connected`: an entry when the upstream is connected.
    pub log_on_connected: bool,
    /// `access_log_options.access_log_flush_interval`, or the deprecated field: entries while the connection lasts.
    pub log_interval: Option<Duration>,
}

/// `type.v3.HashPolicy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TcpHash {
    /// `filter_state.key`: an object that a filter has left.
    FilterState(String),
    /// `source_ip`
    SourceIp,
}
