//! Where a request carries tokens.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
};

use culvert_model::JwtProvider;
use culvert_proto::RequestHead;

/// A place in a request, in Envoy's order.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Place {
    Header {
        name: String,
        /// What is in front of the token.
        prefix: String,
    },
    Parameter(String),
    Cookie(String),
}

/// Places that are looked at, each with the issuers whose tokens may be there; `None` is whoever.
///
/// A token that is not at a place of its own provider's is nobody's: whoever is behind a proxy that takes such a place
/// out of what strangers send relies on it.
pub(super) struct Places(BTreeMap<Place, Option<Vec<String>>>);

/// A token that was found.
pub(super) struct Carried<'a> {
    pub(super) place: &'a Place,
    issuers: Option<&'a [String]>,
    pub(super) text: String,
}

impl Places {
    /// Those of some providers.
    pub(super) fn of<'a>(providers: impl IntoIterator<Item = &'a JwtProvider>) -> Self {
        let mut places = BTreeMap::new();
        for provider in providers {
            let headers = provider.from_headers.iter().cloned();
            let headers = headers.map(|(name, prefix)| Place::Header { name, prefix });
            let params = provider.from_params.iter().cloned().map(Place::Parameter);
            let cookies = provider.from_cookies.iter().cloned().map(Place::Cookie);
            for place in headers.chain(params).chain(cookies) {
                let issuer = Some(&provider.issuer).filter(|issuer| !issuer.is_empty());
                match (places.entry(place), issuer) {
                    (Entry::Vacant(free), issuer) => {
                        free.insert(issuer.map(|issuer| vec![issuer.clone()]));
                    }
                    (Entry::Occupied(mut known), None) => drop(known.insert(None)),
                    (Entry::Occupied(mut known), Some(issuer)) => {
                        known.get_mut().iter_mut().for_each(|list| list.push(issuer.clone()));
                    }
                }
            }
        }
        Self(places)
    }

    /// The tokens of a request in the order in which they are verified, which is Envoy's: the last is the first.
    pub(super) fn tokens(&self, head: &RequestHead, taken: impl Fn(&Place) -> bool) -> Vec<Carried<'_>> {
        let mut found = Vec::new();
        for (place, issuers) in &self.0 {
            if taken(place) {
                continue;
            }
            let issuers = issuers.as_deref();
            let mut push = |text: &[u8]| {
                // What is not text is no token, and as wrong as any other that is none.
                let text = String::from_utf8_lossy(text).into_owned();
                found.push(Carried { place, issuers, text });
            };
            match place {
                Place::Header { name, prefix } => {
                    for value in header(head, name) {
                        if let Some(token) = behind(&value, prefix.as_bytes()) {
                            push(token);
                        }
                    }
                }
                Place::Parameter(name) => drop(parameter(head, name).map(|value| push(&value))),
                Place::Cookie(name) => drop(cookie(head, name).map(push)),
            }
        }
        found.reverse();
        found
    }
}

impl Carried<'_> {
    /// Whether it is at a place of this issuer's.
    pub(super) fn may_be_of(&self, issuer: &str) -> bool {
        self.issuers.is_none_or(|issuers| issuers.iter().any(|known| known == issuer))
    }
}

/// The values of a header. There is one of `authorization`, as Envoy has it.
fn header<'a>(head: &'a RequestHead, name: &'a str) -> Vec<Cow<'a, [u8]>> {
    let values: Vec<_> = head.headers.get_all(name).collect();
    if name == "authorization" && values.len() > 1 {
        return vec![Cow::Owned(values.join(&b','))];
    }
    values.into_iter().map(Cow::Borrowed).collect()
}

/// What is behind a prefix that is somewhere in a value, and behind whatever is between it and a token.
fn behind<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|window| window == prefix)?;
    let rest = &value[at + prefix.len()..];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    Some(rest.iter().position(is_token).map_or(value, |from| &rest[from..]))
}

/// The first parameter of a name.
fn parameter(head: &RequestHead, name: &str) -> Option<Vec<u8>> {
    let mut pairs = head.query()?.split(|byte| *byte == b'&').map(pair);
    pairs.find(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value))
}

fn pair(text: &[u8]) -> (&[u8], &[u8]) {
    let at = text.iter().position(|byte| *byte == b'=');
    at.map_or((text, &[][..]), |at| (&text[..at], &text[at + 1..]))
}

/// The percent-encoding taken away.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let digits = digits.filter(|two| !two.starts_with('+'));
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| *byte == b'%') {
            Some(value) => {
                out.push(value);
                rest = &after[2..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// The first cookie of a name.
fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let lists = head.headers.get_all("cookie");
    let mut cookies = lists.flat_map(|list| list.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    cookies.find_map(|cookie| {
        let value = cookie.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// Takes tokens out of a request. Those in cookies stay, as with Envoy.
pub(super) fn remove(place: &Place, head: &mut RequestHead) {
    match place {
        Place::Header { name, .. } => drop(head.headers.remove(name)),
        Place::Parameter(name) => {
            let Some(query) = head.query() else { return };
            let is_it = |text: &&[u8]| decoded(pair(text).0) == name.as_bytes();
            let kept: Vec<_> = query.split(|byte| *byte == b'&').filter(|text| !is_it(text)).collect();
            let mut path = head.path_only().to_vec();
            if !kept.is_empty() {
                path.push(b'?');
                path.extend_from_slice(&kept.join(&b'&'));
            }
            head.set_path(path);
        }
        Place::Cookie(_) => {}
    }
}

/// Whether a token that was taken from a place has taken what is at another one with it.
pub(super) fn same(taken: &Place, other: &Place) -> bool {
    match (taken, other) {
        (Place::Header { name, .. }, Place::Header { name: other, .. }) => name == other,
        (Place::Parameter(name), Place::Parameter(other)) => name == other,
        _ => false,
    }
}
