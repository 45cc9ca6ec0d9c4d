//! HTTP filters (`extensions.filters.http`), and what routes say about them.

use std::{sync::Arc, time::Duration};

use crate::{
    AuthOverride, BasicAuth, BasicUsers, Compressor, CompressorOverride, CsrfPolicy, DiscoveredFilter,
    ExtAuthz, GlobalRateLimit, HeaderMatcher, HeaderValueOption, HostRules, JwtAuthentication, JwtOverride,
    LocalDescriptor, RateLimitOverride, RateLimitRule, RbacRules, StringMatcher,
};

/// One entry of `HttpConnectionManager.http_filters`.
#[derive(Clone, Debug)]
pub struct NamedFilter {
    /// `name`, by which routes refer to it.
    pub name: String,
    /// `disabled`: it is off where no route turns it on.
    pub disabled: bool,
    /// `typed_config` or `config_discovery`
    pub filter: HttpFilter,
}

/// What an HTTP filter is.
#[derive(Clone, Debug)]
pub enum HttpFilter {
    /// `extensions.filters.http.basic_auth.v3.BasicAuth`
    BasicAuth(Arc<BasicAuth>),
    /// `extensions.filters.http.cors.v3.Cors`: policies are those of routes.
    Cors,
    /// `extensions.filters.http.csrf.v3.CsrfPolicy`
    Csrf(Arc<CsrfPolicy>),
    /// `extensions.filters.http.buffer.v3.Buffer`: `max_request_bytes`.
    Buffer(u32),
    /// `extensions.filters.http.compressor.v3.Compressor`
    Compressor(Arc<Compressor>),
    /// `config_discovery`
    Discovered(Arc<DiscoveredFilter>),
    /// `extensions.filters.http.ext_authz.v3.ExtAuthz`
    ExtAuthz(Arc<ExtAuthz>),
    /// `extensions.filters.http.fault.v3.HTTPFault`
    Fault(Arc<HttpFault>),
    /// `extensions.filters.http.grpc_stats.v3.FilterConfig`
    GrpcStats(Arc<GrpcStats>),
    /// `extensions.filters.http.grpc_web.v3.GrpcWeb`
    GrpcWeb,
    /// `extensions.filters.http.header_mutation.v3.HeaderMutation`
    HeaderMutation {
        /// `mutations`
        changes: Arc<HeaderChanges>,
        /// `most_specific_header_mutations_wins`: what routes say is applied from the least specific to the most specific.
        most_specific_wins: bool,
    },
    /// `extensions.filters.http.health_check.v3.HealthCheck`, answered without an upstream: requests that all of these match.
    HealthCheck(Arc<Vec<HeaderMatcher>>),
    /// `extensions.filters.http.jwt_authn.v3.JwtAuthentication`
    Jwt(Arc<JwtAuthentication>),
    /// `extensions.filters.http.local_ratelimit.v3.LocalRateLimit`
    LocalRateLimit(Arc<HttpRateLimit>),
    /// `extensions.filters.http.rbac.v3.RBAC`
    Rbac(Arc<HttpRbac>),
    /// `extensions.filters.http.ratelimit.v3.RateLimit`
    RateLimit(Arc<GlobalRateLimit>),
    /// `extensions.filters.http.router.v3.Router`
    Router,
    /// One that there is not; [`NamedFilter::disabled`]. Requests of a route that turns it on cannot be served.
    Unsupported,
}

/// `typed_per_filter_config` of one level of routes: filters by name, in the order of the names.
pub type FilterOverrides = Vec<(String, FilterOverride)>;

/// What a level of routes says about a filter, which it thereby turns on or off.
#[derive(Clone, Debug)]
pub struct FilterOverride {
    /// `config.route.v3.FilterConfig.disabled`
    pub disabled: bool,
    /// Settings in place of, or for header changes besides, the filter's own.
    pub settings: Option<FilterSettings>,
}

