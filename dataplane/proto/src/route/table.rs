//! The compiled route configuration.

use std::sync::Arc;

use culvert_model::{RequireTls, Route, RouteConfiguration, VirtualHost};

use crate::route::{
    RequestView,
    candidates::Candidates,
    counted::{Counted, VirtualClusterMatch},
    domains::Domains,
    overrides::{Override, Overrides, Place},
};

/// A compiled route configuration. Immutable; share it between workers.
///
/// The virtual host is found by hash, whatever their number; its routes by hash, prefix tree and the literal beginnings
/// of regular expressions, so that only routes whose path can match are looked at, in configuration order. Looking for
/// the last of thousands of routes costs what looking for the first costs, unless they share their paths and differ in
/// other conditions only.
#[derive(Debug)]
pub struct Table {
    config: RouteConfiguration,
    domains: Domains,
    /// By index of the virtual host.
    candidates: Vec<Candidates>,
    overrides: Overrides,
    counted: Counted,
}

/// What [`Table::route`] found.
#[derive(Clone, Copy, Debug)]
pub struct Match<'t> {
    /// The virtual host.
    pub vhost: &'t VirtualHost,
    /// Its first route that matches.
    pub route: &'t Arc<Route>,
    /// For [`Table::overrides`].
    pub place: Place,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRoute {
    /// No route of the virtual host matches: 404 `route_not_found`, response flag `NR`.
    #[error("no route matches")]
    Route,
    /// The virtual host requires TLS and the scheme is `http`: 301 to [`super::tls_location`].
    #[error("TLS required")]
    TlsRequired,
    /// No virtual host has this domain: 404 `route_not_found`, response flag `NR`.
    #[error("no virtual host matches")]
    VirtualHost,
}

impl Table {
    /// Compiles a configuration. Costs time and memory in proportion to its size.
    #[must_use]
    pub fn compile(config: &RouteConfiguration) -> Self {
        Self {
            domains: Domains::compile(config),
            candidates: config.virtual_hosts.iter().map(|vhost| Candidates::compile(&vhost.routes)).collect(),
            overrides: Overrides::compile(config),
            counted: Counted::compile(config),
            config: config.clone(),
        }
    }

    /// The configuration it was compiled from.
    #[must_use]
    pub fn config(&self) -> &RouteConfiguration {
        &self.config
    }

    /// The number that the HTTP filter of that name has in this table; `None` when no level says anything about it.
    #[must_use]
    pub fn filter_number(&self, name: &str) -> Option<u32> {
        self.overrides.number(name)
    }

    /// What the levels that apply at `place` say about a filter, the most specific first.
    pub fn overrides(&self, filter: u32, place: Place) -> impl DoubleEndedIterator<Item = &Override> {
        self.overrides.levels(filter, place)
    }

    /// What requests are counted by beside their cluster, each once: `vhost.<name>.vcluster.<name>` and
    /// `vhost.<name>.route.<stat_prefix>`. The number of a scope is its place here.
    #[must_use]
    pub fn scopes(&self) -> &[Box<str>] {
        self.counted.scopes()
    }

    /// The virtual cluster of a request that is routed to `place`; `None` where its virtual host has none.
    #[must_use]
    pub fn virtual_cluster(
        &self,
        place: Place,
        request: &RequestView<'_>,
    ) -> Option<VirtualClusterMatch<'_>> {
        self.counted.virtual_cluster(&self.config, place, request)
    }

    /// The number of the scope of the route at `place`; `None` without a `stat_prefix`.
    #[must_use]
    pub fn route_scope(&self, place: Place) -> Option<u32> {
        self.counted.route(place)
    }

    /// Finds the route. `random` decides fractions: draw one number per request and use it for
    /// [`super::pick_cluster`] too, as Envoy does.
    ///
    /// # Errors
    /// See [`NoRoute`].
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Result<Match<'_>, NoRoute> {
        let index = self.domains.find(request.authority).ok_or(NoRoute::VirtualHost)?;
        let vhost = &self.config.virtual_hosts[index];
        if requires_tls(vhost, request) {
            return Err(NoRoute::TlsRequired);
        }
        let first =
            self.candidates[index].first_match(&vhost.routes, request, random).ok_or(NoRoute::Route)?;
        let place = Place { host: index as u32, route: first as u32, cluster: None };
        Ok(Match { vhost, route: &vhost.routes[first], place })
    }
}

fn requires_tls(vhost: &VirtualHost, request: &RequestView<'_>) -> bool {
    let applies = match vhost.require_tls {
        RequireTls::No => false,
        RequireTls::All => true,
        RequireTls::ExternalOnly => request.headers.get("x-envoy-internal") != Some(b"true"),
    };
    applies && request.scheme != b"https"
}
