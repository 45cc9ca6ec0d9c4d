//! HTTP filters, and what routes say about them.

use std::{collections::HashMap, sync::Arc};

use culvert_model::{
    CorsPolicy, CsrfPolicy, DiscoveredFilter, FaultAbort, FaultAnswer, FaultDelay, FilterOverride,
    FilterOverrides, FilterSettings, Fraction, GrpcMethods, GrpcStats, HeaderChange, HeaderChanges,
    HeaderMatcher, HostRules, HttpFault, HttpFilter, HttpRateLimit, HttpRbac, NamedFilter, TypedExtension,
};
use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation, header_mutation::Action as MutationAction},
            core::v3::{ExtensionConfigSource, RuntimeFractionalPercent, TypedExtensionConfig},
            route::v3::{FilterConfig, HeaderMatcher as HeaderMatcherPb},
        },
        extensions::{
            common::ratelimit::v3::{VhRateLimitsOptions, XRateLimitHeadersRfcVersion},
            filters::{
                common::fault::v3::{FaultDelay as FaultDelayPb, fault_delay::FaultDelaySecifier},
                http::{
                    basic_auth::v3 as basic_pb,
                    buffer::v3 as buffer_pb,
                    compressor::v3 as compressor_pb,
                    cors::v3 as cors_pb,
                    csrf::v3 as csrf_pb,
                    ext_authz::v3 as authz_pb,
                    fault::v3::{self as fault_pb, fault_abort::ErrorType},
                    grpc_stats::v3 as stats_pb,
                    grpc_web::v3 as web_pb,
                    header_mutation::v3 as mutation_pb,
                    health_check::v3 as health_pb,
                    jwt_authn::v3 as jwt_pb,
                    local_ratelimit::v3 as rate_pb,
                    ratelimit::v3 as global_pb,
                    rbac::v3 as rbac_pb,
                    router::v3::Router,
                },
                network::http_connection_manager::v3::{self as pb, http_filter},
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::Any,
};

use super::{
    basic_auth, core, ext_authz, extension_name, header, matcher,
    rate_limit::Bucket,
    rbac::{self, Subject},
    unpack,
};
use crate::{at::At, decode, support};

/// The filters, of which the router has to come last. Those that the walk passed over are left out, or in the way of a
/// route that turns them on.
pub(super) fn filters(at: &At<'_>, filters: &[pb::HttpFilter]) -> Option<(Vec<NamedFilter>, Router)> {
    let mut router = None;
    let mut last = None;
    let mut converted = Vec::new();
    let mut complete = true;
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index(index);
        last = Some((index, &filter.name));
        let any = match filter.config_type.as_ref() {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(http_filter::ConfigType::ConfigDiscovery(source)) => {
                match discovered(&at.field("config_discovery"), &filter.name, source) {
                    Some(it) => converted.push(named(filter, HttpFilter::Discovered(Arc::new(it)))),
                    None => complete = false,
                }
                continue;
            }
            None => return at.field("typed_config").error("value is required"),
        };
        let Some(config) = unpack::<Router>(any) else {
            match http_filter(&at.field("typed_config"), any) {
                Some(Known::Yes(it)) => converted.push(named(filter, it)),
                Some(Known::No) if filter.disabled => converted.push(named(filter, HttpFilter::Unsupported)),
                Some(Known::No) if filter.is_optional => {}
                Some(Known::No) => {
                    let name = extension_name(Some(any));
                    return at
                        .field("typed_config")
                        .unsupported(format!("{name} is not a supported HTTP filter"));
                }
                None => complete = false,
            }
            continue;
        };
        if filter.disabled {
            return at.field("disabled").error("the router cannot be disabled");
        }
        if router.is_some() || index + 1 != filters.len() {
            let name = &filter.name;
            return at.error(format!("terminal filter {name:?} must be the last HTTP filter"));
        }
        router = Some(config);
        converted.push(named(filter, HttpFilter::Router));
    }
    let Some(router) = router else {
        return match last {
            Some((index, name)) => {
                at.index(index).error(format!("non-terminal filter {name:?} is the last HTTP filter"))
            }
            None => at.unsupported("a connection manager without the router filter is not supported"),
        };
    };
    complete.then_some((converted, router))
}