/// Settings of a filter on a level of routes.
#[derive(Clone, Debug)]
pub enum FilterSettings {
    /// `extensions.filters.http.basic_auth.v3.BasicAuthPerRoute`
    BasicAuth(Arc<BasicUsers>),
    /// `extensions.filters.http.csrf.v3.CsrfPolicy`
    Csrf(Arc<CsrfPolicy>),
    /// `extensions.filters.http.cors.v3.CorsPolicy`
    Cors(Arc<CorsPolicy>),
    /// `extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute`
    ExtAuthz(Arc<AuthOverride>),
    /// `extensions.filters.http.fault.v3.HTTPFault`
    Fault(Arc<HttpFault>),
    /// `extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute`
    HeaderMutation(Arc<HeaderChanges>),
    /// `extensions.filters.http.buffer.v3.BufferPerRoute`: `max_request_bytes`, or `None` where it is disabled.
    Buffer(Option<u32>),
    /// `extensions.filters.http.compressor.v3.CompressorPerRoute`
    Compressor(CompressorOverride),
    /// `extensions.filters.http.jwt_authn.v3.PerRouteConfig`
    Jwt(JwtOverride),
    /// `extensions.filters.http.local_ratelimit.v3.LocalRateLimit`
    LocalRateLimit(Arc<HttpRateLimit>),
    /// `extensions.filters.http.ratelimit.v3.RateLimitPerRoute`
    RateLimit(Arc<RateLimitOverride>),
    /// `extensions.filters.http.rbac.v3.RBACPerRoute`; without `rbac` there are no rules.
    Rbac(Arc<HttpRbac>),
}

/// `extensions.filters.http.grpc_stats.v3.FilterConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcStats {
    /// Which methods have counters of their own.
    pub methods: GrpcMethods,
    /// `replace_dots_in_grpc_service_name`
    pub replace_dots: bool,
}

/// `per_method_stat_specifier`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GrpcMethods {
    /// `stats_for_all_methods`
    All,
    /// `individual_method_stats_allowlist`: services and their methods.
    These(Vec<(String, Vec<String>)>),
    /// None.
    Together,
}

/// `extensions.filters.http.rbac.v3.RBAC`.
#[derive(Clone, Debug, Default)]
pub struct HttpRbac {
    /// `rules` or `matcher`; without any nobody is denied.
    pub rules: Option<RbacRules>,
    /// `rules_stat_prefix`
    pub stat_prefix: String,
    /// `shadow_rules` or `shadow_matcher`: only counted.
    pub shadow_rules: Option<RbacRules>,
    /// `shadow_rules_stat_prefix`
    pub shadow_stat_prefix: String,
}

/// `extensions.filters.http.cors.v3.CorsPolicy`. What a level leaves out is the next level's, from the route outwards.
#[derive(Clone, Debug, Default)]
pub struct CorsPolicy {
    /// `allow_origin_string_match`: one of them has to match.
    pub allow_origins: Vec<StringMatcher>,
    /// `allow_methods`; sent unless empty, as the texts below.
    pub allow_methods: String,
    /// `allow_headers`
    pub allow_headers: String,
    /// `expose_headers`
    pub expose_headers: String,
    /// `max_age`
    pub max_age: String,
    /// `allow_credentials`: false.
    pub allow_credentials: Option<bool>,
    /// `allow_private_network_access`: false.
    pub allow_private_network_access: Option<bool>,
    /// `forward_not_matching_preflights`: true.
    pub forward_not_matching_preflights: Option<bool>,
    /// `filter_enabled` in parts per million: all.
    pub enabled_ppm: u32,
    /// `shadow_enabled` in parts per million: none. What is not enabled but this is counted.
    pub shadow_ppm: u32,
}

/// `extensions.filters.http.header_mutation.v3.Mutations`.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// `request_mutations`, one after the other.
    pub request: Vec<HeaderChange>,
    /// `response_mutations`, one after the other.
    pub response: Vec<HeaderChange>,
}

/// `config.common.mutation_rules.v3.HeaderMutation`.
#[derive(Clone, Debug)]
pub enum HeaderChange {
    /// `append`
    Add(HeaderValueOption),
    /// `remove`, lower case.
    Remove(String),
    /// `remove_on_match`: headers whose names match.
    RemoveMatching(StringMatcher),
}

