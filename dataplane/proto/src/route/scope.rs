//! Scopes: which route configuration a request meets.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
};

use culvert_model::{ScopeExtract, ScopeFragment};
use smallvec::SmallVec;

use crate::route::RequestView;

/// Scopes by their keys, and how a request's key is made. Immutable; finding one costs the same whatever their number.
#[derive(Debug)]
pub struct Scopes<T> {
    builder: Vec<ScopeFragment>,
    /// By hash of the key. What has the same hash is looked at one after the other.
    by_hash: HashMap<u64, SmallVec<[usize; 1]>>,
    scopes: Vec<(Vec<String>, T)>,
    hasher: RandomState,
}

/// More fragments than anybody uses fit without allocation.
type Key<'a> = SmallVec<[&'a [u8]; 4]>;

impl<T> Scopes<T> {
    /// `builder` makes the key of a request; `scopes` are keys and what they stand for. Of two with the same key the
    /// first one counts.
    pub fn compile(builder: &[ScopeFragment], scopes: impl IntoIterator<Item = (Vec<String>, T)>) -> Self {
        let hasher = RandomState::new();
        let scopes: Vec<_> = scopes.into_iter().collect();
        let mut by_hash: HashMap<u64, SmallVec<[usize; 1]>> = HashMap::with_capacity(scopes.len());
        for (index, (key, _)) in scopes.iter().enumerate() {
            let hash = hash(&hasher, key.iter().map(String::as_bytes));
            by_hash.entry(hash).or_default().push(index);
        }
        Self { builder: builder.to_vec(), by_hash, scopes, hasher }
    }

    /// What the request's key stands for; `None` when a part of the key is missing, or no scope has it: 404.
    #[must_use]
    pub fn find(&self, request: &RequestView<'_>) -> Option<&T> {
        let key: Option<Key<'_>> = self.builder.iter().map(|fragment| extract(fragment, request)).collect();
        let key = key?;
        let candidates = self.by_hash.get(&hash(&self.hasher, key.iter().copied()))?;
        let same = |known: &[String]| {
            known.len() == key.len() && known.iter().zip(&key).all(|(known, part)| known.as_bytes() == *part)
        };
        candidates
            .iter()
            .map(|index| &self.scopes[*index])
            .find(|(known, _)| same(known))
            .map(|(_, scope)| scope)
    }

    /// Everything a scope may stand for.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.scopes.iter().map(|(_, scope)| scope)
    }
}

fn hash<'a>(state: &RandomState, parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = state.build_hasher();
    for part in parts {
        hasher.write(part);
        hasher.write_usize(part.len());
    }
    hasher.finish()
}

/// A part of the key: an element of the first header with that name.
fn extract<'a>(fragment: &ScopeFragment, request: &RequestView<'a>) -> Option<&'a [u8]> {
    let value = match fragment.header.as_str() {
        // The two names of one field.
        "host" | ":authority" => Some(request.authority).filter(|authority| !authority.is_empty()),
        ":method" => Some(request.method),
        ":path" => Some(request.path),
        ":scheme" => Some(request.scheme),
        name => request.headers.get(name),
    }?;
    let mut elements = split(value, fragment.separator.as_bytes());
    match &fragment.extract {
        ScopeExtract::Index(index) => elements.nth(*index as usize),
        ScopeExtract::Key { separator, key } => elements.find_map(|element| {
            // Without a separator the whole element is the key, and what it leads to is empty.
            let (name, rest) = split_once(element, separator.as_bytes()).unwrap_or((element, &[]));
            (name == key.as_bytes()).then_some(rest)
        }),
    }
}

/// The parts between separators; empty ones count. An empty separator splits nothing.
fn split<'a, 's>(value: &'a [u8], separator: &'s [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a, 's> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        match split_once(value, separator) {
            Some((element, after)) => {
                rest = Some(after);
                Some(element)
            }
            None => rest.take(),
        }
    })
}

fn split_once<'a>(value: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    if separator.is_empty() {
        return None;
    }
    let at = memchr::memmem::find(value, separator)?;
    Some((&value[..at], &value[at + separator.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Headers;

    fn fragment(header: &str, separator: &str, extract: ScopeExtract) -> ScopeFragment {
        ScopeFragment { header: header.to_owned(), separator: separator.to_owned(), extract }
    }

    fn found(builder: &[ScopeFragment], keys: &[&[&str]], headers: &[(&str, &str)]) -> Option<usize> {
        let keys = keys.iter().map(|key| key.iter().map(|part| (*part).to_owned()).collect());
        let scopes = Scopes::compile(builder, keys.zip(0_usize..));
        let mut fields = Headers::default();
        for (name, value) in headers {
            fields.append(name, value.as_bytes());
        }
        let request = RequestView {
            method: b"GET",
            scheme: b"http",
            authority: b"a.b:80",
            path: b"/",
            headers: &fields,
        };
        scopes.find(&request).copied()
    }

    #[test]
    fn the_whole_value_or_an_element_by_its_place() {
        let whole = [fragment("x-scope", "", ScopeExtract::Index(0))];
        assert_eq!(found(&whole, &[&["a"], &["a,b"]], &[("x-scope", "a,b")]), Some(1));
        let second = [fragment("x-scope", ",", ScopeExtract::Index(1))];
        assert_eq!(found(&second, &[&["a"], &["b"]], &[("x-scope", "a,b,c")]), Some(1));
        assert_eq!(found(&second, &[&["a"], &["b"]], &[("x-scope", "a")]), None, "there is no second one");
        assert_eq!(found(&second, &[&[""]], &[("x-scope", "a,,b")]), Some(0), "empty ones count");
        assert_eq!(found(&second, &[&["b"]], &[]), None, "no such header");
    }

    #[test]
    fn an_element_by_its_key() {
        let of = |separator: &str| {
            let extract = ScopeExtract::Key { separator: separator.to_owned(), key: "vip".to_owned() };
            [fragment("x-scope", ";", extract)]
        };
        assert_eq!(found(&of("="), &[&["1"], &["2=3"]], &[("x-scope", "foo=1;vip=2=3")]), Some(1));
        assert_eq!(found(&of("="), &[&[""]], &[("x-scope", "a=1;vip")]), Some(0));
        assert_eq!(found(&of("="), &[&["1"]], &[("x-scope", "a=1;VIP=1")]), None, "keys have a case");
    }

    #[test]
    fn host_is_the_authority_and_all_parts_have_to_match() {
        let builder =
            [fragment("host", "", ScopeExtract::Index(0)), fragment("x-scope", "", ScopeExtract::Index(0))];
        let keys: [&[&str]; 4] = [&["a.b:80"], &["a.b:80", "x", "y"], &["a.b:8", "0x"], &["a.b:80", "x"]];
        assert_eq!(found(&builder, &keys, &[("x-scope", "x")]), Some(3));
        assert_eq!(found(&builder, &keys, &[("x-scope", "z")]), None);
    }

    #[test]
    fn the_first_of_two_with_the_same_key_counts() {
        let builder = [fragment("host", "", ScopeExtract::Index(0))];
        assert_eq!(found(&builder, &[&["other"], &["a.b:80"], &["a.b:80"]], &[]), Some(1));
    }
}
