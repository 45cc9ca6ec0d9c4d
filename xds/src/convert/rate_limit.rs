//! Rate limits by descriptors, and the filter that asks a service about them.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    DescriptorAction, Fraction, GlobalRateLimit, HostRules, LimitOverride, LocalDescriptor, MetadataPath,
    RateLimitOverride, RateLimitRule,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{
                RateLimit,
                rate_limit::{Action, action::ActionSpecifier, r#override::OverrideSpecifier},
            },
        },
        extensions::{
            common::ratelimit::v3::LocalRateLimitDescriptor,
            filters::http::ratelimit::v3::{
                self as pb, rate_limit::XRateLimitHeadersRfcVersion,
                rate_limit_per_route::VhRateLimitsOptions,
            },
        },
        r#type::{
            metadata::v3::{MetadataKey, metadata_key},
            v3::TokenBucket,
        },
    },
    google::protobuf::BoolValue,
};

use super::{call, core, filter_chain, header, http_filter, matcher};
use crate::at::At;

/// The filter.
pub(super) fn filter(at: &At<'_>, filter: &pb::RateLimit) -> Option<Arc<GlobalRateLimit>> {
    let timeout = core::duration_or(&at.field("timeout"), filter.timeout.as_ref(), Duration::from_millis(20));
    let service = filter.rate_limit_service.as_ref()?;
    let at_service = at.field("rate_limit_service");
    core::transport_version(&at_service, service.transport_api_version())?;
    let rules = own_rules(&at.field("rate_limits"), &filter.rate_limits);
    let response_add =
        header::additions(&at.field("response_headers_to_add"), &filter.response_headers_to_add);
    let of = |percent: &Option<RuntimeFractionalPercent>, default| {
        let percent = percent.as_ref().map(|percent| http_filter::fraction(percent.default_value.as_ref()));
        percent.unwrap_or(default)
    };
    let deny = if filter.failure_mode_deny { ALL } else { Fraction::NONE };
    let status = filter.rate_limited_status.as_ref().map_or(0, |status| status.code);
    let on_error = filter.status_on_error.as_ref().map_or(0, |status| status.code);
    Some(Arc::new(GlobalRateLimit {
        domain: filter.domain.clone(),
        stage: filter.stage,
        only_internal: match filter.request_type.as_str() {
            "internal" => Some(true),
            "external" => Some(false),
            _ => None,
        },
        timeout: timeout?,
        failure_deny: of(&filter.failure_mode_deny_percent, deny),
        resource_exhausted: filter.rate_limited_as_resource_exhausted,
        service: call::grpc(&at_service, service.grpc_service.as_ref())?,
        limit_headers: filter.enable_x_ratelimit_headers() == XRateLimitHeadersRfcVersion::DraftVersion03,
        no_limited_header: filter.disable_x_envoy_ratelimited_header,
        status: u16::try_from(status).ok().filter(|status| *status >= 400).unwrap_or(429),
        response_add: response_add?,
        status_on_error: u16::try_from(on_error).ok().filter(|status| *status >= 200).unwrap_or(500),
        stat_prefix: filter.stat_prefix.clone(),
        enabled: of(&filter.filter_enabled, ALL),
        enforced: of(&filter.filter_enforced, ALL),
        rules: rules?,
        metadata_namespace: match filter.metadata_namespace.as_str() {
            "" => "envoy.filters.http.ratelimit".to_owned(),
            namespace => namespace.to_owned(),
        },
    }))
}

const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };

/// What a route says.
pub(super) fn per_route(at: &At<'_>, route: &pb::RateLimitPerRoute) -> Option<Arc<RateLimitOverride>> {
    Some(Arc::new(RateLimitOverride {
        host_rules: match route.vh_rate_limits() {
            VhRateLimitsOptions::Override => HostRules::Override,
            VhRateLimitsOptions::Include => HostRules::Include,
            VhRateLimitsOptions::Ignore => HostRules::Ignore,
        },
        rules: own_rules(&at.field("rate_limits"), &route.rate_limits)?,
        domain: route.domain.clone(),
    }))
}

/// Rules in a filter's own settings, which have no stage.
pub(super) fn own_rules(at: &At<'_>, rules: &[RateLimit]) -> Option<Vec<RateLimitRule>> {
    for (index, rule) in rules.iter().enumerate() {
        if rule.stage.is_some() || !rule.disable_key.is_empty() {
            return at
                .index(index)
                .error("stage and disable_key cannot be given in the settings of a filter");
        }
    }
    self::rules(at, rules)
}

