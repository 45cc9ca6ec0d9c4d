//! String and value matchers (`type.matcher.v3`).

use std::hash::{Hash, Hasher};

/// `type.matcher.v3.StringMatcher`. Regular expressions match the whole value, as RE2 `FullMatch` does.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum StringMatcher {
    /// `exact`
    Exact {
        /// The value; already lower case when `ignore_case`.
        value: String,
        /// Compare without ASCII case.
        ignore_case: bool,
    },
    /// `prefix`
    Prefix {
        /// See [`StringMatcher::Exact`].
        value: String,
        /// Compare without ASCII case.
        ignore_case: bool,
    },
    /// `suffix`
    Suffix {
        /// See [`StringMatcher::Exact`].
        value: String,
        /// Compare without ASCII case.
        ignore_case: bool,
    },
    /// `contains`
    Contains {
        /// See [`StringMatcher::Exact`].
        value: String,
        /// Compare without ASCII case.
        ignore_case: bool,
    },
    /// `safe_regex`
    Regex(FullRegex),
}

/// A regular expression that must match the whole input (`type.matcher.v3.RegexMatcher`, RE2 syntax).
#[derive(Clone, Debug)]
pub struct FullRegex {
    source: String,
    compiled: regex::bytes::Regex,
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for FullRegex {}

impl Hash for FullRegex {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

impl FullRegex {
    /// Compiles `source`.
    ///
    /// # Errors
    /// The expression does not parse, or compiles to more than the size limit of the `regex` crate (10 MiB).
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        let compiled = regex::bytes::Regex::new(&format!("^(?s:{source})$"))?;
        // The wrapper must not turn an invalid expression into a valid one, as `)(` would.
        regex::bytes::Regex::new(source)?;
        Ok(Self { source: source.to_owned(), compiled })
    }

    /// Whether the whole of `input` matches.
    #[must_use]
    pub fn is_match(&self, input: &[u8]) -> bool {
        self.compiled.is_match(input)
    }

    /// The expression as configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

/// `type.matcher.v3.RegexMatchAndSubstitute`: every match of the expression is replaced.
#[derive(Clone, Debug)]
pub struct RegexSubstitution {
    /// The expression, not anchored.
    pub pattern: regex::bytes::Regex,
    /// The replacement in the `regex` crate's syntax (`${1}`), converted from RE2's `\1`.
    pub replacement: Vec<u8>,
}

/// `config.route.v3.HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Lower case; `:method`, `:path`, `:authority` and `:scheme` name the pseudo headers.
    pub name: String,
    /// What the value has to look like.
    pub rule: HeaderRule,
    /// `invert_match`
    pub invert: bool,
    /// `treat_missing_header_as_empty`
    pub missing_is_empty: bool,
}

/// The specifier of a [`HeaderMatcher`].
#[derive(Clone, Debug)]
pub enum HeaderRule {
    /// `present_match`: `true` when the header has to be there.
    Present(bool),
    /// `range_match`: base-10 integer in `[start, end)`.
    Range(i64, i64),
    /// `string_match`, and the deprecated `exact_match`, `prefix_match`, ... that mean the same. Repeated headers are
    /// joined with `,` first.
    String(StringMatcher),
}

/// `config.route.v3.QueryParameterMatcher`: looks at the first parameter of that name.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    /// Parameter name, compared exactly.
    pub name: String,
    /// The rule.
    pub rule: QueryRule,
}

/// The specifier of a [`QueryMatcher`].
#[derive(Clone, Debug)]
pub enum QueryRule {
    /// `present_match`: `true` when the parameter has to be there.
    Present(bool),
    /// `string_match`
    String(StringMatcher),
}
