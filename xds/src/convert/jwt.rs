//! `extensions.filters.http.jwt_authn.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    JwksSource, JwtAuthentication, JwtOverride, JwtProvider, JwtRequirement, RemoteJwks, RouteMatch,
};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    self as pb, jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
    per_route_config::RequirementSpecifier, requirement_rule::RequirementType,
};

use super::{call, core, matcher, route};
use crate::at::At;

/// The filter.
pub(super) fn filter(at: &At<'_>, filter: &pb::JwtAuthentication) -> Option<Arc<JwtAuthentication>> {
    let mut names: Vec<_> = filter.providers.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let at_providers = at.field("providers");
    let providers: Vec<_> =
        names.iter().map(|(name, it)| provider(&at_providers.key(name), name, it)).collect();
    let providers = providers.into_iter().collect::<Option<Vec<_>>>()?;
    let mut sorted: Vec<_> = filter.requirement_map.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let at_named = at.field("requirement_map");
    let named: Vec<_> = sorted
        .into_iter()
        .map(|(name, it)| Some((name.clone(), requirement(&at_named.key(name), it, &providers)?)))
        .collect();
    let named = named.into_iter().collect::<Option<Vec<_>>>()?;
    let at_rules = at.field("rules");
    let rules: Vec<_> = filter
        .rules
        .iter()
        .enumerate()
        .map(|(i, it)| rule(&at_rules.index(i), it, &providers, &named))
        .collect();
    Some(Arc::new(JwtAuthentication {
        rules: rules.into_iter().collect::<Option<_>>()?,
        providers,
        named,
        bypass_preflight: filter.bypass_cors_preflight,
        strip_failure: filter.strip_failure_response,
        stat_prefix: filter.stat_prefix.clone(),
    }))
}

/// What a route says.
pub(super) fn per_route(route: &pb::PerRouteConfig) -> Option<JwtOverride> {
    Some(match route.requirement_specifier.as_ref()? {
        RequirementSpecifier::Disabled(_) => JwtOverride::Disabled,
        RequirementSpecifier::RequirementName(name) => JwtOverride::Requirement(name.clone()),
    })
}

type Named = [(String, JwtRequirement)];

