//! The hash of a request, by which hashing policies choose its endpoint.

use std::{borrow::Cow, io::Write as _, net::IpAddr};

use culvert_model::{HashCookie, HashPolicy, HashSource, RegexSubstitution};

use super::{
    RequestView,
    matcher::{pseudo_header, query_value},
};
use crate::hash::xxh64;

/// What a request's hash is made of besides the request.
pub trait HashContext {
    /// The client's address.
    fn source_ip(&self) -> Option<IpAddr>;

    /// The hash of an object that a filter has left.
    fn filter_state(&self, key: &str) -> Option<u64>;

    /// The hash of the value of a cookie that the client is going to be given.
    fn new_cookie(&self, cookie: &HashCookie) -> u64;
}

/// Envoy's `HashPolicyImpl::generateHash`; `None` when no policy finds anything to hash. Allocates nothing but for values
/// that are rewritten.
pub fn request_hash(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    context: &dyn HashContext,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        if let Some(found) = source_hash(&policy.source, request, context) {
            // What repeats must not cancel itself.
            hash = Some(hash.map_or(0, |hash| hash.rotate_left(1)) ^ found);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn source_hash(source: &HashSource, request: &RequestView<'_>, context: &dyn HashContext) -> Option<u64> {
    match source {
        HashSource::Cookie(cookie) => {
            let value = cookie_value(request, cookie.name.as_bytes()).filter(|value| !value.is_empty());
            match value {
                Some(value) => Some(xxh64(value, 0)),
                None => cookie.ttl.map(|_| context.new_cookie(cookie)),
            }
        }
        HashSource::FilterState(key) => context.filter_state(key),
        HashSource::Header { name, rewrite } => header_hash(name, rewrite.as_ref(), request),
        HashSource::QueryParameter(name) => {
            query_value(request.path, name.as_bytes()).map(|value| xxh64(value, 0))
        }
        HashSource::SourceIp => context.source_ip().map(ip_hash),
    }
}

/// The hash of an address, written out.
#[must_use]
pub fn ip_hash(ip: IpAddr) -> u64 {
    // The longest is a mapped IPv6 address.
    let mut text = [0; 64];
    let mut rest = &mut text[..];
    // There is room.
    let _ = write!(rest, "{ip}");
    let left = rest.len();
    xxh64(&text[..text.len() - left], 0)
}

/// Of all values in the order of their bytes, whichever came first: each is the seed of the next.
fn header_hash(name: &str, rewrite: Option<&RegexSubstitution>, request: &RequestView<'_>) -> Option<u64> {
    if let Some(value) = pseudo_header(name, request) {
        return value.map(|value| xxh64(&rewritten(value, rewrite), 0));
    }
    let mut values = request.headers.get_all(name);
    let first = values.next()?;
    if values.next().is_none() {
        return Some(xxh64(&rewritten(first, rewrite), 0));
    }
    let mut all: Vec<_> = request.headers.get_all(name).map(|value| rewritten(value, rewrite)).collect();
    all.sort_unstable();
    Some(all.iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn rewritten<'v>(value: &'v [u8], rewrite: Option<&RegexSubstitution>) -> Cow<'v, [u8]> {
    match rewrite {
        Some(rewrite) => rewrite.pattern.replace_all(value, rewrite.replacement.as_slice()),
        None => Cow::Borrowed(value),
    }
}

/// The value of the first cookie of that name, without the quotes around it.
fn cookie_value<'r>(request: &RequestView<'r>, name: &[u8]) -> Option<&'r [u8]> {
    let cookies = request.headers.get_all("cookie").flat_map(|field| field.split(|&byte| byte == b';'));
    let value = cookies.into_iter().find_map(|cookie| {
        let start = cookie.iter().position(|&byte| byte != b' ')?;
        cookie[start..].strip_prefix(name)?.strip_prefix(b"=")
    })?;
    match value {
        [b'"', quoted @ .., b'"'] => Some(quoted),
        value => Some(value),
    }
}

/// The value of a cookie that a client at `remote`, connected to `local`, is given: the same for all its requests at once.
#[must_use]
pub fn cookie_text(remote: &str, local: &str) -> String {
    format!("{:016x}", xxh64([remote, local].concat().as_bytes(), 0))
}

