//! Response heads.

use crate::{
    Method, ResponseHead,
    h1::{Fault, Framing},
};

/// What [`parse_response`] accepts.
#[derive(Clone, Copy, Debug)]
pub struct ResponseOptions {
    /// Longest head in bytes, status line and blank line included: 60 KiB.
    pub max_bytes: usize,
    /// Most header fields: 100.
    pub max_count: usize,
    /// Whether the spelling of names is kept.
    pub preserve_case: bool,
}

impl Default for ResponseOptions {
    fn default() -> Self {
        Self { max_bytes: 60 * 1024, max_count: 100, preserve_case: false }
    }
}

/// Parses the response head at the start of `buf` into `out`, which is cleared first.
///
/// `request_method` is that of the request it answers: it decides whether there is a body. Returns as
/// [`super::parse_request`] does.
///
/// # Errors
/// The first [`Fault`] of the head.
pub fn parse_response(
    buf: &[u8],
    opts: &ResponseOptions,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<Option<(usize, Framing)>, Fault> {
    let _ = (buf, opts, request_method, out);
    Ok(None)
}
