//! QUIC and HTTP/3 on either side (`config.core.v3.Http3ProtocolOptions`, `config.core.v3.QuicProtocolOptions`).

use std::time::Duration;

/// `config.core.v3.Http3ProtocolOptions`, but for what is [`QuicOptions`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Http3Options {
    /// `override_stream_error_on_invalid_http_message`: false. Whether an invalid message ends its stream only, not the
    /// connection.
    pub stream_error_on_invalid: bool,
    /// `allow_extended_connect`: false. Whether clients may ask for other protocols than HTTP on a stream (RFC 9220).
    pub allow_connect: bool,
}

/// `config.core.v3.QuicProtocolOptions`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct QuicOptions {
    /// `max_concurrent_streams`: 100. Streams that the peer may have open at once.
    pub max_concurrent_streams: u32,
    /// `initial_stream_window_size` in bytes: [`QuicOptions::STREAM_WINDOW`].
    pub stream_window: u32,
    /// `initial_connection_window_size` in bytes: [`QuicOptions::CONNECTION_WINDOW`].
    pub connection_window: u32,
    /// After such a silence the connection is over. Of a listener `quic_options.idle_timeout`: 300 s; of a cluster
    /// `idle_network_timeout`: 30 s.
    pub idle_timeout: Duration,
}

impl QuicOptions {
    /// Bytes of a stream's window when none is configured: 16 MiB, as with HTTP/2.
    pub const STREAM_WINDOW: u32 = 16 << 20;
    /// Bytes of a connection's window when none is configured: 24 MiB, as with HTTP/2.
    pub const CONNECTION_WINDOW: u32 = 24 << 20;
}

/// `config.listener.v3.QuicProtocolOptions`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct QuicListener {
    /// Of its connections.
    pub options: QuicOptions,
    /// `crypto_handshake_timeout`: 20 s.
    pub handshake_timeout: Duration,
}
