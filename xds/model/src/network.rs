//! Network filters (`extensions.filters.network`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{RbacMetadata, RbacRules, StringMatcher};

/// A network filter before the terminal one.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    /// `extensions.filters.network.connection_limit.v3.ConnectionLimit`
    ConnectionLimit(Arc<ConnectionLimit>),
    /// `extensions.filters.network.local_ratelimit.v3.LocalRateLimit`
    LocalRateLimit(Arc<ConnectionRateLimit>),
    /// `extensions.filters.network.rbac.v3.RBAC`
    Rbac(Arc<NetworkRbac>),
    /// `extensions.filters.network.set_filter_state.v3.Config`
    SetFilterState(Arc<Vec<FilterStateValue>>),
    /// `extensions.filters.network.sni_cluster.v3.SniCluster`: the TCP proxy's cluster is the server name that was asked
    /// for.
    SniCluster,
}

impl NetworkFilter {
    /// Whether it looks at what listener filters find out about the first bytes.
    #[must_use]
    pub fn reads_opening(&self) -> bool {
        match self {
            Self::Rbac(rbac) => rbac.rules.iter().chain(&rbac.shadow_rules).any(RbacRules::reads_opening),
            Self::SetFilterState(values) => values.iter().any(|value| {
                let name = crate::FormatPart::Operator(crate::Operator::RequestedServerName);
                value.format.contains(&name)
            }),
            Self::SniCluster => true,
            Self::ConnectionLimit(_) | Self::LocalRateLimit(_) => false,
        }
    }
}

/// `extensions.filters.network.rbac.v3.RBAC`. Rules are asked once, before anything is received.
#[derive(Clone, Debug)]
pub struct NetworkRbac {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `rules` or `matcher`; without any nobody is denied.
    pub rules: Option<RbacRules>,
    /// `shadow_rules` or `shadow_matcher`: only counted.
    pub shadow_rules: Option<RbacRules>,
    /// `shadow_rules_stat_prefix`
    pub shadow_stat_prefix: String,
    /// `delay_deny`: how long a denied connection is kept open.
    pub delay_deny: Option<Duration>,
}

/// `extensions.filters.network.connection_limit.v3.ConnectionLimit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectionLimit {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `max_connections`, over all workers.
    pub max: u64,
    /// `delay`: how long a connection above the limit is kept open.
    pub delay: Option<Duration>,
    /// `runtime_enabled`
    pub enabled: RuntimeFlag,
}

/// `extensions.filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectionRateLimit {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `token_bucket.max_tokens`, over all workers.
    pub max_tokens: u32,
    /// `token_bucket.tokens_per_fill`: 1.
    pub tokens_per_fill: u32,
    /// `token_bucket.fill_interval`: at least 50 ms.
    pub fill_interval: Duration,
    /// `runtime_enabled`
    pub enabled: RuntimeFlag,
}

/// `config.core.v3.RuntimeFeatureFlag`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuntimeFlag {
    /// `default_value`: true where the flag is not given.
    pub default: bool,
    /// `runtime_key`, which replaces the value where it is set.
    pub key: String,
}

/// `extensions.filters.common.set_filter_state.v3.FilterStateValue`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilterStateValue {
    /// `object_key`
    pub key: String,
    /// `format_string.text_format_source`, or the deprecated `text_format`.
    pub format: crate::Format,
    /// `format_string.omit_empty_values`: what has no value is nothing instead of `-`.
    pub omit_empty: bool,
    /// `skip_if_empty`
    pub skip_if_empty: bool,
}

/// `xds.type.matcher.v3.Matcher` over what is known of a connection: yields an action, such as the name of a filter chain.
#[derive(Clone, Debug)]
pub struct ConnectionMatcher<A = String> {
    /// `matcher_type`
    pub kind: ConnectionMatch<A>,
    /// `on_no_match`
    pub otherwise: Option<ConnectionOutcome<A>>,
}

impl<A> ConnectionMatcher<A> {
    /// Whether one of its inputs is such.
    #[must_use]
    pub fn has_input(&self, is: &dyn Fn(&ConnectionInput) -> bool) -> bool {
        let below = |outcome: &ConnectionOutcome<A>| match &outcome.then {
            ConnectionThen::Action(_) => false,
            ConnectionThen::Matcher(nested) => nested.has_input(is),
        };
        let inside = match &self.kind {
            ConnectionMatch::Exact(input, map) | ConnectionMatch::Prefix(input, map) => {
                is(input) || map.values().any(below)
            }
            ConnectionMatch::Ip(input, ranges) => is(input) || ranges.iter().any(|it| below(&it.outcome)),
            ConnectionMatch::List(list) => {
                list.iter().any(|(predicate, outcome)| predicate.has_input(is) || below(outcome))
            }
            ConnectionMatch::Nothing => false,
        };
        inside || self.otherwise.as_ref().is_some_and(below)
    }
}

impl ConnectionPredicate {
    fn has_input(&self, is: &dyn Fn(&ConnectionInput) -> bool) -> bool {
        match self {
            Self::And(all) | Self::Or(all) => all.iter().any(|it| it.has_input(is)),
            Self::Input(input, _) | Self::Ip(input, _) => is(input),
            Self::Metadata(_) => false,
            Self::Not(not) => not.has_input(is),
        }
    }
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
    /// `single_predicate` with the custom matcher `extensions.matching.input_matchers.ip.v3.Ip`.
    Ip(ConnectionInput, Vec<IpNet>),
    /// `single_predicate` of a `DynamicMetadataInput` with the custom matcher
    /// `extensions.matching.input_matchers.metadata.v3.Metadata`; only where there are requests.
    Metadata(Box<RbacMetadata>),
    /// `not_matcher`
    Not(Box<Self>),
    /// `or_matcher`
    Or(Vec<Self>),
}

/// What a matcher of connections or requests looks at (`extensions.matching.common_inputs`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConnectionInput {
    /// `ApplicationProtocolInput`: `'h2','http/1.1'`.
    ApplicationProtocol,
    /// `DestinationIPInput`
    DestinationIp,
    /// `DestinationPortInput`
    DestinationPort,
    /// `DirectSourceIPInput`
    DirectSourceIp,
    /// `ssl.v3.DnsSanInput`: those of the client's certificate, with commas between them.
    DnsSan,
    /// `FilterStateInput`: the object of that key.
    FilterState(String),
    /// `type.matcher.v3.HttpRequestHeaderMatchInput`: lower case.
    RequestHeader(String),
    /// `ServerNameInput`
    ServerName,
    /// `SourceIPInput`
    SourceIp,
    /// `SourcePortInput`
    SourcePort,
    /// `SourceTypeInput`: `local` when the source is this host.
    SourceType,
    /// `ssl.v3.SubjectInput`: that of the client's certificate.
    Subject,
    /// `TransportProtocolInput`
    TransportProtocol,
    /// `ssl.v3.UriSanInput`: those of the client's certificate, with commas between them.
    UriSan,
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
    /// `metadata_match`: the labels that an endpoint has to have, in clusters with subsets. Weighted clusters have their
    /// own.
    pub subset: Option<crate::SubsetMatch>,
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
