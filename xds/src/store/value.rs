//! What resources are once they were accepted, and what they need from others.

use std::{collections::BTreeMap, sync::Arc};

use culvert_model::{
    CertificateSource, CommonTls, ConfigSource, Discovery, HttpFilter, Listener, LoadAssignment,
    RouteConfiguration, RouteSource, ScopeRoutes, ScopeSource, ScopedRoute, Secret, SecretRef,
    SessionTickets, TerminalFilter, TypedExtension, ValidationSource, VirtualHost,
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3 as cluster_pb, core::v3 as core_pb, endpoint::v3 as endpoint_pb,
        listener::v3 as listener_pb, route::v3 as route_pb,
    },
    extensions::transport_sockets::tls::v3 as tls_pb,
    service::runtime::v3 as runtime_pb,
};
use prost_reflect::DynamicMessage;

use crate::{
    Error, Note,
    convert::{self, Clusters},
    resource::{Kind, Resource},
};

/// A resource in its model's form.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Of CDS.
    Cluster(Arc<culvert_model::Cluster>),
    /// Of ECDS.
    Extension(Arc<TypedExtension>),
    /// Of EDS.
    Assignment(Arc<LoadAssignment>),
    /// Of SDS.
    Secret(Arc<Secret>),
    /// Of LDS.
    Listener(Arc<Listener>),
    /// Of RDS.
    Routes(Arc<RouteConfiguration>),
    /// Of RTDS.
    Runtime(Arc<BTreeMap<String, String>>),
    /// Of SRDS, with where its routes come from and the stat prefix of the connection manager that says so.
    Scope(Arc<ScopedRoute>, Option<(ConfigSource, String)>),
    /// Of VHDS.
    VirtualHost(Arc<VirtualHost>),
}

/// A resource that another one needs.
pub(crate) struct Need<'a> {
    pub(crate) kind: Kind,
    pub(crate) source: &'a ConfigSource,
    /// `None`: all of them.
    pub(crate) name: Option<&'a str>,
    /// Under which name its subscription's counters are shown.
    pub(crate) prefix: String,
    /// It is subscribed to, but not waited for.
    pub(crate) eager: bool,
}

impl Value {
    /// Converts a resource; `message` is what its bytes mean, where that is at hand.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn convert(
        resource: &Resource,
        message: Option<&DynamicMessage>,
        clusters: &Clusters<'_>,
    ) -> Result<(Self, Vec<Note>), Vec<Error>> {
        match resource.kind {
            Kind::Cluster => resource
                .convert_message::<cluster_pb::Cluster, _>(message, convert::cluster)
                .map(|(cluster, notes)| (Self::Cluster(Arc::new(cluster)), notes)),
            Kind::LoadAssignment => resource
                .convert_message::<endpoint_pb::ClusterLoadAssignment, _>(message, convert::load_assignment)
                .map(|(assignment, notes)| (Self::Assignment(Arc::new(assignment)), notes)),
            Kind::Listener => resource
                .convert_message::<listener_pb::Listener, _>(message, |at, message| {
                    convert::listener(at, message, clusters)
                })
                .map(|(listener, notes)| (Self::Listener(Arc::new(listener)), notes)),
            Kind::RouteConfiguration => resource
                .convert_message::<route_pb::RouteConfiguration, _>(message, |at, message| {
                    convert::route_configuration(at, message, clusters)
                })
                .map(|(routes, notes)| (Self::Routes(Arc::new(routes)), notes)),
            Kind::Secret => resource
                .convert_message::<tls_pb::Secret, _>(message, convert::secret)
                .map(|(secret, notes)| (Self::Secret(Arc::new(secret)), notes)),
            Kind::Runtime => resource
                .convert_message::<runtime_pb::Runtime, _>(message, convert::runtime_layer)
                .map(|(layer, notes)| (Self::Runtime(Arc::new(layer)), notes)),
            Kind::ScopedRoute => resource
                .convert_message::<route_pb::ScopedRouteConfiguration, _>(message, |at, message| {
                    convert::scoped_route(at, message, clusters)
                })
                .map(|(scope, notes)| (Self::Scope(Arc::new(scope), None), notes)),
            Kind::VirtualHost => resource
                .convert_message::<route_pb::VirtualHost, _>(message, convert::discovered_host)
                .map(|(host, notes)| (Self::VirtualHost(Arc::new(host)), notes)),
            Kind::ExtensionConfig => resource
                .convert_message::<core_pb::TypedExtensionConfig, _>(message, convert::extension)
                .map(|(extension, notes)| (Self::Extension(Arc::new(extension)), notes)),
        }
    }

    /// Calls `need` for each resource that has to be there, or given up waiting for, before this one serves.
    pub(crate) fn needs(&self, mut need: impl FnMut(Need<'_>)) {
        match self {
            Self::Cluster(cluster) => {
                if let Discovery::Eds { service_name, source } = &cluster.discovery {
                    let prefix = format!("cluster.{}", cluster.stat_name);
                    let kind = Kind::LoadAssignment;
                    need(Need { kind, source, name: Some(service_name), prefix, eager: false });
                }
                let matched = cluster.transport_socket_matches.iter().map(|socket| &socket.tls);
                for tls in matched.chain([&cluster.tls]).flatten() {
                    secrets(&tls.common, &mut need);
                }
            }
            Self::Listener(listener) => {
                for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
                    if let Some(tls) = &chain.tls {
                        secrets(&tls.common, &mut need);
                        if let SessionTickets::Sds(reference) = &tls.tickets {
                            secret(reference, &mut need);
                        }
                    }
                    if let Some(TerminalFilter::Http(manager)) = &chain.terminal {
                        manager_needs(manager, &mut need);
                    }
                }
            }
            Self::Routes(routes) => hosts(routes, &mut need),
            Self::Scope(scope, source) => match (&scope.routes, source) {
                (ScopeRoutes::Inline(routes), _) => hosts(routes, &mut need),
                (ScopeRoutes::Name(name), Some((source, stat_prefix))) => {
                    scope_routes(name, source, stat_prefix, &mut need);
                }
                (ScopeRoutes::Name(_), None) => {}
            },
            Self::Assignment(..)
            | Self::Extension(_)
            | Self::Runtime(_)
            | Self::Secret(_)
            | Self::VirtualHost(_) => {}
        }
    }
}

