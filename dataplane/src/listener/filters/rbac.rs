//! `envoy.filters.network.rbac`: who may connect.
//!
//! All that rules look at is known when a connection begins, so they are asked then: a client that is denied never reaches
//! the upstream, not even for what that says first.

use std::{borrow::Cow, sync::Arc};

use culvert_proto::{
    chain::{Facts, Opening},
    rbac::{Identity, View},
};

use super::Verdict;
use crate::{
    listener::{Downstream, Notes},
    observe::stats::{RbacShadowStats, RbacStats, Registry},
    snapshot::RbacSpec,
};

/// The filter on one worker.
pub struct AccessControl {
    spec: Arc<RbacSpec>,
    stats: Arc<RbacStats>,
    shadow_stats: Arc<RbacShadowStats>,
}

impl AccessControl {
    pub(super) fn new(spec: Arc<RbacSpec>, registry: &Registry) -> Self {
        let (stats, shadow_stats) = (Arc::new(RbacStats::default()), Arc::new(RbacShadowStats::default()));
        let scope = format!("{}.rbac", spec.config.stat_prefix.trim_end_matches('.'));
        let shadow = match spec.config.shadow_stat_prefix.trim_end_matches('.') {
            "" => scope.clone(),
            prefix => format!("{scope}.{prefix}"),
        };
        registry.register(scope, stats.clone());
        registry.register(shadow, shadow_stats.clone());
        Self { spec, stats, shadow_stats }
    }

    pub(super) fn begin(&self, who: &mut Downstream) -> Verdict {
        let details = with_view(who, |view| {
            if let Some(shadow) = &self.spec.shadow_rules {
                let stats = &self.shadow_stats;
                let allowed = shadow.decide(view).allowed;
                if allowed { &stats.shadow_allowed } else { &stats.shadow_denied }.inc();
            }
            let decision = self.spec.rules.as_ref()?.decide(view);
            if decision.allowed {
                self.stats.allowed.inc();
                return None;
            }
            self.stats.denied.inc();
            Some(decision.details())
        });
        let Some(details) = details else { return Verdict::Continue };
        log::debug!(target: "rbac", "connection {} is denied: {details}", who.id);
        who.note().termination.replace(details);
        Verdict::Close(self.spec.config.delay_deny)
    }
}

/// Calls `look` with what rules may look at.
pub(crate) fn with_view<R>(who: &Downstream, look: impl FnOnce(&View<'_>) -> R) -> R {
    let name = who.server_name();
    let opening = match who.opening.as_deref() {
        Some(opening) if opening.server_name == name => Cow::Borrowed(opening),
        known => Cow::Owned(Opening {
            server_name: name.to_owned(),
            tls: who.tls.is_some(),
            protocols: known.map(|known| known.protocols.clone()).unwrap_or_default(),
        }),
    };
    let none = Notes::default();
    let state = who.notes().unwrap_or(&none).state.borrow();
    let leaf = who.tls.as_ref().and_then(|tls| tls.peer.as_ref()).map(|peer| &peer.leaf);
    let identity = who.tls.as_ref().map(|_| match leaf {
        Some(leaf) => Identity {
            has_certificate: true,
            uris: &leaf.uri_sans,
            dns: &leaf.dns_sans,
            subject: &leaf.subject,
        },
        None => Identity::default(),
    });
    let facts = Facts {
        destination: who.local.socket(),
        source: who.remote.socket(),
        direct_source: who.direct_remote.socket(),
        opening: Some(&opening),
    };
    look(&View { identity, state: Some(&state), ..View::connection(facts) })
}
