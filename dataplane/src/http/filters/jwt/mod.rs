//! `envoy.filters.http.jwt_authn`: who sends a request, after a token that somebody trusted has signed.

mod keys;
mod place;
mod requirement;
mod source;
mod token;

use std::sync::Arc;

use culvert_model::{JwtAuthentication, JwtOverride, JwtProvider, Struct, Value};
use culvert_proto::{
    Headers, Method,
    filter::Settings,
    h1::is_field,
    route::{request_matches, string_matches},
};
use culvert_ring::time;
use serde_json::Value as Json;

use self::{
    place::{Carried, Place},
    requirement::{Found, Requirement, Valid},
    source::Source,
    token::{Fault, Token},
};
use super::{Scope, Verdict};
use crate::{
    http::{exchange::Exchange, reply::Reply},
    observe::stats::JwtStats,
    worker::Worker,
};

/// The namespace of what tokens say.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Most bytes of a path that clients are told again.
const REALM_PATH_MAX: usize = 256;

/// The filter on one worker.
pub(super) struct Authenticator {
    config: Arc<JwtAuthentication>,
    stats: Arc<JwtStats>,
    /// In the order of the providers.
    sources: Vec<Source>,
    /// In the order of the rules.
    rules: Vec<Option<Requirement>>,
    /// In the order of `requirement_map`.
    named: Vec<Requirement>,
}

impl Authenticator {
    pub(super) fn new(config: Arc<JwtAuthentication>, stat_prefix: &str, worker: &Worker) -> Self {
        let stats = Arc::new(JwtStats::default());
        let scope = match config.stat_prefix.trim_end_matches('.') {
            "" => format!("http.{stat_prefix}.jwt_authn"),
            own => format!("http.{stat_prefix}.jwt_authn.{own}"),
        };
        worker.process.registry.register(scope, stats.clone());
        let source = |provider: &JwtProvider| Source::new(&provider.keys, &stats, worker);
        let sources = config.providers.iter().map(source).collect();
        let rules = config.rules.iter().map(|(_, it)| it.as_ref().map(|it| Requirement::new(&config, it)));
        let named = config.named.iter().map(|(_, it)| Requirement::new(&config, it));
        Self { rules: rules.collect(), named: named.collect(), config, stats, sources }
    }

    pub(super) async fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        // Nobody but this filter may say what a token says.
        for provider in &self.config.providers {
            exchange.head.headers.remove(&provider.payload_header);
            for (name, _) in &provider.claim_headers {
                exchange.head.headers.remove(name);
            }
        }
        let headers = &exchange.head.headers;
        let is_set = |name| headers.get(name).is_some_and(|value: &[u8]| !value.is_empty());
        if self.config.bypass_preflight
            && exchange.head.method == Method::Options
            && is_set("origin")
            && is_set("access-control-request-method")
        {
            self.stats.cors_preflight_bypassed.inc();
            self.stats.allowed.inc();
            return Verdict::Continue;
        }
        let requirement = match self.requirement(exchange, scope) {
            Ok(Some(requirement)) => requirement,
            Ok(None) => {
                self.stats.allowed.inc();
                return Verdict::Continue;
            }
            Err(name) => return Verdict::Reply(self.misnamed(name)),
        };
        let mut found = Found::new();
        let verifying = requirement.verify(self, exchange, &mut found);
        let outcome = match exchange.attended(verifying).await {
            Ok(outcome) => outcome,
            Err(verdict) => return verdict,
        };
        if let Err(fault) = outcome {
            self.stats.denied.inc();
            return Verdict::Reply(self.refusal(exchange, fault));
        }
        for valid in found {
            apply(exchange, &self.config.providers[valid.provider], valid.place, &valid.token);
        }
        self.stats.allowed.inc();
        Verdict::Continue
    }

    /// What is required of a request, if anything is; the name of a requirement that there is not.
    fn requirement<'a>(
        &'a self,
        exchange: &Exchange<'_>,
        scope: &Scope<'a>,
    ) -> Result<Option<&'a Requirement>, &'a str> {
        match scope.settings() {
            Some(Settings::Jwt(JwtOverride::Disabled)) => Ok(None),
            Some(Settings::Jwt(JwtOverride::Requirement(name))) => {
                let found = self.config.named.iter().position(|(known, _)| known == name);
                found.map(|index| Some(&self.named[index])).ok_or(name)
            }
            _ => {
                let random = exchange.conn.worker.rng.borrow_mut().u64(..);
                let view = exchange.head.view();
                let rule =
                    self.config.rules.iter().position(|(rule, _)| request_matches(rule, &view, random));
                Ok(rule.and_then(|index| self.rules[index].as_ref()))
            }
        }
    }

    /// Verifies a token; without a provider by that which is its issuer, or which takes tokens of whomever.
    async fn token<'p>(
        &self,
        exchange: &Exchange<'_>,
        provider: Option<usize>,
        audiences: Option<&[String]>,
        carried: &Carried<'p>,
    ) -> Result<Valid<'p>, Fault> {
        if provider.is_some() {
            self.stats.jwt_cache_miss.inc();
        }
        let token = Token::parse(&carried.text)?;
        if !carried.may_be_of(&token.issuer) {
            return Err(Fault::UnknownIssuer);
        }
        let find = |issuer: &str| self.config.providers.iter().position(|it| it.issuer == issuer);
        let index = provider.or_else(|| find(&token.issuer)).or_else(|| find(""));
        let index = index.ok_or(Fault::UnknownIssuer)?;
        check(&self.config.providers[index], audiences, &token)?;
        let keys = self.sources[index].keys(&exchange.conn.worker).await?;
        keys.verify(&token)?;
        Ok(Valid { provider: index, place: carried.place, token })
    }

    fn refusal(&self, exchange: &Exchange<'_>, fault: Fault) -> Reply {
        let status = if fault == Fault::AudienceNotAllowed { 403 } else { 401 };
        let details = format!("jwt_authn_access_denied{{{}}}", fault.text().replace(' ', "_"));
        if self.config.strip_failure {
            return Reply::new(status, "").details_text(details);
        }
        let head = &exchange.head;
        let path = head.path().get(..REALM_PATH_MAX).unwrap_or_else(|| head.path());
        let scheme = head.scheme.as_str().as_bytes();
        let mut realm = [b"Bearer realm=\"", scheme, b"://", head.authority(), path, b"\""].concat();
        if fault != Fault::Missing {
            realm.extend_from_slice(b", error=\"invalid_token\"");
        }
        let mut headers = Headers::new();
        headers.push("www-authenticate", realm);
        Reply::new(status, fault.text()).details_text(details).headers(headers)
    }

    /// Answers requests of a route that names a requirement that there is not.
    fn misnamed(&self, name: &str) -> Reply {
        self.stats.denied.inc();
        let mut known: Vec<&str> = self.config.named.iter().map(|(name, _)| name.as_str()).collect();
        known.sort_unstable();
        let known = known.join(",");
        let fault = format!("Wrong requirement_name: {name}. It should be one of [{known}]");
        let details = format!("jwt_authn_access_denied{{{}}}", fault.replace(' ', "_"));
        let text = format!("Failed JWT authentication: {fault}");
        Reply::new(403, "").details_text(details).body(text.into_bytes().into())
    }
}

