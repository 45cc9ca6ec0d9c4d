//! What routes do.

use std::time::Duration;

use culvert_model::{
    Action, BodyFormat, ClusterSpecifier, DirectResponse, FormatPart, HostRewrite, MaxStreamDuration,
    Operator, PathRewrite, Redirect, RouteAction, RoutePriority, SubsetMatch, WeightedCluster,
    WeightedClusters,
};
use envoy_types::pb::envoy::config::{
    core::v3::{RoutingPriority, SubstitutionFormatString, substitution_format_string},
    route::v3::{
        self as pb,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route::Action as PbAction,
        route_action::{ClusterNotFoundResponseCode, ClusterSpecifier as Specifier, HostRewriteSpecifier},
        weighted_cluster::{RandomValueSpecifier, cluster_weight},
    },
};

use super::{
    access_log, core,
    hash_policy::hash_policies,
    header, http_filter, matcher, mirror, rate_limit,
    route::{self, Scope},
    subset,
};
use crate::at::At;

/// `RouteAction.timeout` when it is not given.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The action of `route`. `at` is the route.
pub(super) fn action(at: &At<'_>, route: &pb::Route, scope: &Scope<'_>) -> Option<Action> {
    match route.action.as_ref()? {
        PbAction::Route(action) => {
            forward(&at.field("route"), action, scope).map(|a| Action::Forward(Box::new(a)))
        }
        PbAction::Redirect(action) => redirect(&at.field("redirect"), action).map(Action::Redirect),
        PbAction::DirectResponse(action) => {
            direct_response(&at.field("direct_response"), action, scope).map(Action::Direct)
        }
        PbAction::FilterAction(_) => at.field("filter_action").unsupported("not supported"),
        PbAction::NonForwardingAction(_) => at.field("non_forwarding_action").unsupported("not supported"),
    }
}

fn direct_response(
    at: &At<'_>,
    action: &pb::DirectResponseAction,
    scope: &Scope<'_>,
) -> Option<DirectResponse> {
    let at_body = at.field("body");
    let body = match action.body.as_ref() {
        Some(source) => core::data(&at_body, source)?,
        None => Vec::new(),
    };
    if body.len() > scope.body_bytes_max {
        return at_body.error(format!(
            "response body size is {} bytes; maximum is {}",
            body.len(),
            scope.body_bytes_max
        ));
    }
    let (body, format) = match &action.body_format {
        Some(format) => {
            let (body, format) = body_format(&at.field("body_format"), format, body)?;
            (body, Some(Box::new(format)))
        }
        None => (body, None),
    };
    Some(DirectResponse { status: u16::try_from(action.status).ok()?, body: body.into(), format })
}

/// `body_format`, with the body where that is known by now.
fn body_format(
    at: &At<'_>,
    format: &SubstitutionFormatString,
    body: Vec<u8>,
) -> Option<(Vec<u8>, BodyFormat)> {
    let constant = match &format.format {
        Some(substitution_format_string::Format::TextFormat(text)) => Some(text.clone().into_bytes()),
        Some(substitution_format_string::Format::TextFormatSource(source)) => {
            Some(core::data(&at.field("text_format_source"), source)?)
        }
        _ => None,
    };
    let content_type = format.content_type.clone();
    // It need not be text then.
    if let Some(constant) = constant.filter(|text| !text.contains(&b'%')) {
        return Some((constant, BodyFormat { content_type, parts: None, omit_empty: false }));
    }
    let (mut parts, omit_empty) = access_log::text(at, format)?;
    for part in &mut parts {
        if *part == FormatPart::Operator(Operator::LocalReplyBody) {
            let Ok(text) = String::from_utf8(body.clone()) else {
                return at.unsupported("%LOCAL_REPLY_BODY% has to be UTF-8");
            };
            *part = FormatPart::Text(text);
        }
    }
    Some((body, BodyFormat { content_type, parts: Some(parts), omit_empty }))
}

fn redirect(at: &At<'_>, action: &pb::RedirectAction) -> Option<Redirect> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let port = match u16::try_from(action.port_redirect) {
        Ok(port) => Some(port).filter(|port| *port > 0),
        Err(_) => return at.field("port_redirect").error("not a port"),
    };
    let scheme = match action.scheme_rewrite_specifier.as_ref() {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => text(scheme),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let path = match action.path_rewrite_specifier.as_ref() {
        None => PathRewrite::None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            text(path).map_or(PathRewrite::None, PathRewrite::Full)
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            text(prefix).map_or(PathRewrite::None, PathRewrite::Prefix)
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            PathRewrite::Regex(matcher::substitution(&at.field("regex_rewrite"), rewrite)?)
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return at.field("path_rewrite").unsupported("not supported");
        }
    };
    let status = match action.response_code() {
        RedirectResponseCode::MovedPermanently => 301,
        RedirectResponseCode::Found => 302,
        RedirectResponseCode::SeeOther => 303,
        RedirectResponseCode::TemporaryRedirect => 307,
        RedirectResponseCode::PermanentRedirect => 308,
    };
    Some(Redirect {
        scheme,
        host: text(&action.host_redirect),
        port,
        path,
        status,
        strip_query: action.strip_query,
    })
}

