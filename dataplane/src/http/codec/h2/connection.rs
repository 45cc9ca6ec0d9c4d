//! A client's connection: requests in, each with a stream of its own.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use culvert_model::Http2Options;
use culvert_proto::h2::Violation;
use h2::{Reason, server};

use super::{
    keepalive::Keepalive,
    server::ServerStream,
    wire::{Io, Misconduct, Wire},
};

/// A downstream connection.
pub struct ServerConn {
    wire: Rc<Wire>,
    conn: server::Connection<Io, Bytes>,
    keepalive: Option<Keepalive>,
    broken: bool,
}

/// A request as the codec has it, with the stream it came on.
pub struct Request {
    /// Its head.
    pub parts: http::request::Parts,
    /// The rest.
    pub stream: ServerStream,
}

/// Largest frame taken, in bytes (SETTINGS_MAX_FRAME_SIZE): the protocol's own.
const FRAME_MAX: u32 = 16_384;

impl ServerConn {
    /// Waits for the client's preface and answers it.
    ///
    /// # Errors
    /// What came is not HTTP/2, or the connection failed.
    pub async fn handshake(
        wire: Rc<Wire>,
        options: &Http2Options,
        header_bytes: usize,
        buffer_limit_bytes: usize,
    ) -> Result<Self, h2::Error> {
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(options.stream_window.unwrap_or(Http2Options::STREAM_WINDOW))
            .initial_connection_window_size(
                options.connection_window.unwrap_or(Http2Options::CONNECTION_WINDOW),
            )
            .max_concurrent_streams(options.max_concurrent_streams)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
            .header_table_size(options.hpack_table_size)
            .max_send_buffer_size(super::send_buffer(buffer_limit_bytes));
        if options.allow_connect {
            builder.enable_connect_protocol();
        }
        let mut conn = builder.handshake(Io(wire.clone())).await?;
        let keepalive = Keepalive::new(conn.ping_pong(), options);
        Ok(Self { wire, conn, keepalive, broken: false })
    }

    /// The next request; `None` when the connection is over. Everything on the connection moves while this is polled.
    ///
    /// # Errors
    /// The client broke the protocol, or does not answer.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, h2::Error>>> {
        loop {
            match self.conn.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let (parts, body) = request.into_parts();
                    let stream = ServerStream::new(self.wire.clone(), body, respond);
                    return Poll::Ready(Some(Ok(Request { parts, stream })));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if let Some(misconduct) = self.wire.take_misconduct().filter(|_| !self.broken) {
                self.broken = true;
                self.wire.count(misconduct);
                log::debug!(target: "http", "connection closed: {misconduct:?}");
                self.conn.abrupt_shutdown(match misconduct {
                    Misconduct::Frames(Violation::HeaderCompression) => Reason::COMPRESSION_ERROR,
                    Misconduct::Frames(Violation::HeaderFrames) | Misconduct::InvalidMessage => {
                        Reason::PROTOCOL_ERROR
                    }
                    Misconduct::Frames(_) => Reason::ENHANCE_YOUR_CALM,
                });
                continue;
            }
            if let Some(keepalive) = &mut self.keepalive
                && keepalive.poll(cx).is_ready()
            {
                self.wire.stats.keepalive_timeout.inc();
                return Poll::Ready(None);
            }
            return Poll::Pending;
        }
    }

    /// Whether the client misbehaved so that the connection is being closed.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Says that no further requests are taken, and ends when the last one has (RFC 9113 section 6.8).
    pub fn drain(&mut self) {
        self.conn.graceful_shutdown();
    }

    /// Ends it now.
    pub fn close(&mut self, reason: Reason) {
        self.conn.abrupt_shutdown(reason);
    }
}
