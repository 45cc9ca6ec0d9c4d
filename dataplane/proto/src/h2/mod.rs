//! HTTP/2 on the wire as far as it is looked at beside its codec (RFC 9113 section 4.1): frame headers, what too many of
//! them say about a peer, and what the codec does not tell of a client's requests.

mod frame;
mod guard;
mod heads;
mod hpack;

pub use frame::{FrameHeader, FrameKind, FrameScanner, PREFACE};
pub use guard::{FrameGuard, FrameLimits, Violation};
pub use heads::TEXT_MAX;
pub use hpack::{Block, BlockReader, FRAGMENT_MAX, Malformed, TABLE_SIZE};