/// Rules of a route or virtual host.
pub(super) fn rules(at: &At<'_>, rules: &[RateLimit]) -> Option<Vec<RateLimitRule>> {
    let rules: Vec<_> = rules.iter().enumerate().map(|(i, it)| rule(&at.index(i), it)).collect();
    rules.into_iter().collect()
}

fn rule(at: &At<'_>, rule: &RateLimit) -> Option<RateLimitRule> {
    let at_actions = at.field("actions");
    let actions: Vec<_> =
        rule.actions.iter().enumerate().map(|(i, it)| action(&at_actions.index(i), it)).collect();
    let limit = rule.limit.as_ref().and_then(|limit| limit.override_specifier.as_ref());
    let limit = match limit {
        None => None,
        Some(OverrideSpecifier::DynamicMetadata(metadata)) => {
            Some(LimitOverride::Metadata(path(&at.field("limit"), metadata.metadata_key.as_ref()?)?))
        }
        Some(OverrideSpecifier::RateLimit(_)) => {
            return at.field("limit").field("rate_limit").unsupported("limits are taken from metadata only");
        }
    };
    let hits = rule.hits_addend.as_ref();
    if hits.is_some_and(|hits| !hits.format.is_empty()) {
        return at
            .field("hits_addend")
            .field("format")
            .unsupported("what a request counts cannot be a substitution");
    }
    Some(RateLimitRule {
        stage: rule.stage.as_ref().map_or(0, |stage| stage.value),
        actions: actions.into_iter().collect::<Option<_>>()?,
        limit,
        hits: hits.and_then(|hits| hits.number.as_ref()).map(|number| number.value),
        negative: hits.is_some_and(|hits| hits.is_negative_hits),
    })
}

fn action(at: &At<'_>, action: &Action) -> Option<DescriptorAction> {
    let or = |key: &str, default: &str| if key.is_empty() { default } else { key }.to_owned();
    let expected = |expect: &Option<BoolValue>| expect.as_ref().is_none_or(|expect| expect.value);
    Some(match action.action_specifier.as_ref()? {
        ActionSpecifier::SourceCluster(_) => DescriptorAction::SourceCluster,
        ActionSpecifier::DestinationCluster(_) => DescriptorAction::DestinationCluster,
        ActionSpecifier::RequestHeaders(it) => DescriptorAction::RequestHeader {
            name: it.header_name.to_ascii_lowercase(),
            key: it.descriptor_key.clone(),
            skip: it.skip_if_absent,
        },
        ActionSpecifier::QueryParameters(it) => DescriptorAction::QueryParameter {
            name: it.query_parameter_name.clone(),
            key: it.descriptor_key.clone(),
            skip: it.skip_if_absent,
        },
        ActionSpecifier::RemoteAddress(_) => DescriptorAction::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(it) => DescriptorAction::MaskedRemoteAddress {
            v4: it.v4_prefix_mask_len.as_ref().map_or(32, |len| len.value.min(32) as u8),
            v6: it.v6_prefix_mask_len.as_ref().map_or(128, |len| len.value.min(128) as u8),
        },
        ActionSpecifier::GenericKey(it) => DescriptorAction::GenericKey {
            key: or(&it.descriptor_key, "generic_key"),
            value: it.descriptor_value.clone(),
        },
        ActionSpecifier::HeaderValueMatch(it) => {
            let at = at.field("header_value_match");
            let at = at.field("headers");
            let headers: Vec<_> =
                it.headers.iter().enumerate().map(|(i, it)| matcher::header(&at.index(i), it)).collect();
            DescriptorAction::Header {
                key: or(&it.descriptor_key, "header_match"),
                value: it.descriptor_value.clone(),
                headers: headers.into_iter().collect::<Option<_>>()?,
                expected: expected(&it.expect_match),
            }
        }
        ActionSpecifier::QueryParameterValueMatch(it) => {
            let at = at.field("query_parameter_value_match");
            let at = at.field("query_parameters");
            let list = it.query_parameters.iter().enumerate();
            let parameters: Vec<_> = list.map(|(i, it)| matcher::query(&at.index(i), it)).collect();
            DescriptorAction::Query {
                key: or(&it.descriptor_key, "query_match"),
                value: it.descriptor_value.clone(),
                parameters: parameters.into_iter().collect::<Option<_>>()?,
                expected: expected(&it.expect_match),
            }
        }
        ActionSpecifier::RemoteAddressMatch(it) => {
            let (at, matcher) = (at.field("remote_address_match"), "address_matcher");
            let at = at.field(matcher);
            let at = at.field("ranges");
            let matcher = it.address_matcher.as_ref()?;
            let ranges: Vec<_> = matcher
                .ranges
                .iter()
                .enumerate()
                .map(|(i, range)| {
                    let len = range.prefix_len.as_ref().map_or(0, |len| len.value);
                    filter_chain::cidr(&at.index(i), &range.address_prefix, len)
                })
                .collect();
            DescriptorAction::RemoteAddressMatch {
                key: or(&it.descriptor_key, "remote_address_match"),
                value: it.descriptor_value.clone(),
                ranges: ranges.into_iter().collect::<Option<_>>()?,
                invert: matcher.invert_match,
            }
        }
        ActionSpecifier::Metadata(it) => DescriptorAction::Metadata {
            key: it.descriptor_key.clone(),
            of_route: match it.source {
                0 => false,
                1 => true,
                _ => return at.field("metadata").field("source").unsupported("clusters have no metadata"),
            },
            path: path(&at.field("metadata"), it.metadata_key.as_ref()?)?,
            default: it.default_value.clone(),
            skip: it.skip_if_absent,
        },
        _ => return at.unsupported("this action is not supported"),
    })
}

