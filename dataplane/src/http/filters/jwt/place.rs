//! Where a request carries tokens.

use culvert_model::JwtProvider;
use culvert_proto::RequestHead;

/// A place in a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Header(String),
    Parameter(String),
    Cookie,
}

/// The tokens in places that a provider looks at, in their order.
pub(super) fn tokens(provider: &JwtProvider, head: &RequestHead) -> Vec<(Place, String)> {
    let mut found = Vec::new();
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| text.trim().to_owned());
    for (name, prefix) in &provider.from_headers {
        for value in head.headers.get_all(name) {
            let Some(value) = text(value) else { continue };
            let token = match prefix.as_str() {
                "" => Some(value.as_str()),
                prefix => value.find(prefix).map(|at| value[at + prefix.len()..].trim_start()),
            };
            if let Some(token) = token.filter(|token| !token.is_empty()) {
                found.push((Place::Header(name.clone()), token.to_owned()));
            }
        }
    }
    for name in &provider.from_params {
        let pairs = head.query().unwrap_or_default().split(|byte| *byte == b'&');
        for token in pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")) {
            found.extend(text(token).map(|token| (Place::Parameter(name.clone()), token)));
        }
    }
    for name in &provider.from_cookies {
        for list in head.headers.get_all("cookie") {
            for cookie in list.split(|byte| *byte == b';') {
                let cookie = cookie.trim_ascii();
                let value = cookie.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
                let value = value.map(|value| value.strip_prefix(b"\"").unwrap_or(value));
                let value = value.map(|value| value.strip_suffix(b"\"").unwrap_or(value));
                found.extend(value.and_then(text).map(|token| (Place::Cookie, token)));
            }
        }
    }
    found
}

/// Takes a token out of a request. Those in cookies stay, as with Envoy.
pub(super) fn remove(place: &Place, head: &mut RequestHead) {
    match place {
        Place::Header(name) => drop(head.headers.remove(name)),
        Place::Parameter(name) => {
            let Some(query) = head.query() else { return };
            let is_it = |pair: &&[u8]| {
                pair.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
            };
            let kept: Vec<_> = query.split(|byte| *byte == b'&').filter(|pair| !is_it(pair)).collect();
            let mut path = head.path_only().to_vec();
            if !kept.is_empty() {
                path.push(b'?');
                path.extend_from_slice(&kept.join(&b'&'));
            }
            head.set_path(path);
        }
        Place::Cookie => {}
    }
}