fn named(filter: &pb::HttpFilter, kind: HttpFilter) -> NamedFilter {
    NamedFilter { name: filter.name.clone(), disabled: filter.disabled, filter: kind }
}

/// A filter whose configuration comes from ECDS.
fn discovered(at: &At<'_>, name: &str, source: &ExtensionConfigSource) -> Option<DiscoveredFilter> {
    let types: Vec<String> = source.type_urls.iter().map(|url| decode::type_name(url).to_owned()).collect();
    let router = <Router as prost::Name>::full_name();
    let at_types = at.field("type_urls");
    for (index, of) in types.iter().enumerate() {
        let at = at_types.index(index);
        if *of == router {
            return at.unsupported("the router cannot be discovered");
        }
        if !of.starts_with(HTTP_FILTERS) || support::table(of).is_none() {
            return at.unsupported(format!("{of} is not a supported HTTP filter"));
        }
    }
    let at_default = at.field("default_config");
    let default = match &source.default_config {
        Some(any) if !types.iter().any(|of| of == extension_name(Some(any))) => {
            return at_default.error(format!("{} is none of type_urls", extension_name(Some(any))));
        }
        Some(any) => Some(known(&at_default, any)?),
        None if source.apply_default_config_without_warming => {
            return at_default.error("value is required to be applied without warming");
        }
        None => None,
    };
    Some(DiscoveredFilter {
        name: name.to_owned(),
        source: core::config_source(&at.field("config_source"), source.config_source.as_ref())?,
        default,
        eager: source.apply_default_config_without_warming,
        types,
    })
}

/// A resource of ECDS.
pub(crate) fn extension(at: &At<'_>, message: &TypedExtensionConfig) -> Option<TypedExtension> {
    let at = at.field("typed_config");
    let Some(any) = &message.typed_config else { return at.error("value is required") };
    let filter = known(&at, any)?;
    Some(TypedExtension { type_name: extension_name(Some(any)).to_owned(), filter })
}

/// A filter that has to be one that there is.
fn known(at: &At<'_>, any: &Any) -> Option<HttpFilter> {
    match http_filter(at, any)? {
        Known::Yes(filter) => Some(filter),
        Known::No => at.unsupported(format!("{} is not a supported HTTP filter", extension_name(Some(any)))),
    }
}

/// What the names of messages of HTTP filters begin with.
const HTTP_FILTERS: &str = "envoy.extensions.filters.http.";

/// Whether a filter is one that there is.
enum Known {
    No,
    Yes(HttpFilter),
}

fn http_filter(at: &At<'_>, any: &Any) -> Option<Known> {
    Some(Known::Yes(if let Some(rbac) = unpack::<rbac_pb::Rbac>(any) {
        HttpFilter::Rbac(access(at, &rbac)?)
    } else if let Some(mutation) = unpack::<mutation_pb::HeaderMutation>(any) {
        HttpFilter::HeaderMutation {
            changes: changes(&at.field("mutations"), mutation.mutations.as_ref())?,
            most_specific_wins: mutation.most_specific_header_mutations_wins,
        }
    } else if let Some(auth) = unpack::<basic_pb::BasicAuth>(any) {
        HttpFilter::BasicAuth(basic_auth::filter(at, &auth)?)
    } else if let Some(policy) = unpack::<csrf_pb::CsrfPolicy>(any) {
        HttpFilter::Csrf(csrf(at, &policy)?)
    } else if unpack::<cors_pb::Cors>(any).is_some() {
        HttpFilter::Cors
    } else if let Some(buffer) = unpack::<buffer_pb::Buffer>(any) {
        HttpFilter::Buffer(buffer.max_request_bytes.as_ref()?.value)
    } else if let Some(stats) = unpack::<stats_pb::FilterConfig>(any) {
        HttpFilter::GrpcStats(Arc::new(grpc_stats(&stats)))
    } else if unpack::<web_pb::GrpcWeb>(any).is_some() {
        HttpFilter::GrpcWeb
    } else if let Some(compressor) = unpack::<compressor_pb::Compressor>(any) {
        HttpFilter::Compressor(super::compressor::filter(at, &compressor)?)
    } else if let Some(jwt) = unpack::<jwt_pb::JwtAuthentication>(any) {
        HttpFilter::Jwt(super::jwt::filter(at, &jwt)?)
    } else if let Some(authz) = unpack::<authz_pb::ExtAuthz>(any) {
        HttpFilter::ExtAuthz(ext_authz::filter(at, &authz)?)
    } else if let Some(fault) = unpack::<fault_pb::HttpFault>(any) {
        HttpFilter::Fault(self::fault(at, &fault)?)
    } else if let Some(limit) = unpack::<rate_pb::LocalRateLimit>(any) {
        HttpFilter::LocalRateLimit(rate_limit(at, &limit)?)
    } else if let Some(limit) = unpack::<global_pb::RateLimit>(any) {
        HttpFilter::RateLimit(super::rate_limit::filter(at, &limit)?)
    } else if let Some(health) = unpack::<health_pb::HealthCheck>(any) {
        if health.pass_through_mode.as_ref().is_some_and(|pass| pass.value) {
            return at.field("pass_through_mode").unsupported("health checks are answered, not passed on");
        }
        HttpFilter::HealthCheck(Arc::new(header_matchers(&at.field("headers"), &health.headers)?))
    } else {
        return Some(Known::No);
    }))
}

