//! HTTP/1.1 on the wire (RFC 9112): heads, bodies and connection decisions.
//!
//! A connection is driven like this: give the unread bytes to [`parse_request`] or [`parse_response`] until it returns
//! a head; hand its [`Framing`] to a [`BodyDecoder`] and the bytes after the head to [`BodyDecoder::decode`] until it
//! is done; start again. What goes out is written by [`encode_request`], [`encode_response`] and the chunk functions.

mod body;
mod connection;
mod encode;
mod fault;
mod field;
mod request;
mod response;
mod scan;

pub use body::{BodyDecoder, BodyLimits, Step};
pub use connection::{
    accepts_trailers, expects_continue, has_token, keep_alive, remove_hop_by_hop, upgrade, upgrade_accepted,
};
pub use encode::{
    CHUNK_FOOTER, Decimal, encode_chunk_header, encode_continue, encode_last_chunk, encode_request,
    encode_response, push_decimal, reason_phrase,
};
pub use fault::{Fault, INTENDED_DIFFERENCES, IntendedDifference};
pub use field::is_field;
pub use request::{RequestOptions, parse_request};
pub use response::{ResponseOptions, parse_response};

pub(crate) use field::decimal;

/// How the body of a message is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// Chunked coding; trailers may follow.
    Chunked,
    /// `content-length`, in bytes. 0 when the message says so itself; see [`Framing::None`].
    Length(u64),
    /// No body, and no field that says so.
    None,
    /// The connection becomes opaque: an accepted CONNECT or a 101. Whether a *request* asks for an upgrade is
    /// [`upgrade`]'s to say.
    Tunnel,
    /// Everything until the peer closes. Responses only.
    UntilClose,
}

impl Framing {
    /// Whether no body byte can follow.
    #[must_use]
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}
