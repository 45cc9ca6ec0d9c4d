//! One direction of a stream's body, the same for both roles.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use culvert_proto::Headers;
use culvert_ring::Chunk;
use h2::{Reason, RecvStream, SendStream};

use super::convert;
use crate::http::codec::{Body, ReceiveError};

/// What a stream receives.
pub(super) struct Incoming {
    stream: RecvStream,
    /// Bytes that were handed on and still count against the windows. They are given back when the next piece is asked
    /// for: by then the other side had room for them.
    held: usize,
    trailers: Option<Headers>,
    ended: bool,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, held: 0, trailers: None, ended: false }
    }

    /// Whether everything has been received and taken.
    pub(super) fn is_ended(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        self.give_back();
        if self.ended {
            return Poll::Ready(Ok(Body::End));
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.held = bytes.len();
                    return Poll::Ready(Ok(Body::Data(Chunk::Bytes(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => break,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        self.trailers = trailers.map(|fields| {
            let mut headers = Headers::new();
            convert::fields_from(&fields, &mut headers);
            headers
        });
        self.ended = true;
        Poll::Ready(Ok(Body::End))
    }

    pub(super) fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take().filter(|trailers| !trailers.is_empty())
    }

    fn give_back(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            // It fails when the stream is gone, whose windows nobody needs then.
            let _ = self.stream.flow_control().release_capacity(held);
        }
    }
}

/// What a stream sends.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    ended: bool,
}

impl Outgoing {
    /// `ended`: the head said that nothing follows.
    pub(super) fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { stream, ended }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Ready while the windows have room for more.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended || self.stream.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        self.stream.reserve_capacity(1);
        loop {
            return Poll::Ready(match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(0)) => continue,
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) | None => Err(io::ErrorKind::ConnectionReset.into()),
            });
        }
    }

    pub(super) fn send(&mut self, chunk: Chunk) {
        if self.ended {
            return;
        }
        let bytes = match chunk {
            Chunk::Bytes(bytes) => bytes,
            Chunk::Lease(lease) => Bytes::copy_from_slice(&lease),
            Chunk::Static(bytes) => Bytes::from_static(bytes),
            Chunk::Vec(bytes) => bytes.into(),
        };
        // A stream that was reset takes nothing; whoever waits for it is told.
        let _ = self.stream.send_data(bytes, false);
    }

    pub(super) fn finish(&mut self, trailers: Option<&Headers>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let fields = trailers.map(convert::fields_of).filter(|fields| !fields.is_empty());
        let _ = match fields {
            Some(fields) => self.stream.send_trailers(fields),
            None => self.stream.send_data(Bytes::new(), true),
        };
    }

    /// Ready when the peer reset the stream, or the connection failed.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        self.ended = true;
        self.stream.send_reset(reason);
    }
}