fn path(at: &At<'_>, key: &MetadataKey) -> Option<MetadataPath> {
    let segment = |segment: &metadata_key::PathSegment| match segment.segment.as_ref()? {
        metadata_key::path_segment::Segment::Key(key) => Some(key.clone()),
        metadata_key::path_segment::Segment::Index(_) => {
            at.field("metadata_key").unsupported("elements of lists are not looked at")
        }
    };
    let path = key.path.iter().map(segment).collect::<Option<_>>()?;
    Some(MetadataPath { namespace: key.key.clone(), path })
}

/// A `token_bucket`.
pub(super) struct Bucket {
    pub(super) max_tokens: u32,
    pub(super) tokens_per_fill: u32,
    pub(super) fill_interval: Duration,
}

impl Bucket {
    /// Where none is given.
    pub(super) const EMPTY: Self =
        Self { max_tokens: 0, tokens_per_fill: 1, fill_interval: FILL_INTERVAL_MIN };
}

/// What Envoy calls too short for `token_bucket.fill_interval`.
const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The field `token_bucket`; `of` is what the error says it is of.
pub(super) fn bucket(at: &At<'_>, bucket: &TokenBucket, of: &str) -> Option<Bucket> {
    let at = at.field("token_bucket");
    let at = at.field("fill_interval");
    let fill_interval = core::duration_or(&at, bucket.fill_interval.as_ref(), Duration::ZERO)?;
    if fill_interval < FILL_INTERVAL_MIN {
        return at.error(format!("local rate limit{of} token bucket fill timer must be >= 50ms"));
    }
    let tokens_per_fill = bucket.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
    Some(Bucket { max_tokens: bucket.max_tokens, tokens_per_fill, fill_interval })
}

/// Limits that are kept here.
pub(super) fn descriptors(at: &At<'_>, list: &[LocalRateLimitDescriptor]) -> Option<Vec<LocalDescriptor>> {
    let mut converted: Vec<LocalDescriptor> = Vec::with_capacity(list.len());
    for (index, descriptor) in list.iter().enumerate() {
        let at = at.index(index);
        let bucket = bucket(&at, descriptor.token_bucket.as_ref()?, " descriptor")?;
        let entries: Vec<_> =
            descriptor.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        if converted.iter().any(|known| known.entries == entries) {
            return at.error("duplicate descriptor in the local rate descriptor");
        }
        converted.push(LocalDescriptor {
            entries,
            max_tokens: bucket.max_tokens,
            tokens_per_fill: bucket.tokens_per_fill,
            fill_interval: bucket.fill_interval,
            shadow: descriptor.shadow_mode,
        });
    }
    Some(converted)
}
