//! Request heads.

use culvert_model::{HttpConnectionManager, UnderscoresAction};

use crate::{
    RequestHead,
    h1::{Fault, Framing},
};

/// What [`parse_request`] accepts.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// Longest head in bytes, request line and blank line included: 60 KiB. Beyond: 431.
    pub max_bytes: usize,
    /// Most header fields: 100. Beyond: 431.
    pub max_count: usize,
    /// Whether HTTP/1.0 is served, else 426.
    pub allow_http10: bool,
    /// Authority of an HTTP/1.0 request without `Host`; empty: such a request is refused with 400.
    pub default_host: String,
    /// Whether the authority of an absolute-form target is used; else the target stays what it is.
    pub allow_absolute_url: bool,
    /// Whether `content-length` beside `transfer-encoding: chunked` is dropped instead of refused.
    pub allow_chunked_length: bool,
    /// Whether the spelling of names is kept.
    pub preserve_case: bool,
    /// What happens to names with an underscore.
    pub underscores: UnderscoresAction,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            max_bytes: 60 * 1024,
            max_count: 100,
            allow_http10: false,
            default_host: String::new(),
            allow_absolute_url: true,
            allow_chunked_length: false,
            preserve_case: false,
            underscores: UnderscoresAction::Allow,
        }
    }
}

impl From<&HttpConnectionManager> for RequestOptions {
    fn from(manager: &HttpConnectionManager) -> Self {
        Self {
            max_bytes: manager.max_request_headers_bytes,
            max_count: manager.max_headers_count,
            allow_http10: manager.http1.accept_http_10,
            default_host: manager.http1.default_host_for_http_10.clone(),
            allow_absolute_url: manager.http1.allow_absolute_url,
            allow_chunked_length: manager.http1.allow_chunked_length,
            preserve_case: manager.http1.header_case == culvert_model::HeaderCase::Preserve,
            underscores: manager.underscores,
        }
    }
}

/// Parses the request head at the start of `buf` into `out`, which is cleared first.
///
/// Returns how many bytes the head takes and how the body after it is delimited; `None` when the head is not complete
/// yet: call again with the same bytes and more. The result does not depend on how often that happens.
///
/// # Errors
/// The first [`Fault`] of the head, also of an incomplete one that no further byte could mend.
pub fn parse_request(
    buf: &[u8],
    opts: &RequestOptions,
    out: &mut RequestHead,
) -> Result<Option<(usize, Framing)>, Fault> {
    let _ = (buf, opts, out);
    Ok(None)
}
