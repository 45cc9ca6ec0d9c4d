//! Routes (`config.route.v3`).

use std::{sync::Arc, time::Duration};

use crate::{
    FilterOverrides, Format, FullRegex, HashPolicy, HeaderMatcher, InternalRedirects, Metadata, MirrorPolicy,
    QueryMatcher, RateLimitRule, RegexSubstitution, RetryPolicy, RouteTracing, SubsetMatch,
};

/// `config.route.v3.RouteConfiguration`.
#[derive(Clone, Debug, Default)]
pub struct RouteConfiguration {
    /// `name`; empty for an inline configuration without one.
    pub name: String,
    /// In configuration order; domains are unique over all of them.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Header changes for every route in here.
    pub headers: HeaderMutations,
    /// `ignore_port_in_host_matching`
    pub ignore_port: bool,
    /// `most_specific_header_mutations_wins`
    pub most_specific_wins: bool,
    /// `typed_per_filter_config`
    pub filters: FilterOverrides,
    /// `request_mirror_policies`, of virtual hosts and routes without their own.
    pub mirrors: Vec<MirrorPolicy>,
    /// `vhds.config_source`: further virtual hosts come from there.
    pub vhds: Option<crate::ConfigSource>,
}

/// `config.route.v3.VirtualHost`.
#[derive(Clone, Debug, Default)]
pub struct VirtualHost {
    /// `name`
    pub name: String,
    /// Lower case: `a.b`, `*.b`, `a.*` or `*`; with a port where the configuration has one.
    pub domains: Vec<String>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
    /// Header changes for every route in here.
    pub headers: HeaderMutations,
    /// `require_tls`
    pub require_tls: RequireTls,
    /// `typed_per_filter_config`
    pub filters: FilterOverrides,
    /// `include_request_attempt_count`
    pub include_request_attempt_count: bool,
    /// `include_attempt_count_in_response`
    pub include_attempt_count_in_response: bool,
    /// `retry_policy`, of routes without their own.
    pub retry: Option<Box<RetryPolicy>>,
    /// `request_mirror_policies`, of routes without their own.
    pub mirrors: Vec<MirrorPolicy>,
    /// See [`Route::request_buffer`], for routes that do not say it.
    pub request_buffer: Option<u64>,
    /// `rate_limits`
    pub rate_limits: Box<[RateLimitRule]>,
    /// `virtual_clusters`: first match wins.
    pub virtual_clusters: Box<[VirtualCluster]>,
}

/// `config.route.v3.VirtualCluster`: requests that are counted by themselves, whatever their route.
#[derive(Clone, Debug)]
pub struct VirtualCluster {
    /// `name`
    pub name: String,
    /// `headers`: all of them have to match; at least one.
    pub headers: Vec<HeaderMatcher>,
}

/// `config.route.v3.VirtualHost.TlsRequirementType`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RequireTls {
    /// `NONE`
    #[default]
    No,
    /// `EXTERNAL_ONLY`
    ExternalOnly,
    /// `ALL`
    All,
}

/// `config.route.v3.Route`.
#[derive(Clone, Debug)]
pub struct Route {
    /// `name`, for access logs.
    pub name: String,
    /// `metadata`, for access rules.
    pub metadata: Option<Metadata>,
    /// When it applies.
    pub matcher: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Header changes.
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: FilterOverrides,
    /// `request_body_buffer_limit`, or the deprecated `per_request_buffer_limit_bytes`: how much of the body of a request
    /// is kept, so that it can be sent again, in bytes. Without, as much as the listener's
    /// `per_connection_buffer_limit_bytes`.
    pub request_buffer: Option<u64>,
    /// `tracing` and `decorator`
    pub tracing: Option<Box<RouteTracing>>,
    /// `stat_prefix`: requests of this route are counted under that name too; empty for none.
    pub stat_prefix: String,
}

/// `config.route.v3.RouteMatch`: all parts have to match.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// On the path without query string.
    pub path: PathMatch,
    /// All of them.
    pub headers: Vec<HeaderMatcher>,
    /// All of them.
    pub query: Vec<QueryMatcher>,
    /// `runtime_fraction.default_value` as parts per million; `None` always matches.
    pub fraction_ppm: Option<u32>,
    /// `grpc`: content-type is `application/grpc` or `application/grpc+...`.
    pub grpc: bool,
}

