//! Scoped routes and virtual hosts that come by themselves.

use std::sync::Arc;

use culvert_model::{
    ScopeExtract, ScopeFragment, ScopeRoutes, ScopeSource, ScopedRoute, ScopedRoutes, VirtualHost,
};
use envoy_types::pb::envoy::{
    config::route::v3::{self as route_pb, scoped_route_configuration::key::fragment::Type as KeyType},
    extensions::filters::network::http_connection_manager::v3::{
        ScopedRoutes as ScopedRoutesPb,
        scoped_routes::{
            ConfigSpecifier,
            scope_key_builder::{
                FragmentBuilder,
                fragment_builder::{Type as BuilderType, header_value_extractor::ExtractType},
            },
        },
    },
};

use super::{Clusters, core, route};
use crate::at::At;

/// `scoped_routes` of a connection manager.
pub(super) fn scoped_routes(
    at: &At<'_>,
    scoped: &ScopedRoutesPb,
    clusters: &Clusters<'_>,
) -> Option<Arc<ScopedRoutes>> {
    let at_builder = at.field("scope_key_builder");
    let at_key = at_builder.field("fragments");
    let builders = scoped.scope_key_builder.iter().flat_map(|builder| &builder.fragments);
    let key: Vec<_> = builders.enumerate().map(|(i, builder)| fragment(&at_key.index(i), builder)).collect();
    let routes = match &scoped.rds_config_source {
        Some(source) => Some(core::config_source(&at.field("rds_config_source"), Some(source))?),
        None => None,
    };
    let scopes = match scoped.config_specifier.as_ref()? {
        ConfigSpecifier::ScopedRouteConfigurationsList(list) => {
            let at = at.field("scoped_route_configurations_list");
            let at = at.field("scoped_route_configurations");
            let all = list.scoped_route_configurations.iter().enumerate();
            let all: Vec<_> = all.map(|(i, scope)| scoped_route(&at.index(i), scope, clusters)).collect();
            let all: Option<Vec<_>> = all.into_iter().collect();
            ScopeSource::Inline(all?.into_iter().map(Arc::new).collect())
        }
        ConfigSpecifier::ScopedRds(srds) => {
            let at = at.field("scoped_rds");
            let source = srds.scoped_rds_config_source.as_ref();
            ScopeSource::Srds(core::config_source(&at.field("scoped_rds_config_source"), source)?)
        }
    };
    let needs_source = match &scopes {
        ScopeSource::Inline(all) => all.iter().any(|scope| matches!(scope.routes, ScopeRoutes::Name(_))),
        ScopeSource::Srds(_) => true,
    };
    if needs_source && routes.is_none() {
        return at.field("rds_config_source").error("value is required");
    }
    let key: Option<Vec<_>> = key.into_iter().collect();
    Some(Arc::new(ScopedRoutes { name: scoped.name.clone(), key: key?, routes, scopes }))
}

fn fragment(at: &At<'_>, builder: &FragmentBuilder) -> Option<ScopeFragment> {
    let Some(BuilderType::HeaderValueExtractor(header)) = &builder.r#type else {
        return at.error("value is required");
    };
    let at = at.field("header_value_extractor");
    let extract = match &header.extract_type {
        Some(ExtractType::Element(element)) => {
            ScopeExtract::Key { separator: element.separator.clone(), key: element.key.clone() }
        }
        Some(ExtractType::Index(index)) => {
            if *index > 0 && header.element_separator.is_empty() {
                return at.field("index").error("there is one element without an element_separator");
            }
            ScopeExtract::Index(*index)
        }
        None => return at.field("extract_type").error("value is required"),
    };
    Some(ScopeFragment {
        header: header.name.to_ascii_lowercase(),
        separator: header.element_separator.clone(),
        extract,
    })
}

/// A scoped route configuration, part of a connection manager or from SRDS.
pub(crate) fn scoped_route(
    at: &At<'_>,
    scope: &route_pb::ScopedRouteConfiguration,
    clusters: &Clusters<'_>,
) -> Option<ScopedRoute> {
    let routes = match (&scope.route_configuration, scope.route_configuration_name.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return at.field("route_configuration").error("given beside route_configuration_name");
        }
        (Some(routes), _) => {
            let routes = route::route_configuration(&at.field("route_configuration"), routes, clusters)?;
            ScopeRoutes::Inline(Arc::new(routes))
        }
        (None, "") => return at.field("route_configuration_name").error("value is required"),
        (None, name) => ScopeRoutes::Name(core::resource_name(&at.field("route_configuration_name"), name)?),
    };
    let fragments = scope.key.iter().flat_map(|key| &key.fragments);
    let key = fragments.map(|fragment| match &fragment.r#type {
        Some(KeyType::StringKey(key)) => key.clone(),
        None => String::new(),
    });
    Some(ScopedRoute { name: scope.name.clone(), routes, key: key.collect() })
}

/// A virtual host from VHDS. Its clusters need not exist.
pub(crate) fn discovered_host(at: &At<'_>, host: &route_pb::VirtualHost) -> Option<VirtualHost> {
    let scope = route::Scope { clusters: None, body_bytes_max: route::BODY_BYTES_MAX as usize };
    route::virtual_host(at, host, &scope)
}