fn forward(at: &At<'_>, action: &pb::RouteAction, scope: &Scope<'_>) -> Option<RouteAction> {
    let cluster = cluster(at, action, scope);
    let path = path_rewrite(at, action);
    let host = host_rewrite(at, action);
    let timeout = core::timeout(&at.field("timeout"), action.timeout.as_ref(), Some(TIMEOUT));
    let idle_timeout = match action.idle_timeout.as_ref() {
        Some(value) => core::duration(&at.field("idle_timeout"), value).map(Some),
        None => Some(None),
    };
    let retry = route::retry_policy(at, action.retry_policy.as_ref());
    let rate_limits = rate_limit::rules(&at.field("rate_limits"), &action.rate_limits);
    let mirrors = mirror::mirrors(at, &action.request_mirror_policies, scope);
    let internal_redirects = match action.internal_redirect_policy.as_ref() {
        Some(policy) => mirror::internal_redirects(&at.field("internal_redirect_policy"), policy)
            .map(|policy| Some(Box::new(policy))),
        None => Some(None),
    };
    let upgrades = upgrades(&at.field("upgrade_configs"), &action.upgrade_configs);
    let hash_policy = hash_policies(&at.field("hash_policy"), &action.hash_policy);
    let duration = match action.max_stream_duration.as_ref() {
        Some(duration) => max_stream_duration(&at.field("max_stream_duration"), duration).map(Some),
        None => Some(None),
    };
    Some(RouteAction {
        subset: subset::wanted(None, action.metadata_match.as_ref()),
        cluster: cluster?,
        cluster_not_found_status: match action.cluster_not_found_response_code() {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        path: path?,
        host: host?,
        append_forwarded_host: action.append_x_forwarded_host,
        timeout: timeout?,
        idle_timeout: idle_timeout?,
        max_stream_duration: duration?,
        retry: retry?,
        rate_limits: rate_limits?.into(),
        include_vh_rate_limits: action.include_vh_rate_limits.as_ref().is_some_and(|it| it.value),
        mirrors: mirrors?,
        internal_redirects: internal_redirects?,
        upgrades: upgrades?,
        ends_connect: action.upgrade_configs.iter().any(|config| config.connect_config.is_some()),
        priority: match action.priority() {
            RoutingPriority::Default => RoutePriority::Default,
            RoutingPriority::High => RoutePriority::High,
        },
        hash_policy: hash_policy?,
    })
}

fn max_stream_duration(
    at: &At<'_>,
    duration: &pb::route_action::MaxStreamDuration,
) -> Option<MaxStreamDuration> {
    let given = |name, value: Option<&_>| match value {
        Some(value) => core::duration(&at.field(name), value).map(Some),
        None => Some(None),
    };
    let max = given("max_stream_duration", duration.max_stream_duration.as_ref());
    let grpc_max = given("grpc_timeout_header_max", duration.grpc_timeout_header_max.as_ref());
    let offset = given("grpc_timeout_header_offset", duration.grpc_timeout_header_offset.as_ref());
    Some(MaxStreamDuration {
        max: max?,
        grpc_timeout_max: grpc_max?,
        grpc_timeout_offset: offset?.unwrap_or_default(),
    })
}

fn cluster(at: &At<'_>, action: &pb::RouteAction, scope: &Scope<'_>) -> Option<ClusterSpecifier> {
    match action.cluster_specifier.as_ref()? {
        Specifier::Cluster(name) => {
            known(&at.field("cluster"), name, scope)?;
            Some(ClusterSpecifier::Name(name.as_str().into()))
        }
        Specifier::ClusterHeader(name) => Some(ClusterSpecifier::Header(name.to_ascii_lowercase())),
        Specifier::WeightedClusters(weighted) => {
            let wanted = subset::wanted(None, action.metadata_match.as_ref());
            weighted_clusters(&at.field("weighted_clusters"), weighted, wanted.as_ref(), scope)
                .map(ClusterSpecifier::Weighted)
        }
        Specifier::ClusterSpecifierPlugin(_) | Specifier::InlineClusterSpecifierPlugin(_) => {
            at.unsupported("cluster specifier plug-ins are not supported")
        }
    }
}

fn known(at: &At<'_>, name: &str, scope: &Scope<'_>) -> Option<()> {
    match scope.clusters {
        Some(exists) if !exists(name) => at.error(format!("unknown cluster {name:?}")),
        _ => Some(()),
    }
}

fn weighted_clusters(
    at: &At<'_>,
    weighted: &pb::WeightedCluster,
    wanted: Option<&SubsetMatch>,
    scope: &Scope<'_>,
) -> Option<WeightedClusters> {
    let at_clusters = at.field("clusters");
    let entries = weighted.clusters.iter().enumerate();
    let clusters: Vec<_> =
        entries.map(|(i, entry)| weighted_cluster(&at_clusters.index(i), entry, wanted, scope)).collect();
    let clusters: Vec<WeightedCluster> = clusters.into_iter().collect::<Option<_>>()?;
    let total: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if total == 0 {
        return at.error("sum of weights must be greater than 0");
    }
    if total > u64::from(u32::MAX) {
        return at.error(format!("sum of weights must be at most {}", u32::MAX));
    }
    let (use_hash_policy, random_header) = match weighted.random_value_specifier.as_ref() {
        Some(RandomValueSpecifier::HeaderName(name)) if name.is_empty() => (false, None),
        Some(RandomValueSpecifier::HeaderName(name)) => (false, Some(name.to_ascii_lowercase())),
        Some(RandomValueSpecifier::UseHashPolicy(wanted)) => (wanted.value, None),
        None => (false, None),
    };
    Some(WeightedClusters { clusters, total, use_hash_policy, random_header })
}

fn weighted_cluster(
    at: &At<'_>,
    entry: &pb::weighted_cluster::ClusterWeight,
    wanted: Option<&SubsetMatch>,
    scope: &Scope<'_>,
) -> Option<WeightedCluster> {
    if entry.name.is_empty() {
        return at.field("name").error("value is required");
    }
    let headers = header::mutations(
        at,
        &entry.request_headers_to_add,
        &entry.request_headers_to_remove,
        &entry.response_headers_to_add,
        &entry.response_headers_to_remove,
    );
    let filters = http_filter::overrides(at, &entry.typed_per_filter_config);
    known(&at.field("name"), &entry.name, scope)?;
    let Some(weight) = entry.weight.as_ref() else { return at.field("weight").error("value is required") };
    let host_rewrite = entry.host_rewrite_specifier.as_ref().and_then(|specifier| match specifier {
        cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host) => {
            Some(host.clone()).filter(|host| !host.is_empty())
        }
    });
    Some(WeightedCluster {
        name: entry.name.as_str().into(),
        weight: weight.value,
        subset: subset::wanted(wanted, entry.metadata_match.as_ref()),
        host_rewrite,
        headers: headers?,
        filters: filters?,
    })
}

