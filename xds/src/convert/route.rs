//! Route configurations, virtual hosts and route matches.

use std::{collections::HashSet, sync::Arc};

use culvert_model::{
    PathMatch, RequireTls, RetryPolicy, Route, RouteConfiguration, RouteMatch, VirtualCluster, VirtualHost,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{self as pb, route_match::PathSpecifier, virtual_host::TlsRequirementType},
        },
        r#type::v3::fractional_percent::DenominatorType,
    },
    google::protobuf,
};

use super::{core, header, http_filter, matcher, metadata, mirror, rate_limit, retry, route_action, tracing};
use crate::at::At;

/// Bytes of a direct response's body when `max_direct_response_body_size_bytes` is not given.
pub(super) const BODY_BYTES_MAX: u32 = 4_096;

/// Says which clusters exist.
pub(crate) struct Clusters<'a> {
    /// Whether there is a cluster of that name.
    pub(crate) exists: &'a dyn Fn(&str) -> bool,
    /// Whether routes have to name existing ones when `validate_clusters` is not given: true for inline routes.
    pub(crate) validate: bool,
}

/// What applies to all routes of a configuration.
pub(super) struct Scope<'a> {
    /// `None` when unknown clusters are allowed.
    pub(super) clusters: Option<&'a dyn Fn(&str) -> bool>,
    /// Longest body of a direct response.
    pub(super) body_bytes_max: usize,
}

/// A route configuration.
pub(crate) fn route_configuration(
    at: &At<'_>,
    routes: &pb::RouteConfiguration,
    clusters: &Clusters<'_>,
) -> Option<RouteConfiguration> {
    let validate = routes.validate_clusters.as_ref().map_or(clusters.validate, |validate| validate.value);
    let scope = Scope {
        clusters: validate.then_some(clusters.exists),
        body_bytes_max: routes
            .max_direct_response_body_size_bytes
            .as_ref()
            .map_or(BODY_BYTES_MAX, |max| max.value) as usize,
    };
    let headers = header::mutations(
        at,
        &routes.request_headers_to_add,
        &routes.request_headers_to_remove,
        &routes.response_headers_to_add,
        &routes.response_headers_to_remove,
    );
    let filters = http_filter::overrides(at, &routes.typed_per_filter_config);
    let mirrors = mirror::mirrors(at, &routes.request_mirror_policies, &scope);
    let at_hosts = at.field("virtual_hosts");
    let hosts = routes.virtual_hosts.iter().enumerate();
    let virtual_hosts: Vec<_> =
        hosts.map(|(i, host)| virtual_host(&at_hosts.index(i), host, &scope)).collect();
    let unique = unique(&at_hosts, &routes.virtual_hosts);
    unique?;
    let vhds = match &routes.vhds {
        Some(vhds) => {
            Some(core::config_source(&at.field("vhds").field("config_source"), vhds.config_source.as_ref())?)
        }
        None => None,
    };
    Some(RouteConfiguration {
        name: routes.name.clone(),
        virtual_hosts: virtual_hosts.into_iter().collect::<Option<_>>()?,
        headers: headers?,
        filters: filters?,
        mirrors: mirrors?,
        ignore_port: routes.ignore_port_in_host_matching,
        most_specific_wins: routes.most_specific_header_mutations_wins,
        vhds,
    })
}

/// Domains are unique over all virtual hosts.
fn unique(at: &At<'_>, hosts: &[pb::VirtualHost]) -> Option<()> {
    let mut domains = HashSet::new();
    let mut unique = Some(());
    for (index, host) in hosts.iter().enumerate() {
        let at = at.index(index);
        for domain in &host.domains {
            if !domains.insert(domain.to_ascii_lowercase()) {
                unique = at.field("domains").error(format!("duplicate domain {domain:?}"));
            }
        }
    }
    unique
}