/// `typed_per_filter_config` of a level of routes. `at` is the message it is in.
pub(super) fn overrides(at: &At<'_>, configs: &HashMap<String, Any>) -> Option<FilterOverrides> {
    let at = at.field("typed_per_filter_config");
    let mut names: Vec<_> = configs.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let converted: Vec<_> = names
        .into_iter()
        .map(|(name, any)| Some((name.clone(), filter_override(&at.key(name), any)?)))
        .collect();
    converted.into_iter().collect()
}

fn filter_override(at: &At<'_>, any: &Any) -> Option<FilterOverride> {
    let Some(config) = unpack::<FilterConfig>(any) else {
        return Some(FilterOverride { disabled: false, settings: Some(settings(at, any)?) });
    };
    if config.disabled {
        return Some(FilterOverride { disabled: true, settings: None });
    }
    let at = at.field("config");
    match &config.config {
        None => at.error("value is required unless the filter is disabled"),
        Some(any) if any.type_url.is_empty() => Some(FilterOverride { disabled: false, settings: None }),
        Some(any) if config.is_optional && !is_settings(any) => {
            Some(FilterOverride { disabled: false, settings: None })
        }
        Some(any) => Some(FilterOverride { disabled: false, settings: Some(settings(&at, any)?) }),
    }
}

fn is_settings(any: &Any) -> bool {
    unpack::<rbac_pb::RbacPerRoute>(any).is_some()
        || unpack::<mutation_pb::HeaderMutationPerRoute>(any).is_some()
        || unpack::<basic_pb::BasicAuthPerRoute>(any).is_some()
        || unpack::<csrf_pb::CsrfPolicy>(any).is_some()
        || unpack::<cors_pb::CorsPolicy>(any).is_some()
        || unpack::<authz_pb::ExtAuthzPerRoute>(any).is_some()
        || unpack::<buffer_pb::BufferPerRoute>(any).is_some()
        || unpack::<compressor_pb::CompressorPerRoute>(any).is_some()
        || unpack::<jwt_pb::PerRouteConfig>(any).is_some()
        || unpack::<fault_pb::HttpFault>(any).is_some()
        || unpack::<rate_pb::LocalRateLimit>(any).is_some()
        || unpack::<global_pb::RateLimitPerRoute>(any).is_some()
}

