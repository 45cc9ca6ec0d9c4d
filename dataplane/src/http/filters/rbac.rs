//! `envoy.filters.http.rbac`: which requests are let through.

use std::sync::Arc;

use culvert_proto::{
    filter::{AccessControl, Settings},
    rbac::View,
};

use super::{Scope, Verdict};
use crate::{
    http::{exchange::Exchange, reply::Reply},
    listener::with_view,
    observe::stats::{RbacShadowStats, RbacStats, Registry},
    snapshot::HttpRbacSpec,
};

/// The filter on one worker.
pub(super) struct AccessFilter {
    spec: Arc<HttpRbacSpec>,
    stats: Arc<RbacStats>,
    shadow_stats: Arc<RbacShadowStats>,
}

impl AccessFilter {
    pub(super) fn new(spec: Arc<HttpRbacSpec>, stat_prefix: &str, registry: &Registry) -> Self {
        let (stats, shadow_stats) = (Arc::new(RbacStats::default()), Arc::new(RbacShadowStats::default()));
        let scope = |prefix: &str| match prefix.trim_end_matches('.') {
            "" => format!("http.{stat_prefix}.rbac"),
            prefix => format!("http.{stat_prefix}.rbac.{prefix}"),
        };
        registry.register(scope(&spec.config.stat_prefix), stats.clone());
        registry.register(scope(&spec.config.shadow_stat_prefix), shadow_stats.clone());
        Self { spec, stats, shadow_stats }
    }

    pub(super) fn decode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        let control: &AccessControl = match scope.settings() {
            Some(Settings::Rbac(control)) => control,
            _ => &self.spec.control,
        };
        if control.rules.is_none() && control.shadow_rules.is_none() {
            return Verdict::Continue;
        }
        let details = with_view(&exchange.conn.downstream, |view| {
            let view = View {
                remote: exchange.client(),
                request: Some(exchange.head.view()),
                metadata: exchange.filters.metadata.get(),
                route_metadata: scope.route.and_then(|route| route.metadata.as_ref()),
                ..*view
            };
            if let Some(shadow) = &control.shadow_rules {
                let allowed = shadow.decide(&view).allowed;
                let stats = &self.shadow_stats;
                if allowed { &stats.shadow_allowed } else { &stats.shadow_denied }.inc();
            }
            let decision = control.rules.as_ref()?.decide(&view);
            if decision.allowed {
                self.stats.allowed.inc();
                return None;
            }
            self.stats.denied.inc();
            Some(decision.details())
        });
        let Some(details) = details else { return Verdict::Continue };
        Verdict::Reply(Reply::new(403, "RBAC: access denied").details_text(details))
    }
}
