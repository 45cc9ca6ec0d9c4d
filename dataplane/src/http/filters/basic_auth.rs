//! `envoy.filters.http.basic_auth`: users with a name and a password.

use std::sync::Arc;

use aws_lc_rs::{constant_time, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use culvert_model::{BasicAuth, BasicUsers, Struct, Value};
use culvert_proto::{Headers, filter::Settings};

use super::{Scope, Verdict};
use crate::{
    http::{exchange::Exchange, reply::Reply},
    observe::stats::{BasicAuthStats, Registry},
};

/// Longest URL that is told as the realm, in bytes.
const REALM_MAX: usize = 256;

/// Where the user's name is in dynamic metadata.
const NAMESPACE: &str = "envoy.filters.http.basic_auth";

/// The filter on one worker.
pub(super) struct Users {
    config: Arc<BasicAuth>,
    stats: Arc<BasicAuthStats>,
}

/// Why a request is refused.
enum Refusal {
    Missing,
    Scheme,
    Format,
    Unknown,
}

impl Refusal {
    /// What the client is told, and the details.
    fn said(&self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => {
                ("User authentication failed. Missing username and password.", "no_credential_for_basic_auth")
            }
            Self::Scheme => (
                "User authentication failed. Expected 'Basic' authentication scheme.",
                "invalid_scheme_for_basic_auth",
            ),
            Self::Format => (
                "User authentication failed. Invalid basic credential format.",
                "invalid_format_for_basic_auth",
            ),
            Self::Unknown => (
                "User authentication failed. Invalid username/password combination.",
                "invalid_credential_for_basic_auth",
            ),
        }
    }
}

impl Users {
    pub(super) fn new(config: Arc<BasicAuth>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(BasicAuthStats::default());
        registry.register(format!("http.{stat_prefix}.basic_auth"), stats.clone());
        Self { config, stats }
    }

    pub(super) fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        let users = match scope.settings() {
            Some(Settings::BasicAuth(own)) => own,
            _ => &self.config.users,
        };
        let name = match authenticate(users, exchange.head.headers.get(&self.config.header)) {
            Ok(name) => name,
            Err(Refusal::Missing) if self.config.allow_missing => {
                self.stats.allowed.inc();
                // Nobody but this filter says who it is.
                exchange.head.headers.remove(&self.config.forward_username);
                return Verdict::Continue;
            }
            Err(refusal) => {
                self.stats.denied.inc();
                return refuse(exchange, &refusal);
            }
        };
        self.stats.allowed.inc();
        if !self.config.forward_username.is_empty() {
            exchange.head.headers.set(&self.config.forward_username, &name);
        }
        if self.config.emit_metadata {
            let values = Struct::from([("username".to_owned(), Value::String(name.into()))]);
            exchange.filters.metadata.merge(NAMESPACE, values);
        }
        Verdict::Continue
    }
}

/// The user whose credentials these are.
fn authenticate(users: &BasicUsers, credentials: Option<&[u8]>) -> Result<String, Refusal> {
    let credentials = credentials.ok_or(Refusal::Missing)?;
    let encoded = credentials.strip_prefix(b"Basic ").ok_or(Refusal::Scheme)?;
    let decoded = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or(Refusal::Format)?;
    let (name, password) = decoded.split_once(':').ok_or(Refusal::Format)?;
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    // The time it takes does not tell how much of a password was right.
    let known = users
        .get(name)
        .is_some_and(|expected| constant_time::verify_slices_are_equal(hash.as_ref(), expected).is_ok());
    if known { Ok(name.to_owned()) } else { Err(Refusal::Unknown) }
}

fn refuse(exchange: &Exchange<'_>, refusal: &Refusal) -> Verdict {
    let view = exchange.head.view();
    let mut url = Vec::with_capacity(64);
    url.extend_from_slice(view.scheme);
    url.extend_from_slice(b"://");
    url.extend_from_slice(view.authority);
    url.extend_from_slice(view.headers.get("x-envoy-original-path").unwrap_or(view.path));
    url.truncate(REALM_MAX);
    let mut headers = Headers::new();
    headers.push("www-authenticate", [b"Basic realm=\"", url.as_slice(), b"\""].concat());
    let (text, details) = refusal.said();
    Verdict::Reply(Reply::new(401, text).details(details).headers(headers))
}
