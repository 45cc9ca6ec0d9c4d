//! Cross-origin requests (the Fetch standard, section 3.2; `envoy.filters.http.cors`).

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

/// Whether a request with this `origin` may go on, and how. `options`: it has that method.
#[must_use]
pub fn judge(policy: &CorsPolicy, options: bool, headers: &Headers, allowed: bool) -> Verdict {
    let preflight =
        options && headers.get("access-control-request-method").is_some_and(|method| !method.is_empty());
    match (preflight, allowed) {
        (true, true) => Verdict::Preflight(true),
        (true, false) if !policy.forward_not_matching_preflights => Verdict::Preflight(false),
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
    if policy.allow_credentials {
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
    if policy.allow_private_network_access
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
    if policy.allow_credentials {
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
            forward_not_matching_preflights: true,
            ..CorsPolicy::default()
        }
    }

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.push(name, value));
        headers
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
        policy.forward_not_matching_preflights = false;
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
        policy.allow_private_network_access = true;
        policy.allow_credentials = true;
        answer_preflight(&policy, &request, &mut answer);
        assert_eq!(answer.get("access-control-allow-private-network"), Some(&b"true"[..]));
        assert_eq!(answer.get("access-control-allow-credentials"), Some(&b"true"[..]));
    }
}
