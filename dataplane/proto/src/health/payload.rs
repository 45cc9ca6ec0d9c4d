//! Payloads of checks.

use memchr::memmem;

/// Whether `data` has all `parts`, each behind the one before it.
#[must_use]
pub fn contains_in_order(parts: &[Vec<u8>], data: &[u8]) -> bool {
    let mut rest = data;
    parts.iter().all(|part| match memmem::find(rest, part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}
