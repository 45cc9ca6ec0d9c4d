//! Codecs: bytes to a request head and a body stream, and back. Nothing outside this room knows the wire.

mod client;
mod detour;
pub mod h1;
pub mod h2;
pub mod h3;
mod server;

pub use client::ClientStream;
pub use detour::{Decoder, Detour, Encoder};
pub use server::ServerStream;

use culvert_proto::h1::Fault;
use culvert_ring::Chunk;

/// What a body brings next.
pub enum Body {
    /// Bytes, at least one.
    Data(Chunk),
    /// The end; trailers, if any, are complete.
    End,
}

/// Why no more of a message can be had.
#[derive(Debug)]
pub enum ReceiveError {
    /// The codec found a violation, and has told the peer.
    Broken,
    /// The peer closed between messages.
    Closed,
    /// The body is not encoded as its head says.
    Encoding,
    /// The bytes violate the protocol.
    Fault(Fault),
    /// The connection failed (reset, timed out).
    Io(std::io::Error),
    /// The peer refused the stream without looking at it (REFUSED_STREAM).
    Refused,
    /// The peer reset the stream.
    Reset,
    /// The peer closed in the middle of a message.
    Truncated,
}

impl From<Fault> for ReceiveError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
