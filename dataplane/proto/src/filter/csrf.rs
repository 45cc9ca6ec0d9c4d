//! `csrf`: requests that other sites have browsers make.

use culvert_model::CsrfPolicy;

use crate::{Headers, Method, route::string_matches};

/// What is to be thought of where a request comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// From the host that is asked, or one that may ask.
    Valid,
    /// From somewhere else.
    Invalid,
    /// It does not say.
    Missing,
}

/// Whether requests with this method change something, so that it matters who asks.
#[must_use]
pub fn concerns(method: &Method) -> bool {
    matches!(method.as_bytes(), b"POST" | b"PUT" | b"DELETE" | b"PATCH")
}

/// Where a request for `authority` comes from.
#[must_use]
pub fn judge(policy: &CsrfPolicy, headers: &Headers, authority: &[u8]) -> Origin {
    let source = match headers.get("origin") {
        // What a browser says that must not tell.
        Some(b"null") => return Origin::Missing,
        Some(origin) if !origin.is_empty() => host_of(origin),
        _ => headers.get("referer").map(host_of).unwrap_or_default(),
    };
    if source.is_empty() {
        return Origin::Missing;
    }
    if source == authority || policy.origins.iter().any(|origin| string_matches(origin, source)) {
        return Origin::Valid;
    }
    Origin::Invalid
}

/// Host and port of a URL; what is none stays as it is.
fn host_of(url: &[u8]) -> &[u8] {
    let Some(begin) = url.windows(3).position(|three| three == b"://") else { return url };
    let rest = &url[begin + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use culvert_model::{Fraction, StringMatcher};

    use super::*;

    fn origin(fields: &[(&str, &str)]) -> Origin {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.push(*name, *value));
        let good = StringMatcher::Exact { value: "good.com".into(), ignore_case: false };
        let policy = CsrfPolicy { enabled: Fraction::NONE, shadow: Fraction::NONE, origins: vec![good] };
        judge(&policy, &headers, b"me:80")
    }

    #[test]
    fn where_requests_come_from() {
        for (fields, expected) in [
            (&[("origin", "http://me:80")][..], Origin::Valid),
            (&[("origin", "http://good.com")], Origin::Valid),
            (&[("origin", "http://good.com:81")], Origin::Invalid),
            (&[("origin", "http://evil.com"), ("referer", "http://me:80/")], Origin::Invalid),
            (&[("referer", "https://me:80/x?y")], Origin::Valid),
            (&[("origin", ""), ("referer", "https://me:80")], Origin::Valid),
            (&[("origin", "null"), ("referer", "http://me:80/")], Origin::Missing),
            (&[], Origin::Missing),
            (&[("origin", "http://")], Origin::Missing),
        ] {
            assert_eq!(origin(fields), expected, "{fields:?}");
        }
    }
}
