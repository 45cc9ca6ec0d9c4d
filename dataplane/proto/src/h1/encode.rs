//! Writing heads and chunks.

use culvert_model::HeaderCase;

use crate::{Headers, RequestHead, ResponseHead, h1::Framing};

/// What follows the data of each chunk.
pub const CHUNK_FOOTER: &[u8] = b"\r\n";

/// Appends a request head: `METHOD path HTTP/1.1`, `host`, the fields, the framing, a blank line.
///
/// The framing fields come from `body` alone: `content-length` and `transfer-encoding` among the headers are not
/// trusted, they only mark the place and the spelling.
pub fn encode_request(head: &RequestHead, body: Framing, case: HeaderCase, out: &mut Vec<u8>) {
    let _ = (head, body, case, out);
}

/// Appends a response head: `HTTP/1.1 status reason`, the fields, the framing, a blank line.
///
/// As in [`encode_request`], but with [`Framing::None`] a `content-length` of the headers stays (HEAD, 304) unless the
/// status forbids it (1xx, 204).
pub fn encode_response(head: &ResponseHead, body: Framing, case: HeaderCase, out: &mut Vec<u8>) {
    let _ = (head, body, case, out);
}

/// Appends `HTTP/1.1 100 Continue` with its blank line.
pub fn encode_continue(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Appends the line before a chunk of `len` bytes. After them goes [`CHUNK_FOOTER`]. `len` must not be 0, which would
/// end the body.
pub fn encode_chunk_header(len: usize, out: &mut Vec<u8>) {
    let _ = (len, out);
}

/// Appends the last chunk and the trailers.
pub fn encode_last_chunk(trailers: &Headers, case: HeaderCase, out: &mut Vec<u8>) {
    let _ = (trailers, case, out);
}

/// Appends a number in decimal.
pub fn push_decimal(number: u64, out: &mut Vec<u8>) {
    let _ = (number, out);
}

/// The reason phrase of a status (RFC 9110 section 15); empty for an unknown one.
#[must_use]
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        _ => "",
    }
}
