//! Path hygiene before routing, as Envoy does it. All functions work on the whole target, query included, and never
//! touch the query. Envoy's order is [`escaped_slashes`], [`normalize`], [`merge_slashes`].

use culvert_model::EscapedSlashes;

use crate::head::split_query;

/// Normalises the path as `normalize_path` does: `\` becomes `/`, percent-encoded unreserved characters are decoded,
/// `"<>^{|}` and the backquote are encoded, dot segments are resolved (RFC 3986 section 5.2.4), also those with
/// parameters (`..;x`), which some servers resolve behind the proxy's back.
///
/// Returns false when there is a `%00`: 400 `path_normalization_failed`. What does not start with `/` stays as it is.
#[must_use]
pub fn normalize(path: &mut Vec<u8>) -> bool {
    let path_len = split_query(path).0.len();
    if !path.starts_with(b"/") || !needs_normalizing(&path[..path_len]) {
        return true;
    }
    let query = path.split_off(path_len);
    let Some(decoded) = decode_unreserved(path) else {
        path.extend_from_slice(&query);
        return false;
    };
    path.clear();
    resolve_dot_segments(&decoded, path);
    path.extend_from_slice(&query);
    true
}

/// Makes one slash of several, as `merge_slashes` does.
pub fn merge_slashes(path: &mut Vec<u8>) {
    let path_len = split_query(path).0.len();
    if !path[..path_len].windows(2).any(|pair| pair == b"//") {
        return;
    }
    let query = path.split_off(path_len);
    path.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    if path.len() == 1 {
        // Envoy joins the first slash and the last, with nothing between them.
        path.push(b'/');
    }
    path.extend_from_slice(&query);
}

/// What to do with a request after [`escaped_slashes`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EscapedSlashesOutcome {
    /// Go on with the path as it now is.
    Proceed,
    /// Answer 307 with the path as `location`, details `path_normalization_failed`.
    Redirect,
    /// Answer 400 `path_normalization_failed`.
    Reject,
}

/// Handles `%2F` and `%5C` in the path, as `path_with_escaped_slashes_action` says.
pub fn escaped_slashes(path: &mut Vec<u8>, action: EscapedSlashes) -> EscapedSlashesOutcome {
    if action == EscapedSlashes::Keep {
        return EscapedSlashesOutcome::Proceed;
    }
    let path_len = split_query(path).0.len();
    let Some(first) = (0..path_len).find(|&at| slash_at(&path[at..path_len]).is_some()) else {
        return EscapedSlashesOutcome::Proceed;
    };
    let rest = path.split_off(first);
    let (mut encoded, query) = rest.split_at(path_len - first);
    while let [byte, after @ ..] = encoded {
        match slash_at(encoded) {
            Some(slash) => {
                path.push(slash);
                encoded = &encoded[3..];
            }
            None => {
                path.push(*byte);
                encoded = after;
            }
        }
    }
    path.extend_from_slice(query);
    match action {
        EscapedSlashes::Reject => EscapedSlashesOutcome::Reject,
        EscapedSlashes::UnescapeAndRedirect => EscapedSlashesOutcome::Redirect,
        _ => EscapedSlashesOutcome::Proceed,
    }
}

/// The slash or backslash that is percent-encoded at the start of `bytes`.
fn slash_at(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', b'2', b'F' | b'f', ..] => Some(b'/'),
        [b'%', b'5', b'C' | b'c', ..] => Some(b'\\'),
        _ => None,
    }
}

/// Most paths are in order already; finding that out must be cheap.
fn needs_normalizing(path: &[u8]) -> bool {
    path.iter().any(|&byte| byte == b'%' || byte == b'\\' || is_escaped_by_normalizing(byte))
        || path.windows(2).any(|pair| pair == b"/.")
}

