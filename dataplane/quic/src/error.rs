//! Why a stream cannot go on.

use quinn_proto::{ConnectionError, VarInt};
use thiserror::Error;

/// What ended a stream, or the use of it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StreamError {
    /// The connection has ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The peer gave up sending (RESET_STREAM), with the application's code.
    #[error("the peer has reset the stream with code {0}")]
    Reset(VarInt),
    /// The peer does not want any more (STOP_SENDING), with the application's code.
    #[error("the peer has stopped the stream with code {0}")]
    Stopped(VarInt),
    /// It was finished, reset or stopped on this side.
    #[error("the stream was closed")]
    Closed,
}
