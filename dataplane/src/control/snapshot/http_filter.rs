//! HTTP filters before the router.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
};

use culvert_model::{Config, HttpFilter, NamedFilter, ResourceKey};
use culvert_proto::filter::{AccessControl, RateLimit};

use crate::snapshot::{FaultSpec, HttpFilterKind, HttpFilterSpec, HttpRbacSpec};

/// What all workers share of these filters.
pub(super) fn compile(filters: &[NamedFilter]) -> Vec<HttpFilterSpec> {
    let spec = |named: &NamedFilter| {
        let kind = kind(&named.filter)?;
        Some(HttpFilterSpec { name: named.name.clone(), disabled: named.disabled, kind })
    };
    filters.iter().filter_map(spec).collect()
}

/// Filters from ECDS, of which those called `changed` are not what they were in `before`.
pub(super) fn extensions(
    config: &Config,
    changed: &[Arc<ResourceKey>],
    before: &HashMap<Arc<str>, Arc<HttpFilterKind>>,
) -> HashMap<Arc<str>, Arc<HttpFilterKind>> {
    let mut extensions = before.clone();
    for key in changed {
        let id = extension_id(key);
        match config.extensions.get(key).and_then(|extension| kind(&extension.filter)) {
            Some(kind) => extensions.insert(id, Arc::new(kind)),
            None => extensions.remove(&id),
        };
    }
    extensions
}

/// How a filter from ECDS is found in a snapshot.
fn extension_id(key: &ResourceKey) -> Arc<str> {
    super::route_id(key)
}

fn kind(filter: &HttpFilter) -> Option<HttpFilterKind> {
    Some(match filter {
        HttpFilter::Compressor(config) => HttpFilterKind::Compressor(config.clone()),
        HttpFilter::BasicAuth(config) => HttpFilterKind::BasicAuth(config.clone()),
        HttpFilter::Cors => HttpFilterKind::Cors,
        HttpFilter::Csrf(policy) => HttpFilterKind::Csrf(policy.clone()),
        HttpFilter::Jwt(config) => HttpFilterKind::Jwt(config.clone()),
        HttpFilter::ExtAuthz(config) => HttpFilterKind::ExtAuthz(config.clone()),
        HttpFilter::Fault(config) => {
            HttpFilterKind::Fault(Arc::new(FaultSpec { config: config.clone(), active: AtomicU64::new(0) }))
        }
        HttpFilter::HeaderMutation { changes, most_specific_wins } => HttpFilterKind::HeaderMutation {
            changes: changes.clone(),
            most_specific_wins: *most_specific_wins,
        },
        HttpFilter::HealthCheck(matchers) => HttpFilterKind::HealthCheck(matchers.clone()),
        HttpFilter::LocalRateLimit(config) => {
            HttpFilterKind::LocalRateLimit(Arc::new(RateLimit::new(config.clone())))
        }
        HttpFilter::RateLimit(config) => HttpFilterKind::RateLimit(config.clone()),
        HttpFilter::Rbac(config) => HttpFilterKind::Rbac(Arc::new(HttpRbacSpec {
            control: AccessControl::compile(config),
            config: config.clone(),
        })),
        HttpFilter::Unsupported => HttpFilterKind::Unsupported,
        HttpFilter::Discovered(filter) => HttpFilterKind::Discovered {
            id: extension_id(&ResourceKey::new(&filter.source, &filter.name)),
            default: filter.default.as_ref().and_then(kind).map(Arc::new),
        },
        HttpFilter::Router => return None,
    })
}
