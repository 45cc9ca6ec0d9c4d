//! RE2's syntax in the `regex` crate's.
//!
//! The two agree on nearly everything. Where they accept the same text with another meaning, or only RE2 accepts it, the
//! text is rewritten: `\d`, `\w`, `\s` and `\b` know ASCII only, `\Q...\E` quotes, `\<` is a `<`, and within brackets
//! `[`, `&`, `~` stand for themselves.

/// `pattern` as the `regex` crate writes it. What neither of them accepts stays wrong.
pub(crate) fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut class = false;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (c, class) {
            ('\\', _) => rest = escape(rest, class, &mut out),
            ('[', false) => {
                class = true;
                out.push('[');
                // A bracket that closes right away is the first member of the class.
                for opening in ["^]", "]", "^"] {
                    if let Some(after) = rest.strip_prefix(opening) {
                        out.push_str(opening);
                        rest = after;
                        break;
                    }
                }
            }
            ('[', true) => match rest.strip_prefix(':').and_then(|named| named.find(":]")) {
                Some(end) => {
                    out.push('[');
                    out.push_str(&rest[..end + 3]);
                    rest = &rest[end + 3..];
                }
                None => out.push_str("\\["),
            },
            (']', true) => {
                class = false;
                out.push(']');
            }
            ('&' | '~', true) => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}

/// What follows a backslash.
fn escape<'a>(rest: &'a str, class: bool, out: &mut String) -> &'a str {
    let Some(c) = rest.chars().next() else {
        out.push('\\');
        return rest;
    };
    let after = &rest[c.len_utf8()..];
    match (c, class) {
        ('Q', _) => {
            let (quoted, after) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(quoted));
            return after;
        }
        ('d', false) => out.push_str("[0-9]"),
        ('d', true) => out.push_str("0-9"),
        ('D', _) => out.push_str("[^0-9]"),
        ('w', false) => out.push_str("[0-9A-Za-z_]"),
        ('w', true) => out.push_str("0-9A-Za-z_"),
        ('W', _) => out.push_str("[^0-9A-Za-z_]"),
        ('s', false) => out.push_str("[\\t\\n\\f\\r ]"),
        ('s', true) => out.push_str("\\t\\n\\f\\r "),
        ('S', _) => out.push_str("[^\\t\\n\\f\\r ]"),
        ('b', false) => out.push_str("(?-u:\\b)"),
        ('B', false) => out.push_str("(?-u:\\B)"),
        ('<' | '>', _) => out.push(c),
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let translated = translate(pattern);
        let regex = regex::Regex::new(&format!("^(?:{translated})$"));
        regex.unwrap_or_else(|e| panic!("{pattern} as {translated}: {e}")).is_match(text)
    }

    #[test]
    fn what_is_common_stays() {
        for same in
            [r".*?(^|;\s)x", "^(.*?;)?(user=jason)(;.*)?$", "a{2,3}|(?i)b", "[[:alpha:]_-]+", "[]a]", "[^]]"]
        {
            assert!(regex::Regex::new(&translate(same)).is_ok(), "{same}");
        }
        assert_eq!(translate("^/a/(.*)$"), "^/a/(.*)$");
        assert!(matches("[[:alpha:]]+", "ab") && !matches("[[:alpha:]]", "["));
    }

    #[test]
    fn classes_are_ascii() {
        assert!(matches(r"\d+\w\s", "12x ") && !matches(r"\d", "٣") && !matches(r"\w", "é"));
        assert!(matches(r"[\d.]+", "1.2") && matches(r"[^\s]+", "ab") && matches(r"[\W]", "é"));
        assert!(matches(r"a\b.b", "a b"));
    }

    #[test]
    fn brackets_hold_members_only() {
        assert!(matches("[[a]+", "[a") && matches("[a&&b]", "&") && matches("[~~]", "~"));
        assert!(matches("[]a]+", "]a") && matches("[^]]", "a") && !matches("[^]]", "]"));
    }

    #[test]
    fn quotes_and_angles() {
        assert!(matches(r"\Qa.b\E+", "a.bb") && !matches(r"\Qa.b\E", "axb") && matches(r"\Q(", "("));
        assert!(matches(r"\<a\>", "<a>"));
        assert_eq!(translate("a\\"), "a\\");
    }
}
