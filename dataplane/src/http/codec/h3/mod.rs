//! HTTP/3 over a QUIC connection of the worker (`culvert_quic`). Whoever has a stream drives it: a request's task reads its
//! stream itself, and what it writes goes to the connection at once; only what waits for credit is left to the connection's
//! task.
//!
//! `session` is what the streams of a connection share: control streams, settings, GOAWAY; `receive` and `send` are the
//! directions of a stream, `convert` turns field sections into heads and back, `server` is the client's side, `client` the
//! upstream's.

mod client;
mod convert;
mod receive;
mod send;
mod server;
mod session;

pub use client::{ClientStream, Opener};
pub use server::{Received, ServerStream};
pub use session::{Role, Session};

use culvert_model::QuicOptions;
use culvert_proto::h3::{Code, Violation};
use culvert_quic::{ConnectionError, IdleTimeout, MtuDiscoveryConfig, StreamError, TransportConfig, VarInt};

use crate::http::codec::ReceiveError;

/// Streams in one direction that a peer may open: three are needed, others mean nothing.
const UNI_STREAMS: u32 = 16;

/// Bytes that may be on their way on a connection.
const SEND_WINDOW: u64 = 8 << 20;

/// The longest datagrams that are tried: those of a path with jumbo frames.
const DATAGRAM_MAX: u16 = 8_952;

/// How QUIC is spoken.
pub fn transport(options: &QuicOptions, role: Role) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let streams = if role == Role::Server { options.max_concurrent_streams } else { 0 };
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(options.stream_window))
        .receive_window(VarInt::from_u32(options.connection_window))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        // One that is too long to be said is as good as none.
        .max_idle_timeout(IdleTimeout::try_from(options.idle_timeout).ok());
    transport
}

/// An error code as QUIC has it.
pub fn code(code: Code) -> VarInt {
    VarInt::from_u32(code as u32)
}

impl From<StreamError> for ReceiveError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(reason) | StreamError::Stopped(reason)
                if reason == code(Code::RequestRejected) =>
            {
                Self::Refused
            }
            StreamError::Reset(_) | StreamError::Stopped(_) => Self::Reset,
            StreamError::Connection(ConnectionError::TimedOut | ConnectionError::Reset) => {
                Self::Io(std::io::ErrorKind::TimedOut.into())
            }
            StreamError::Connection(ConnectionError::LocallyClosed) => Self::Broken,
            StreamError::Connection(_) | StreamError::Closed => Self::Closed,
        }
    }
}

impl From<Violation> for ReceiveError {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Truncated => Self::Truncated,
            _ => Self::Broken,
        }
    }
}