fn settings(at: &At<'_>, any: &Any) -> Option<FilterSettings> {
    Some(if let Some(rbac) = unpack::<rbac_pb::RbacPerRoute>(any) {
        FilterSettings::Rbac(match &rbac.rbac {
            Some(rbac) => access(&at.field("rbac"), rbac)?,
            None => Arc::default(),
        })
    } else if let Some(mutation) = unpack::<mutation_pb::HeaderMutationPerRoute>(any) {
        FilterSettings::HeaderMutation(changes(&at.field("mutations"), mutation.mutations.as_ref())?)
    } else if let Some(own) = unpack::<basic_pb::BasicAuthPerRoute>(any) {
        FilterSettings::BasicAuth(basic_auth::per_route(at, &own)?)
    } else if let Some(policy) = unpack::<csrf_pb::CsrfPolicy>(any) {
        FilterSettings::Csrf(csrf(at, &policy)?)
    } else if let Some(policy) = unpack::<cors_pb::CorsPolicy>(any) {
        FilterSettings::Cors(cors(at, &policy)?)
    } else if let Some(buffer) = unpack::<buffer_pb::BufferPerRoute>(any) {
        FilterSettings::Buffer(match buffer.r#override.as_ref()? {
            buffer_pb::buffer_per_route::Override::Disabled(_) => None,
            buffer_pb::buffer_per_route::Override::Buffer(buffer) => {
                Some(buffer.max_request_bytes.as_ref()?.value)
            }
        })
    } else if let Some(compressor) = unpack::<compressor_pb::CompressorPerRoute>(any) {
        FilterSettings::Compressor(super::compressor::per_route(&compressor)?)
    } else if let Some(jwt) = unpack::<jwt_pb::PerRouteConfig>(any) {
        FilterSettings::Jwt(super::jwt::per_route(&jwt)?)
    } else if let Some(authz) = unpack::<authz_pb::ExtAuthzPerRoute>(any) {
        FilterSettings::ExtAuthz(ext_authz::per_route(at, &authz)?)
    } else if let Some(fault) = unpack::<fault_pb::HttpFault>(any) {
        FilterSettings::Fault(self::fault(at, &fault)?)
    } else if let Some(limit) = unpack::<rate_pb::LocalRateLimit>(any) {
        if limit.token_bucket.is_none() {
            return at
                .field("token_bucket")
                .error("local rate limit token bucket must be set for per filter configs");
        }
        FilterSettings::LocalRateLimit(rate_limit(at, &limit)?)
    } else if let Some(limit) = unpack::<global_pb::RateLimitPerRoute>(any) {
        FilterSettings::RateLimit(super::rate_limit::per_route(at, &limit)?)
    } else {
        return at
            .unsupported(format!("{} is not what a route says about a filter", extension_name(Some(any))));
    })
}

fn grpc_stats(config: &stats_pb::FilterConfig) -> GrpcStats {
    use stats_pb::filter_config::PerMethodStatSpecifier as Which;
    let methods = match &config.per_method_stat_specifier {
        Some(Which::StatsForAllMethods(all)) if all.value => GrpcMethods::All,
        Some(Which::StatsForAllMethods(_)) | None => GrpcMethods::Together,
        Some(Which::IndividualMethodStatsAllowlist(list)) => {
            let services = list.services.iter();
            GrpcMethods::These(services.map(|it| (it.name.clone(), it.method_names.clone())).collect())
        }
    };
    GrpcStats { methods, replace_dots: config.replace_dots_in_grpc_service_name }
}

fn access(at: &At<'_>, rbac: &rbac_pb::Rbac) -> Option<Arc<HttpRbac>> {
    let subject = Subject::Request;
    let rules = rbac::rules(at, subject, ("rules", rbac.rules.as_ref()), ("matcher", rbac.matcher.as_ref()));
    let shadow_rules = rbac::rules(
        at,
        subject,
        ("shadow_rules", rbac.shadow_rules.as_ref()),
        ("shadow_matcher", rbac.shadow_matcher.as_ref()),
    );
    Some(Arc::new(HttpRbac {
        rules: rules?,
        stat_prefix: rbac.rules_stat_prefix.clone(),
        shadow_rules: shadow_rules?,
        shadow_stat_prefix: rbac.shadow_rules_stat_prefix.clone(),
    }))
}

