//! HTTP filters before the router.

use std::sync::{Arc, atomic::AtomicU64};

use culvert_model::{HttpFilter, NamedFilter};
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

fn kind(filter: &HttpFilter) -> Option<HttpFilterKind> {
    Some(match filter {
        HttpFilter::Cors => HttpFilterKind::Cors,
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
        // Discovered filters are refused where the configuration is read.
        HttpFilter::Discovered(_) | HttpFilter::Router => return None,
    })
}
