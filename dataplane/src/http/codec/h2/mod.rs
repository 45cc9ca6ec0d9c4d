//! HTTP/2 over a [`crate::tls::Transport`], spoken by the `h2` crate inside the worker: no runtime but ours drives it.
//!
//! `wire` carries its bytes and watches the frames, `convert` turns its heads into ours and back, `connection` and
//! `server` are the client's side, `client` the upstream's.

mod body;
mod client;
mod connection;
mod convert;
mod keepalive;
mod server;
mod wire;

pub use client::{ClientConn, ClientStream, Opener, STREAMS_UNTIL_SETTINGS};
pub use connection::{Request, ServerConn};
pub use server::ServerStream;
pub use wire::{Owner, Wire};

use crate::http::codec::ReceiveError;

impl From<h2::Error> for ReceiveError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            return Self::Io(error.into_io().unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into()));
        }
        let reason = error.reason();
        match (error.is_reset(), error.is_remote()) {
            (true, true) if reason == Some(h2::Reason::REFUSED_STREAM) => Self::Refused,
            (true, true) => Self::Reset,
            (true, false) => Self::Broken,
            // The peer goes away, for whatever reason, and says that it has not looked at this stream: the codec tells only
            // those that are above the last one.
            (false, true) if error.is_go_away() => Self::Refused,
            (false, false) if error.is_go_away() && error.is_library() => Self::Broken,
            _ => Self::Closed,
        }
    }
}

/// How much of one stream may wait in the codec, in bytes.
fn send_buffer(buffer_limit_bytes: usize) -> usize {
    buffer_limit_bytes.clamp(1, 256 * 1024)
}