fn changes(at: &At<'_>, mutations: Option<&mutation_pb::Mutations>) -> Option<Arc<HeaderChanges>> {
    let Some(mutations) = mutations else { return Some(Arc::default()) };
    let list = |name: &str, list: &[HeaderMutation]| {
        let at = at.field(name);
        let list: Vec<_> = list.iter().enumerate().map(|(i, it)| change(&at.index(i), it)).collect();
        list.into_iter().collect::<Option<Vec<_>>>()
    };
    let request = list("request_mutations", &mutations.request_mutations);
    let response = list("response_mutations", &mutations.response_mutations);
    Some(Arc::new(HeaderChanges { request: request?, response: response? }))
}

/// One change.
pub(super) fn change(at: &At<'_>, mutation: &HeaderMutation) -> Option<HeaderChange> {
    Some(match mutation.action.as_ref()? {
        MutationAction::Append(option) => HeaderChange::Add(header::addition(&at.field("append"), option)?),
        MutationAction::Remove(name) => HeaderChange::Remove(header::removal(&at.field("remove"), name)?),
        MutationAction::RemoveOnMatch(by) => {
            let at = at.field("remove_on_match");
            HeaderChange::RemoveMatching(matcher::string(&at.field("key_matcher"), by.key_matcher.as_ref()?)?)
        }
    })
}

fn csrf(at: &At<'_>, policy: &csrf_pb::CsrfPolicy) -> Option<Arc<CsrfPolicy>> {
    let of = |percent: &Option<RuntimeFractionalPercent>| {
        fraction(percent.as_ref().and_then(|percent| percent.default_value.as_ref()))
    };
    let at = at.field("additional_origins");
    let origins = policy.additional_origins.iter().enumerate();
    let origins: Vec<_> = origins.map(|(i, it)| matcher::string(&at.index(i), it)).collect();
    Some(Arc::new(CsrfPolicy {
        enabled: of(&policy.filter_enabled),
        shadow: of(&policy.shadow_enabled),
        origins: origins.into_iter().collect::<Option<_>>()?,
    }))
}

fn cors(at: &At<'_>, policy: &cors_pb::CorsPolicy) -> Option<Arc<CorsPolicy>> {
    let at = at.field("allow_origin_string_match");
    let origins = policy.allow_origin_string_match.iter().enumerate();
    let origins: Vec<_> = origins.map(|(i, it)| matcher::string(&at.index(i), it)).collect();
    let ppm = |fraction: &Option<RuntimeFractionalPercent>, default| {
        fraction.as_ref().map_or(default, super::route::parts_per_million)
    };
    Some(Arc::new(CorsPolicy {
        allow_origins: origins.into_iter().collect::<Option<_>>()?,
        allow_methods: policy.allow_methods.clone(),
        allow_headers: policy.allow_headers.clone(),
        expose_headers: policy.expose_headers.clone(),
        max_age: policy.max_age.clone(),
        allow_credentials: policy.allow_credentials.map(|value| value.value),
        allow_private_network_access: policy.allow_private_network_access.map(|value| value.value),
        forward_not_matching_preflights: policy.forward_not_matching_preflights.map(|value| value.value),
        enabled_ppm: ppm(&policy.filter_enabled, 1_000_000),
        shadow_ppm: ppm(&policy.shadow_enabled, 0),
    }))
}

fn fault(at: &At<'_>, fault: &fault_pb::HttpFault) -> Option<Arc<HttpFault>> {
    let delay = match &fault.delay {
        Some(delay) => self::delay(&at.field("delay"), delay).map(Some),
        None => Some(None),
    };
    let abort = match &fault.abort {
        Some(abort) => self::abort(&at.field("abort"), abort).map(Some),
        None => Some(None),
    };
    let headers = header_matchers(&at.field("headers"), &fault.headers);
    Some(Arc::new(HttpFault {
        delay: delay?,
        abort: abort?,
        upstream_cluster: fault.upstream_cluster.clone(),
        headers: headers?,
        downstream_nodes: fault.downstream_nodes.clone(),
        max_active: fault.max_active_faults.as_ref().map(|max| max.value),
    }))
}

