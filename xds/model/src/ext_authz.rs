//! `extensions.filters.http.ext_authz.v3`.

use std::{sync::Arc, time::Duration};

use crate::{CallRetry, Fraction, GrpcCall, HeaderValueOption, HttpUri, RuntimeFlag, StringMatcher};

/// `ExtAuthz`.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// `grpc_service` or `http_service`
    pub service: AuthService,
    /// `failure_mode_allow`: without a decision requests go on.
    pub failure_mode_allow: bool,
    /// `failure_mode_allow_header_add`: such requests carry `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_header: bool,
    /// `with_request_body`
    pub body: Option<AuthBody>,
    /// `clear_route_cache`: a request that was changed is routed anew.
    pub clear_route_cache: bool,
    /// `status_on_error`: 403.
    pub status_on_error: u16,
    /// `metadata_context_namespaces`: what filters found out that the service is told.
    pub metadata_namespaces: Vec<String>,
    /// `route_metadata_context_namespaces`
    pub route_metadata_namespaces: Vec<String>,
    /// `filter_enabled`: all.
    pub enabled: Fraction,
    /// `deny_at_disable`: requests that are not checked are denied.
    pub deny_at_disable: Option<RuntimeFlag>,
    /// `include_peer_certificate`
    pub peer_certificate: bool,
    /// `include_tls_session`
    pub tls_session: bool,
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `allowed_headers`: what the service is shown; `None`: over gRPC all, over HTTP `authorization` at least.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// `disallowed_headers`
    pub disallowed_headers: Vec<StringMatcher>,
    /// `charge_cluster_response_stats`: true. Denials count among the responses of the route's cluster.
    pub charge_cluster: bool,
    /// `encode_raw_headers`: headers of any bytes, each by itself.
    pub raw_headers: bool,
}

/// Who decides.
#[derive(Clone, Debug)]
pub enum AuthService {
    /// `grpc_service`; 200 ms unless it has a timeout.
    Grpc(GrpcCall),
    /// `http_service`
    Http(Arc<HttpAuth>),
}

/// `HttpService`.
#[derive(Clone, Debug)]
pub struct HttpAuth {
    /// `server_uri`: of it the cluster and the timeout.
    pub uri: HttpUri,
    /// `path_prefix` or `path_override`
    pub path: AuthPath,
    /// `authorization_request.headers_to_add`
    pub add: Vec<HeaderValueOption>,
    /// `authorization_response.allowed_upstream_headers`
    pub upstream_headers: Vec<StringMatcher>,
    /// `authorization_response.allowed_upstream_headers_to_append`
    pub upstream_append: Vec<StringMatcher>,
    /// `authorization_response.allowed_client_headers`: of denials; empty means all.
    pub client_headers: Vec<StringMatcher>,
    /// `authorization_response.allowed_client_headers_on_success`
    pub client_success: Vec<StringMatcher>,
    /// `authorization_response.dynamic_metadata_from_headers`
    pub metadata_headers: Vec<StringMatcher>,
    /// `retry_policy`
    pub retry: Option<CallRetry>,
}

/// What path an HTTP service is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthPath {
    /// `path_prefix`, in front of the request's.
    Prefix(String),
    /// `path_override`
    Override(String),
}

/// `BufferSettings`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AuthBody {
    /// `max_request_bytes`: larger bodies are refused with 413, or the service is shown so much.
    pub max: usize,
    /// `allow_partial_message`
    pub partial: bool,
    /// `pack_as_bytes`
    pub raw: bool,
}

/// `ExtAuthzPerRoute`.
#[derive(Clone, Debug, Default)]
pub struct AuthOverride {
    /// `disabled`
    pub disabled: bool,
    /// `check_settings.context_extensions`, by key.
    pub context: Vec<(String, String)>,
    /// `check_settings.disable_request_body_buffering`
    pub no_body: bool,
    /// `check_settings.with_request_body`
    pub body: Option<AuthBody>,
    /// `check_settings.grpc_service` or `check_settings.http_service`
    pub service: Option<AuthService>,
}

impl AuthService {
    /// How long a decision may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Grpc(grpc) => grpc.service.timeout.unwrap_or(Duration::from_millis(200)),
            Self::Http(http) => http.uri.timeout,
        }
    }
}
