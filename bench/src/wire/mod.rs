//! The little HTTP both ends share: message bodies as they come off the wire. No I/O.

mod body;

pub use body::{BodyDecoder, BodyError, Piece};

/// Largest message head either end accepts, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most header fields in one message head.
pub const HEADERS_MAX: usize = 128;

/// The byte at `offset` of every generated body, so that a receiver can check what it got without being told.
pub fn pattern(offset: u64) -> u8 {
    // A prime below 256 keeps the pattern out of step with buffer sizes, which are powers of two.
    (offset % u64::from(PATTERN_PERIOD)) as u8
}

const PATTERN_PERIOD: u8 = 251;

/// Appends bytes `from..from + len` of the generated body to `out`.
pub fn append_pattern(out: &mut Vec<u8>, from: u64, len: usize) {
    out.extend((from..from + len as u64).map(pattern));
}

/// A gRPC message as it stands in a body: not compressed, its length in four bytes, itself.
pub fn grpc_message(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}
