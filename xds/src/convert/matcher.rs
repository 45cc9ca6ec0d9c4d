//! `type.matcher.v3`, and the matchers of routes.

use culvert_model::{
    FullRegex, HeaderMatcher, HeaderRule, QueryMatcher, QueryRule, RegexSubstitution, StringMatcher,
};
use envoy_types::pb::envoy::{
    config::route::v3::{
        self as route, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier,
    },
    r#type::matcher::v3::{self as pb, string_matcher::MatchPattern},
};

use crate::{at::At, re2};

/// A regular expression that has to match the whole input.
pub(super) fn regex(at: &At<'_>, matcher: &pb::RegexMatcher) -> Option<FullRegex> {
    FullRegex::new(&re2::translate(&matcher.regex))
        .map_err(|e| at.field("regex").error::<()>(one_line(&e)))
        .ok()
}

/// A substitution of every match.
pub(super) fn substitution(at: &At<'_>, rewrite: &pb::RegexMatchAndSubstitute) -> Option<RegexSubstitution> {
    let source = rewrite.pattern.as_ref().map_or("", |pattern| pattern.regex.as_str());
    let pattern = regex::bytes::Regex::new(&re2::translate(source))
        .map_err(|e| at.field("pattern").field("regex").error::<()>(one_line(&e)))
        .ok()?;
    let replacement = replacement(&rewrite.substitution, pattern.captures_len() - 1)
        .map_err(|reason| at.field("substitution").error::<()>(reason))
        .ok()?;
    Some(RegexSubstitution { pattern, replacement })
}

/// RE2's `\1` as the `regex` crate's `${1}`.
fn replacement(substitution: &str, groups: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(substitution.len());
    let mut bytes = substitution.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'$' => out.extend_from_slice(b"$$"),
            b'\\' => match bytes.next() {
                Some(b'\\') => out.push(b'\\'),
                Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') <= groups => {
                    out.extend_from_slice(&[b'$', b'{', digit, b'}']);
                }
                Some(b'0'..=b'9') => {
                    return Err(format!(
                        "{substitution:?} refers to more groups than the pattern has, {groups}"
                    ));
                }
                _ => {
                    return Err(format!(
                        "{substitution:?} has a backslash that no digit or backslash follows"
                    ));
                }
            },
            byte => out.push(byte),
        }
    }
    Ok(out)
}

/// The parser's message is a drawing over several lines; what it says stands in the last one.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!("invalid regular expression: {}", last.trim().trim_start_matches("error: "))
}

/// A matcher of strings.
pub(super) fn string(at: &At<'_>, matcher: &pb::StringMatcher) -> Option<StringMatcher> {
    let ignore_case = matcher.ignore_case;
    let fold = |value: &str| if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
    Some(match matcher.match_pattern.as_ref()? {
        MatchPattern::Exact(value) => StringMatcher::Exact { value: fold(value), ignore_case },
        MatchPattern::Prefix(value) => StringMatcher::Prefix { value: fold(value), ignore_case },
        MatchPattern::Suffix(value) => StringMatcher::Suffix { value: fold(value), ignore_case },
        MatchPattern::Contains(value) => StringMatcher::Contains { value: fold(value), ignore_case },
        MatchPattern::SafeRegex(_) if ignore_case => {
            return at
                .field("ignore_case")
                .error("has no effect for safe_regex; write (?i) into the expression");
        }
        MatchPattern::SafeRegex(matcher) => StringMatcher::Regex(regex(&at.field("safe_regex"), matcher)?),
        MatchPattern::Custom(_) => return at.field("custom").unsupported("not supported"),
    })
}

/// A matcher of headers, with the deprecated specifiers as what replaces them.
pub(super) fn header(at: &At<'_>, matcher: &route::HeaderMatcher) -> Option<HeaderMatcher> {
    let exactly = |value: &str| value.to_owned();
    let ignore_case = false;
    let rule = match matcher.header_match_specifier.as_ref() {
        None => HeaderRule::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderRule::Present(*present),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => HeaderRule::Range(range.start, range.end),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            HeaderRule::String(string(&at.field("string_match"), matcher)?)
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            HeaderRule::String(StringMatcher::Regex(regex(&at.field("safe_regex_match"), matcher)?))
        }
        Some(HeaderMatchSpecifier::ExactMatch(value)) => {
            HeaderRule::String(StringMatcher::Exact { value: exactly(value), ignore_case })
        }
        Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
            HeaderRule::String(StringMatcher::Prefix { value: exactly(value), ignore_case })
        }
        Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
            HeaderRule::String(StringMatcher::Suffix { value: exactly(value), ignore_case })
        }
        Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
            HeaderRule::String(StringMatcher::Contains { value: exactly(value), ignore_case })
        }
    };
    Some(HeaderMatcher {
        name: matcher.name.to_ascii_lowercase(),
        rule,
        invert: matcher.invert_match,
        missing_is_empty: matcher.treat_missing_header_as_empty,
    })
}

/// A matcher of query parameters.
pub(super) fn query(at: &At<'_>, matcher: &route::QueryParameterMatcher) -> Option<QueryMatcher> {
    let rule = match matcher.query_parameter_match_specifier.as_ref() {
        None => QueryRule::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryRule::Present(*present),
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            QueryRule::String(string(&at.field("string_match"), matcher)?)
        }
    };
    Some(QueryMatcher { name: matcher.name.clone(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacements_of_re2() {
        for (given, expected) in [("", ""), ("a", "a"), (r"\1-\0", "${1}-${0}"), (r"$1\\", r"$$1\")] {
            assert_eq!(replacement(given, 1).unwrap(), expected.as_bytes(), "{given}");
        }
        for bad in [r"\", r"\a", r"\2"] {
            assert!(replacement(bad, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn regex_errors_are_one_line() {
        let error = regex::bytes::Regex::new(&format!("a{}", "(b")).unwrap_err();
        assert_eq!(one_line(&error), "invalid regular expression: unclosed group");
    }
}