fn delay(at: &At<'_>, delay: &FaultDelayPb) -> Option<FaultDelay> {
    let fixed = match delay.fault_delay_secifier.as_ref()? {
        FaultDelaySecifier::FixedDelay(fixed) => Some(core::duration(&at.field("fixed_delay"), fixed)?),
        FaultDelaySecifier::HeaderDelay(_) => None,
    };
    Some(FaultDelay { fraction: fraction(delay.percentage.as_ref()), fixed })
}

fn abort(at: &At<'_>, abort: &fault_pb::FaultAbort) -> Option<FaultAbort> {
    let answer = match abort.error_type.as_ref()? {
        ErrorType::HttpStatus(status) => match u16::try_from(*status) {
            Ok(status @ 200..600) => FaultAnswer::Http(status),
            _ => return at.field("http_status").error("value must be inside range [200, 600)"),
        },
        ErrorType::GrpcStatus(status) => FaultAnswer::Grpc(*status),
        ErrorType::HeaderAbort(_) => FaultAnswer::Header,
    };
    let body = match abort.response_body.as_str() {
        "" => "fault filter abort",
        body => body,
    };
    Some(FaultAbort { fraction: fraction(abort.percentage.as_ref()), answer, body: body.as_bytes().into() })
}

fn rate_limit(at: &At<'_>, limit: &rate_pb::LocalRateLimit) -> Option<Arc<HttpRateLimit>> {
    let bucket = match &limit.token_bucket {
        None if limit.filter_enabled.is_some() => {
            return at
                .field("token_bucket")
                .error("local rate limit token bucket must be set for per filter configs");
        }
        None => Bucket::EMPTY,
        Some(bucket) => super::rate_limit::bucket(at, bucket, "")?,
    };
    let status = limit.status.as_ref().map_or(429, |status| status.code);
    let of = |percent: &Option<RuntimeFractionalPercent>| {
        fraction(percent.as_ref().and_then(|percent| percent.default_value.as_ref()))
    };
    let add = "request_headers_to_add_when_not_enforced";
    let request_add = header::additions(&at.field(add), &limit.request_headers_to_add_when_not_enforced);
    let response_add =
        header::additions(&at.field("response_headers_to_add"), &limit.response_headers_to_add);
    let descriptors = super::rate_limit::descriptors(&at.field("descriptors"), &limit.descriptors);
    let rules = super::rate_limit::own_rules(&at.field("rate_limits"), &limit.rate_limits);
    Some(Arc::new(HttpRateLimit {
        stat_prefix: limit.stat_prefix.clone(),
        status: u16::try_from(status).ok().filter(|status| *status >= 400).unwrap_or(429),
        max_tokens: bucket.max_tokens,
        tokens_per_fill: bucket.tokens_per_fill,
        fill_interval: bucket.fill_interval,
        enabled: of(&limit.filter_enabled),
        enforced: of(&limit.filter_enforced),
        request_add: request_add?,
        response_add: response_add?,
        resource_exhausted: limit.rate_limited_as_resource_exhausted,
        descriptors: descriptors?,
        stage: limit.stage,
        host_rules: match limit.vh_rate_limits() {
            VhRateLimitsOptions::Override => HostRules::Override,
            VhRateLimitsOptions::Include => HostRules::Include,
            VhRateLimitsOptions::Ignore => HostRules::Ignore,
        },
        rules: rules?,
        always_default: limit.always_consume_default_token_bucket.as_ref().is_none_or(|always| always.value),
        max_dynamic: limit.max_dynamic_descriptors.as_ref().map_or(20, |max| max.value as usize),
        limit_headers: limit.enable_x_ratelimit_headers() == XRateLimitHeadersRfcVersion::DraftVersion03,
    }))
}

fn header_matchers(at: &At<'_>, headers: &[HeaderMatcherPb]) -> Option<Vec<HeaderMatcher>> {
    let headers: Vec<_> =
        headers.iter().enumerate().map(|(i, it)| matcher::header(&at.index(i), it)).collect();
    headers.into_iter().collect()
}

/// None of all when it is not given.
pub(super) fn fraction(percent: Option<&FractionalPercent>) -> Fraction {
    let Some(percent) = percent else { return Fraction::NONE };
    let denominator = match percent.denominator() {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Fraction { numerator: percent.numerator.min(denominator), denominator }
}
