//! HTTP/2 on the wire as far as it is looked at beside its codec (RFC 9113 section 4.1): frame headers, and what too
//! many of them say about a peer.

mod frame;
mod guard;

pub use frame::{FrameHeader, FrameKind, FrameScanner, PREFACE};
pub use guard::{FrameGuard, FrameLimits, Violation};
