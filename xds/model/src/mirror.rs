//! Requests that go elsewhere too, or instead (`config.route.v3`).

use std::sync::Arc;

/// `RouteAction.RequestMirrorPolicy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MirrorPolicy {
    /// Where to.
    pub target: MirrorTarget,
    /// `runtime_fraction.default_value` in parts per million: all.
    pub fraction_ppm: Option<u32>,
    /// `host_rewrite_literal`: the host as it is sent.
    pub host_rewrite: Option<String>,
    /// Whether the host's name gets `-shadow`; not with `disable_shadow_host_suffix_append`.
    pub append_suffix: bool,
}

/// Where a [`MirrorPolicy`] mirrors to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MirrorTarget {
    /// `cluster`
    Cluster(Arc<str>),
    /// `cluster_header`: lower-case name of the header that names the cluster.
    Header(String),
}

/// `config.route.v3.InternalRedirectPolicy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InternalRedirects {
    /// `max_internal_redirects`: 1.
    pub max: u32,
    /// `redirect_response_codes`: 302.
    pub statuses: Vec<u16>,
    /// `predicates`: all of them have to agree.
    pub predicates: Vec<RedirectPredicate>,
    /// `allow_cross_scheme_redirect`
    pub cross_scheme: bool,
    /// `response_headers_to_copy`, lower case.
    pub copy: Vec<String>,
}

/// What a redirect has to be like to be followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RedirectPredicate {
    /// `envoy.internal_redirect_predicates.allow_listed_routes`: to one of these routes.
    AllowListed(Vec<String>),
    /// `envoy.internal_redirect_predicates.previous_routes`: not to a route that it was led to from here before.
    PreviousRoutes,
    /// `envoy.internal_redirect_predicates.safe_cross_scheme`: not from http to https.
    SafeCrossScheme,
}
