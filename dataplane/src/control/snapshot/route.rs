//! Route tables with their discovered virtual hosts, and scopes.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use culvert_model::{
    Config, ConfigSource, HttpConnectionManager, Listener, ResourceKey, RouteConfiguration, ScopeRoutes,
    ScopeSource, ScopedRoutes, TerminalFilter, VirtualHost,
};
use culvert_proto::route::{Scopes, Table};

use super::route_id;
use crate::snapshot::RouteSpec;

/// Connection managers of a listener.
pub(super) fn managers(listener: &Listener) -> impl Iterator<Item = &Arc<HttpConnectionManager>> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.filter_map(|chain| match &chain.terminal {
        Some(TerminalFilter::Http(manager)) => Some(manager),
        _ => None,
    })
}

/// Whether a virtual host from VHDS belongs to these routes: it is called `ROUTES/HOST`.
pub(super) fn is_host_of(key: &ResourceKey, routes: &RouteConfiguration) -> bool {
    let comes_from_there =
        routes.vhds.as_ref().is_some_and(|vhds| key.source.as_ref() == Some(&vhds.specifier));
    comes_from_there && key.name.strip_prefix(&routes.name).is_some_and(|rest| rest.starts_with('/'))
}

/// The table of a route configuration, with the virtual hosts that were discovered for it. Domains that it has already
/// are left out of those: one that came later takes nothing away.
pub(super) fn compile(config: &Config, routes: &RouteConfiguration) -> Arc<Table> {
    if routes.vhds.is_none() {
        return Arc::new(Table::compile(routes));
    }
    let mut hosts: Vec<_> = config.virtual_hosts.iter().filter(|(key, _)| is_host_of(key, routes)).collect();
    hosts.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut merged = routes.clone();
    let mut domains: HashSet<String> =
        routes.virtual_hosts.iter().flat_map(|host| &host.domains).cloned().collect();
    for (_, host) in hosts {
        let new = host.domains.iter().filter(|domain| domains.insert((*domain).clone())).cloned().collect();
        merged.virtual_hosts.push(VirtualHost { domains: new, ..VirtualHost::clone(host) });
    }
    Arc::new(Table::compile(&merged))
}

/// What workers call the scopes of a connection manager: the same name for what means the same.
pub(super) fn scopes_id(scoped: &ScopedRoutes) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    format!("{scoped:?}").hash(&mut hasher);
    format!("{}/{:016x}", scoped.name, hasher.finish()).into()
}

/// The scopes of a connection manager.
pub(super) fn scopes(config: &Config, scoped: &ScopedRoutes) -> Scopes<RouteSpec> {
    let spec = |routes: &ScopeRoutes| match (routes, &scoped.routes) {
        (ScopeRoutes::Inline(routes), _) => Some(RouteSpec::Inline(compile(config, routes))),
        (ScopeRoutes::Name(name), Some(source)) => Some(rds(source, name)),
        // Refused where the configuration is read.
        (ScopeRoutes::Name(_), None) => None,
    };
    match &scoped.scopes {
        ScopeSource::Inline(all) => {
            let all = all.iter().filter_map(|scope| Some((scope.key.clone(), spec(&scope.routes)?)));
            Scopes::compile(&scoped.key, all)
        }
        ScopeSource::Srds(source) => {
            let of = |key: &ResourceKey| key.source.as_ref() == Some(&source.specifier);
            let mut all: Vec<_> = config.scopes.iter().filter(|(key, _)| of(key)).collect();
            all.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
            let all =
                all.into_iter().filter_map(|(_, scope)| Some((scope.key.clone(), spec(&scope.routes)?)));
            Scopes::compile(&scoped.key, all)
        }
    }
}

fn rds(source: &ConfigSource, name: &str) -> RouteSpec {
    RouteSpec::Rds(route_id(&ResourceKey::new(source, name)))
}
