//! HTTP/2 on either side (`config.core.v3.Http2ProtocolOptions`).

use std::time::Duration;

/// `config.core.v3.Http2ProtocolOptions`, with the defaults of Envoy 1.40.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Http2Options {
    /// `hpack_table_size`: 4096 bytes.
    pub hpack_table_size: u32,
    /// `max_concurrent_streams`: 1024.
    pub max_concurrent_streams: u32,
    /// `initial_stream_window_size` in bytes, 65,535 to 2^31-1: [`Http2Options::STREAM_WINDOW`].
    pub stream_window: Option<u32>,
    /// `initial_connection_window_size` in bytes, 65,535 to 2^31-1: [`Http2Options::CONNECTION_WINDOW`].
    pub connection_window: Option<u32>,
    /// `max_outbound_control_frames`: 1000.
    pub max_outbound_control_frames: u32,
    /// `max_consecutive_inbound_frames_with_empty_payload`: 1.
    pub max_empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`: 100.
    pub max_priority_frames_per_stream: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`: 10.
    pub max_window_updates_per_data_frame: u32,
    /// `override_stream_error_on_invalid_http_message`, or `stream_error_on_invalid_http_messaging`: false. Whether an
    /// invalid message ends its stream only, not the connection.
    pub stream_error_on_invalid: bool,
    /// `allow_connect`: false. Whether clients may ask for other protocols than HTTP on a stream (RFC 8441).
    pub allow_connect: bool,
    /// `connection_keepalive.interval`: off.
    pub keepalive_interval: Option<Duration>,
    /// `connection_keepalive.connection_idle_interval`: off. A stream to an upstream that was silent for longer has it pinged.
    pub keepalive_idle: Option<Duration>,
    /// `connection_keepalive.timeout`: how long an answer may take.
    pub keepalive_timeout: Option<Duration>,
    /// `connection_keepalive.interval_jitter` in millionths of the interval: 15 %.
    pub keepalive_jitter: u32,
}

impl Http2Options {
    /// Bytes of a stream's window when none is configured: 16 MiB.
    pub const STREAM_WINDOW: u32 = 16 << 20;
    /// Bytes of a connection's window when none is configured: 24 MiB.
    pub const CONNECTION_WINDOW: u32 = 24 << 20;
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4_096,
            max_concurrent_streams: 1_024,
            stream_window: None,
            connection_window: None,
            max_outbound_control_frames: 1_000,
            max_empty_frames: 1,
            max_priority_frames_per_stream: 100,
            max_window_updates_per_data_frame: 10,
            stream_error_on_invalid: false,
            allow_connect: false,
            keepalive_interval: None,
            keepalive_idle: None,
            keepalive_timeout: None,
            keepalive_jitter: 150_000,
        }
    }
}
