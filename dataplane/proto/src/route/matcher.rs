//! The conditions of a route other than its path.

use culvert_model::{HeaderMatcher, HeaderRule, QueryMatcher, QueryRule, RouteMatch, StringMatcher};

use crate::{Headers, ResponseHead, h1::push_decimal, head::split_query, route::RequestView};

/// Whether everything but the path matches.
pub(super) fn conditions_match(matcher: &RouteMatch, request: &RequestView<'_>, random: u64) -> bool {
    matcher.headers.iter().all(|header| header_matches(header, request))
        && matcher.query.iter().all(|query| query_matches(query, request.path))
        && (!matcher.grpc || is_grpc(request))
        && matcher.fraction_ppm.is_none_or(|ppm| random % 1_000_000 < u64::from(ppm))
}

/// Fields whose repetitions Envoy joins with `,` when it reads them; the values of all others are matched one by one.
/// Measured on Envoy 1.40.
const JOINED: [&str; 26] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-type",
    "expect",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-external-address",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// One value of a repeated field is enough; `invert` then says no. Measured on Envoy 1.40.
pub fn header_matches(matcher: &HeaderMatcher, request: &RequestView<'_>) -> bool {
    let found = match pseudo_header(&matcher.name, request) {
        Some(value) => value.map_or(Verdict::Missing, |value| value_matches(&matcher.rule, value)),
        None => field_matches(matcher, request.headers),
    };
    judge(matcher, found)
}

/// The same for a response, whose only pseudo header is `:status`.
#[must_use]
pub fn response_header_matches(matcher: &HeaderMatcher, response: &ResponseHead) -> bool {
    let found = if matcher.name == ":status" {
        let mut status = Vec::with_capacity(3);
        push_decimal(u64::from(response.status), &mut status);
        value_matches(&matcher.rule, &status)
    } else {
        field_matches(matcher, &response.headers)
    };
    judge(matcher, found)
}

fn field_matches(matcher: &HeaderMatcher, headers: &Headers) -> Verdict {
    let name = matcher.name.as_str();
    if JOINED.contains(&name) {
        return headers.joined(name).map_or(Verdict::Missing, |value| value_matches(&matcher.rule, &value));
    }
    let verdicts = headers.get_all(name).map(|value| value_matches(&matcher.rule, value));
    verdicts.fold(Verdict::Missing, |all, one| if all == Verdict::Matches { all } else { one })
}

fn judge(matcher: &HeaderMatcher, found: Verdict) -> bool {
    let verdict = match found {
        Verdict::Missing if matcher.missing_is_empty => value_matches(&matcher.rule, b""),
        other => other,
    };
    match (verdict, &matcher.rule) {
        (Verdict::Matches, _) => !matcher.invert,
        (Verdict::Differs, _) => matcher.invert,
        // What a value has to look like cannot be said of no value, not even in the negative.
        (Verdict::Missing, HeaderRule::Present(present)) => *present == matcher.invert,
        (Verdict::Missing, _) => false,
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Verdict {
    Differs,
    Matches,
    Missing,
}

impl<'a> RequestView<'a> {
    /// The value of a field, pseudo headers included; several are joined with commas.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<std::borrow::Cow<'a, [u8]>> {
        match pseudo_header(name, self) {
            Some(value) => value.map(std::borrow::Cow::Borrowed),
            None => self.headers.joined(name).map(|value| std::borrow::Cow::Owned(value.to_vec())),
        }
    }
}

impl From<bool> for Verdict {
    fn from(matches: bool) -> Self {
        if matches { Self::Matches } else { Self::Differs }
    }
}

/// The value of a pseudo header; the outer `None`: it is an ordinary field.
pub(super) fn pseudo_header<'r>(name: &str, request: &RequestView<'r>) -> Option<Option<&'r [u8]>> {
    match name {
        ":method" => Some(Some(request.method)),
        ":path" => Some((!request.path.is_empty()).then_some(request.path)),
        ":authority" | "host" => Some(Some(request.authority)),
        ":scheme" => Some(Some(request.scheme)),
        _ => None,
    }
}

fn value_matches(rule: &HeaderRule, value: &[u8]) -> Verdict {
    match rule {
        HeaderRule::Present(present) => Verdict::from(*present),
        HeaderRule::Range(start, end) => {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
            Verdict::from(number.is_some_and(|number| (*start..*end).contains(&number)))
        }
        HeaderRule::String(string) => Verdict::from(string_matches(string, value)),
    }
}

/// Looks at the first parameter of that name, as it is: nothing is decoded.
pub(crate) fn query_matches(matcher: &QueryMatcher, path: &[u8]) -> bool {
    let value = query_value(path, matcher.name.as_bytes());
    match &matcher.rule {
        QueryRule::Present(present) => value.is_some() == *present,
        QueryRule::String(string) => value.is_some_and(|value| string_matches(string, value)),
    }
}