/// The `set-cookie` that gives `value`.
#[must_use]
pub fn set_cookie(cookie: &HashCookie, value: &str) -> String {
    let mut text = format!("{}=\"{value}\"", cookie.name);
    if let Some(ttl) = cookie.ttl.filter(|ttl| !ttl.is_zero()) {
        text.push_str("; Max-Age=");
        text.push_str(&ttl.as_secs().to_string());
    }
    if !cookie.path.is_empty() {
        text.push_str("; Path=");
        text.push_str(&cookie.path);
    }
    for (name, value) in &cookie.attributes {
        text.push_str("; ");
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text + "; HttpOnly"
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, time::Duration};

    use super::*;
    use crate::Headers;

    #[derive(Default)]
    struct Client {
        given: RefCell<Vec<String>>,
    }

    impl HashContext for Client {
        fn source_ip(&self) -> Option<IpAddr> {
            Some("10.0.0.1".parse().unwrap())
        }

        fn filter_state(&self, key: &str) -> Option<u64> {
            (key == "known").then_some(7)
        }

        fn new_cookie(&self, cookie: &HashCookie) -> u64 {
            self.given.borrow_mut().push(cookie.name.clone());
            11
        }
    }

    fn of(sources: &[(HashSource, bool)], path: &str, fields: &[(&str, &str)]) -> Option<u64> {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value));
        let request = RequestView {
            method: b"GET",
            scheme: b"http",
            authority: b"some.example",
            path: path.as_bytes(),
            headers: &headers,
        };
        let policies: Vec<_> = sources
            .iter()
            .map(|(source, terminal)| HashPolicy { source: source.clone(), terminal: *terminal })
            .collect();
        request_hash(&policies, &request, &Client::default())
    }

    fn header(name: &str) -> HashSource {
        HashSource::Header { name: name.to_owned(), rewrite: None }
    }

    fn cookie(ttl: Option<u64>) -> HashSource {
        HashSource::Cookie(HashCookie {
            name: "c".to_owned(),
            ttl: ttl.map(Duration::from_secs),
            ..HashCookie::default()
        })
    }

    fn plain(text: &str) -> Option<u64> {
        Some(xxh64(text.as_bytes(), 0))
    }

    #[test]
    fn headers() {
        let h = || [(header("h"), false)];
        assert_eq!(of(&h(), "/", &[("h", "a")]), plain("a"));
        assert_eq!(of(&h(), "/", &[("h", "")]), plain(""));
        assert_eq!(of(&h(), "/", &[("g", "a")]), None);
        let both = Some(xxh64(b"b", xxh64(b"a", 0)));
        assert_eq!(of(&h(), "/", &[("h", "a"), ("h", "b")]), both);
        assert_eq!(of(&h(), "/", &[("h", "b"), ("h", "a")]), both, "in any order");
        assert_eq!(of(&[(header(":path"), false)], "/x?y", &[]), plain("/x?y"));
        assert_eq!(of(&[(header(":authority"), false)], "/", &[]), plain("some.example"));
        let rewrite = RegexSubstitution {
            pattern: regex::bytes::Regex::new("^(.)-(.*)$").unwrap(),
            replacement: b"${2}".to_vec(),
        };
        let source = HashSource::Header { name: "h".to_owned(), rewrite: Some(rewrite) };
        assert_eq!(of(&[(source.clone(), false)], "/", &[("h", "x-rest")]), plain("rest"));
        assert_eq!(of(&[(source, false)], "/", &[("h", "none")]), plain("none"));
    }

    #[test]
    fn cookies() {
        let c = |ttl| [(cookie(ttl), false)];
        for field in ["c=v", "a=b; c=v; c=w", "a=b;c=\"v\"", "c; c=v", "  c=v"] {
            assert_eq!(of(&c(None), "/", &[("cookie", field)]), plain("v"), "{field}");
        }
        assert_eq!(of(&c(None), "/", &[("cookie", "a=b"), ("cookie", "c=v")]), plain("v"));
        for field in ["c=", "cc=v", "c =v", "a=c=v", ""] {
            assert_eq!(of(&c(None), "/", &[("cookie", field)]), None, "{field}");
            assert_eq!(of(&c(Some(0)), "/", &[("cookie", field)]), Some(11), "{field}");
        }
    }

    #[test]
    fn what_is_not_in_headers() {
        let query = |path| of(&[(HashSource::QueryParameter("q".to_owned()), false)], path, &[]);
        assert_eq!(query("/?z=1&q=%20x&q=y"), plain("%20x"));
        assert_eq!((query("/?q"), query("/?qq=1"), query("/q")), (plain(""), None, None));
        assert_eq!(of(&[(HashSource::SourceIp, false)], "/", &[]), plain("10.0.0.1"));
        let longest = "1111:2222:3333:4444:5555:6666:7777:8888";
        assert_eq!(Some(ip_hash(longest.parse().unwrap())), plain(longest));
        assert_eq!(of(&[(HashSource::FilterState("known".to_owned()), false)], "/", &[]), Some(7));
        assert_eq!(of(&[(HashSource::FilterState("other".to_owned()), false)], "/", &[]), None);
    }

    #[test]
    fn several_policies() {
        let fields = [("h", "a"), ("g", "b")];
        let (a, b) = (xxh64(b"a", 0), xxh64(b"b", 0));
        let of = |first: (&str, bool), second| {
            of(&[(header(first.0), first.1), (header(second), false)], "/", &fields)
        };
        assert_eq!(of(("h", false), "g"), Some(a.rotate_left(1) ^ b));
        assert_eq!(of(("h", true), "g"), Some(a));
        assert_eq!(of(("none", true), "g"), Some(b), "terminal without a hash");
        assert_eq!(of(("h", false), "none"), Some(a));
        assert_ne!(of(("h", false), "h"), Some(0), "what repeats does not cancel itself");
    }

    /// Read from the answers of Envoy 1.40.
    #[test]
    fn cookies_are_given_as_envoy_gives_them() {
        assert_eq!(cookie_text("127.0.0.1:53874", "127.0.0.1:21800"), "099586b0320c18b0");
        let given = HashCookie {
            name: "c".to_owned(),
            ttl: Some(Duration::from_secs(90)),
            path: "/p".to_owned(),
            attributes: vec![
                ("SameSite".to_owned(), "Strict".to_owned()),
                ("Secure".to_owned(), String::new()),
            ],
        };
        assert_eq!(
            set_cookie(&given, "v"),
            "c=\"v\"; Max-Age=90; Path=/p; SameSite=Strict; Secure; HttpOnly"
        );
        let session = HashCookie { name: "c".to_owned(), ttl: Some(Duration::ZERO), ..HashCookie::default() };
        assert_eq!(set_cookie(&session, "v"), "c=\"v\"; HttpOnly");
    }
}
