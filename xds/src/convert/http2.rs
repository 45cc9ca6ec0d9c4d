//! How HTTP/2 is spoken, on either side.

use culvert_model::Http2Options;
use envoy_types::pb::{envoy::config::core::v3::Http2ProtocolOptions, google::protobuf::UInt32Value};

use super::core;
use crate::at::At;

/// `Http2ProtocolOptions`
pub(super) fn options(at: &At<'_>, options: &Http2ProtocolOptions) -> Option<Http2Options> {
    let default = Http2Options::default();
    let keepalive = options.connection_keepalive.as_ref();
    let at = at.field("connection_keepalive");
    let interval = keepalive.and_then(|keepalive| keepalive.interval.as_ref());
    let idle = keepalive.and_then(|keepalive| keepalive.connection_idle_interval.as_ref());
    let timeout = keepalive.and_then(|keepalive| keepalive.timeout.as_ref());
    let jitter = keepalive.and_then(|keepalive| keepalive.interval_jitter.as_ref());
    let or = |given: Option<&UInt32Value>, default: u32| given.map_or(default, |given| given.value);
    #[expect(deprecated, reason = "it still takes effect where its successor is not given")]
    let stream_error = options.stream_error_on_invalid_http_messaging;
    let successor = options.override_stream_error_on_invalid_http_message.as_ref();
    Some(Http2Options {
        hpack_table_size: or(options.hpack_table_size.as_ref(), default.hpack_table_size),
        max_concurrent_streams: or(options.max_concurrent_streams.as_ref(), default.max_concurrent_streams),
        stream_window: options.initial_stream_window_size.as_ref().map(|size| size.value),
        connection_window: options.initial_connection_window_size.as_ref().map(|size| size.value),
        max_outbound_control_frames: or(
            options.max_outbound_control_frames.as_ref(),
            default.max_outbound_control_frames,
        ),
        max_empty_frames: or(
            options.max_consecutive_inbound_frames_with_empty_payload.as_ref(),
            default.max_empty_frames,
        ),
        max_priority_frames_per_stream: or(
            options.max_inbound_priority_frames_per_stream.as_ref(),
            default.max_priority_frames_per_stream,
        ),
        max_window_updates_per_data_frame: or(
            options.max_inbound_window_update_frames_per_data_frame_sent.as_ref(),
            default.max_window_updates_per_data_frame,
        ),
        stream_error_on_invalid: successor.map_or(stream_error, |given| given.value),
        allow_connect: options.allow_connect,
        keepalive_interval: core::timeout(&at.field("interval"), interval, None)?,
        keepalive_idle: core::timeout(&at.field("connection_idle_interval"), idle, None)?,
        keepalive_timeout: core::timeout(&at.field("timeout"), timeout, None)?,
        keepalive_jitter: jitter
            .map_or(default.keepalive_jitter, |it| (it.value.clamp(0.0, 100.0) * 10_000.0) as u32),
    })
}
