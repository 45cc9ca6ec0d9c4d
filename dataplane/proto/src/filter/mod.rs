//! HTTP filters as all workers share them, and what they decide about a request.
//!
//! [`cors`] and [`fault`] are pure functions of a policy and a request; [`AccessControl`] and [`RateLimit`] are compiled
//! once for all workers.

pub mod cors;
pub mod csrf;
pub mod descriptor;
pub mod fault;
pub mod local_limit;

use std::sync::Arc;

use culvert_model::{
    AuthOverride, BasicUsers, CompressorOverride, CorsPolicy, CsrfPolicy, FilterSettings, HeaderChange,
    HeaderChanges, HttpFault, HttpRbac, JwtOverride, RateLimitOverride,
};

use crate::{
    Headers,
    rbac::Engine,
    route::{Formatter, change_header, string_matches},
};

pub use local_limit::RateLimit;

/// Rules of access, compiled.
#[derive(Debug, Default)]
pub struct AccessControl {
    /// What is enforced; nothing is denied without.
    pub rules: Option<Engine>,
    /// What is only counted.
    pub shadow_rules: Option<Engine>,
}

impl AccessControl {
    /// Compiles rules.
    pub fn compile(rbac: &HttpRbac) -> Self {
        Self {
            rules: rbac.rules.as_ref().map(Engine::compile),
            shadow_rules: rbac.shadow_rules.as_ref().map(Engine::compile),
        }
    }
}

/// Settings of a filter on a level of routes, compiled.
#[derive(Debug)]
pub enum Settings {
    /// `basic_auth`
    BasicAuth(Arc<BasicUsers>),
    /// `csrf`
    Csrf(Arc<CsrfPolicy>),
    /// `buffer`
    Buffer(Option<u32>),
    /// `compressor`
    Compressor(CompressorOverride),
    /// `cors`
    Cors(Arc<CorsPolicy>),
    /// `ext_authz`
    ExtAuthz(Arc<AuthOverride>),
    /// `fault`
    Fault(Arc<HttpFault>),
    /// `header_mutation`
    HeaderMutation(Arc<HeaderChanges>),
    /// `jwt_authn`
    Jwt(JwtOverride),
    /// `local_ratelimit`
    LocalRateLimit(RateLimit),
    /// `ratelimit`
    RateLimit(Arc<RateLimitOverride>),
    /// `rbac`
    Rbac(Box<AccessControl>),
}

impl Settings {
    /// Compiles settings.
    pub(crate) fn compile(settings: &FilterSettings) -> Self {
        match settings {
            FilterSettings::BasicAuth(users) => Self::BasicAuth(users.clone()),
            FilterSettings::Csrf(policy) => Self::Csrf(policy.clone()),
            FilterSettings::Buffer(max) => Self::Buffer(*max),
            FilterSettings::Compressor(own) => Self::Compressor(own.clone()),
            FilterSettings::Jwt(own) => Self::Jwt(own.clone()),
            FilterSettings::Cors(policy) => Self::Cors(policy.clone()),
            FilterSettings::ExtAuthz(own) => Self::ExtAuthz(own.clone()),
            FilterSettings::Fault(fault) => Self::Fault(fault.clone()),
            FilterSettings::HeaderMutation(changes) => Self::HeaderMutation(changes.clone()),
            FilterSettings::LocalRateLimit(limit) => Self::LocalRateLimit(RateLimit::new(limit.clone())),
            FilterSettings::RateLimit(own) => Self::RateLimit(own.clone()),
            FilterSettings::Rbac(rbac) => Self::Rbac(Box::new(AccessControl::compile(rbac))),
        }
    }
}

/// Makes changes one after the other, so that each sees what those before have done. `scratch` is cleared and used.
pub fn change_headers(
    changes: &[HeaderChange],
    headers: &mut Headers,
    formatter: &impl Formatter,
    scratch: &mut Vec<u8>,
) {
    for change in changes {
        match change {
            HeaderChange::Add(option) => change_header(option, headers, formatter, scratch),
            HeaderChange::Remove(name) => {
                headers.remove(name);
            }
            HeaderChange::RemoveMatching(matcher) => {
                headers.retain(|name, _| !string_matches(matcher, name));
            }
        }
    }
}
