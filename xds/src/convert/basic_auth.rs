//! Users and their passwords.

use std::{collections::btree_map::Entry, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use culvert_model::{BasicAuth, BasicUsers};
use envoy_types::pb::envoy::{config::core::v3::DataSource, extensions::filters::http::basic_auth::v3 as pb};

use super::core;
use crate::at::At;

/// The filter.
pub(super) fn filter(at: &At<'_>, filter: &pb::BasicAuth) -> Option<Arc<BasicAuth>> {
    let header = match filter.authentication_header.as_str() {
        "" => "authorization".to_owned(),
        own => own.to_ascii_lowercase(),
    };
    Some(Arc::new(BasicAuth {
        users: users(&at.field("users"), filter.users.as_ref())?,
        forward_username: filter.forward_username_header.to_ascii_lowercase(),
        header,
        allow_missing: filter.allow_missing,
        emit_metadata: filter.emit_dynamic_metadata,
    }))
}

/// What a level of routes says.
pub(super) fn per_route(at: &At<'_>, own: &pb::BasicAuthPerRoute) -> Option<Arc<BasicUsers>> {
    users(&at.field("users"), own.users.as_ref())
}

/// Lines of the format of htpasswd, of which SHA-1 is the only hash that is accepted.
fn users(at: &At<'_>, source: Option<&DataSource>) -> Option<Arc<BasicUsers>> {
    let Some(source) = source else { return at.error("value is required") };
    let text = core::text(at, source)?;
    let mut users = BasicUsers::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match user(line) {
            // Neither says what the line holds: it is a secret.
            Err(reason) => return at.error(format!("line {}: {reason}", number + 1)),
            Ok((name, hash)) => match users.entry(name.to_owned()) {
                Entry::Occupied(_) => {
                    return at.error(format!("line {}: the user is there already", number + 1));
                }
                Entry::Vacant(entry) => drop(entry.insert(hash)),
            },
        }
    }
    Some(Arc::new(users))
}

fn user(line: &str) -> Result<(&str, [u8; 20]), &'static str> {
    let (name, hash) = line.split_once(':').ok_or("user:{SHA}hash is expected")?;
    if name.is_empty() || hash.is_empty() {
        return Err("user or password is empty");
    }
    let hash = hash.strip_prefix("{SHA}").ok_or("passwords have to be hashed with {SHA}")?;
    let hash = BASE64_STANDARD.decode(hash).ok().and_then(|hash| hash.try_into().ok());
    Ok((name, hash.ok_or("the hash is no SHA-1 in base64")?))
}

#[cfg(test)]
mod tests {
    use super::user;

    #[test]
    fn lines_are_those_of_htpasswd() {
        let (name, hash) = user("u1:{SHA}tESsBmE/yNY3lb6a0L6vVQEZNqw=").unwrap();
        assert_eq!((name, hash[0], hash[19]), ("u1", 0xb4, 0xac));
        for line in
            ["u1", ":{SHA}tESsBmE/yNY3lb6a0L6vVQEZNqw=", "u1:", "u1:$apr1$x", "u1:{SHA}", "u1:{SHA}AAAA"]
        {
            assert!(user(line).is_err(), "{line}");
        }
    }
}
