//! What requests are counted by beside their cluster: virtual clusters, and routes with a `stat_prefix`.

use std::collections::HashMap;

use culvert_model::RouteConfiguration;

use crate::route::{Place, RequestView, header_matches};

/// Envoy's name for requests that match none of the virtual clusters of their host.
const OTHER: &str = "other";

/// The scopes of a table, by number.
#[derive(Debug, Default)]
pub(super) struct Counted {
    scopes: Vec<Box<str>>,
    /// By index of the virtual host; empty when none has any scope.
    hosts: Vec<HostScopes>,
}

#[derive(Debug, Default)]
struct HostScopes {
    /// By index of the virtual cluster, and behind them the one of all other requests; empty without virtual clusters.
    clusters: Vec<u32>,
    /// Index of a route and number of its scope, in order.
    routes: Vec<(u32, u32)>,
}

/// The virtual cluster of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VirtualClusterMatch<'t> {
    /// The number of its scope.
    pub scope: u32,
    /// Its name; `None` where no virtual cluster matches.
    pub name: Option<&'t str>,
}

impl Counted {
    pub(super) fn compile(config: &RouteConfiguration) -> Self {
        let mut counted = Self::default();
        let mut numbers = HashMap::new();
        let mut number = |scope: String| {
            let scopes = &mut counted.scopes;
            *numbers.entry(scope).or_insert_with_key(|scope| {
                scopes.push(scope.as_str().into());
                scopes.len() as u32 - 1
            })
        };
        let hosts: Vec<_> = config
            .virtual_hosts
            .iter()
            .map(|host| {
                let names = host.virtual_clusters.iter().map(|cluster| cluster.name.as_str());
                let other = (!host.virtual_clusters.is_empty()).then_some(OTHER);
                let clusters =
                    names.chain(other).map(|name| number(format!("vhost.{}.vcluster.{name}", host.name)));
                let clusters = clusters.collect();
                let routes = host.routes.iter().zip(0..).filter(|(route, _)| !route.stat_prefix.is_empty());
                let routes = routes.map(|(route, index)| {
                    (index, number(format!("vhost.{}.route.{}", host.name, route.stat_prefix)))
                });
                HostScopes { clusters, routes: routes.collect() }
            })
            .collect();
        if !counted.scopes.is_empty() {
            counted.hosts = hosts;
        }
        counted
    }

    pub(super) fn scopes(&self) -> &[Box<str>] {
        &self.scopes
    }

    pub(super) fn virtual_cluster<'t>(
        &self,
        config: &'t RouteConfiguration,
        place: Place,
        request: &RequestView<'_>,
    ) -> Option<VirtualClusterMatch<'t>> {
        let index = place.host as usize;
        let scopes = &self.hosts.get(index)?.clusters;
        let other = *scopes.last()?;
        let clusters = &config.virtual_hosts[index].virtual_clusters;
        let first = clusters
            .iter()
            .zip(scopes)
            .find(|(cluster, _)| cluster.headers.iter().all(|matcher| header_matches(matcher, request)));
        Some(first.map_or(VirtualClusterMatch { scope: other, name: None }, |(cluster, scope)| {
            VirtualClusterMatch { scope: *scope, name: Some(&cluster.name) }
        }))
    }

    pub(super) fn route(&self, place: Place) -> Option<u32> {
        let routes = &self.hosts.get(place.host as usize)?.routes;
        let at = routes.binary_search_by_key(&place.route, |(route, _)| *route).ok()?;
        Some(routes[at].1)
    }
}