fn manager_needs(manager: &culvert_model::HttpConnectionManager, need: &mut impl FnMut(Need<'_>)) {
    match &manager.routes {
        RouteSource::Inline(routes) => hosts(routes, need),
        RouteSource::Rds { source, name } => scope_routes(name, source, &manager.stat_prefix, need),
        RouteSource::Scoped(scoped) => match &scoped.scopes {
            ScopeSource::Inline(scopes) => {
                for scope in scopes {
                    match (&scope.routes, &scoped.routes) {
                        (ScopeRoutes::Inline(routes), _) => hosts(routes, need),
                        (ScopeRoutes::Name(name), Some(source)) => {
                            scope_routes(name, source, &manager.stat_prefix, need);
                        }
                        (ScopeRoutes::Name(_), None) => {}
                    }
                }
            }
            ScopeSource::Srds(source) => {
                let prefix = format!("http.{}.scoped_rds.{}", manager.stat_prefix, scoped.name);
                need(Need { kind: Kind::ScopedRoute, source, name: None, prefix, eager: false });
            }
        },
    }
    for filter in &manager.filters {
        if let HttpFilter::Discovered(filter) = &filter.filter {
            let prefix = format!("extension_config_discovery.http_filter.{}", filter.name);
            let (kind, source, name) = (Kind::ExtensionConfig, &filter.source, Some(filter.name.as_str()));
            need(Need { kind, source, name, prefix, eager: filter.eager });
        }
    }
}

fn scope_routes(name: &str, source: &ConfigSource, stat_prefix: &str, need: &mut impl FnMut(Need<'_>)) {
    let prefix = format!("http.{stat_prefix}.rds.{name}");
    need(Need { kind: Kind::RouteConfiguration, source, name: Some(name), prefix, eager: false });
}

/// The virtual hosts that a route configuration does not bring itself.
fn hosts(routes: &RouteConfiguration, need: &mut impl FnMut(Need<'_>)) {
    let Some(source) = &routes.vhds else { return };
    let prefix = format!("vhds.{}", routes.name);
    need(Need { kind: Kind::VirtualHost, source, name: None, prefix, eager: false });
}

fn secrets(common: &CommonTls, need: &mut impl FnMut(Need<'_>)) {
    for certificate in &common.certificates {
        if let CertificateSource::Sds(reference) = certificate {
            secret(reference, need);
        }
    }
    match &common.validation {
        ValidationSource::Combined { secret: reference, .. } | ValidationSource::Sds(reference) => {
            secret(reference, need);
        }
        ValidationSource::Inline(_) | ValidationSource::None => {}
    }
}

fn secret(reference: &SecretRef, need: &mut impl FnMut(Need<'_>)) {
    // Without a source it is one of the bootstrap's, which is there.
    let Some(source) = &reference.source else { return };
    let (name, prefix) = (Some(reference.name.as_str()), format!("sds.{}", reference.name));
    need(Need { kind: Kind::Secret, source, name, prefix, eager: false });
}
