//! Role-based access control (`config.rbac.v3`), of connections and of requests.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{ConnectionMatcher, HeaderMatcher, StringMatcher};

/// `config.rbac.v3.RBAC`, or the matcher that may take its place.
#[derive(Clone, Debug)]
pub enum RbacRules {
    /// `matcher`, `shadow_matcher`: no match is a denial.
    Matcher(Box<ConnectionMatcher<RbacOutcome>>),
    /// `rules`, `shadow_rules`
    Policies {
        /// `action`: what the rules are for.
        action: RbacAction,
        /// `policies`, by name; the first one that matches counts.
        policies: BTreeMap<String, RbacPolicy>,
    },
}

impl RbacRules {
    /// Whether they look at what the first bytes of a connection say.
    #[must_use]
    pub fn reads_opening(&self) -> bool {
        use crate::ConnectionInput::{ApplicationProtocol, ServerName, TransportProtocol};
        match self {
            Self::Matcher(matcher) => {
                matcher.has_input(&|it| matches!(it, ApplicationProtocol | ServerName | TransportProtocol))
            }
            Self::Policies { policies, .. } => policies.values().any(|policy| {
                policy.permissions.iter().chain(&policy.principals).any(RbacRule::reads_opening)
            }),
        }
    }
}

impl RbacRule {
    fn reads_opening(&self) -> bool {
        match self {
            Self::And(all) | Self::Or(all) => all.iter().any(Self::reads_opening),
            Self::Not(not) => not.reads_opening(),
            Self::ServerName(_) => true,
            _ => false,
        }
    }
}

/// `config.rbac.v3.RBAC.Action`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RbacAction {
    /// `ALLOW`: what no policy matches is denied.
    #[default]
    Allow,
    /// `DENY`: what a policy matches is denied.
    Deny,
    /// `LOG`: nothing is denied.
    Log,
}

/// `config.rbac.v3.Action`: what a matcher yields.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RbacOutcome {
    /// `name`, of the policy.
    pub name: String,
    /// `action`
    pub action: RbacAction,
}

/// `config.rbac.v3.Policy`: it matches when one of each does.
#[derive(Clone, Debug)]
pub struct RbacPolicy {
    /// `permissions`: what is asked for.
    pub permissions: Vec<RbacRule>,
    /// `principals`: who asks.
    pub principals: Vec<RbacRule>,
}

/// `config.rbac.v3.Permission` and `Principal`: both are conditions.
#[derive(Clone, Debug)]
pub enum RbacRule {
    /// `and_rules`, `and_ids`
    And(Vec<Self>),
    /// `any`
    Any,
    /// `authenticated`: the client's certificate has such a name (URI, else DNS name, else subject), or is there at all.
    Authenticated(Option<StringMatcher>),
    /// `destination_ip`
    DestinationIp(IpNet),
    /// `destination_port`, and `destination_port_range` from the first up to and without the second.
    DestinationPorts(u32, u32),
    /// `direct_remote_ip`: the other end of the socket.
    DirectRemoteIp(IpNet),
    /// `filter_state`
    FilterState {
        /// `key`
        key: String,
        /// `string_match`; an object that is missing does not match.
        value: StringMatcher,
    },
    /// `header`; only where there are requests.
    Header(Box<HeaderMatcher>),
    /// `metadata`, `sourced_metadata`
    Metadata(Box<RbacMetadata>),
    /// `not_rule`, `not_id`
    Not(Box<Self>),
    /// `or_rules`, `or_ids`
    Or(Vec<Self>),
    /// `remote_ip`: the client, as the PROXY protocol or a trusted header tells.
    RemoteIp(IpNet),
    /// `requested_server_name`
    ServerName(StringMatcher),
    /// `source_ip`: the client of the connection, as the PROXY protocol tells.
    SourceIp(IpNet),
    /// `url_path`: the path without its query; nothing matches where there is none.
    UrlPath(StringMatcher),
}

/// `type.matcher.v3.MetadataMatcher`, with the source of `config.rbac.v3.SourcedMetadata`.
#[derive(Clone, Debug)]
pub struct RbacMetadata {
    /// Whether it is the route's metadata (`ROUTE`), not that of the request.
    pub of_route: bool,
    /// `filter`: the namespace.
    pub namespace: String,
    /// `path`
    pub path: Vec<String>,
    /// `value`
    pub value: ValueMatcher,
    /// `invert`
    pub invert: bool,
}

/// `type.matcher.v3.ValueMatcher`. Only what is there has a value.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    /// `bool_match`
    Bool(bool),
    /// `list_match.one_of`: an element of a list matches.
    ListElement(Box<Self>),
    /// `null_match`
    Null,
    /// `double_match.exact`
    Number(f64),
    /// `double_match.range`: from the first up to and without the second.
    NumberRange(f64, f64),
    /// `or_match`
    Or(Vec<Self>),
    /// `present_match`; false never matches.
    Present(bool),
    /// `string_match`
    String(StringMatcher),
}
