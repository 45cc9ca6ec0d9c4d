//! Rate limits by descriptors (`config.route.v3.RateLimit`), asked of a service or kept here.

use std::time::Duration;

use ipnet::IpNet;

use crate::{Fraction, GrpcCall, HeaderMatcher, HeaderValueOption, QueryMatcher};

/// `config.route.v3.RateLimit`: how a descriptor is made of a request.
#[derive(Clone, Debug)]
pub struct RateLimitRule {
    /// `stage`: which filter it is for.
    pub stage: u32,
    /// `actions`: what the descriptor consists of, in order. One that finds nothing leaves no descriptor.
    pub actions: Vec<DescriptorAction>,
    /// `limit`: in place of the service's own.
    pub limit: Option<LimitOverride>,
    /// `hits_addend.number`: how much a request counts; 1.
    pub hits: Option<u64>,
    /// `hits_addend.is_negative_hits`: it gives back what it counts.
    pub negative: bool,
}

/// `RateLimit.Action`.
#[derive(Clone, Debug)]
pub enum DescriptorAction {
    /// `destination_cluster`
    DestinationCluster,
    /// `generic_key`
    GenericKey {
        /// `descriptor_key`: `generic_key`.
        key: String,
        /// `descriptor_value`
        value: String,
    },
    /// `header_value_match`
    Header {
        /// `descriptor_key`: `header_match`.
        key: String,
        /// `descriptor_value`
        value: String,
        /// `headers`: all of them have to match.
        headers: Vec<HeaderMatcher>,
        /// `expect_match`: true. Otherwise they must not.
        expected: bool,
    },
    /// `masked_remote_address`
    MaskedRemoteAddress {
        /// `v4_prefix_mask_len`: 32.
        v4: u8,
        /// `v6_prefix_mask_len`: 128.
        v6: u8,
    },
    /// `metadata`
    Metadata {
        /// `descriptor_key`
        key: String,
        /// Whether it is the route's metadata (`ROUTE_ENTRY`), not that of the request.
        of_route: bool,
        /// `metadata_key`
        path: MetadataPath,
        /// `default_value`
        default: String,
        /// `skip_if_absent`
        skip: bool,
    },
    /// `query_parameter_value_match`
    Query {
        /// `descriptor_key`: `query_match`.
        key: String,
        /// `descriptor_value`
        value: String,
        /// `query_parameters`: all of them have to match.
        parameters: Vec<QueryMatcher>,
        /// `expect_match`: true. Otherwise they must not.
        expected: bool,
    },
    /// `query_parameters`
    QueryParameter {
        /// `query_parameter_name`
        name: String,
        /// `descriptor_key`
        key: String,
        /// `skip_if_absent`
        skip: bool,
    },
    /// `remote_address`
    RemoteAddress,
    /// `remote_address_match`
    RemoteAddressMatch {
        /// `descriptor_key`: `remote_address_match`.
        key: String,
        /// `descriptor_value`
        value: String,
        /// `address_matcher.ranges`
        ranges: Vec<IpNet>,
        /// `address_matcher.invert_match`
        invert: bool,
    },
    /// `request_headers`
    RequestHeader {
        /// `header_name`
        name: String,
        /// `descriptor_key`
        key: String,
        /// `skip_if_absent`
        skip: bool,
    },
    /// `source_cluster`
    SourceCluster,
}

/// `type.metadata.v3.MetadataKey`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetadataPath {
    /// `key`: the namespace.
    pub namespace: String,
    /// `path`
    pub path: Vec<String>,
}

/// `RateLimit.Override`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LimitOverride {
    /// `dynamic_metadata`: a struct with `requests_per_unit` and `unit`.
    Metadata(MetadataPath),
}

/// `extensions.filters.http.ratelimit.v3.RateLimit`.
#[derive(Clone, Debug)]
pub struct GlobalRateLimit {
    /// `domain`
    pub domain: String,
    /// `stage`
    pub stage: u32,
    /// `request_type`: whether it is for requests from inside only, or from outside only.
    pub only_internal: Option<bool>,
    /// `timeout`: 20 ms.
    pub timeout: Duration,
    /// `failure_mode_deny`, `failure_mode_deny_percent`: without an answer requests are refused.
    pub failure_deny: Fraction,
    /// `rate_limited_as_resource_exhausted`: the gRPC status is 8 instead of 14.
    pub resource_exhausted: bool,
    /// `rate_limit_service`
    pub service: GrpcCall,
    /// `enable_x_ratelimit_headers`: `DRAFT_VERSION_03`.
    pub limit_headers: bool,
    /// `disable_x_envoy_ratelimited_header`
    pub no_limited_header: bool,
    /// `rate_limited_status`: 429, also in place of what is below 400.
    pub status: u16,
    /// `response_headers_to_add`, to the answers of this filter.
    pub response_add: Vec<HeaderValueOption>,
    /// `status_on_error`: 500.
    pub status_on_error: u16,
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `filter_enabled`: all.
    pub enabled: Fraction,
    /// `filter_enforced`: all. Others are only counted.
    pub enforced: Fraction,
    /// `rate_limits`: in place of those of routes.
    pub rules: Vec<RateLimitRule>,
    /// `metadata_namespace`: of what the service says about a request.
    pub metadata_namespace: String,
}

/// `extensions.filters.http.ratelimit.v3.RateLimitPerRoute`.
#[derive(Clone, Debug)]
pub struct RateLimitOverride {
    /// `vh_rate_limits`
    pub host_rules: HostRules,
    /// `rate_limits`: in place of those of routes.
    pub rules: Vec<RateLimitRule>,
    /// `domain`; empty for the filter's.
    pub domain: String,
}

/// `VhRateLimitsOptions`: what becomes of the rules of the virtual host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HostRules {
    /// `OVERRIDE`: they count where the route has none.
    #[default]
    Override,
    /// `INCLUDE`
    Include,
    /// `IGNORE`
    Ignore,
}

/// `extensions.common.ratelimit.v3.LocalRateLimitDescriptor`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalDescriptor {
    /// `entries`: keys and values; an empty value is any, and each has tokens of its own.
    pub entries: Vec<(String, String)>,
    /// `token_bucket.max_tokens`
    pub max_tokens: u32,
    /// `token_bucket.tokens_per_fill`: 1.
    pub tokens_per_fill: u32,
    /// `token_bucket.fill_interval`: at least 50 ms.
    pub fill_interval: Duration,
    /// `shadow_mode`: only counted.
    pub shadow: bool,
}