/// The path specifier of a [`RouteMatch`].
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// `prefix`
    Prefix {
        /// Lower case when `ignore_case`.
        value: String,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// `path`
    Exact {
        /// Lower case when `ignore_case`.
        value: String,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// `path_separated_prefix`: the path itself or the path followed by `/`.
    SeparatedPrefix {
        /// Without trailing slash; lower case when `ignore_case`.
        value: String,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// `safe_regex`, on the whole path.
    Regex(FullRegex),
    /// `connect_matcher`: matches CONNECT requests only.
    Connect,
}

/// The action of a [`Route`].
#[derive(Clone, Debug)]
pub enum Action {
    /// `direct_response`
    Direct(DirectResponse),
    /// `route`
    Forward(Box<RouteAction>),
    /// `redirect`
    Redirect(Redirect),
}

/// `config.route.v3.DirectResponseAction`.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// May be empty.
    pub body: Arc<[u8]>,
    /// `body_format`
    pub format: Option<Box<BodyFormat>>,
}

/// `DirectResponseAction.body_format`. What needs no request is the body already.
#[derive(Clone, Debug)]
pub struct BodyFormat {
    /// `content_type`; empty for the default.
    pub content_type: String,
    /// What the body is made of, with `body` in the place of `%LOCAL_REPLY_BODY%`.
    pub parts: Option<Format>,
    /// `omit_empty_values`: what has no value is nothing instead of `-`.
    pub omit_empty: bool,
}

/// `config.route.v3.RedirectAction`.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// `https_redirect` or `scheme_redirect`.
    pub scheme: Option<String>,
    /// `host_redirect`
    pub host: Option<String>,
    /// `port_redirect`
    pub port: Option<u16>,
    /// How the path changes.
    pub path: PathRewrite,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `strip_query`
    pub strip_query: bool,
}

/// How a path is rewritten before it is sent on, or in a redirect.
#[derive(Clone, Debug, Default)]
pub enum PathRewrite {
    /// `path_redirect`: the whole path, with its query if it brings one.
    Full(String),
    /// Unchanged.
    #[default]
    None,
    /// `prefix_rewrite`: replaces what `prefix`, `path` or `path_separated_prefix` matched.
    Prefix(String),
    /// `regex_rewrite`, on the path without query.
    Regex(RegexSubstitution),
}

/// How the host is rewritten (`host_rewrite_specifier`).
#[derive(Clone, Debug, Default)]
pub enum HostRewrite {
    /// `auto_host_rewrite`: the endpoint's hostname.
    Auto,
    /// `host_rewrite_header`
    Header(String),
    /// `host_rewrite_literal`
    Literal(String),
    /// Unchanged.
    #[default]
    None,
    /// `host_rewrite_path_regex`
    PathRegex(RegexSubstitution),
}

/// `config.route.v3.RouteAction`.
#[derive(Clone, Debug)]
pub struct RouteAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// `cluster_not_found_response_code`: 503, 404 or 500.
    pub cluster_not_found_status: u16,
    /// `prefix_rewrite`, `regex_rewrite`.
    pub path: PathRewrite,
    /// `host_rewrite_specifier`
    pub host: HostRewrite,
    /// `append_x_forwarded_host`
    pub append_forwarded_host: bool,
    /// `timeout`: default 15 s; `None` when 0 (off). Starts when the whole request has been received.
    pub timeout: Option<Duration>,
    /// `idle_timeout`: overrides the connection manager's stream idle timeout. `Some(ZERO)` turns it off.
    pub idle_timeout: Option<Duration>,
    /// `max_stream_duration`. Where it is given, `timeout` does not count, as in Envoy.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// `retry_policy`
    pub retry: Option<Box<RetryPolicy>>,
    /// `rate_limits`
    pub rate_limits: Box<[RateLimitRule]>,
    /// `include_vh_rate_limits`: those of the virtual host count too.
    pub include_vh_rate_limits: bool,
    /// `request_mirror_policies`
    pub mirrors: Vec<MirrorPolicy>,
    /// `internal_redirect_policy`
    pub internal_redirects: Option<Box<InternalRedirects>>,
    /// `upgrade_configs`: lower-case upgrade type and whether it is enabled.
    pub upgrades: Vec<(String, bool)>,
    /// `connect_config` of the upgrade `CONNECT`: tunnels end here, what comes through them goes to the cluster as it is.
    pub ends_connect: bool,
    /// `priority`: whose circuit breakers count, and whose connections it shares.
    pub priority: RoutePriority,
    /// `metadata_match`: the labels that an endpoint has to have, in clusters with subsets.
    pub subset: Option<SubsetMatch>,
    /// `hash_policy`: what balancing by hash goes by; empty for chance.
    pub hash_policy: Vec<HashPolicy>,
}