pub(crate) fn query_value<'p>(path: &'p [u8], name: &[u8]) -> Option<&'p [u8]> {
    split_query(path).1?.split(|&byte| byte == b'&').find_map(|parameter| {
        match parameter.strip_prefix(name)? {
            [] => Some(&[][..]),
            [b'=', value @ ..] => Some(value),
            _ => None,
        }
    })
}

fn is_grpc(request: &RequestView<'_>) -> bool {
    let rest = request.headers.get("content-type").and_then(|value| value.strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+', ..]))
}

/// Whether `value` satisfies `matcher`.
pub fn string_matches(matcher: &StringMatcher, value: &[u8]) -> bool {
    match matcher {
        StringMatcher::Exact { value: expected, ignore_case } => {
            equal(value, expected.as_bytes(), *ignore_case)
        }
        StringMatcher::Prefix { value: expected, ignore_case } => {
            let head = value.get(..expected.len());
            head.is_some_and(|head| equal(head, expected.as_bytes(), *ignore_case))
        }
        StringMatcher::Suffix { value: expected, ignore_case } => {
            let tail = value.len().checked_sub(expected.len()).and_then(|start| value.get(start..));
            tail.is_some_and(|tail| equal(tail, expected.as_bytes(), *ignore_case))
        }
        StringMatcher::Contains { value: expected, ignore_case: false } => {
            memchr::memmem::find(value, expected.as_bytes()).is_some()
        }
        StringMatcher::Contains { value: expected, ignore_case: true } => {
            expected.is_empty()
                || value.windows(expected.len()).any(|part| part.eq_ignore_ascii_case(expected.as_bytes()))
        }
        StringMatcher::Regex(regex) => regex.is_match(value),
    }
}

fn equal(value: &[u8], expected: &[u8], ignore_case: bool) -> bool {
    if ignore_case { value.eq_ignore_ascii_case(expected) } else { value == expected }
}

#[cfg(test)]
mod tests {
    use culvert_model::FullRegex;

    use super::*;
    use crate::Headers;

    fn exact(value: &str) -> HeaderRule {
        HeaderRule::String(StringMatcher::Exact { value: value.to_owned(), ignore_case: false })
    }

    fn contains(value: &str) -> HeaderRule {
        HeaderRule::String(StringMatcher::Contains { value: value.to_owned(), ignore_case: false })
    }

    fn regex(source: &str) -> HeaderRule {
        HeaderRule::String(StringMatcher::Regex(FullRegex::new(source).unwrap()))
    }

    #[track_caller]
    fn check(
        name: &str,
        rule: HeaderRule,
        invert: bool,
        missing_is_empty: bool,
        values: &[&str],
        expected: bool,
    ) {
        let mut headers = Headers::new();
        for value in values {
            headers.push(name, value);
        }
        let request = RequestView {
            method: b"POST",
            scheme: b"http",
            authority: b"h",
            path: b"/p?q",
            headers: &headers,
        };
        let matcher = HeaderMatcher { name: name.to_owned(), rule, invert, missing_is_empty };
        assert_eq!(header_matches(&matcher, &request), expected, "{matcher:?} {values:?}");
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn single_values_and_missing_ones() {
        let present = |present| HeaderRule::Present(present);
        let range = HeaderRule::Range(-10, 10);
        for (rule, invert, missing_is_empty, values, missing, matching) in [
            // rule, invert, missing is empty; missing, and the values that match
            (exact("v"), true, false, "v x 5", false, &["x", "5"][..]),
            (exact("v"), true, true, "v x 5", true, &["x", "5"]),
            (exact(""), false, true, "v x", true, &[]),
            (present(true), false, false, "v x", false, &["v", "x"]),
            (present(false), false, false, "v x", true, &[]),
            (present(true), true, false, "v x", true, &[]),
            (present(false), true, false, "v x", false, &["v", "x"]),
            (present(true), false, true, "v x", true, &["v", "x"]),
            (present(false), false, true, "v x", false, &[]),
            (range.clone(), false, false, "v 5 10 -10 +5 5x 9", false, &["5", "-10", "+5", "9"]),
            (range.clone(), true, false, "v 5 10 -10 +5 5x", false, &["v", "10", "5x"]),
            (range, false, true, "v 5 10", false, &["5"]),
        ] {
            check("a", rule.clone(), invert, missing_is_empty, &[], missing);
            for value in values.split(' ') {
                check("a", rule.clone(), invert, missing_is_empty, &[value], matching.contains(&value));
            }
        }
    }

    /// Measured on Envoy 1.40: one by one, but for the fields it joins when it reads them.
    #[test]
    fn repeated_values() {
        let twice = &["1", "2"];
        check("a", exact("1"), false, false, twice, true);
        check("a", exact("2"), false, false, twice, true);
        check("a", exact("1,2"), false, false, twice, false);
        check("a", contains(","), false, false, twice, false);
        check("a", regex(".*1.*2.*"), false, false, twice, false);
        check("a", exact("1"), true, false, twice, false);
        check("a", exact("1,2"), true, false, twice, true);
        check("a", HeaderRule::Range(1, 2), false, false, twice, true);
        check("a", exact("1,2"), false, false, &["1,2"], true);
        check("cookie", exact("b=2"), false, false, &["a=1", "b=2"], true);
        check("cookie", exact("a=1; b=2"), false, false, &["a=1", "b=2"], false);
        check("accept", exact("1"), false, false, twice, false);
        check("accept", exact("1,2"), false, false, twice, true);
    }

    #[test]
    fn pseudo_headers() {
        for (name, value) in
            [(":method", "POST"), (":path", "/p?q"), (":authority", "h"), ("host", "h"), (":scheme", "http")]
        {
            let mut headers = Headers::new();
            headers.push("unrelated", "1");
            let request = RequestView {
                method: b"POST",
                scheme: b"http",
                authority: b"h",
                path: b"/p?q",
                headers: &headers,
            };
            let matcher = |value| HeaderMatcher {
                name: name.to_owned(),
                rule: exact(value),
                invert: false,
                missing_is_empty: false,
            };
            assert!(header_matches(&matcher(value), &request), "{name}");
            assert!(!header_matches(&matcher("x"), &request), "{name}");
        }
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn cookies_by_expression() {
        let jason = || regex(r"(.*;\s*)?user=jason(;.*)?");
        check("cookie", jason(), false, false, &["x=1; user=jason"], true);
        check("cookie", jason(), false, false, &["x=1", "user=jason"], true);
        check("cookie", jason(), false, false, &["user=jason2"], false);
    }

    #[test]
    fn strings() {
        let cases: &[(StringMatcher, &[&str], &[&str])] = &[
            (
                StringMatcher::Exact { value: "ab".into(), ignore_case: false },
                &["ab"],
                &["AB", "abc", "a", ""],
            ),
            (StringMatcher::Exact { value: "ab".into(), ignore_case: true }, &["ab", "AB"], &["abc"]),
            (
                StringMatcher::Prefix { value: "ab".into(), ignore_case: false },
                &["ab", "abc"],
                &["ABc", "a", ""],
            ),
            (StringMatcher::Prefix { value: "ab".into(), ignore_case: true }, &["ABc"], &["a"]),
            (
                StringMatcher::Suffix { value: "ab".into(), ignore_case: false },
                &["ab", "cab"],
                &["cAB", "b", ""],
            ),
            (StringMatcher::Suffix { value: "ab".into(), ignore_case: true }, &["cAB"], &["b"]),
            (
                StringMatcher::Contains { value: "ab".into(), ignore_case: false },
                &["ab", "cabc"],
                &["cABc", ""],
            ),
            (StringMatcher::Contains { value: "ab".into(), ignore_case: true }, &["cABc"], &["ba"]),
            (StringMatcher::Contains { value: String::new(), ignore_case: true }, &["", "x"], &[]),
        ];
        for (matcher, matching, other) in cases {
            for value in *matching {
                assert!(string_matches(matcher, value.as_bytes()), "{matcher:?} {value}");
            }
            for value in *other {
                assert!(!string_matches(matcher, value.as_bytes()), "{matcher:?} {value}");
            }
        }
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn queries() {
        let rule = || QueryRule::String(StringMatcher::Exact { value: "v".into(), ignore_case: false });
        let matches =
            |rule, path: &str| query_matches(&QueryMatcher { name: "a".into(), rule }, path.as_bytes());
        for (path, expected) in [
            ("/?a=v", true),
            ("/?a=x&a=v", false),
            ("/?b=1&a=v", true),
            ("/?a", false),
            ("/?a=%76", false),
            ("/?A=v", false),
            ("/?a=v=", false),
            ("/?a=v;b", false),
            ("/?ab=v", false),
            ("/", false),
            ("/?", false),
            ("/a=v", false),
        ] {
            assert_eq!(matches(rule(), path), expected, "{path}");
        }
        for (path, expected) in [("/?a", true), ("/?a=", true), ("/?ab", false), ("/", false)] {
            assert_eq!(matches(QueryRule::Present(true), path), expected, "{path}");
            assert_eq!(matches(QueryRule::Present(false), path), !expected, "{path}");
        }
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn grpc_by_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/grpc; x", false),
            ("APPLICATION/GRPC", false),
            ("text/plain", false),
        ] {
            let mut headers = Headers::new();
            headers.push("content-type", value);
            let request = RequestView {
                method: b"POST",
                scheme: b"http",
                authority: b"h",
                path: b"/",
                headers: &headers,
            };
            assert_eq!(is_grpc(&request), expected, "{value}");
        }
    }
}
