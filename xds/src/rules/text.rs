//! Constraints on strings.

use regex::Regex;

/// `validate.StringRules`, as far as Envoy's files use them.
#[derive(Debug, Default)]
pub(super) struct TextRule {
    pub(super) min_chars: Option<u64>,
    pub(super) max_chars: Option<u64>,
    pub(super) min_bytes: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) pattern: Option<Regex>,
    pub(super) prefix: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) in_: Vec<String>,
    pub(super) header: Option<HeaderText>,
    pub(super) ignore_empty: bool,
}

/// `well_known_regex`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HeaderText {
    /// No NUL, CR or LF: names and values where `strict` is false.
    Loose,
    /// A field name of RFC 9110, or a pseudo header.
    Name,
    /// Visible characters, space, tab and bytes above 127.
    Value,
}

impl TextRule {
    /// # Errors
    /// The constraint that `text` violates.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self.ignore_empty && text.is_empty() {
            return Ok(());
        }
        check_length(self.min_chars, self.max_chars, text.chars().count(), "characters")?;
        check_length(self.min_bytes, self.max_bytes, text.len(), "bytes")?;
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            return Err(format!("value does not match regex pattern {:?}", pattern.as_str()));
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|prefix| !text.starts_with(*prefix)) {
            return Err(format!("value does not have prefix {prefix:?}"));
        }
        if let Some(suffix) = self.suffix.as_ref().filter(|suffix| !text.ends_with(*suffix)) {
            return Err(format!("value does not have suffix {suffix:?}"));
        }
        if !self.in_.is_empty() && !self.in_.iter().any(|allowed| allowed == text) {
            return Err(format!("value must be in list {:?}", self.in_));
        }
        match self.header {
            Some(header) if !header.allows(text.as_bytes()) => Err(header.expectation().to_owned()),
            _ => Ok(()),
        }
    }
}

impl HeaderText {
    fn allows(self, text: &[u8]) -> bool {
        match self {
            Self::Loose => !text.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')),
            Self::Name => {
                let name = text.strip_prefix(b":").unwrap_or(text);
                !name.is_empty()
                    && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(b))
            }
            Self::Value => !text.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)),
        }
    }

    fn expectation(self) -> &'static str {
        match self {
            Self::Loose => "value must not contain NUL, CR or LF",
            Self::Name => "value is not a header name",
            Self::Value => "value is not a header value",
        }
    }
}

/// # Errors
/// Which limit `length` misses.
pub(super) fn check_length(
    min: Option<u64>,
    max: Option<u64>,
    length: usize,
    unit: &str,
) -> Result<(), String> {
    let length = length as u64;
    match (min, max) {
        (Some(min), _) if length < min => Err(format!("value length must be at least {min} {unit}")),
        (_, Some(max)) if length > max => Err(format!("value length must be at most {max} {unit}")),
        _ => Ok(()),
    }
}
