//! Cross-origin requests (the Fetch standard, section 3.2; `envoy.filters.http.cors`).

use std::borrow::Cow;

use culvert_model::CorsPolicy;

use crate::{Headers, route::string_matches};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is not cross-origin, or from an origin that is not allowed: its response says nothing about origins.
    Plain,
    /// It is forwarded, and its response says that the origin is allowed.
    Allowed,
    /// It is a preflight that is answered here; whether the origin is allowed.
    Preflight(bool),
}

/// The policy of several levels, the most specific first: what one leaves out is the next one's. Whether it is enabled is
/// said by the first alone. Nothing is copied unless there are several.
pub fn inherited<'p>(mut levels: impl Iterator<Item = &'p CorsPolicy>) -> Option<Cow<'p, CorsPolicy>> {
    let mut policy = Cow::Borrowed(levels.next()?);
    for outer in levels {
        let policy = policy.to_mut();
        if policy.allow_origins.is_empty() {
            policy.allow_origins.clone_from(&outer.allow_origins);
        }
        let texts = [
            (&mut policy.allow_methods, &outer.allow_methods),
            (&mut policy.allow_headers, &outer.allow_headers),
            (&mut policy.expose_headers, &outer.expose_headers),
            (&mut policy.max_age, &outer.max_age),
        ];
        for (text, outer) in texts.into_iter().filter(|(text, _)| text.is_empty()) {
            text.clone_from(outer);
        }
        policy.allow_credentials = policy.allow_credentials.or(outer.allow_credentials);
        policy.allow_private_network_access =
            policy.allow_private_network_access.or(outer.allow_private_network_access);
        policy.forward_not_matching_preflights =
            policy.forward_not_matching_preflights.or(outer.forward_not_matching_preflights);
    }
    Some(policy)
}

/// Whether a request with this `origin` may go on, and how. `options`: it has that method.
#[must_use]
pub fn judge(policy: &CorsPolicy, options: bool, headers: &Headers, allowed: bool) -> Verdict {
    let preflight =
        options && headers.get("access-control-request-method").is_some_and(|method| !method.is_empty());
    match (preflight, allowed) {
        (true, true) => Verdict::Preflight(true),
        (true, false) if policy.forward_not_matching_preflights == Some(false) => Verdict::Preflight(false),
        (_, false) => Verdict::Plain,
        (false, true) => Verdict::Allowed,
    }
}

/// Whether the policy allows `origin`.
#[must_use]
pub fn allows(policy: &CorsPolicy, origin: &[u8]) -> bool {
    policy.allow_origins.iter().any(|matcher| string_matches(matcher, origin))
}

/// Says on an answer to a preflight what the policy allows.
pub fn answer_preflight(policy: &CorsPolicy, request: &Headers, answer: &mut Headers) {
    if let Some(origin) = request.get("origin") {
        answer.set("access-control-allow-origin", origin);
    }
    if policy.allow_credentials == Some(true) {
        answer.set("access-control-allow-credentials", "true");
    }
    let texts = [
        ("access-control-allow-methods", &policy.allow_methods),
        ("access-control-allow-headers", &policy.allow_headers),
        ("access-control-max-age", &policy.max_age),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        answer.set(name, text);
    }
    if policy.allow_private_network_access == Some(true)
        && request.get("access-control-request-private-network") == Some(b"true")
    {
        answer.set("access-control-allow-private-network", "true");
    }
}

/// Says on the response to a request that its origin is allowed.
pub fn mark_response(policy: &CorsPolicy, request: &Headers, response: &mut Headers) {
    if let Some(origin) = request.get("origin") {
        response.set("access-control-allow-origin", origin);
    }
    if policy.allow_credentials == Some(true) {
        response.set("access-control-allow-credentials", "true");
    }
    if !policy.expose_headers.is_empty() {
        response.set("access-control-expose-headers", &policy.expose_headers);
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::StringMatcher;

    use super::*;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            allow_origins: vec![StringMatcher::Suffix { value: ".a.test".to_owned(), ignore_case: false }],
            allow_methods: "GET, PUT".to_owned(),
            max_age: "60".to_owned(),
            ..CorsPolicy::default()
        }
    }

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    }

    #[test]
    fn a_level_has_what_it_leaves_out_from_the_next() {
        let outer = CorsPolicy { allow_credentials: Some(true), max_age: "1".to_owned(), ..policy() };
        let inner = CorsPolicy {
            allow_credentials: Some(false),
            allow_methods: "PUT".to_owned(),
            ..CorsPolicy::default()
        };
        let both = inherited([&inner, &outer].into_iter()).unwrap();
        assert_eq!((&*both.allow_methods, &*both.max_age, both.allow_credentials), ("PUT", "1", Some(false)));
        assert_eq!(both.allow_origins.len(), 1);
        assert!(matches!(inherited([&outer].into_iter()), Some(Cow::Borrowed(_))));
        assert!(inherited([].into_iter()).is_none());
    }

    #[test]
    fn a_preflight_names_a_method() {
        let asking = headers(&[("access-control-request-method", "PUT")]);
        let plain = headers(&[]);
        let mut policy = policy();
        assert_eq!(judge(&policy, true, &asking, true), Verdict::Preflight(true));
        assert_eq!(judge(&policy, true, &plain, true), Verdict::Allowed);
        assert_eq!(judge(&policy, false, &asking, true), Verdict::Allowed);
        assert_eq!(judge(&policy, true, &asking, false), Verdict::Plain);
        policy.forward_not_matching_preflights = Some(false);
        assert_eq!(judge(&policy, true, &asking, false), Verdict::Preflight(false));
        assert_eq!(judge(&policy, false, &plain, false), Verdict::Plain);
    }

    #[test]
    fn answers_say_what_the_policy_has() {
        let mut policy = policy();
        assert!(allows(&policy, b"https://x.a.test") && !allows(&policy, b"https://b.test"));
        let request =
            headers(&[("origin", "https://x.a.test"), ("access-control-request-private-network", "true")]);
        let mut answer = Headers::new();
        answer_preflight(&policy, &request, &mut answer);
        let shown: Vec<_> = answer.iter().collect();
        let expected: [(&[u8], &[u8]); 3] = [
            (b"access-control-allow-origin", b"https://x.a.test"),
            (b"access-control-allow-methods", b"GET, PUT"),
            (b"access-control-max-age", b"60"),
        ];
        assert_eq!(shown, expected);
        policy.allow_private_network_access = Some(true);
        policy.allow_credentials = Some(true);
        answer_preflight(&policy, &request, &mut answer);
        assert_eq!(answer.get("access-control-allow-private-network"), Some(&b"true"[..]));
        assert_eq!(answer.get("access-control-allow-credentials"), Some(&b"true"[..]));
    }
}
