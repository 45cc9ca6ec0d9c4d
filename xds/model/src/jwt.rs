//! `extensions.filters.http.jwt_authn.v3`.

use std::{sync::Arc, time::Duration};

use crate::{CallRetry, HttpUri, RouteMatch, StringMatcher};

/// `JwtAuthentication`.
#[derive(Clone, Debug)]
pub struct JwtAuthentication {
    /// `providers`, in the order of their names.
    pub providers: Vec<JwtProvider>,
    /// `rules`: the first that matches counts. Without a requirement requests pass.
    pub rules: Vec<(RouteMatch, Option<JwtRequirement>)>,
    /// `requirement_map`, in the order of the names.
    pub named: Vec<(String, JwtRequirement)>,
    /// `bypass_cors_preflight`
    pub bypass_preflight: bool,
    /// `strip_failure_response`: who is refused is not told why.
    pub strip_failure: bool,
    /// `stat_prefix`
    pub stat_prefix: String,
}

/// `JwtProvider`.
#[derive(Clone, Debug)]
pub struct JwtProvider {
    /// Its key in `providers`.
    pub name: String,
    /// `issuer`; empty is any.
    pub issuer: String,
    /// `audiences`, without scheme and slash at the end; empty is any.
    pub audiences: Vec<String>,
    /// `subjects`
    pub subjects: Option<StringMatcher>,
    /// `require_expiration`
    pub require_expiration: bool,
    /// `max_lifetime`: how far away a token's end may be.
    pub max_lifetime: Option<Duration>,
    /// `remote_jwks` or `local_jwks`
    pub keys: JwksSource,
    /// `forward`: the upstream sees the token.
    pub forward: bool,
    /// `from_headers`: names, and what is in front of the token; `Authorization: Bearer ` where nothing is given.
    pub from_headers: Vec<(String, String)>,
    /// `from_params`; `access_token` where nothing is given.
    pub from_params: Vec<String>,
    /// `from_cookies`
    pub from_cookies: Vec<String>,
    /// `forward_payload_header`; empty for none.
    pub payload_header: String,
    /// `pad_forward_payload_header`
    pub pad_payload: bool,
    /// `payload_in_metadata`; empty for none.
    pub payload_in_metadata: String,
    /// `normalize_payload_in_metadata.space_delimited_claims`: they become lists.
    pub space_delimited: Vec<String>,
    /// `header_in_metadata`; empty for none.
    pub header_in_metadata: String,
    /// `clock_skew_seconds`: 60.
    pub clock_skew: u64,
    /// `claim_to_headers`: names of headers, and paths of claims.
    pub claim_headers: Vec<(String, Vec<String>)>,
    /// `clear_route_cache`: a request that was changed is routed anew.
    pub clear_route_cache: bool,
}

/// Where the keys of a provider come from.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// `local_jwks`: a JSON Web Key Set.
    Local(Arc<str>),
    /// `remote_jwks`
    Remote(Arc<RemoteJwks>),
}

/// `RemoteJwks`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteJwks {
    /// `http_uri`
    pub uri: HttpUri,
    /// `cache_duration`: 10 minutes.
    pub cache: Duration,
    /// `async_fetch`: keys are fetched ahead of requests, after a failure again after `failed_refetch_duration`: 1 s.
    pub ahead: Option<Duration>,
    /// `retry_policy`
    pub retry: Option<CallRetry>,
}

/// `JwtRequirement`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwtRequirement {
    /// `requires_all`; empty where nothing is required.
    All(Vec<Self>),
    /// `allow_missing`
    AllowMissing,
    /// `allow_missing_or_failed`
    AllowMissingOrFailed,
    /// `requires_any`
    Any(Vec<Self>),
    /// `provider_name` or `provider_and_audiences`
    Provider {
        /// Which of the providers.
        index: usize,
        /// In place of the provider's, in the same form; never empty.
        audiences: Option<Vec<String>>,
    },
}

/// `PerRouteConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwtOverride {
    /// `disabled`
    Disabled,
    /// `requirement_name`
    Requirement(String),
}