/// `config.core.v3.RoutingPriority`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum RoutePriority {
    /// `DEFAULT`
    #[default]
    Default,
    /// `HIGH`
    High,
}

/// `RouteAction.MaxStreamDuration`: how long a request with its response may take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MaxStreamDuration {
    /// `max_stream_duration`: the connection manager's; zero is no limit.
    pub max: Option<Duration>,
    /// `grpc_timeout_header_max`: a request's `grpc-timeout` counts instead, up to this; zero is no limit to it.
    pub grpc_timeout_max: Option<Duration>,
    /// `grpc_timeout_header_offset`: taken off `grpc-timeout`.
    pub grpc_timeout_offset: Duration,
}

/// `cluster_specifier` of a [`RouteAction`].
#[derive(Clone, Debug)]
pub enum ClusterSpecifier {
    /// `cluster_header`: lower-case header name.
    Header(String),
    /// `cluster`
    Name(Arc<str>),
    /// `weighted_clusters`
    Weighted(WeightedClusters),
}

/// `config.route.v3.WeightedCluster`.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    /// In configuration order.
    pub clusters: Vec<WeightedCluster>,
    /// Sum of the weights; at least 1.
    pub total: u64,
    /// `use_hash_policy`: the route's hash policies choose the cluster too, where they find anything to hash.
    pub use_hash_policy: bool,
    /// `header_name`, lower case: a header whose number takes the place of chance.
    pub random_header: Option<String>,
}

/// One cluster of [`WeightedClusters`].
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// `name`
    pub name: Arc<str>,
    /// May be 0: never chosen.
    pub weight: u32,
    /// `metadata_match` together with that of the route, over which it goes.
    pub subset: Option<SubsetMatch>,
    /// `host_rewrite_literal`
    pub host_rewrite: Option<String>,
    /// Header changes.
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: FilterOverrides,
}

/// Request and response header changes of one level.
#[derive(Clone, Debug, Default)]
pub struct HeaderMutations {
    /// `request_headers_to_add`
    pub request_add: Vec<HeaderValueOption>,
    /// `request_headers_to_remove`, lower case.
    pub request_remove: Vec<String>,
    /// `response_headers_to_add`
    pub response_add: Vec<HeaderValueOption>,
    /// `response_headers_to_remove`, lower case.
    pub response_remove: Vec<String>,
}

impl HeaderMutations {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.request_add.is_empty()
            && self.request_remove.is_empty()
            && self.response_add.is_empty()
            && self.response_remove.is_empty()
    }
}

/// `config.core.v3.HeaderValueOption`.
#[derive(Clone, Debug)]
pub struct HeaderValueOption {
    /// Lower case.
    pub name: String,
    /// The value, with its substitutions parsed.
    pub value: Format,
    /// `append_action`, or the deprecated `append`.
    pub action: AppendAction,
    /// `keep_empty_value`
    pub keep_empty: bool,
}

/// `config.core.v3.HeaderValueOption.HeaderAppendAction`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AppendAction {
    /// `ADD_IF_ABSENT`
    AddIfAbsent,
    /// `APPEND_IF_EXISTS_OR_ADD`
    #[default]
    Append,
    /// `OVERWRITE_IF_EXISTS`
    OverwriteIfExists,
    /// `OVERWRITE_IF_EXISTS_OR_ADD`
    OverwriteOrAdd,
}
