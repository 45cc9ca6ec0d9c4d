//! What of a request decides where balancing by hash sends it (`config.route.v3.RouteAction.HashPolicy`).

use std::time::Duration;

use crate::RegexSubstitution;

/// `config.route.v3.RouteAction.HashPolicy`.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// `terminal`: those that follow count only while there is no hash yet.
    pub terminal: bool,
}

/// The specifier of a [`HashPolicy`].
#[derive(Clone, Debug)]
pub enum HashSource {
    /// `cookie`
    Cookie(HashCookie),
    /// `filter_state.key`: an object that a filter has left.
    FilterState(String),
    /// `header`
    Header {
        /// `header_name`, lower case; `:method`, `:path`, `:authority` and `:scheme` name the pseudo headers.
        name: String,
        /// `regex_rewrite`: what every value is turned into first.
        rewrite: Option<RegexSubstitution>,
    },
    /// `query_parameter.name`: the first parameter of that name.
    QueryParameter(String),
    /// `connection_properties.source_ip`
    SourceIp,
}

/// `HashPolicy.Cookie`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HashCookie {
    /// `name`
    pub name: String,
    /// `ttl`, in whole seconds: a client without the cookie is given one; one of 0 lasts as long as its session.
    pub ttl: Option<Duration>,
    /// `path` of a cookie that is given; may be empty.
    pub path: String,
    /// `attributes` of a cookie that is given: names, and values that may be empty.
    pub attributes: Vec<(String, String)>,
}
