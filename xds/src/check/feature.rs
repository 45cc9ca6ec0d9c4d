//! What a refusal is about, in as few words as will do to count refusals.

use crate::Error;

/// Packages whose messages are extensions or parts of the configuration.
const PACKAGES: [&str; 6] = ["contrib.", "culvert.", "envoy.", "google.", "udpa.", "xds."];

/// The extension that a refusal names, or the field that it is at, with the reason where there is more to say than
/// that it is not supported.
pub(super) fn feature(error: &Error) -> String {
    if let Some(extension) = extension(&error.reason) {
        return extension.to_owned();
    }
    let kind = error.resource.split('"').next().unwrap_or_default();
    let kind = kind.trim().trim_start_matches("--config-yaml: ");
    let path = without_indices(&error.field);
    let place = if path.is_empty() { kind.to_owned() } else { format!("{kind} {path}") };
    match error.reason.as_str() {
        "not supported" => place,
        reason => format!("{place}: {reason}"),
    }
}

/// The first full name of a message in a sentence.
fn extension(reason: &str) -> Option<&str> {
    let words = reason.split(|c: char| c.is_whitespace() || matches!(c, '"' | ',' | ':' | ';'));
    words.map(|word| word.rsplit('/').next().unwrap_or(word).trim_end_matches('.')).find(|word| {
        let last = word.rsplit('.').next().unwrap_or_default();
        PACKAGES.iter().any(|package| word.starts_with(package))
            && word.matches('.').count() >= 2
            && last.starts_with(|c: char| c.is_ascii_uppercase())
    })
}

/// `a[3].b["x"].c` as `a.b.c`.
fn without_indices(path: &str) -> String {
    let mut shown = String::with_capacity(path.len());
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for c in path.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if depth > 0 => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth = depth.saturating_sub(1),
            c if depth == 0 => shown.push(c),
            _ => {}
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_feature_is_an_extension_or_a_field() {
        let shown = |resource: &str, field: &str, reason: &str| {
            let error = Error { kind: ErrorKind::Unsupported, ..Error::invalid(resource, field, reason) };
            feature(&error)
        };
        let lua = "envoy.extensions.filters.http.lua.v3.Lua is not supported";
        assert_eq!(shown("listener \"a\"", "x", lua), "envoy.extensions.filters.http.lua.v3.Lua");
        let unknown = "unknown extension type \"type.googleapis.com/envoy.a.v3alpha.Config\"";
        assert_eq!(shown("listener \"a\"", "x", unknown), "envoy.a.v3alpha.Config");
        let at = "a[0].b[\"x].y\"].c";
        assert_eq!(shown("cluster \"a \\\" b\"", at, "not supported"), "cluster a.b.c");
        assert_eq!(shown("cluster \"a\"", "type", "X is not supported"), "cluster type: X is not supported");
        assert_eq!(shown("bootstrap", "", "there is envoy.x"), "bootstrap: there is envoy.x");
    }
}