/// `extensions.filters.http.fault.v3.HTTPFault`.
#[derive(Clone, Debug, Default)]
pub struct HttpFault {
    /// `delay`
    pub delay: Option<FaultDelay>,
    /// `abort`
    pub abort: Option<FaultAbort>,
    /// `upstream_cluster`: requests to that one only; empty means any.
    pub upstream_cluster: String,
    /// `headers`: all of them have to match.
    pub headers: Vec<HeaderMatcher>,
    /// `downstream_nodes`: `x-envoy-downstream-service-node` is one of them; empty means any.
    pub downstream_nodes: Vec<String>,
    /// `max_active_faults`, over all workers.
    pub max_active: Option<u32>,
}

/// `extensions.filters.common.fault.v3.FaultDelay`.
#[derive(Clone, Debug)]
pub struct FaultDelay {
    /// `percentage` in parts per million: none.
    pub fraction: Fraction,
    /// `fixed_delay`; `None` is `header_delay`: what `x-envoy-fault-delay-request` says, in milliseconds.
    pub fixed: Option<Duration>,
}

/// `extensions.filters.http.fault.v3.FaultAbort`.
#[derive(Clone, Debug)]
pub struct FaultAbort {
    /// `percentage`
    pub fraction: Fraction,
    /// `error_type`
    pub answer: FaultAnswer,
    /// `response_body`: `fault filter abort`.
    pub body: Arc<[u8]>,
}

/// `FaultAbort.error_type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultAnswer {
    /// `http_status`: 200 to 599.
    Http(u16),
    /// `grpc_status`
    Grpc(u32),
    /// `header_abort`: what `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says.
    Header,
}

/// `type.v3.FractionalPercent`: so many of so many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fraction {
    /// `numerator`
    pub numerator: u32,
    /// `denominator`: 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Default for Fraction {
    fn default() -> Self {
        Self::NONE
    }
}

impl Fraction {
    /// None at all.
    pub const NONE: Self = Self { numerator: 0, denominator: 100 };

    /// Whether the draw of `random` hits.
    #[must_use]
    pub fn hits(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// `extensions.filters.http.local_ratelimit.v3.LocalRateLimit`.
#[derive(Clone, Debug, Default)]
pub struct HttpRateLimit {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `status`: 429, also in place of what is below 400.
    pub status: u16,
    /// `token_bucket.max_tokens`, over all workers. 0 without a bucket.
    pub max_tokens: u32,
    /// `token_bucket.tokens_per_fill`: 1.
    pub tokens_per_fill: u32,
    /// `token_bucket.fill_interval`: at least 50 ms.
    pub fill_interval: Duration,
    /// `filter_enabled`: none. Others take no token.
    pub enabled: Fraction,
    /// `filter_enforced`: none. Others are only counted.
    pub enforced: Fraction,
    /// `request_headers_to_add_when_not_enforced`
    pub request_add: Vec<HeaderValueOption>,
    /// `response_headers_to_add`, to the answers of this filter.
    pub response_add: Vec<HeaderValueOption>,
    /// `rate_limited_as_resource_exhausted`: the gRPC status is 8 instead of 14.
    pub resource_exhausted: bool,
    /// `descriptors`: limits by what describes a request.
    pub descriptors: Vec<LocalDescriptor>,
    /// `stage`: of the rules of routes.
    pub stage: u32,
    /// `vh_rate_limits`
    pub host_rules: HostRules,
    /// `rate_limits`: in place of those of routes.
    pub rules: Vec<RateLimitRule>,
    /// `always_consume_default_token_bucket`: true. A request that a descriptor allows takes a token of all besides.
    pub always_default: bool,
    /// `max_dynamic_descriptors`: 20. So many values have tokens of their own where any value is described.
    pub max_dynamic: usize,
    /// `enable_x_ratelimit_headers`: `DRAFT_VERSION_03`.
    pub limit_headers: bool,
}