pub(super) fn virtual_host(at: &At<'_>, host: &pb::VirtualHost, scope: &Scope<'_>) -> Option<VirtualHost> {
    let headers = header::mutations(
        at,
        &host.request_headers_to_add,
        &host.request_headers_to_remove,
        &host.response_headers_to_add,
        &host.response_headers_to_remove,
    );
    let filters = http_filter::overrides(at, &host.typed_per_filter_config);
    let retry = retry_policy(at, host.retry_policy.as_ref());
    let mirrors = mirror::mirrors(at, &host.request_mirror_policies, scope);
    let buffer = request_buffer(
        at,
        host.per_request_buffer_limit_bytes.as_ref(),
        host.request_body_buffer_limit.as_ref(),
    );
    let rate_limits = rate_limit::rules(&at.field("rate_limits"), &host.rate_limits);
    let at_clusters = at.field("virtual_clusters");
    let clusters = host.virtual_clusters.iter().enumerate();
    let clusters: Vec<_> =
        clusters.map(|(i, cluster)| virtual_cluster(&at_clusters.index(i), cluster)).collect();
    let at_routes = at.field("routes");
    let routes: Vec<_> = host
        .routes
        .iter()
        .enumerate()
        .map(|(i, r)| route(&at_routes.index(i), r, scope).map(Arc::new))
        .collect();
    Some(VirtualHost {
        name: host.name.clone(),
        domains: host.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
        routes: routes.into_iter().collect::<Option<_>>()?,
        headers: headers?,
        filters: filters?,
        require_tls: match host.require_tls() {
            TlsRequirementType::None => RequireTls::No,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        include_request_attempt_count: host.include_request_attempt_count,
        include_attempt_count_in_response: host.include_attempt_count_in_response,
        retry: retry?,
        mirrors: mirrors?,
        request_buffer: buffer?,
        rate_limits: rate_limits?.into(),
        virtual_clusters: clusters.into_iter().collect::<Option<_>>()?,
    })
}

fn virtual_cluster(at: &At<'_>, cluster: &pb::VirtualCluster) -> Option<VirtualCluster> {
    let at = at.field("headers");
    if cluster.headers.is_empty() {
        return at.error("virtual clusters must define headers");
    }
    let headers = cluster.headers.iter().enumerate();
    let headers: Vec<_> = headers.map(|(i, m)| matcher::header(&at.index(i), m)).collect();
    Some(VirtualCluster { name: cluster.name.clone(), headers: headers.into_iter().collect::<Option<_>>()? })
}

/// `retry_policy`
pub(super) fn retry_policy(
    at: &At<'_>,
    policy: Option<&pb::RetryPolicy>,
) -> Option<Option<Box<RetryPolicy>>> {
    match policy {
        Some(policy) => retry::policy(&at.field("retry_policy"), policy).map(|policy| Some(Box::new(policy))),
        None => Some(None),
    }
}

/// How much of a request is kept.
fn request_buffer(
    at: &At<'_>,
    deprecated: Option<&protobuf::UInt32Value>,
    limit: Option<&protobuf::UInt64Value>,
) -> Option<Option<u64>> {
    match (deprecated, limit) {
        (Some(_), Some(_)) => at
            .field("request_body_buffer_limit")
            .error("only one of per_request_buffer_limit_bytes and request_body_buffer_limit may be set"),
        (Some(limit), None) => Some(Some(u64::from(limit.value))),
        (None, limit) => Some(limit.map(|limit| limit.value)),
    }
}

fn route(at: &At<'_>, route: &pb::Route, scope: &Scope<'_>) -> Option<Route> {
    let headers = header::mutations(
        at,
        &route.request_headers_to_add,
        &route.request_headers_to_remove,
        &route.response_headers_to_add,
        &route.response_headers_to_remove,
    );
    let filters = http_filter::overrides(at, &route.typed_per_filter_config);
    let matcher = route_match(&at.field("match"), route.r#match.as_ref()?);
    let action = route_action::action(at, route, scope);
    let tracing = tracing::route(at, route);
    let buffer = request_buffer(
        at,
        route.per_request_buffer_limit_bytes.as_ref(),
        route.request_body_buffer_limit.as_ref(),
    );
    Some(Route {
        name: route.name.clone(),
        metadata: metadata::metadata(route.metadata.as_ref()),
        matcher: matcher?,
        action: action?,
        headers: headers?,
        filters: filters?,
        request_buffer: buffer?,
        tracing: tracing?,
        stat_prefix: route.stat_prefix.clone(),
    })
}

pub(super) fn route_match(at: &At<'_>, rule: &pb::RouteMatch) -> Option<RouteMatch> {
    let path = path(at, rule);
    let at_headers = at.field("headers");
    let headers: Vec<_> =
        rule.headers.iter().enumerate().map(|(i, m)| matcher::header(&at_headers.index(i), m)).collect();
    let at_query = at.field("query_parameters");
    let query: Vec<_> = rule
        .query_parameters
        .iter()
        .enumerate()
        .map(|(i, m)| matcher::query(&at_query.index(i), m))
        .collect();
    Some(RouteMatch {
        path: path?,
        headers: headers.into_iter().collect::<Option<_>>()?,
        query: query.into_iter().collect::<Option<_>>()?,
        fraction_ppm: rule.runtime_fraction.as_ref().map(parts_per_million),
        grpc: rule.grpc.is_some(),
    })
}

fn path(at: &At<'_>, rule: &pb::RouteMatch) -> Option<PathMatch> {
    let ignore_case = rule.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value);
    let fold = |value: &str| if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
    Some(match rule.path_specifier.as_ref()? {
        PathSpecifier::Prefix(value) => PathMatch::Prefix { value: fold(value), ignore_case },
        PathSpecifier::Path(value) => PathMatch::Exact { value: fold(value), ignore_case },
        PathSpecifier::PathSeparatedPrefix(value) => {
            PathMatch::SeparatedPrefix { value: fold(value), ignore_case }
        }
        PathSpecifier::SafeRegex(regex) => PathMatch::Regex(matcher::regex(&at.field("safe_regex"), regex)?),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(_) => {
            return at.field("path_match_policy").unsupported("path templates are not supported");
        }
    })
}

pub(super) fn parts_per_million(fraction: &RuntimeFractionalPercent) -> u32 {
    let Some(value) = fraction.default_value.as_ref() else { return 0 };
    let scale = match value.denominator() {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    value.numerator.saturating_mul(scale).min(1_000_000)
}
