//! Path hygiene before routing, as Envoy does it. All functions work on the whole target, query included, and never
//! touch the query.

use culvert_model::EscapedSlashes;

/// Resolves dot segments (RFC 3986 section 5.2.4), turns `\` into `/` and decodes percent-encoded unreserved
/// characters, as `normalize_path` does. Returns false when the path cannot be normalised: 400 `path_normalization_failed`.
#[must_use]
pub fn normalize(path: &mut Vec<u8>) -> bool {
    let _ = path;
    true
}

/// Makes one slash of several, as `merge_slashes` does.
pub fn merge_slashes(path: &mut Vec<u8>) {
    let _ = path;
}

/// What to do with a request after [`escaped_slashes`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EscapedSlashesOutcome {
    /// Go on with the path as it now is.
    Proceed,
    /// Answer 307 with the path as `location`.
    Redirect,
    /// Answer 400.
    Reject,
}

/// Handles `%2F` and `%5C` in the path, as `path_with_escaped_slashes_action` says.
pub fn escaped_slashes(path: &mut Vec<u8>, action: EscapedSlashes) -> EscapedSlashesOutcome {
    let _ = (path, action);
    EscapedSlashesOutcome::Proceed
}