fn is_escaped_by_normalizing(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// `None`: there is a `%00`.
fn decode_unreserved(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len() + 8);
    // Where the last `%` is that starts no escape, unless it is settled that nothing after it can make it start one.
    let mut stray = None;
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, escape(after)) {
            (b'%', Some(0)) => return None,
            (b'%', Some(decoded)) => {
                if is_unreserved(decoded) {
                    out.push(decoded);
                } else {
                    out.push(b'%');
                    out.extend_from_slice(&after[..2]);
                }
                rest = &after[2..];
            }
            (b'%', None) => {
                stray = Some(out.len());
                out.push(b'%');
            }
            (b'\\', _) => out.push(b'/'),
            (byte, _) if is_escaped_by_normalizing(*byte) => push_escaped(*byte, &mut out),
            (byte, _) => out.push(*byte),
        }
        if let Some(at) = stray.filter(|&at| out.len() >= at + 3) {
            // Decoding must not make a new escape, which the next reader would decode: `%%32e` would become `%2e`.
            if escape(&out[at + 1..]).is_some() {
                out.splice(at..=at, *b"%25");
            }
            stray = None;
        }
    }
    Some(out)
}

/// The value of the two hexadecimal digits at the start of `digits`.
fn escape(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = digits else { return None };
    let high = (*high as char).to_digit(16)?;
    let low = (*low as char).to_digit(16)?;
    u8::try_from(high << 4 | low).ok()
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push_escaped(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
}

/// Appends the path without dot segments. `..` at the root stays at the root.
fn resolve_dot_segments(path: &[u8], out: &mut Vec<u8>) {
    let mut segments = path.split(|&byte| byte == b'/').skip(1).peekable();
    out.push(b'/');
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment.split(|&byte| byte == b';').next() {
            Some(b".") => continue,
            Some(b"..") => {
                out.pop();
                let parent = out.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
                out.truncate(parent);
                if out.is_empty() {
                    out.push(b'/');
                }
                continue;
            }
            _ => out.extend_from_slice(segment),
        }
        if !last {
            out.push(b'/');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(path: &str) -> Option<String> {
        let mut path = path.as_bytes().to_vec();
        normalize(&mut path).then(|| String::from_utf8(path).unwrap())
    }

    /// Measured on Envoy 1.40 with `normalize_path` and `merge_slashes`.
    const NORMALIZED: &[(&str, &str)] = &[
        ("/", "/"),
        ("/a/../b", "/b"),
        ("/../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/./a", "/a"),
        ("/a/./b", "/a/b"),
        ("/a//b", "/a/b"),
        ("//a", "/a"),
        ("/a///", "/a/"),
        ("/a\\b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/%2e%2e/a", "/a"),
        ("/%2E/a", "/a"),
        ("/a/%2e%2e", "/"),
        ("/%61b", "/ab"),
        ("/%41%7e%2d%5f%2E", "/A~-_."),
        ("/a%2fb", "/a%2fb"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%5cb", "/a%5cb"),
        ("/a%2f..%2fb", "/a%2f..%2fb"),
        ("/a/%2e%2e%2fb", "/a/..%2fb"),
        ("/%", "/%"),
        ("/%zz", "/%zz"),
        ("/%2", "/%2"),
        ("/a%20b", "/a%20b"),
        ("/a?b/../c", "/a?b/../c"),
        ("/a/..?b", "/?b"),
        ("/a?b//c", "/a?b//c"),
        ("/a?%2f", "/a?%2f"),
        ("/a;b/../c", "/c"),
        ("/a/...", "/a/..."),
        ("/.../a", "/.../a"),
        ("/.a/..b", "/.a/..b"),
        ("/a/b/../../c", "/c"),
        ("/a/../../../b", "/b"),
        ("/a%2525b", "/a%2525b"),
        ("/a%c3%a9", "/a%c3%a9"),
        ("/\"<>^`{|}", "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/a/.%2e/b", "/b"),
        ("/a/%252e%252e/b", "/a/%252e%252e/b"),
        ("/a%3fb", "/a%3fb"),
        ("/a%23b", "/a%23b"),
        ("/%2f%2fa", "/%2f%2fa"),
        ("/a/%5c../b", "/a/%5c../b"),
        ("/a/..%5cb", "/a/..%5cb"),
        ("//..//a", "/a"),
        ("/a//../b", "/a/b"),
        ("/..", "/"),
        ("/.", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/%2e", "/"),
        ("/a\\\\b", "/a/b"),
        ("/%7ea%3d", "/~a%3d"),
        ("/a!$&'()*+,;=:@b[]", "/a!$&'()*+,;=:@b[]"),
        ("/%%32e%%32e/a", "/%252e%252e/a"),
        ("/%2%65/", "/%252e/"),
        ("/a%1fb%7f%ff", "/a%1fb%7f%ff"),
        ("/a%", "/a%"),
        ("/a%4", "/a%4"),
        ("/%4%31", "/%2541"),
        ("/;/../a", "/a"),
        ("/.;/a", "/a"),
        ("/..;/a", "/a"),
        ("/a/..;x/b", "/b"),
        ("/%u002e/", "/%u002e/"),
        ("/a/.%2E", "/"),
        ("/a/%2E.?x", "/?x"),
        ("/.\\..\\a", "/a"),
        ("/a%2e", "/a."),
        ("/a/b%2e%2e/c", "/a/b../c"),
    ];

    #[test]
    fn normalizing_as_envoy_does() {
        for (path, expected) in NORMALIZED {
            let mut merged = normalized(path).unwrap().into_bytes();
            merge_slashes(&mut merged);
            assert_eq!(String::from_utf8(merged).unwrap(), *expected, "{path}");
        }
        for path in ["/a%00b", "/..%00/"] {
            assert_eq!(normalized(path), None, "{path}");
        }
    }

    #[test]
    fn a_failed_path_stays_as_it_was() {
        let mut path = b"/a%00b?c".to_vec();
        assert!(!normalize(&mut path));
        assert_eq!(path, b"/a%00b?c");
    }

    #[test]
    fn slashes_are_merged_without_normalizing() {
        for (path, expected) in [("//a///b//?c//d", "/a/b/?c//d"), ("/a/b", "/a/b"), ("///", "//"), ("", "")]
        {
            let mut merged = path.as_bytes().to_vec();
            merge_slashes(&mut merged);
            assert_eq!(merged, expected.as_bytes(), "{path}");
        }
    }

    /// Measured on Envoy 1.40 without `normalize_path`.
    #[test]
    fn escaped_slashes_as_envoy_does() {
        for (path, expected) in [
            ("/a%2fb", "/a/b"),
            ("/a%2Fb", "/a/b"),
            ("/a%5cb", "/a\\b"),
            ("/a%5Cb", "/a\\b"),
            ("/a%2f..%2fb", "/a/../b"),
            ("/a/%2e%2e%2fb", "/a/%2e%2e/b"),
            ("/%2f%2fa", "///a"),
            ("/a%2f?x=%2f", "/a/?x=%2f"),
            ("/%252f", "/%252f"),
            ("/a%2", "/a%2"),
            ("/%%2f", "/%/"),
        ] {
            for action in [EscapedSlashes::UnescapeAndForward, EscapedSlashes::UnescapeAndRedirect] {
                let mut unescaped = path.as_bytes().to_vec();
                let outcome = escaped_slashes(&mut unescaped, action);
                let changed = match action {
                    EscapedSlashes::UnescapeAndRedirect => EscapedSlashesOutcome::Redirect,
                    _ => EscapedSlashesOutcome::Proceed,
                };
                assert_eq!(
                    outcome,
                    if path == expected { EscapedSlashesOutcome::Proceed } else { changed },
                    "{path}"
                );
                assert_eq!(String::from_utf8(unescaped).unwrap(), expected, "{path}");
            }
            let mut kept = path.as_bytes().to_vec();
            assert_eq!(escaped_slashes(&mut kept, EscapedSlashes::Keep), EscapedSlashesOutcome::Proceed);
            assert_eq!(kept, path.as_bytes());
            let refused = escaped_slashes(&mut kept, EscapedSlashes::Reject) == EscapedSlashesOutcome::Reject;
            assert_eq!(refused, path != expected, "{path}");
        }
    }
}