fn rule(
    at: &At<'_>,
    rule: &pb::RequirementRule,
    providers: &[JwtProvider],
    named: &Named,
) -> Option<(RouteMatch, Option<JwtRequirement>)> {
    let requirement = match &rule.requirement_type {
        None => None,
        Some(RequirementType::Requires(it)) => Some(requirement(&at.field("requires"), it, providers)?),
        Some(RequirementType::RequirementName(name)) => {
            let Some((_, found)) = named.iter().find(|(known, _)| known == name) else {
                return at
                    .field("requirement_name")
                    .error(format!("wrong requirement_name: {name:?} is not in requirement_map"));
            };
            Some(found.clone())
        }
    };
    Some((route::route_match(&at.field("match"), rule.r#match.as_ref()?)?, requirement))
}

fn requirement(
    at: &At<'_>,
    requirement: &pb::JwtRequirement,
    providers: &[JwtProvider],
) -> Option<JwtRequirement> {
    let find = |at: &At<'_>, name: &str| {
        let index = providers.iter().position(|provider| provider.name == name);
        index.or_else(|| at.error(format!("required provider {name:?} is not in providers")))
    };
    let list = |name: &str, list: &[pb::JwtRequirement]| {
        let at = at.field(name);
        let at = at.field("requirements");
        let list: Vec<_> =
            list.iter().enumerate().map(|(i, it)| self::requirement(&at.index(i), it, providers)).collect();
        list.into_iter().collect::<Option<Vec<_>>>()
    };
    Some(match &requirement.requires_type {
        // Nothing is required, and nobody looks for tokens.
        None => JwtRequirement::All(Vec::new()),
        Some(RequiresType::ProviderName(name)) => {
            JwtRequirement::Provider { index: find(&at.field("provider_name"), name)?, audiences: None }
        }
        Some(RequiresType::ProviderAndAudiences(it)) => {
            let at = at.field("provider_and_audiences");
            let audiences: Vec<_> = it.audiences.iter().map(|audience| plain(audience)).collect();
            let index = find(&at.field("provider_name"), &it.provider_name)?;
            JwtRequirement::Provider { index, audiences: Some(audiences).filter(|list| !list.is_empty()) }
        }
        Some(RequiresType::RequiresAny(any)) => JwtRequirement::Any(list("requires_any", &any.requirements)?),
        Some(RequiresType::RequiresAll(all)) => JwtRequirement::All(list("requires_all", &all.requirements)?),
        Some(RequiresType::AllowMissing(_)) => JwtRequirement::AllowMissing,
        Some(RequiresType::AllowMissingOrFailed(_)) => JwtRequirement::AllowMissingOrFailed,
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            return at
                .field("extract_only_without_validation")
                .unsupported("tokens are verified before anything of them is used");
        }
    })
}

fn provider(at: &At<'_>, name: &str, provider: &pb::JwtProvider) -> Option<JwtProvider> {
    let keys = match provider.jwks_source_specifier.as_ref()? {
        JwksSourceSpecifier::LocalJwks(source) => {
            let at = at.field("local_jwks");
            let text = core::text(&at, source)?;
            let parsed: Option<serde_json::Value> = serde_json::from_str(&text).ok();
            if !parsed.is_some_and(|set| set.get("keys").is_some_and(serde_json::Value::is_array)) {
                return at.error("not a JSON Web Key Set");
            }
            JwksSource::Local(text.into())
        }
        JwksSourceSpecifier::RemoteJwks(remote) => {
            JwksSource::Remote(self::remote(&at.field("remote_jwks"), remote)?)
        }
    };
    let subjects = match &provider.subjects {
        None => None,
        Some(subjects) => Some(matcher::string(&at.field("subjects"), subjects)?),
    };
    let max_lifetime = match &provider.max_lifetime {
        None => None,
        Some(lifetime) => Some(core::duration(&at.field("max_lifetime"), lifetime)?),
    };
    let nothing = provider.from_headers.is_empty()
        && provider.from_params.is_empty()
        && provider.from_cookies.is_empty();
    let given = provider.from_headers.iter();
    let given = given.map(|header| (header.name.to_ascii_lowercase(), header.value_prefix.clone()));
    let mut claim_headers = Vec::with_capacity(provider.claim_to_headers.len());
    for (index, claim) in provider.claim_to_headers.iter().enumerate() {
        let path: Vec<_> = match claim.claim_path.as_slice() {
            [] if claim.claim_name.is_empty() => {
                let at = at.field("claim_to_headers");
                return at.index(index).error("one of claim_name and claim_path is required");
            }
            [] => claim.claim_name.split('.').map(str::to_owned).collect(),
            path => path.iter().map(|segment| segment.key.clone()).collect(),
        };
        claim_headers.push((claim.header_name.to_ascii_lowercase(), path));
    }
    let normalized = provider.normalize_payload_in_metadata.as_ref();
    Some(JwtProvider {
        name: name.to_owned(),
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.iter().map(|audience| plain(audience)).collect(),
        subjects,
        require_expiration: provider.require_expiration,
        max_lifetime,
        keys,
        forward: provider.forward,
        from_headers: match nothing {
            true => vec![("authorization".to_owned(), "Bearer ".to_owned())],
            false => given.collect(),
        },
        from_params: if nothing { vec!["access_token".to_owned()] } else { provider.from_params.clone() },
        from_cookies: provider.from_cookies.clone(),
        payload_header: provider.forward_payload_header.to_ascii_lowercase(),
        pad_payload: provider.pad_forward_payload_header,
        payload_in_metadata: provider.payload_in_metadata.clone(),
        space_delimited: normalized.map(|it| it.space_delimited_claims.clone()).unwrap_or_default(),
        header_in_metadata: provider.header_in_metadata.clone(),
        clock_skew: match provider.clock_skew_seconds {
            0 => 60,
            seconds => u64::from(seconds),
        },
        claim_headers,
        clear_route_cache: provider.clear_route_cache,
    })
}

fn remote(at: &At<'_>, remote: &pb::RemoteJwks) -> Option<Arc<RemoteJwks>> {
    let uri = call::http_uri(at, "http_uri", remote.http_uri.as_ref());
    let minutes = Duration::from_secs(600);
    let cache = core::duration_or(&at.field("cache_duration"), remote.cache_duration.as_ref(), minutes);
    let retry = call::retry(at, remote.retry_policy.as_ref());
    let ahead = match &remote.async_fetch {
        None => None,
        Some(fetch) => {
            let at = at.field("async_fetch");
            let again = fetch.failed_refetch_duration.as_ref();
            let second = Duration::from_secs(1);
            Some(core::duration_or(&at.field("failed_refetch_duration"), again, second)?)
        }
    };
    Some(Arc::new(RemoteJwks { uri: uri?, cache: cache?, ahead, retry: retry? }))
}

/// An audience as it is compared: without scheme and slash at the end.
fn plain(audience: &str) -> String {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest).to_owned()
}
