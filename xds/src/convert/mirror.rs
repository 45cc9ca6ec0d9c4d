//! Mirrored requests, and redirects that are followed.

use culvert_model::{InternalRedirects, MirrorPolicy, MirrorTarget, RedirectPredicate};
use envoy_types::pb::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        route::v3::{self as pb, route_action::RequestMirrorPolicy},
    },
    extensions::internal_redirect::{
        allow_listed_routes::v3::AllowListedRoutesConfig, previous_routes::v3::PreviousRoutesConfig,
        safe_cross_scheme::v3::SafeCrossSchemeConfig,
    },
};

use super::{extension_name, route, unpack};
use crate::at::At;

/// `request_mirror_policies`.
pub(super) fn mirrors(
    at: &At<'_>,
    policies: &[RequestMirrorPolicy],
    scope: &route::Scope<'_>,
) -> Option<Vec<MirrorPolicy>> {
    let at = at.field("request_mirror_policies");
    let all: Vec<_> =
        policies.iter().enumerate().map(|(index, policy)| mirror(&at.index(index), policy, scope)).collect();
    all.into_iter().collect()
}

fn mirror(at: &At<'_>, policy: &RequestMirrorPolicy, scope: &route::Scope<'_>) -> Option<MirrorPolicy> {
    let target = match (policy.cluster.as_str(), policy.cluster_header.as_str()) {
        ("", "") => return at.error("one of cluster and cluster_header is required"),
        (cluster, "") => {
            if scope.clusters.is_some_and(|exists| !exists(cluster)) {
                return at.field("cluster").error(format!("unknown shadow cluster {cluster:?}"));
            }
            MirrorTarget::Cluster(cluster.into())
        }
        ("", header) => MirrorTarget::Header(header.to_ascii_lowercase()),
        _ => return at.error("only one of cluster and cluster_header can be given"),
    };
    Some(MirrorPolicy {
        target,
        fraction_ppm: policy.runtime_fraction.as_ref().map(route::parts_per_million),
        host_rewrite: Some(policy.host_rewrite_literal.clone()).filter(|host| !host.is_empty()),
        append_suffix: !policy.disable_shadow_host_suffix_append,
    })
}

/// `internal_redirect_policy`.
pub(super) fn internal_redirects(
    at: &At<'_>,
    policy: &pb::InternalRedirectPolicy,
) -> Option<InternalRedirects> {
    let at_predicates = at.field("predicates");
    let predicates: Vec<_> = policy
        .predicates
        .iter()
        .enumerate()
        .map(|(index, entry)| predicate(&at_predicates.index(index), entry))
        .collect();
    let mut statuses: Vec<u16> = policy
        .redirect_response_codes
        .iter()
        // Others are no redirects; Envoy leaves them out too.
        .filter_map(|code| u16::try_from(*code).ok().filter(|code| matches!(code, 301..=303 | 307 | 308)))
        .collect();
    if policy.redirect_response_codes.is_empty() {
        statuses.push(302);
    }
    Some(InternalRedirects {
        max: policy.max_internal_redirects.as_ref().map_or(1, |max| max.value),
        statuses,
        predicates: predicates.into_iter().collect::<Option<_>>()?,
        cross_scheme: policy.allow_cross_scheme_redirect,
        copy: policy.response_headers_to_copy.iter().map(|name| name.to_ascii_lowercase()).collect(),
    })
}

fn predicate(at: &At<'_>, entry: &TypedExtensionConfig) -> Option<RedirectPredicate> {
    let at = at.field("typed_config");
    let Some(any) = entry.typed_config.as_ref() else { return at.error("value is required") };
    if let Some(config) = unpack::<AllowListedRoutesConfig>(any) {
        return Some(RedirectPredicate::AllowListed(config.allowed_route_names));
    }
    if unpack::<PreviousRoutesConfig>(any).is_some() {
        return Some(RedirectPredicate::PreviousRoutes);
    }
    if unpack::<SafeCrossSchemeConfig>(any).is_some() {
        return Some(RedirectPredicate::SafeCrossScheme);
    }
    at.unsupported(format!("{} is not a supported predicate", extension_name(Some(any))))
}