fn path_rewrite(at: &At<'_>, action: &pb::RouteAction) -> Option<PathRewrite> {
    match (action.prefix_rewrite.as_str(), action.regex_rewrite.as_ref()) {
        ("", None) => Some(PathRewrite::None),
        (prefix, None) => Some(PathRewrite::Prefix(prefix.to_owned())),
        ("", Some(rewrite)) => {
            matcher::substitution(&at.field("regex_rewrite"), rewrite).map(PathRewrite::Regex)
        }
        (_, Some(_)) => at.error("only one of prefix_rewrite and regex_rewrite can be given"),
    }
}

fn host_rewrite(at: &At<'_>, action: &pb::RouteAction) -> Option<HostRewrite> {
    Some(match action.host_rewrite_specifier.as_ref() {
        None => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if host.is_empty() => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => HostRewrite::Literal(host.clone()),
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if auto.value => HostRewrite::Auto,
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) if name.is_empty() => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => HostRewrite::Header(name.to_ascii_lowercase()),
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            HostRewrite::PathRegex(matcher::substitution(&at.field("host_rewrite_path_regex"), rewrite)?)
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return at.field("host_rewrite").unsupported("not supported");
        }
    })
}

fn upgrades(at: &At<'_>, configs: &[pb::route_action::UpgradeConfig]) -> Option<Vec<(String, bool)>> {
    let mut upgrades: Vec<(String, bool)> = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let name = config.upgrade_type.to_ascii_lowercase();
        if upgrades.iter().any(|(known, _)| *known == name) {
            return at.index(index).error(format!("duplicate upgrade {name:?}"));
        }
        if config.connect_config.is_some() && name != "connect" {
            let at = at.index(index);
            return at
                .field("connect_config")
                .error(format!("non-CONNECT upgrade type {name:?} has ConnectConfig"));
        }
        upgrades.push((name, config.enabled.as_ref().is_none_or(|enabled| enabled.value)));
    }
    Some(upgrades)
}
