//! `config.route.v3.RouteAction.HashPolicy`.

use std::time::Duration;

use culvert_model::{HashCookie, HashPolicy, HashSource};
use envoy_types::pb::envoy::config::route::v3::route_action::{self as pb, hash_policy::PolicySpecifier};

use super::{core, matcher};
use crate::at::At;

/// The policies, in order. `at` is their list.
pub(super) fn hash_policies(at: &At<'_>, policies: &[pb::HashPolicy]) -> Option<Vec<HashPolicy>> {
    let mut converted = Vec::with_capacity(policies.len());
    for (index, policy) in policies.iter().enumerate() {
        let source = source(&at.index(index), policy)?;
        converted.extend(source.map(|source| HashPolicy { source, terminal: policy.terminal }));
    }
    Some(converted)
}

/// `Some(None)` for one that looks at nothing.
fn source(at: &At<'_>, policy: &pb::HashPolicy) -> Option<Option<HashSource>> {
    Some(match policy.policy_specifier.as_ref()? {
        PolicySpecifier::Header(header) => {
            let at = at.field("header");
            let rewrite = match header.regex_rewrite.as_ref() {
                Some(rewrite) => Some(matcher::substitution(&at.field("regex_rewrite"), rewrite)?),
                None => None,
            };
            Some(HashSource::Header { name: header.header_name.to_ascii_lowercase(), rewrite })
        }
        PolicySpecifier::Cookie(cookie) => {
            let at = at.field("cookie");
            let ttl = match cookie.ttl.as_ref() {
                Some(ttl) => Some(core::duration(&at.field("ttl"), ttl)?),
                None => None,
            };
            Some(HashSource::Cookie(HashCookie {
                name: cookie.name.clone(),
                ttl: ttl.map(|ttl| Duration::from_secs(ttl.as_secs())),
                path: cookie.path.clone(),
                attributes: cookie
                    .attributes
                    .iter()
                    .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
                    .collect(),
            }))
        }
        PolicySpecifier::ConnectionProperties(properties) => {
            properties.source_ip.then_some(HashSource::SourceIp)
        }
        PolicySpecifier::QueryParameter(parameter) => {
            Some(HashSource::QueryParameter(parameter.name.clone()))
        }
        PolicySpecifier::FilterState(state) => Some(HashSource::FilterState(state.key.clone())),
    })
}
