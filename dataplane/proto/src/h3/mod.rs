//! HTTP/3 as bytes: frames and settings (RFC 9114), and field sections without dynamic table (RFC 9204). QUIC is not known
//! here.

pub mod frame;
pub mod qpack;
mod settings;
mod table;
pub mod varint;

pub use settings::Settings;

use thiserror::Error;

/// Error codes (RFC 9114, section 8.1; RFC 9204, section 6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Code {
    /// `H3_NO_ERROR`
    NoError = 0x100,
    /// `H3_GENERAL_PROTOCOL_ERROR`
    GeneralProtocolError = 0x101,
    /// `H3_INTERNAL_ERROR`
    InternalError = 0x102,
    /// `H3_STREAM_CREATION_ERROR`
    StreamCreationError = 0x103,
    /// `H3_CLOSED_CRITICAL_STREAM`
    ClosedCriticalStream = 0x104,
    /// `H3_FRAME_UNEXPECTED`
    FrameUnexpected = 0x105,
    /// `H3_FRAME_ERROR`
    FrameError = 0x106,
    /// `H3_EXCESSIVE_LOAD`
    ExcessiveLoad = 0x107,
    /// `H3_ID_ERROR`
    IdError = 0x108,
    /// `H3_SETTINGS_ERROR`
    SettingsError = 0x109,
    /// `H3_MISSING_SETTINGS`
    MissingSettings = 0x10a,
    /// `H3_REQUEST_REJECTED`
    RequestRejected = 0x10b,
    /// `H3_REQUEST_CANCELLED`
    RequestCancelled = 0x10c,
    /// `H3_REQUEST_INCOMPLETE`
    RequestIncomplete = 0x10d,
    /// `H3_MESSAGE_ERROR`
    MessageError = 0x10e,
    /// `H3_CONNECT_ERROR`
    ConnectError = 0x10f,
    /// `H3_VERSION_FALLBACK`
    VersionFallback = 0x110,
    /// `QPACK_DECOMPRESSION_FAILED`
    DecompressionFailed = 0x200,
    /// `QPACK_ENCODER_STREAM_ERROR`
    EncoderStreamError = 0x201,
    /// `QPACK_DECODER_STREAM_ERROR`
    DecoderStreamError = 0x202,
}

/// What a peer did that the protocol does not allow.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Violation {
    /// A control stream, or one of QPACK, was closed.
    #[error("a critical stream was closed")]
    CriticalStream,
    /// A field section refers to what is not there, or is not whole.
    #[error("bad field section")]
    FieldSection,
    /// A frame is not what its type says.
    #[error("bad frame")]
    Frame,
    /// An identifier that cannot be.
    #[error("bad identifier")]
    Id,
    /// A message that is malformed (RFC 9114, section 4.1.2).
    #[error("malformed message")]
    Message,
    /// The control stream does not begin with settings.
    #[error("missing settings")]
    MissingSettings,
    /// A setting that cannot be.
    #[error("bad settings")]
    Settings,
    /// A stream that there is already, or that only the other side may open.
    #[error("unexpected stream")]
    Stream,
    /// More than is taken.
    #[error("excessive load")]
    TooMuch,
    /// A stream ended in the middle of a message.
    #[error("incomplete message")]
    Truncated,
    /// A frame at a place where it may not be.
    #[error("unexpected frame")]
    UnexpectedFrame,
}

impl Violation {
    /// The code that tells the peer.
    pub fn code(self) -> Code {
        match self {
            Self::CriticalStream => Code::ClosedCriticalStream,
            Self::FieldSection => Code::DecompressionFailed,
            Self::Frame => Code::FrameError,
            Self::Id => Code::IdError,
            Self::Message => Code::MessageError,
            Self::MissingSettings => Code::MissingSettings,
            Self::Settings => Code::SettingsError,
            Self::Stream => Code::StreamCreationError,
            Self::TooMuch => Code::ExcessiveLoad,
            Self::Truncated => Code::RequestIncomplete,
            Self::UnexpectedFrame => Code::FrameUnexpected,
        }
    }

    /// Whether it ends the connection, and not only the stream it happened on.
    pub fn ends_connection(self) -> bool {
        !matches!(self, Self::Message | Self::TooMuch | Self::Truncated)
    }
}
