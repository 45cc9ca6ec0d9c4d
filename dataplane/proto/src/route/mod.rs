//! From a request to a route, and from a route to what is sent.

use std::sync::Arc;

use culvert_model::{
    Action, FormatPart, HeaderMutations, HostRewrite, PathMatch, PathRewrite, Redirect, Route,
    RouteConfiguration, VirtualHost, WeightedCluster, WeightedClusters,
};

use crate::{Headers, RequestHead};

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a [u8],
    /// `http` or `https`.
    pub scheme: &'a [u8],
    /// Host and port as requested.
    pub authority: &'a [u8],
    /// Path and query.
    pub path: &'a [u8],
    /// The fields, without `host`.
    pub headers: &'a Headers,
}

impl RequestHead {
    /// What routing looks at.
    #[must_use]
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_bytes(),
            scheme: self.scheme.as_str().as_bytes(),
            authority: self.authority(),
            path: self.path(),
            headers: &self.headers,
        }
    }
}

/// A compiled route configuration. Immutable; share it between workers.
#[derive(Debug)]
pub struct Table {
    config: RouteConfiguration,
}

/// What [`Table::route`] found.
#[derive(Clone, Copy, Debug)]
pub struct Match<'t> {
    /// The virtual host.
    pub vhost: &'t VirtualHost,
    /// Its first route that matches.
    pub route: &'t Arc<Route>,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRoute {
    /// No route of the virtual host matches: 404 `route_not_found`.
    #[error("no route matches")]
    Route,
    /// The virtual host requires TLS and the scheme is `http`: 301 to `https`, see [`Table::tls_redirect`].
    #[error("TLS required")]
    TlsRequired,
    /// No virtual host has this domain: 404 `route_not_found`.
    #[error("no virtual host matches")]
    VirtualHost,
}

impl Table {
    /// Compiles a configuration. Costs time in proportion to its size.
    #[must_use]
    pub fn compile(config: &RouteConfiguration) -> Self {
        Self { config: config.clone() }
    }

    /// The configuration it was compiled from.
    #[must_use]
    pub fn config(&self) -> &RouteConfiguration {
        &self.config
    }

    /// Finds the route. `random` decides fractions: draw one number per request and use it for
    /// [`pick_cluster`] too, as Envoy does.
    ///
    /// # Errors
    /// See [`NoRoute`].
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Result<Match<'_>, NoRoute> {
        let _ = (request, random);
        Err(NoRoute::VirtualHost)
    }
}

/// Chooses a cluster by weight; `None` when all weights are 0.
#[must_use]
pub fn pick_cluster(clusters: &WeightedClusters, random: u64) -> Option<&WeightedCluster> {
    let _ = random;
    clusters.clusters.first()
}

/// Writes the path to send, query included, into `out` (cleared first). Returns whether it differs from the path asked
/// for.
pub fn rewrite_path(rewrite: &PathRewrite, matched: &PathMatch, path: &[u8], out: &mut Vec<u8>) -> bool {
    let _ = (rewrite, matched);
    out.clear();
    out.extend_from_slice(path);
    false
}

/// Writes the authority to send into `out` (cleared first). Returns whether there is a rewrite. `hostname` is the
/// endpoint's, for `auto_host_rewrite`.
pub fn rewrite_host(
    rewrite: &HostRewrite,
    request: &RequestView<'_>,
    hostname: &str,
    out: &mut Vec<u8>,
) -> bool {
    let _ = (rewrite, request, hostname, out);
    false
}

/// Writes the `location` of a redirect into `out` (cleared first).
pub fn redirect_location(
    redirect: &Redirect,
    matched: &PathMatch,
    request: &RequestView<'_>,
    out: &mut Vec<u8>,
) {
    let _ = (redirect, matched, request, out);
}

/// Supplies what a header value's substitutions stand for.
pub trait Formatter {
    /// Appends the value of `part` to `out`; nothing when it has none. Never called for [`FormatPart::Text`].
    /// `headers` is the list being changed: the request's for request changes, the response's for response changes.
    fn write(&self, part: &FormatPart, headers: &Headers, out: &mut Vec<u8>);
}

/// The header changes that apply to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mutations<'a> {
    /// From the most specific (weighted cluster) to the least (route configuration); `None` where there is none.
    levels: [Option<&'a HeaderMutations>; 4],
    /// `most_specific_header_mutations_wins`
    most_specific_wins: bool,
}

impl<'a> Mutations<'a> {
    /// Collects the levels of a match.
    #[must_use]
    pub fn new(table: &'a Table, matched: &Match<'a>, cluster: Option<&'a WeightedCluster>) -> Self {
        Self {
            levels: [
                cluster.map(|cluster| &cluster.headers),
                Some(&matched.route.headers),
                Some(&matched.vhost.headers),
                Some(&table.config.headers),
            ],
            most_specific_wins: table.config.most_specific_wins,
        }
    }

    /// Applies the request changes. `scratch` is cleared and used.
    pub fn apply_to_request(&self, headers: &mut Headers, formatter: &impl Formatter, scratch: &mut Vec<u8>) {
        let _ = (headers, formatter, scratch, self.levels, self.most_specific_wins);
    }

    /// Applies the response changes. `scratch` is cleared and used.
    pub fn apply_to_response(
        &self,
        headers: &mut Headers,
        formatter: &impl Formatter,
        scratch: &mut Vec<u8>,
    ) {
        let _ = (headers, formatter, scratch);
    }
}

#[allow(dead_code)]
fn _action(_: &Action) {}
