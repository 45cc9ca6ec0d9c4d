//! HTTP filters before the router.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use culvert_model::{Config, HttpFilter, Listener, NamedFilter, ResourceKey};
use culvert_proto::filter::{AccessControl, RateLimit};

use crate::snapshot::{DiscoveredSpec, Extension, FaultSpec, HttpFilterKind, HttpFilterSpec, HttpRbacSpec};

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
    before: &HashMap<Arc<str>, Extension>,
) -> HashMap<Arc<str>, Extension> {
    let mut extensions = before.clone();
    for key in changed {
        let extension = config.extensions.get(key);
        let spec = extension.and_then(|extension| {
            let type_name = extension.type_name.clone();
            Some(Arc::new(DiscoveredSpec { type_name, kind: kind(&extension.filter)? }))
        });
        extensions.insert(extension_id(key), spec.map_or(Extension::Gone, Extension::Came));
    }
    if extensions.values().any(is_gone) {
        let asked_for: HashSet<_> =
            config.listeners.iter().flat_map(|listener| discovered(listener)).collect();
        extensions.retain(|id, found| !is_gone(found) || asked_for.contains(id));
    }
    extensions
}

/// Whether it was removed.
pub(super) fn is_gone(found: &Extension) -> bool {
    matches!(found, Extension::Gone)
}

/// Filters that a listener asks ECDS for.
fn discovered(listener: &Listener) -> impl Iterator<Item = Arc<str>> {
    let filters = super::route::managers(listener).flat_map(|manager| &manager.filters);
    filters.filter_map(|named| match &named.filter {
        HttpFilter::Discovered(filter) => Some(extension_id(&ResourceKey::new(&filter.source, &filter.name))),
        _ => None,
    })
}

/// How a filter from ECDS is found in a snapshot.
fn extension_id(key: &ResourceKey) -> Arc<str> {
    super::route_id(key)
}

fn kind(filter: &HttpFilter) -> Option<HttpFilterKind> {
    Some(match filter {
        HttpFilter::Buffer(max) => HttpFilterKind::Buffer(*max),
        HttpFilter::GrpcStats(config) => HttpFilterKind::GrpcStats(config.clone()),
        HttpFilter::GrpcWeb => HttpFilterKind::GrpcWeb,
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
            config: filter.clone(),
        },
        HttpFilter::Router => return None,
    })
}