/// Everything about a token but its signature.
fn check(provider: &JwtProvider, audiences: Option<&[String]>, token: &Token) -> Result<(), Fault> {
    let now = time::since_1970(time::now()).as_secs();
    let skew = provider.clock_skew;
    if provider.subjects.as_ref().is_some_and(|it| !string_matches(it, token.subject.as_bytes())) {
        return Err(Fault::Verification);
    }
    if token.not_before > now.saturating_add(skew) {
        return Err(Fault::NotYetValid);
    }
    if token.expires == 0 {
        if provider.require_expiration || provider.max_lifetime.is_some() {
            return Err(Fault::Verification);
        }
    } else if now > token.expires.saturating_add(skew) {
        return Err(Fault::Expired);
    } else if provider.max_lifetime.is_some_and(|max| token.expires > now.saturating_add(max.as_secs())) {
        return Err(Fault::Verification);
    }
    let allowed = audiences.unwrap_or(&provider.audiences);
    let fits = |audience: &String| allowed.iter().any(|known| known == plain(audience));
    if !allowed.is_empty() && !token.audiences.iter().any(fits) {
        return Err(Fault::AudienceNotAllowed);
    }
    Ok(())
}

/// An audience without scheme and slash at the end, as those of the configuration are.
fn plain(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// Tells those behind what a valid token says.
fn apply(exchange: &mut Exchange<'_>, provider: &JwtProvider, place: &Place, token: &Token) {
    let headers = &mut exchange.head.headers;
    let mut changed = false;
    for (name, path) in &provider.claim_headers {
        let mut claim = token.payload.get(path.first().map_or("", String::as_str));
        for key in path.iter().skip(1) {
            claim = claim.and_then(|claim| claim.get(key));
        }
        if let Some(value) =
            claim.and_then(claim_text).filter(|value| is_field(name.as_bytes(), value.as_bytes()))
        {
            headers.push(name, value);
            changed = true;
        }
    }
    if !provider.payload_header.is_empty() {
        let mut payload = token.encoded_payload().to_owned();
        while provider.pad_payload && !payload.len().is_multiple_of(4) {
            payload.push('=');
        }
        headers.push(&provider.payload_header, payload);
        changed = true;
    }
    let mut values = Struct::new();
    if !provider.payload_in_metadata.is_empty() {
        let mut payload = structure(&token.payload);
        for claim in &provider.space_delimited {
            if let Some(Value::String(text)) = payload.get(claim) {
                let list = text.split(' ').filter(|word| !word.is_empty());
                let list: Vec<_> = list.map(|word| Value::String(word.into())).collect();
                payload.insert(claim.clone(), Value::List(list.into()));
            }
        }
        values.insert(provider.payload_in_metadata.clone(), Value::Struct(Arc::new(payload)));
    }
    if !provider.header_in_metadata.is_empty() {
        let header = structure(&token.header);
        values.insert(provider.header_in_metadata.clone(), Value::Struct(Arc::new(header)));
    }
    if !provider.forward {
        place::remove(place, &mut exchange.head);
    }
    if !values.is_empty() {
        exchange.filters.metadata.merge(NAMESPACE, values);
        changed = true;
    }
    exchange.filters.reroute |= changed && provider.clear_route_cache;
}

/// A claim as a header has it: what is neither text nor number nor truth is JSON in base64url.
fn claim_text(claim: &Json) -> Option<String> {
    Some(match claim {
        Json::Null => return None,
        Json::String(text) => text.clone(),
        Json::Bool(_) | Json::Number(_) => claim.to_string(),
        Json::Array(_) | Json::Object(_) => token::encode(claim.to_string().as_bytes()),
    })
}

fn structure(map: &serde_json::Map<String, Json>) -> Struct {
    map.iter().map(|(key, value)| (key.clone(), self::value(value))).collect()
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(it) => Value::Bool(*it),
        Json::Number(it) => Value::Number(it.as_f64().unwrap_or_default()),
        Json::String(it) => Value::String(it.as_str().into()),
        Json::Array(list) => Value::List(list.iter().map(value).collect()),
        Json::Object(map) => Value::Struct(Arc::new(structure(map))),
    }
}
